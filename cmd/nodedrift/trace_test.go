package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/sysctl"
)

// vm.stat_interval is how often the kernel folds statistics, in seconds: nobody
// notices a second more.
const tracedKey, tracedFile = "vm.stat_interval", "/proc/sys/vm/stat_interval"

// told is a publisher that keeps what happened.
type told chan agent.Happening

// Publish implements [agent.Publisher].
func (c told) Publish(happened []agent.Happening) {
	for _, h := range happened {
		c <- h
	}
}

// traceSysctl runs the tracer and an agent with the sysctl probe alone, which wants
// what is so now, on this machine. It returns a way to write the key.
func traceSysctl(t testing.TB) (d *daemon, happened told, set func(value int), wanted int) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	b, err := os.ReadFile(tracedFile)
	if err != nil {
		t.Skip(err)
	}
	if wanted, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(tracedFile, os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	set = func(value int) {
		if _, err := f.WriteAt(strconv.AppendInt(nil, int64(value), 10), 0); err != nil {
			t.Error(err)
		}
	}
	cfg, err := parseConfig(fmt.Appendf(nil, "probes: {sysctl: {every: 1h, expect: {%s: \"%d\"}}}\nreasons: {SysctlChanged: {hold: 0s, clear: 0s}}\n", tracedKey, wanted))
	if err != nil {
		t.Fatal(err)
	}
	node, err := host.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	d = &daemon{node: node, trace: newTracer(cfg, &runFlags{root: "/", bpf: flagOn}, node, log)}
	happened = make(told, 4096)
	probe := traced(sysctl.New(node.Root, node.Sysctl, node.Proc, section[sysctl.Config](cfg, "sysctl")), d.trace)
	d.agent = agent.New(agent.Config{Node: "node0", Log: log, Mono: host.Monotonic, Probes: []probes.Probe{probe}, Rules: cfg.rules(),
		Publishers: []agent.Publisher{happened}, Journal: journal{d.trace}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- d.trace.Run(ctx) }()
	<-d.trace.Tried()
	go func() { ended <- d.agent.Run(ctx) }()
	t.Cleanup(func() {
		set(wanted)
		f.Close()
		cancel()
		<-ended
		<-ended
		node.Close()
	})
	for _, s := range d.trace.States() {
		if s.Detector == "sysctl" && !s.Active {
			t.Skip(s.Reason)
		}
	}
	until(t, d, agent.False)
	return d, happened, set, wanted
}

// until waits for a status of the sysctl condition.
func until(t testing.TB, d *daemon, want agent.Status) agent.Condition {
	t.Helper()
	var c agent.Condition
	for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(5 * time.Millisecond) {
		for _, c = range d.agent.Snapshot().Conditions {
			if c.Type == "SysctlDrift" && c.Status == want {
				return c
			}
		}
	}
	t.Fatalf("the condition is %+v, want %s", c, want)
	return c
}

// A burst of writes is lost in part. The loss is counted and answered by a look,
// which finds what the last write left; memory stays.
func TestBurstOfWritesEndsInTheTruth(t *testing.T) {
	d, happened, set, wanted := traceSysctl(t)
	go func() {
		for range happened { // nobody reads it
		}
	}()
	lost := func() (n uint64) {
		for _, s := range d.trace.States() {
			n += s.Lost
		}
		return n
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 100_000 {
		set(wanted + i%2)
	}
	set(wanted + 1)
	began := time.Now()
	c := until(t, d, agent.True)
	if i := slices.IndexFunc(c.Findings, func(f agent.Finding) bool { return f.Subject == tracedKey }); i < 0 || c.Findings[i].Observed != strconv.Itoa(wanted+1) {
		t.Errorf("after the burst: %+v", c.Findings)
	}
	said := time.Since(began)
	time.Sleep(2 * time.Second) // losses are counted each second
	t.Logf("%s after the last write: %q; %d events were lost", said, c.Message, lost())
	if sources := d.agent.Snapshot().Sources; lost() > 0 && (len(sources) != 1 || sources[0].Lost != lost()) {
		t.Errorf("%d events were lost, and the agent counts %+v", lost(), sources)
	}
	set(wanted)
	until(t, d, agent.False)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
		t.Errorf("memory grew by %d KiB", grown>>10)
	}
}

// BenchmarkEventToFinding is the time from a write to the finding that names its
// writer, while something else keeps every processor busy. The median is held to
// 2 ms; nothing may be lost.
func BenchmarkEventToFinding(b *testing.B) {
	d, happened, set, wanted := traceSysctl(b)
	for range runtime.NumCPU() {
		busy := exec.Command("sh", "-c", "while :; do :; done")
		if err := busy.Start(); err != nil {
			b.Fatal(err)
		}
		defer busy.Wait()
		defer busy.Process.Kill()
	}
	next := func(kind agent.Kind) agent.Happening {
		for {
			select {
			case h := <-happened:
				if h.Kind == kind && h.Subject == tracedKey {
					return h
				}
			case <-time.After(10 * time.Second):
				b.Fatal("a write was not told")
			}
		}
	}
	var took []time.Duration
	for b.Loop() {
		time.Sleep(50 * time.Millisecond) // apart: looks keep 20 ms between them, and each write wakes twice
		began := time.Now()
		set(wanted + 1)
		h := next(agent.Raised)
		took = append(took, time.Since(began))
		if h.Actor == nil || h.Actor.PID != os.Getpid() {
			b.Fatalf("not named: %+v", h)
		}
		time.Sleep(50 * time.Millisecond)
		set(wanted)
		next(agent.Cleared)
	}
	slices.Sort(took)
	at := func(percent int) time.Duration { return took[len(took)*percent/100] }
	for name, percent := range map[string]int{"p50-ns": 50, "p95-ns": 95, "p99-ns": 99} {
		b.ReportMetric(float64(at(percent)), name)
	}
	if len(took) >= 100 && at(50) > 2*time.Millisecond {
		b.Errorf("the median is %s, want at most 2 ms", at(50))
	}
	for _, s := range d.trace.States() {
		if s.Detector == "sysctl" && s.Lost > 0 {
			b.Errorf("%d events were lost", s.Lost)
		}
	}
}
