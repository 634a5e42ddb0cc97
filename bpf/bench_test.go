package bpf

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// BenchmarkWrite is what a write of a key costs its writer: not traced, traced but
// not watched, watched.
func BenchmarkWrite(b *testing.B) {
	const name = "/proc/sys/kernel/printk_ratelimit_burst"
	value, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		b.Skip(err)
	}
	defer f.Close()
	write := func(b *testing.B) {
		for b.Loop() {
			if _, err := f.WriteAt(value, 0); err != nil {
				b.Fatal(err)
			}
		}
	}
	read := func(b *testing.B) {
		buf := make([]byte, 32)
		for b.Loop() {
			if _, err := f.ReadAt(buf[:len(value)], 0); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("read/untraced", read)
	b.Run("untraced", write)
	b.Run("rejected", func(b *testing.B) { needBPF(b); traced(b, "kernel/another"); write(b) })
	b.Run("read/traced", func(b *testing.B) { needBPF(b); traced(b, "kernel/another"); read(b) })
	b.Run("emitted", func(b *testing.B) { needBPF(b); traced(b, "kernel/printk_ratelimit_burst"); write(b) })
}

// BenchmarkEventToGo is how long after a write the journal knows who did it, and
// a probe is woken: one event at a time, as they come.
func BenchmarkEventToGo(b *testing.B) {
	needBPF(b)
	tr := traced(b, "kernel/printk_ratelimit_burst")
	e := newEar()
	defer tr.OnWrite(e)()
	const name = "/proc/sys/kernel/printk_ratelimit_burst"
	value, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		b.Skip(err)
	}
	defer f.Close()
	var took []time.Duration
	for b.Loop() {
		time.Sleep(again + 5*time.Millisecond) // its second wake
		select {
		case <-e.changed:
		default:
		}
		began := monotonic()
		if _, err := f.WriteAt(value, 0); err != nil {
			b.Fatal(err)
		}
		<-e.changed
		took = append(took, monotonic()-began)
		if _, ok := tr.Who(probes.Key{Domain: "sysctl", Name: someKey}, began); !ok {
			b.Fatal("woken before the journal knew")
		}
	}
	slices.Sort(took)
	for name, at := range map[string]int{"p50-ns": 50, "p95-ns": 95, "p99-ns": 99} {
		b.ReportMetric(float64(took[len(took)*at/100]), name)
	}
}
