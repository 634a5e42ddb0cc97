package bpf

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// off checks that a tracer that traces nothing says why, shows every detector as
// inactive, names nobody, and goes on.
func off(t *testing.T, tr *Tracer, why string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- tr.Run(ctx) }()
	<-tr.Tried()
	tr.Watch([]string{"net/ipv4/ip_forward"})
	defer tr.OnWrite(newEar())()
	look, err := NewProbe(tr).Check(ctx)
	if !errors.Is(err, probes.ErrNotApplicable) || !strings.Contains(err.Error(), why) {
		t.Errorf("error %v, want one that says %q", err, why)
	}
	if len(look.Samples) != len(tr.States()) || len(look.NotJudged) != len(tr.States()) {
		t.Errorf("%d detectors, samples %v, not judged %q", len(tr.States()), look.Samples, look.NotJudged)
	}
	for _, s := range look.Samples {
		if s.Name != "bpf_detector_active" || s.Value != 0 {
			t.Errorf("%+v", s)
		}
	}
	for _, s := range look.NotJudged {
		if !strings.Contains(s, why) {
			t.Errorf("not judged %q, want why: %q", s, why)
		}
	}
	if !tr.ReadsLog() {
		t.Error("the kernel log is not read instead")
	}
	if a, ok := tr.Who(probes.Key{Domain: "sysctl", Name: "net.ipv4.ip_forward"}, 0); ok {
		t.Errorf("it names %+v", a)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		off(t, New(Config{Off: "BPF is off (--bpf=off)", Sysctl: true, Clock: true, Log: slog.New(slog.DiscardHandler)}), "BPF is off (--bpf=off)")
	})
}

// Whether the kernel log tells instead is said.
func TestOffSaysWhatTheLogTells(t *testing.T) {
	t.Parallel()
	tr := New(Config{Off: "BPF is off", Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- tr.Run(ctx) }()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := NewProbe(tr).Check(ctx); strings.Contains(err.Error(), "BPF is off; the kernel log tells") || strings.Contains(err.Error(), "BPF is off; nor does the kernel log: ") {
			t.Log(err)
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal("the kernel log was not tried")
		}
	}
	cancel()
	<-ended
}

// A kernel without BTF: the folder that holds the types is hidden, in a mount
// namespace of the test's own.
func TestWithoutTypes(t *testing.T) {
	if os.Getenv("NODEDRIFT_TEST_NO_TYPES") == "" {
		needBPF(t)
		unshare, err := exec.LookPath("unshare")
		if err != nil {
			t.Skip(err)
		}
		cmd := exec.Command(unshare, "-m", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec "+os.Args[0]+" -test.run='^TestWithoutTypes$' -test.v")
		cmd.Env = append(os.Environ(), "NODEDRIFT_TEST_NO_TYPES=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	off(t, New(Config{Root: "/", Sysctl: true, Clock: true, Log: slog.New(slog.DiscardHandler)}), "the kernel does not tell its types (BTF)")
}
