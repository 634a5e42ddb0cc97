package reboot

import (
	"context"
	"io/fs"
	"iter"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

func newProbe(n *host.Node) probes.Probe { return New(n.Root, n.Proc, n.Kernel, Config{}) }

func TestNodes(t *testing.T) { probetest.Run(t, newProbe) }

// files is a node's root in memory.
type files struct{ fstest.MapFS }

func (f files) Watch(context.Context, host.Listener, ...string) error { return nil }

// noProcesses has none to ask, and counts the questions.
type noProcesses struct {
	asked   int
	refused error
	up      time.Duration
}

func (n *noProcesses) List() iter.Seq2[*host.Process, error] {
	n.asked++
	return func(yield func(*host.Process, error) bool) {
		if n.refused != nil {
			yield(nil, n.refused)
		}
	}
}

func (n *noProcesses) Boot() (host.Boot, error) { return host.Boot{At: time.Now().Add(-n.up)}, nil }

// pendingNode has a marker made at a time.
func pendingNode(at time.Time) files {
	return files{fstest.MapFS{
		"run/systemd/private": {}, "run/reboot-required": {ModTime: at}, "boot/vmlinuz-6.1.0-28-amd64": {},
	}}
}

// TestOverdue lets a marker grow old: nothing but the reason changes, at the
// week's end, and a clock that is stepped back makes no negative age.
func TestOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made := time.Now()
		procs := &noProcesses{up: 100 * 24 * time.Hour}
		p := New(pendingNode(made), procs, host.Kernel{Release: "6.1.0-28-amd64"}, Config{})
		reason := func() string {
			look, err := p.Check(t.Context())
			if err != nil || len(look.Findings) == 0 {
				t.Fatalf("look is %+v, %v", look, err)
			}
			return look.Findings[0].Reason
		}
		for _, step := range []struct {
			wait time.Duration
			want string
		}{{0, Required}, {week, Required}, {time.Minute, Overdue}} {
			time.Sleep(step.wait)
			if got := reason(); got != step.want {
				t.Errorf("%v after the marker: %s, want %s", time.Since(made), got, step.want)
			}
		}
		p.root = pendingNode(time.Now().Add(24 * time.Hour))
		if got := reason(); got != Required {
			t.Errorf("a marker from the future: %s, want %s", got, Required)
		}
		p.root = pendingNode(time.Time{})
		procs.up = time.Hour
		if got := reason(); got != Required {
			t.Errorf("a marker older than the boot an hour ago: %s, want %s", got, Required)
		}
		p.overdue = time.Minute
		if got := reason(); got != Overdue {
			t.Errorf("with overdue: 1m, an hour after boot: %s, want %s", got, Overdue)
		}
	})
}

// TestScans counts how often the processes are asked.
func TestScans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		procs := &noProcesses{}
		p := New(pendingNode(time.Now()), procs, host.Kernel{}, Config{})
		for range 600 { // ten minutes of looks, one a second
			if _, err := p.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if procs.asked < 10 || procs.asked > 11 {
			t.Errorf("asked %d times in ten minutes, want once a minute", procs.asked)
		}
		procs.asked = 0
		for range 60 {
			p.heard.Store(true)
			if _, err := p.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if procs.asked < 5 || procs.asked > 7 {
			t.Errorf("asked %d times in a minute of events, want every ten seconds", procs.asked)
		}
	})
}

// TestRefused holds that processes that may not be asked are left alone for an hour.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		procs := &noProcesses{refused: fs.ErrPermission}
		p := New(pendingNode(time.Now()), procs, host.Kernel{Release: "6.1.0-28-amd64"}, Config{})
		for range 60 {
			if look, err := p.Check(t.Context()); err != nil || len(look.NotJudged) == 0 {
				t.Fatalf("%+v, %v", look, err)
			}
			p.heard.Store(true)
			time.Sleep(time.Minute)
		}
		if procs.asked != 1 {
			t.Errorf("asked %d times in an hour", procs.asked)
		}
	})
}

func TestExplain(t *testing.T) {
	p := &Probe{}
	got := p.Explain([]probes.Finding{
		{Reason: ServiceRestartRequired, Subject: "chrony.service"},
		{Reason: Required, Subject: "/run/reboot-required"},
		{Reason: Overdue, Subject: "/run/reboot-required"},
		{Reason: KernelOutdated, Subject: "kernel"},
	})
	want := []probes.Finding{
		{Reason: Overdue, Subject: "/run/reboot-required", Consequences: []probes.Ref{{Subject: "/run/reboot-required"}, {Subject: "kernel"}}},
		{Reason: ServiceRestartRequired, Subject: "chrony.service"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("explained (-want +got):\n%s", diff)
	}
	alone := []probes.Finding{{Reason: KernelOutdated, Subject: "kernel"}}
	if diff := cmp.Diff(alone, p.Explain(alone)); diff != "" {
		t.Errorf("a kernel alone (-want +got):\n%s", diff)
	}
}

func TestCovered(t *testing.T) { probetest.Covers(t, (&Probe{}).Spec()) }

func TestHostile(t *testing.T) {
	const (
		image = "usr/lib/modules/*/modules.dep" // only whether it is there is asked
		other = "var/run"                       // not a folder: no second place to look
	)
	probetest.Hostile(t, newProbe, probetest.Lawful{
		probetest.Absent:  {other},
		probetest.Empty:   {image, other},
		probetest.Folder:  {image, other},
		probetest.FIFO:    {image, other},
		probetest.Sparse:  {image, other},
		probetest.Noise:   {image, other},
		probetest.LinkUp:  {"run/reboot-required", other}, // leads nowhere: no marker
		probetest.LinkOut: {"run/reboot-required", other},
		probetest.Loop:    {other},
	})
}
