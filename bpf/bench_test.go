package bpf

import (
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

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

// BenchmarkRejected is what an event that nobody asked for costs whoever causes it,
// by the kernel's own account of each program (about 20 ns of it are the account's).
// 10,000 of them in a second must take less than 0.5 % of a processor: 500 ns each.
func BenchmarkRejected(b *testing.B) {
	signal.Ignore(syscall.SIGTERM)
	defer signal.Reset(syscall.SIGTERM)
	value, err := os.ReadFile("/proc/sys/kernel/printk_ratelimit_burst")
	if err != nil {
		b.Fatal(err)
	}
	key, err := os.OpenFile("/proc/sys/kernel/printk_ratelimit_burst", os.O_RDWR, 0)
	if err != nil {
		b.Skip(err)
	}
	defer key.Close()
	port := closedPort(b)
	for _, kind := range []struct {
		name, detector string
		cause          func() error
	}{
		{"sysctl-write", sysctlDetector, func() error { _, err := key.WriteAt(value, 0); return err }},
		{"sysctl-read", sysctlDetector, func() error { _, err := key.ReadAt(make([]byte, len(value)), 0); return err }},
		{"exit", exitDetector, endThread},
		{"signal", signalDetector, func() error { return unix.Kill(os.Getpid(), unix.SIGTERM) }},
		{"clock-read", clockDetector, readClock}, // chronyd's, some times a minute
		{"tcp", tcpDetector, func() error {
			if c, err := net.Dial("tcp4", port); err == nil {
				c.Close()
			}
			return nil
		}},
	} {
		b.Run(kind.name, func(b *testing.B) {
			needBPF(b)
			without := perEvent(b, kind.cause)
			tr := tracedWith(b, Config{Sysctl: true, TCP: true, Clock: kind.detector == clockDetector}, "kernel/another")
			if tr.state(kind.detector).d.Load() == nil {
				b.Skip(tr.States())
			}
			programs := programsOf(b, tr.state(kind.detector).d.Load())
			stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
			if err != nil {
				b.Skip(err)
			}
			defer stats.Close()
			before := account(b, programs)
			heard := tr.state(kind.detector).events.Load()
			with := perEvent(b, kind.cause)
			for b.Loop() {
				if err := kind.cause(); err != nil {
					b.Fatal(err)
				}
			}
			used := account(b, programs)
			if used.RunCount == before.RunCount {
				b.Fatal("the program did not run")
			}
			cost := float64(used.Runtime-before.Runtime) / float64(used.RunCount-before.RunCount)
			b.ReportMetric(cost, "ns/rejected")
			b.ReportMetric(cost*1e4/1e9*100, "%CPU-at-10k/s")
			b.ReportMetric(with/without, "attached/not")
			if cost > 500 {
				b.Errorf("a rejected event takes %.0f ns, want at most 500", cost)
			}
			if n := tr.state(kind.detector).events.Load() - heard; n > 0 {
				b.Errorf("%d events of no interest were told", n)
			}
		})
	}
}

// perEvent is the least that a cause took on average, of some rounds.
func perEvent(b *testing.B, cause func() error) float64 {
	least := time.Hour
	const rounds, each = 5, 300
	for range rounds {
		began := time.Now()
		for range each {
			if err := cause(); err != nil {
				b.Fatal(err)
			}
		}
		least = min(least, time.Since(began))
	}
	return float64(least) / each
}

// closedPort is an address that nobody listens on.
func closedPort(b *testing.B) string {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// programsOf finds the programs behind a detector's links.
func programsOf(t testing.TB, d *detector) (all []*ebpf.Program) {
	t.Helper()
	for _, l := range d.links {
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		p, err := ebpf.NewProgramFromID(info.Program)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		all = append(all, p)
	}
	return all
}

// account adds up what programs ran.
func account(b *testing.B, programs []*ebpf.Program) (sum ebpf.ProgramStats) {
	for _, p := range programs {
		s, err := p.Stats()
		if err != nil {
			b.Fatal(err)
		}
		sum.Runtime += s.Runtime
		sum.RunCount += s.RunCount
	}
	return sum
}

// Taking in an event keeps nothing and, once its key is known, allocates nothing
// that stays.
func BenchmarkHeardWrite(b *testing.B) {
	tr := New(Config{Sysctl: true, Log: slog.New(slog.DiscardHandler)})
	tr.Watch([]string{"net/ipv4/ip_forward"})
	e := &sysctlEvent{Kind: sysctlWrite, By: actorEvent{PID: 7, Where: inside, Steps: 2}}
	copy(e.Key[:], "net/ipv4/ip_forward")
	copy(e.By.Names[0][:], "run-u5.service")
	copy(e.By.Names[1][:], "system.slice")
	s, w := tr.state(sysctlDetector), &writes{}
	tr.waking.Store(true)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		tr.heardWrite(s, w, e)
		n++
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := float64(after.Mallocs-before.Mallocs) / float64(n); n > 1000 && each > 12 {
		b.Errorf("%.1f allocations for an event, want at most 12", each)
	}
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 256<<10 {
		b.Errorf("%d events keep %d KiB", n, kept>>10)
	}
}

// BenchmarkSockets is what it costs to list the connections of kubelet and the agents, and
// what the table of a network namespace costs in their place.
func BenchmarkSockets(b *testing.B) {
	needBPF(b)
	tr := traced(b)
	b.Run("iterator", func(b *testing.B) {
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			n = 0
			if err := tr.Sockets(func(Socket) { n++ }); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(n), "told")
	})
	b.Run("table", func(b *testing.B) {
		for b.Loop() {
			if _, err := os.ReadFile("/proc/self/net/tcp"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
