package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/chrony"
	"github.com/nodedrift/nodedrift/probes/host"
)

// noUnits is the systemd of a machine that has none.
type noUnits struct{}

func (noUnits) Unit(_ context.Context, name string) (host.Unit, error) {
	return host.Unit{Id: name, LoadState: "not-found", ActiveState: "inactive"}, nil
}

func (noUnits) NeedDaemonReload(context.Context, string) (bool, error) { return false, nil }

func (noUnits) WatchUnits(ctx context.Context, l host.Listener, _ ...string) error {
	l.Changed()
	<-ctx.Done()
	return nil
}

const stepVariable = "NODEDRIFT_TEST_STEP"

// stepIn runs a process in a cgroup that sets the clock by so many seconds with
// adjtimex(2), as chronyd does, or with date(1).
func stepIn(t *testing.T, group, how string, seconds int) {
	t.Helper()
	dir := "/sys/fs/cgroup/" + group
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf("exec date -s @$(($(date +%%s) + %d))", seconds)
	if how == "adjtimex" {
		line = "exec " + os.Args[0] + " -test.run='^TestRealClockStepNamesItsSetter$'"
	}
	cmd := exec.Command("sh", "-c", "echo 0 >"+dir+"/cgroup.procs; "+line)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", stepVariable, seconds))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestRealClockStepNamesItsSetter sets a real clock, over and over, and reads what
// the agent tells of it: whether the step or its setter is heard first is left to
// chance.
func TestRealClockStepNamesItsSetter(t *testing.T) {
	if os.Getenv("NODEDRIFT_VMTEST") != "1" {
		t.Skip("sets the clock: make vmtest")
	}
	if by := os.Getenv(stepVariable); by != "" {
		var seconds int64
		if _, err := fmt.Sscan(by, &seconds); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_SETOFFSET, Time: unix.Timeval{Sec: seconds}}); err != nil {
			t.Fatal(err)
		}
		return
	}
	const (
		session = "user.slice/user-0.slice/session-7.scope"
		daemon  = "system.slice/chrony.service"
		pod     = "kubepods.slice/kubepods-pod1b9e3f6a_0c4d_4e5f_8a7b_9c0d1e2f3a4b.slice"
	)
	d, happened := clockAgent(t, "bpf: {clock: true}")
	next := func() agent.Happening {
		t.Helper()
		for {
			select {
			case h := <-happened:
				if h.Reason == chrony.ClockStepped {
					return h
				}
			case <-time.After(5 * time.Second):
				t.Fatal("a step was not told")
			}
		}
	}
	var took []time.Duration
	for n := range 30 {
		group, how, by := session, "date", "by session-7.scope"
		switch n % 3 {
		case 1:
			group, how, by = daemon, "adjtimex", "by chrony.service"
		case 2:
			group, by = pod, "by pod 1b9e3f6a-0c4d-4e5f-8a7b-9c0d1e2f3a4b"
		}
		stepIn(t, group, how, 5-10*(n%2)) // at once after the one before
		began := time.Now()
		h := next()
		took = append(took, time.Since(began))
		if !strings.Contains(h.Message, by) || !strings.HasPrefix(h.Message, "the clock was set ") || h.Actor == nil {
			t.Errorf("step %d: told %q, want %q", n, h.Message, by)
		}
		if n < 3 {
			t.Log(h.Message)
		}
	}
	slices.Sort(took)
	t.Logf("told after the setter ended: median %s, longest %s", took[len(took)/2], took[len(took)-1])
	if d := detectorOf(d, "clock"); !d.Active || d.Events < uint64(len(took)) {
		t.Errorf("%+v", d)
	}
}

// TestRealClockStepWithoutSetter is the same where the configuration does not ask.
func TestRealClockStepWithoutSetter(t *testing.T) {
	if os.Getenv("NODEDRIFT_VMTEST") != "1" {
		t.Skip("sets the clock: make vmtest")
	}
	d, happened := clockAgent(t, "")
	stepIn(t, "user.slice/user-0.slice/session-7.scope", "date", 5)
	for {
		select {
		case h := <-happened:
			if h.Reason != chrony.ClockStepped {
				continue
			}
			if h.Actor != nil || !strings.HasPrefix(h.Message, "the clock was set forward by ") || strings.Contains(h.Message, "; by ") {
				t.Errorf("told %q of %+v", h.Message, h.Actor)
			}
			t.Log(h.Message)
		case <-time.After(5 * time.Second):
			t.Fatal("a step was not told")
		}
		break
	}
	if d := detectorOf(d, "clock"); d.Active || d.Why != "not asked for (bpf.clock in the configuration)" {
		t.Errorf("%+v", d)
	}
}

func detectorOf(d *daemon, name string) (found detector) {
	for _, x := range d.self().Detectors {
		if x.Name == name {
			found = x
		}
	}
	return found
}

// clockAgent runs the tracer and an agent with the chrony probe alone, which has
// heard two beats.
func clockAgent(t *testing.T, configText string) (*daemon, told) {
	t.Helper()
	cfg, err := parseConfig([]byte(configText))
	if err != nil {
		t.Fatal(err)
	}
	node, err := host.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	flags := &runFlags{root: "/", bpf: flagOn}
	d := &daemon{flags: flags, node: node, trace: newTracer(cfg, flags, node, log)}
	happened := make(told, 4096)
	d.agent = agent.New(agent.Config{Node: "node0", Log: log, Mono: host.Monotonic, Rules: cfg.rules(), Journal: journal{d.trace}, Publishers: []agent.Publisher{happened},
		Probes: []probes.Probe{chrony.New(node.Root, node.Proc, noUnits{}, chrony.Config{})}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- d.trace.Run(ctx) }()
	<-d.trace.Tried()
	go func() { ended <- d.agent.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		<-ended
		node.Close()
	})
	time.Sleep(2500 * time.Millisecond)
	return d, happened
}
