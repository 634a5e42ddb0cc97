package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// What tests on two kernels say of detectors becomes a table, with the reasons below it.
func TestTable(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "results.tsv")
	for kernel, said := range map[string][]string{
		"6.1": {"    kernel_test.go:108: 6.1.0-cloud: detector oom     active true ", "=== RUN   TestOther", "    clock_test.go:90: clock: active true"},
		"6.12+lockdown=confidentiality": {"    kernel_test.go:108: 6.12.1: detector oom     active true ",
			`    kernel_test.go:108: 6.12.1: detector sockets active false lockdown: "no"`},
	} {
		var all []verdict
		for _, line := range said {
			if v, ok := verdictOf(line); ok {
				all = append(all, v)
			}
		}
		if err := record(name, kernel, all); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	if err := showTable(&out, name); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"detector", "\noom ", "yes", "\nsockets ", "no", "\n6.12+lockdown=confidentiality, sockets: lockdown: \"no\"\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
