package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// inVM tells whether this is a virtual machine whose clock may be set.
func inVM() bool { return os.Getenv("NODEDRIFT_VMTEST") == "1" }

// Who sets the clock is not asked for unless the configuration says so: that is
// shown, and counts as nothing that is missing.
func TestClockIsNotAskedFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		asked  bool
		active float64
		why    string
		judged string
	}{
		{false, 0, "not asked for (bpf.clock in the configuration)", ""},
		{true, 0, "no", "ClockStepped: detector clock: no; it is told without who set it"},
		{true, 1, "", ""},
	} {
		tr := New(Config{Clock: c.asked, Log: slog.New(slog.DiscardHandler)})
		for _, s := range tr.states {
			s.set(s.asked, "")
		}
		s := tr.state(clockDetector)
		s.set(c.active == 1, c.why)
		close(tr.tried)
		look, err := NewProbe(tr).Check(t.Context())
		if err != nil || strings.Join(look.NotJudged, "\n") != c.judged {
			t.Errorf("asked for %v: %v, not judged %q, want %q", c.asked, err, look.NotJudged, c.judged)
		}
		for _, x := range look.Samples {
			if x.Labels[0] == clockDetector && x.Value != c.active {
				t.Errorf("asked for %v: %+v, want %v", c.asked, x, c.active)
			}
		}
		if len(look.Samples) != len(rareDetectors) {
			t.Errorf("samples %+v", look.Samples)
		}
	}
	if s := New(Config{}).state(clockDetector); s.asked || s.reason != "not asked for (bpf.clock in the configuration)" {
		t.Errorf("by default: %+v", s)
	}
}

func TestWhoSetTheClockIsRemembered(t *testing.T) {
	t.Parallel()
	tr, told := scripted(t, names{uid: "ops/clock-1"})
	by := task(7, 1, "date", "kubepods.slice/"+uidFolder)
	tr.rare.heard(&event{Kind: kindClock, By: task(1, 0, "nodedrift", "system.slice/nodedrift.service")})
	if a, ok := tr.Who(clockKey, 0); ok {
		t.Errorf("the agent's own read counts: %+v", a)
	}
	tr.rare.heard(&event{Kind: kindClock, Number: unix.ADJ_SETOFFSET, By: by})
	if a, ok := tr.Who(clockKey, time.Duration(by.Time)); !ok || a.Pod != "ops/clock-1" || a.PID != 7 || a.Comm != "date" {
		t.Errorf("set by %+v %v", a, ok)
	}
	if _, ok := tr.Who(clockKey, time.Duration(by.Time)+1); ok {
		t.Error("who set it before counts")
	}
	if lines := told.told(); lines != nil {
		t.Errorf("that it was set is chrony's to tell: %q", lines)
	}
}

// A kernel that takes no program at its functions says so, and the other detectors
// work; one that does hears its own read and nobody else's.
func TestClockDetectorOfThisKernel(t *testing.T) {
	needBPF(t)
	tr := tracedWith(t, Config{Clock: true})
	s := tr.state(clockDetector)
	for _, s := range tr.States() {
		if s.Detector == clockDetector {
			t.Logf("clock: active %v %s", s.Active, s.Reason)
			if !s.Active && (inVM() || s.Reason == "") {
				t.Errorf("%+v", s)
			}
		} else if s.Asked && !s.Active {
			t.Errorf("detector %s beside it: %s", s.Detector, s.Reason)
		}
	}
	if err := readClock(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if n := s.events.Load(); n > 0 && inVM() {
		t.Errorf("%d events of reads", n)
	}
}

// A setter is this test as a process that does one thing to the clock.
var setters = map[string]func() error{
	"clock_settime":      func() error { return setBy(20 * time.Second) },
	"clock_settime back": func() error { return setBy(-20 * time.Second) },
	"settimeofday": func() error {
		var now unix.Timeval
		if err := unix.Gettimeofday(&now); err != nil {
			return err
		}
		now.Sec -= 7
		return unix.Settimeofday(&now)
	},
	"ADJ_SETOFFSET": func() error { return adjust(&unix.Timex{Modes: unix.ADJ_SETOFFSET, Time: unix.Timeval{Sec: 7}}) },
	// A slew, in every way that there is.
	"slew": func() error {
		return errors.Join(
			adjust(&unix.Timex{}),
			adjust(&unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: 1000}),
			adjust(&unix.Timex{Modes: unix.ADJ_OFFSET_SS_READ}),
			adjust(&unix.Timex{Modes: unix.ADJ_STATUS, Status: unix.STA_PLL}),
			adjust(&unix.Timex{Modes: unix.ADJ_FREQUENCY | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR, Freq: 65536}),
			adjust(&unix.Timex{Modes: unix.ADJ_TICK, Tick: 10_001}),
			adjust(&unix.Timex{Modes: unix.ADJ_OFFSET | unix.ADJ_NANO, Offset: 1000}),
			adjust(&unix.Timex{Modes: unix.ADJ_TICK | unix.ADJ_FREQUENCY, Tick: 10_000}))
	},
	// A step that the kernel refuses.
	"refused": func() error {
		if err := adjust(&unix.Timex{Modes: unix.ADJ_SETOFFSET, Time: unix.Timeval{Usec: 2_000_000}}); err != unix.EINVAL {
			return errors.Join(errors.New("an invalid step was not refused"), err)
		}
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: 1}); err != unix.EINVAL { // before the boot
			return errors.Join(errors.New("a time before the boot was not refused"), err)
		}
		return nil
	},
}

func setBy(d time.Duration) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		return err
	}
	at := unix.NsecToTimespec(now.Nano() + int64(d))
	return unix.ClockSettime(unix.CLOCK_REALTIME, &at)
}

func adjust(x *unix.Timex) error {
	_, err := unix.Adjtimex(x)
	return err
}

const setterVariable = "NODEDRIFT_TEST_SETTER"

// TestRealClockSetter sets a real clock, from a pod, from a unit and from a session,
// in each way there is.
func TestRealClockSetter(t *testing.T) {
	if !inVM() {
		t.Skip("sets the clock: make vmtest")
	}
	if name := os.Getenv(setterVariable); name != "" {
		if err := setters[name](); err != nil {
			t.Fatal(err)
		}
		return
	}
	at, err := findTrees("/")
	if err != nil {
		t.Fatal(err)
	}
	tr := tracedWith(t, Config{Clock: true})
	s := tr.state(clockDetector)
	const session = "user.slice/user-0.slice/session-7.scope"
	for _, c := range []struct {
		what, from string
		want       Actor
	}{
		{"slew", "system.slice/chrony.service", Actor{}},
		{"refused", session, Actor{}},
		{"clock_settime", session, Actor{Unit: "session-7.scope"}},
		{"clock_settime back", "kubepods.slice/kubepods-burstable.slice/" + uidFolder, Actor{Pod: uid}},
		{"ADJ_SETOFFSET", "system.slice/chrony.service", Actor{Unit: "chrony.service"}},
		{"settimeofday", "system.slice/ntpd.service/deeper", Actor{Unit: "ntpd.service"}},
		{"date", session, Actor{Unit: "session-7.scope", Comm: "date"}},
	} {
		dir := at.unified.dir + "/" + c.from
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		line := "exec " + os.Args[0] + " -test.run='^TestRealClockSetter$'"
		if c.what == "date" {
			line = "exec date -s @$(($(date +%s) + 5))"
		}
		cmd := exec.Command("sh", "-c", "echo 0 >"+dir+"/cgroup.procs; "+line)
		cmd.Env = append(os.Environ(), setterVariable+"="+c.what)
		before, heard := monotonic(), s.events.Load()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c.what, err, out)
		}
		var got Actor
		var ok bool
		for began := monotonic(); !ok && monotonic()-began < 300*time.Millisecond; time.Sleep(5 * time.Millisecond) {
			got, ok = tr.Who(probes.Key{Domain: "clock"}, before)
		}
		if c.want == (Actor{}) {
			if n := s.events.Load() - heard; ok || n > 0 {
				t.Errorf("%s: set by %+v, %d events", c.what, got, n)
			}
			continue
		}
		if c.want.Comm == "" {
			c.want.Comm = filepath.Base(os.Args[0])
		}
		c.want.PID, c.want.Time = cmd.Process.Pid, got.Time
		if got != c.want || s.events.Load() != heard+1 {
			t.Errorf("%s: set by %+v, want %+v; %d events", c.what, got, c.want, s.events.Load()-heard)
		}
		t.Logf("%s in %s: %+v", c.what, c.from, got)
	}
}

// Why the kernel took none of the programs is said in one line.
func TestNoFunction(t *testing.T) {
	t.Parallel()
	other := errors.New("something else")
	for err, want := range map[error]string{
		fmt.Errorf("load: program set_direct: %w", btf.ErrNotFound): "this kernel has no function by which the clock is set, or it is inlined: ",
		errors.Join(unix.EPERM, unix.EPERM):                         "this kernel takes no program at its functions (fexit): operation not permitted",
		other:                                                       "something else",
	} {
		if got := noFunction(err); !strings.HasPrefix(got.Error(), want) {
			t.Errorf("%v: %v, want %s", err, got, want)
		}
	}
}
