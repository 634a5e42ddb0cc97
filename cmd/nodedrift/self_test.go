package main

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/agent"
)

// Typed from proc_pid_status(5), with the sets of the pod: before the lock was taken
// and after.
const (
	free = "Name:\tnodedrift\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t1\nPid:\t17\nCapInh:\t0000000000000000\nCapPrm:\t000000c000001000\nCapEff:\t000000c000001000\n" +
		"CapBnd:\t000000c000001000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"
	locked = "Name:\tnodedrift\nPid:\t17\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n" +
		"CapBnd:\t000000c000001000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n"
)

func TestParseThread(t *testing.T) {
	t.Parallel()
	rights := []string{"NET_ADMIN", "PERFMON", "BPF"}
	for status, want := range map[string]thread{
		free:   {ID: 17, Effective: rights, Permitted: rights, Bounding: rights, NoNewPrivs: true, Filters: 1},
		locked: {ID: 17, Effective: []string{}, Permitted: []string{}, Bounding: rights, NoNewPrivs: true, Filters: 2},
		"Pid:\t1\nCapEff:\t000001ffffffffff\nCapPrm:\tjunk\nCapBnd:\t0000000000000001\n": {ID: 1, Effective: []string{"all"}, Permitted: []string{`unreadable: "junk"`}, Bounding: []string{"capability 0"}},
	} {
		if got := parseThread([]byte(status)); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v\nwant %+v", got, want)
		}
	}
}

func FuzzParseThread(f *testing.F) {
	f.Add(free)
	f.Add(locked)
	f.Fuzz(func(t *testing.T, status string) {
		th := parseThread([]byte(status))
		if len(th.Effective) > 64 || len(th.Permitted) > 64 || len(th.Bounding) > 64 {
			t.Errorf("%+v", th)
		}
	})
}

// Nothing is kept unless somebody asked for what needs it.
func TestNeeds(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]uint{
		"":                                     {unix.CAP_SYSLOG},
		"probes: {azurecni: {ebtables: true}}": {unix.CAP_SYSLOG, unix.CAP_NET_ADMIN},
		"probes: {azurecni: {ebtables: true, podGateway: true}}": {unix.CAP_SYSLOG, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN},
	} {
		cfg, err := parseConfig([]byte("mode: observe\n" + text))
		if err != nil {
			t.Fatal(err)
		}
		var got []uint
		for _, c := range needs(cfg) {
			got = append(got, c.bit)
			if c.bit == unix.CAP_SYSLOG && c.when == nil {
				t.Error("SYSLOG is kept though BPF tells")
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q keeps %v, want %v", text, got, want)
		}
	}
}

func TestSelfSaysWhatIsOpen(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	s := selfDocument{Version: "v1", PID: 7, Locks: []lockDoc{{"capabilities", true, ""}, {"landlock", false, "this kernel has no Landlock"}}, Writable: []string{"/run/nodedrift"},
		Threads:   []thread{{ID: 7, NoNewPrivs: true, Filters: 2}},
		Detectors: []detector{{Name: "sysctl", Why: "BPF is off"}, {Name: "oom", Active: true, Events: 3, Lost: 1}}, NotJudged: []string{"TaskHung: why"}}
	if err := s.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"lock landlock      OPEN         this kernel has no Landlock", "lock capabilities  holds", "writable: /run/nodedrift", "thread 7           CapEff none",
		"detector sysctl    OFF          BPF is off; 0 events", "detector oom       attached     3 events, 1 lost", "TaskHung: why"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, &out)
		}
	}
}

// What cannot be heard is in the table of status.
func TestStatusTellsWhatIsNotHeard(t *testing.T) {
	t.Parallel()
	d := &agent.Document{Node: "node0", Sources: []agent.Source{{Probe: "sysctl", Hearing: true}, {Probe: "chrony", Error: "no such bus"},
		{Probe: "bpf", Hearing: true, Error: "ClockStepped: detector clock: refused"}}}
	var out bytes.Buffer
	if err := (&cli{out: &out}).print(d, "table"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got, "bpf not judged ClockStepped: detector clock: refused node0: 0 drifting") || strings.Contains(got, "sysctl") {
		t.Error(got)
	}
}
