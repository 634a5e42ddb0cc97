package sysctl

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes/host"
)

// liveKeys are n readable keys of this machine with their values. Where it has
// fewer, they come again: what is measured is the reading.
func liveKeys(tb testing.TB, n int) []setting {
	tb.Helper()
	var list []setting
	for _, folder := range []string{"net/ipv4", "net/core", "net/ipv6", "vm"} {
		_ = fs.WalkDir(os.DirFS("/proc/sys"), folder, func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || triggers[name] || len(list) >= n {
				return nil
			}
			// Some keys differ at each look, or are long.
			first, err := os.ReadFile(filepath.Join("/proc/sys", name))
			again, _ := os.ReadFile(filepath.Join("/proc/sys", name))
			if err == nil && bytes.Equal(first, again) && len(first) > 0 && len(first) < 256 {
				list = append(list, setting{key: name, value: strings.TrimSpace(string(first)), source: "test"})
			}
			return nil
		})
	}
	if len(list) < 50 {
		tb.Skipf("only %d sysctls can be read here", len(list))
	}
	for len(list) < n {
		list = append(list, list[:min(len(list), n-len(list))]...)
	}
	return list
}

// steadyProbe compares n live keys of this machine, all in order.
func steadyProbe(tb testing.TB, n int) *Probe {
	tb.Helper()
	sysctls, err := host.OpenSysctls("/proc/sys")
	if err != nil {
		tb.Skip(err)
	}
	tb.Cleanup(func() { sysctls.Close() })
	p := New(nil, sysctls, nil, Config{})
	later := time.Now().Add(time.Hour)
	p.table, p.readAt, p.triedAt = &table{}, later, later // the declarations are not read
	p.table.watchAll(liveKeys(tb, n), nil)
	if _, err := p.Check(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return p
}

// naive is the same look by os.ReadFile.
func naive(p *Probe) (drifted int) {
	for i := range p.table.watch {
		w := &p.table.watch[i]
		value, err := os.ReadFile("/proc/sys/" + w.key)
		if err != nil || string(bytes.TrimSuffix(value, []byte("\n"))) != w.value {
			drifted++
		}
	}
	return drifted
}

// TestSteadyLookAllocatesNothing holds a look at which nothing changed to no
// allocation, in order and in drift.
func TestSteadyLookAllocatesNothing(t *testing.T) {
	for _, n := range []int{50, 200, 1000} {
		p := steadyProbe(t, n)
		for _, state := range []string{"in order", "drifted"} {
			if state == "drifted" {
				p.table.watch[0].value = "-12345"
				p.look, p.err = p.judge()
				if len(p.look.Findings) == 0 {
					t.Fatal("no finding")
				}
			}
			if got := testing.AllocsPerRun(20, func() { _, _ = p.Check(t.Context()) }); got != 0 {
				t.Errorf("%d keys %s: a look allocates %v times", n, state, got)
			}
		}
	}
}

// medians of looks and of naive twins, by turns.
func medians(p *Probe) (look, loop time.Duration) {
	var looks, loops []time.Duration
	for range 31 {
		start := time.Now()
		_, _ = p.Check(context.Background())
		middle := time.Now()
		naive(p)
		looks, loops = append(looks, middle.Sub(start)), append(loops, time.Since(middle))
	}
	slices.Sort(looks)
	slices.Sort(loops)
	return looks[len(looks)/2], loops[len(loops)/2]
}

// ratio is how many times as long the naive twin takes: the best of three, as the
// machine may be busy with something else for a while.
func ratio(p *Probe) (best float64) {
	for range 3 {
		look, loop := medians(p)
		best = max(best, float64(loop)/float64(look))
	}
	return best
}

// BenchmarkLook fails when a look is less than 8 times as fast as reading each key
// by os.ReadFile.
func BenchmarkLook(b *testing.B) {
	for _, n := range []int{50, 200, 1000} {
		p := steadyProbe(b, n)
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = p.Check(b.Context())
			}
			r := ratio(p)
			b.ReportMetric(r, "times-ReadFile")
			if r < 8 {
				b.Errorf("a look at %d keys is %.1f times as fast as os.ReadFile, want 8", n, r)
			}
		})
		b.Run(fmt.Sprintf("keys=%d/os.ReadFile", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				naive(p)
			}
		})
	}
}
