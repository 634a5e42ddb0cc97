package bpf

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// needBPF skips a test where the kernel or the caller's rights do not allow it.
func needBPF(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		t.Skip("the kernel does not tell its types:", err)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := findTrees("/"); err != nil {
		t.Skip(err)
	}
}

// ear is a Hearer that notes that it was called.
type ear struct {
	changed chan struct{}
	lost    atomic.Uint64
}

func newEar() *ear { return &ear{changed: make(chan struct{}, 1)} }

func (e *ear) Changed() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}
func (e *ear) Saw(probes.Occurrence)   {}
func (e *ear) Lost(_ string, n uint64) { e.lost.Add(n) }

// traced runs a tracer until the test ends and waits until it listens.
func traced(t testing.TB, keys ...string) *Tracer {
	t.Helper()
	tr := New(Config{Root: "/", Sysctl: true, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	tr.Watch(keys)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-tr.tried:
	case <-time.After(10 * time.Second):
		t.Fatal("not attached after 10 s")
	}
	for _, s := range tr.States() {
		if !s.Active {
			t.Errorf("detector %s: %s", s.Detector, s.Reason)
		}
	}
	return tr
}

// inNetns runs a shell line in a network namespace of its own: what it writes to
// net.* is nobody else's.
func shell(t testing.TB, line string) int {
	t.Helper()
	cmd := exec.Command("sh", "-c", line)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return cmd.Process.Pid
}

// kernel.printk_ratelimit_burst is nobody's: no other test on this machine writes it.
const someKey = "kernel.printk_ratelimit_burst"

func TestWriteIsTracedToItsProcess(t *testing.T) {
	needBPF(t)
	tr := traced(t, "kernel/printk_ratelimit_burst")
	e := newEar()
	defer tr.OnWrite(e)()
	before := monotonic()
	pid := shell(t, "read v </proc/sys/kernel/printk_ratelimit_burst; echo $v >/proc/sys/kernel/printk_ratelimit_burst")
	select {
	case <-e.changed:
	case <-time.After(2 * time.Second):
		t.Fatal("a write woke nobody")
	}
	got, ok := tr.Who(probes.Key{Domain: "sysctl", Name: someKey}, before)
	if !ok || got.PID != pid || got.Comm != "sh" {
		t.Fatalf("written by %+v %v, want sh, pid %d", got, ok, pid)
	}
	if d := time.Since(got.Time); d < 0 || d > time.Minute {
		t.Errorf("written %s ago", d)
	}
	if _, ok := tr.Who(probes.Key{Domain: "sysctl", Name: someKey}, monotonic()); ok {
		t.Error("an act of before counts as one of after")
	}
	shell(t, "read v </proc/sys/kernel/printk_ratelimit; echo $v >/proc/sys/kernel/printk_ratelimit")
	time.Sleep(50 * time.Millisecond)
	if _, ok := tr.Who(probes.Key{Domain: "sysctl", Name: "kernel.printk_ratelimit"}, 0); ok {
		t.Error("a key that nobody watches is in the journal")
	}
}
