package unit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// A bench is a node with one daemon, x.service: its root is a folder, its systemd
// and its processes are what the test says. Time is the bubble's.
type bench struct {
	*Checker
	t        *testing.T
	dir      string
	o        Options
	unit     host.Unit
	procs    host.Processes
	fails    error
	timeless error // of the uptime
	asked    int   // for all that there is to a unit
	little   int   // for one property
	boot     time.Time
	heard    heard
}

var options = Options{Prefix: "X", Metric: "x", Units: []string{"x.service"}, Owner: probes.AKS,
	Configs: func(Run) []string { return []string{"etc/x.conf"} }}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), o: options, boot: time.Now().Add(-time.Hour)}
	b.write("etc/systemd/system/x.service", "[Service]\nExecStart=/bin/x\nEnvironmentFile=-/etc/default/x\n")
	b.write("etc/default/x", "A=1\n")
	b.write("etc/x.conf", "answer = 42\n")
	b.write("bin/x", "program")
	b.unit = host.Unit{Id: "x.service", LoadState: "loaded", ActiveState: "active", SubState: "running", FragmentPath: "/etc/systemd/system/x.service",
		Result: "success", ExecStart: []host.Command{{Path: "/bin/x", Args: []string{"/bin/x"}}},
		ExecMainStartTimestamp: time.Now().Add(1000000 * time.Hour)} // after the files, whose times are real
	b.procs = host.OpenProcesses(filepath.Join(b.dir, "proc"))
	b.starts()
	b.restart()
	return b
}

// TestSettles holds that what changes while the daemon starts is taken for read:
// it reads its files some time after systemd says that it runs.
func TestSettles(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		b.starts()
		b.wants("at the start")
		b.write("etc/x.conf", "answer = 43\n")
		b.wants("at the start, changed")
		time.Sleep(settles)
		b.wants("settled")
		b.write("etc/x.conf", "answer = 44\n")
		b.wants("changed", "XConfigNotLoaded /etc/x.conf")
	})
}

// settled makes a new run of the daemon, which has read its files.
func (b *bench) settled() {
	b.t.Helper()
	b.starts()
	b.look()
	time.Sleep(settles)
}

// starts makes a new run of the daemon.
func (b *bench) starts() {
	b.t.Helper()
	b.unit.MainPID++
	b.unit.InvocationID = fmt.Sprint("run", b.unit.MainPID)
	b.write(fmt.Sprintf("proc/%d/cmdline", b.unit.MainPID), "/bin/x\x00")
	b.write(fmt.Sprintf("proc/%d/stat", b.unit.MainPID), fmt.Sprintf("%d (x) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 %d 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n",
		b.unit.MainPID, time.Since(b.boot)/(10*time.Millisecond)))
}

// restart makes a new process of the agent, which recalls what the old one kept.
func (b *bench) restart() {
	b.t.Helper()
	var kept map[string]string
	if b.Checker != nil {
		kept = b.kept
	}
	root, err := host.OpenRoot(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { root.Close() })
	b.Checker = New(root, b, b, b.o)
	if kept != nil {
		b.Recall(maps.Clone(kept))
	}
	var h probes.Hearer = &b.heard
	b.hearer.Store(&h)
}

func (b *bench) write(name, content string) {
	b.t.Helper()
	name = filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// Unit is systemd's answer.
func (b *bench) Unit(context.Context, string) (host.Unit, error) {
	b.asked++
	return b.unit, b.fails
}

func (b *bench) NeedDaemonReload(context.Context, string) (bool, error) {
	b.little++
	return b.unit.NeedDaemonReload, b.fails
}

func (b *bench) WatchUnits(ctx context.Context, l host.Listener, _ ...string) error {
	l.Changed()
	<-ctx.Done()
	return nil
}

func (b *bench) Process(pid int) (*host.Process, error) { return b.procs.Process(pid) }

func (b *bench) Uptime() (time.Duration, error) { return time.Since(b.boot), b.timeless }

// look looks now, with everything heard.
func (b *bench) look() []string {
	b.t.Helper()
	b.Refresh()
	s, err := b.Look(b.t.Context())
	var out []string
	if err != nil {
		out = append(out, "error")
	}
	for _, f := range s.Findings {
		out = append(out, f.Reason+" "+f.Subject)
	}
	for _, n := range s.NotJudged {
		reason, _, _ := strings.Cut(n, ":")
		out = append(out, "? "+reason)
	}
	return out
}

func (b *bench) wants(when string, want ...string) {
	b.t.Helper()
	if got := b.look(); !slices.Equal(got, want) {
		b.t.Errorf("%s: %q, want %q", when, got, want)
	}
}

// heard notes what a checker tells.
type heard struct {
	mu   sync.Mutex
	saw  []probes.Occurrence
	lost uint64
}

func (*heard) Changed() {}
func (h *heard) Saw(o probes.Occurrence) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.saw = append(h.saw, o)
}
func (h *heard) Lost(_ string, n uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost += n
}

func inBubble(t *testing.T, test func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(newBench(t)) })
}

// dies lets systemd start the unit again n times.
func (b *bench) dies(n int) {
	b.t.Helper()
	for range n {
		b.unit.ActiveState, b.unit.SubState, b.unit.Result = "activating", "auto-restart", "exit-code"
		b.unit.ExecMainCode, b.unit.ExecMainStatus = 1, 3
		b.look()
		time.Sleep(2 * time.Second)
		b.unit.ActiveState, b.unit.SubState, b.unit.Result = "active", "running", "success"
		b.unit.NRestarts++
		b.starts()
		b.look()
		time.Sleep(time.Second)
	}
}

func TestCrashLooping(t *testing.T) {
	t.Parallel()
	const loops = "XCrashLooping x.service"
	inBubble(t, func(b *bench) {
		b.wants("at first")
		b.dies(2)
		b.wants("twice")
		if n := len(b.heard.saw); n != 2 || !strings.Contains(b.heard.saw[0].Message, "exit status 3") {
			t.Errorf("told of %+v, want two deaths by exit status 3", b.heard.saw)
		}
		b.dies(1)
		b.wants("three times", loops)
		if n := len(b.heard.saw); n > 3 {
			t.Errorf("told %d times", n)
		}
		b.restart() // of the agent
		b.wants("an agent that was restarted", loops)
		time.Sleep(loopCalm - 2*time.Second)
		b.wants("almost five minutes", loops)
		time.Sleep(2 * time.Second)
		b.wants("five minutes of peace")
	})
}

// Restarts of which nobody can tell when they were are not judged, and are not lost.
func TestRestartsWithoutUptime(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		b.wants("at first")
		b.timeless = errors.New("read the uptime: permission denied")
		b.wants("nothing to judge")
		b.dies(3)
		b.wants("without the uptime", "? XCrashLooping")
		if s, _ := b.Look(b.t.Context()); len(s.NotJudged) != 1 || s.NotJudged[0] != "XCrashLooping: tell when it was restarted: read the uptime: permission denied" {
			b.t.Errorf("not judged %q", s.NotJudged)
		}
		if len(b.heard.saw) > 0 {
			b.t.Errorf("told of %v", b.heard.saw)
		}
		b.timeless = nil
		b.wants("with it", "XCrashLooping x.service")
		b.timeless = errors.New("read the uptime: permission denied")
		b.wants("looping, without it", "? XCrashLooping")
	})
}

func TestPlannedRestartsAreQuiet(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		b.wants("at first")
		for range 10 { // systemctl restart begins the count anew
			b.unit.ActiveState, b.unit.SubState, b.unit.Job = "deactivating", "stop-sigterm", 5
			if got := b.look(); !slices.Equal(got, []string{"XNotRunning x.service"}) {
				t.Fatal(got)
			}
			b.unit.ActiveState, b.unit.SubState, b.unit.Job = "active", "running", 0
			b.starts()
			b.wants("after a restart")
			time.Sleep(5 * time.Second)
		}
		if len(b.heard.saw) > 0 {
			t.Errorf("told of %v", b.heard.saw)
		}
	})
}

// TestSlowLoopIsNone holds that starts far apart do not add up.
func TestSlowLoopIsNone(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		b.look()
		for range 5 {
			b.dies(1)
			time.Sleep(6 * time.Minute)
			b.wants("once in six minutes")
		}
	})
}

// TestExcused holds that restarts for another's sake do not count.
func TestExcused(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		b.look()
		for range 5 {
			b.Excuse("y.service is failed")
			b.unit.NRestarts++
			b.unit.ActiveState, b.unit.SubState = "activating", "auto-restart"
			b.wants("excused", "? XNotRunning")
		}
		b.unit.ActiveState, b.unit.SubState = "active", "running"
		b.wants("afterwards")
	})
}

// TestConfigOfTheDead changes the configuration of a daemon that then dies: nothing
// runs with the old one any more.
func TestConfigOfTheDead(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		b.settled()
		b.write("etc/x.conf", "answer = 43\n")
		b.wants("changed", "XConfigNotLoaded /etc/x.conf")
		b.unit.ActiveState, b.unit.SubState, b.unit.Result, b.unit.MainPID = "failed", "failed", "signal", 0
		b.service.Heard() // of files nothing was heard
		s, err := b.Look(b.t.Context())
		if err != nil || len(s.Findings) != 1 || s.Findings[0].Reason != "XNotRunning" {
			t.Errorf("dead: %+v, %v", s.Findings, err)
		}
	})
}

// TestGone takes the unit away: on a node that had it, that is no want of one.
func TestGone(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		there := b.unit
		gone := host.Unit{Id: "x.service", LoadState: "not-found", ActiveState: "inactive", SubState: "dead"}
		b.unit = gone
		if _, err := b.Look(b.t.Context()); !errors.Is(err, probes.ErrNotApplicable) {
			t.Errorf("a node that never had it: %v", err)
		}
		b.unit = there
		b.wants("at first")
		b.unit = gone
		b.wants("gone", "XNotRunning x.service")
		b.restart()
		b.wants("gone, for an agent that was restarted", "XNotRunning x.service")
		b.unit = there
		b.wants("put back")
	})
}

func TestHolds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		u    host.Unit
		hold time.Duration
		text string
	}{
		{host.Unit{ActiveState: "active"}, 0, ""},
		{host.Unit{ActiveState: "reloading"}, 0, ""},
		{host.Unit{ActiveState: "inactive", SubState: "dead", Result: "success"}, 3 * time.Second, "does not run: it was stopped"},
		{host.Unit{ActiveState: "inactive", SubState: "dead", Job: 3}, time.Minute, "is to be started and is not: it was stopped"},
		{host.Unit{ActiveState: "failed", Result: "signal", ExecMainCode: 2, ExecMainStatus: 9}, 3 * time.Second, "has failed: killed by SIGKILL"},
		{host.Unit{ActiveState: "failed", Result: "core-dump", ExecMainCode: 3, ExecMainStatus: 11}, 3 * time.Second, "has failed: dumped core by SIGSEGV"},
		{host.Unit{ActiveState: "failed", Result: "oom-kill", ExecMainCode: 2, ExecMainStatus: 9}, 3 * time.Second, "has failed: killed for lack of memory (oom-kill)"},
		{host.Unit{ActiveState: "failed", Result: "exit-code", ExecMainCode: 0}, 3 * time.Second, "has failed: a command before its start failed"},
		{host.Unit{ActiveState: "failed", Result: "signal", ExecMainCode: 2, ExecMainStatus: 200}, 3 * time.Second, "has failed: killed by signal 200"},
		{host.Unit{ActiveState: "failed", Result: "start-limit-hit"}, 3 * time.Second, "has failed: started too often, systemd gives up (start-limit-hit)"},
		{host.Unit{ActiveState: "activating", SubState: "start-pre", Job: 3}, time.Minute, "does not get started: it is in start-pre"},
		{host.Unit{ActiveState: "activating", SubState: "auto-restart", Result: "exit-code", ExecMainCode: 1, ExecMainStatus: 1}, time.Minute, "waits to be started again: exit status 1"},
		{host.Unit{ActiveState: "deactivating", SubState: "stop-sigterm"}, time.Minute, "does not get stopped: it is in stop-sigterm"},
		{host.Unit{ActiveState: "inactive", LoadState: "not-found"}, 3 * time.Second, "is gone, and its unit file too"},
		{host.Unit{ActiveState: "inactive", LoadState: "masked"}, 3 * time.Second, "is masked and does not run"},
	} {
		if text, hold := down(c.u); text != c.text || hold != c.hold {
			t.Errorf("%+v: %q for %s, want %q for %s", c.u, text, hold, c.text, c.hold)
		}
	}
	for _, r := range Reasons(options, "Nothing.") {
		want := map[string]time.Duration{"XNotRunning": 3 * time.Second, "XUnitChanged": 5 * time.Second,
			"XDaemonReloadNeeded": 10 * time.Minute, "XConfigNotLoaded": 10 * time.Minute, "XBinaryReplaced": 10 * time.Minute}[r.Name]
		if r.Hold != want {
			t.Errorf("%s is held for %s, want %s", r.Name, r.Hold, want)
		}
		for _, text := range []string{r.Meaning, r.Breaks, r.Confirm, r.Mend} {
			if text == "" || strings.Contains(text, "UNIT") || strings.Contains(text, "BREAKS") {
				t.Errorf("%s says %q", r.Name, text)
			}
		}
	}
}

// TestFilesOverRestarts holds that what was first seen, and what a run has read,
// outlives the agent, and that only contents count.
func TestFilesOverRestarts(t *testing.T) {
	t.Parallel()
	const changed, stale, replaced = "XUnitChanged /etc/systemd/system/x.service", "XConfigNotLoaded /etc/x.conf", "XBinaryReplaced /bin/x"
	inBubble(t, func(b *bench) {
		time.Sleep(settles)
		b.wants("at first")
		b.write("etc/x.conf", "answer = 42\n") // newer, and the same
		b.wants("written anew")
		b.write("etc/x.conf", "answer = 43\n")
		b.wants("edited", stale)
		b.restart()
		b.wants("another agent", stale)
		b.settled()
		b.wants("restarted")
		b.write("etc/x.conf", "answer = 42\n")
		b.wants("put back, and not loaded", stale)
		b.settled()
		b.write("etc/systemd/system/x.service", "# mine\n\n[Service]\nExecStart=/bin/x\nEnvironmentFile=-/etc/default/x\n")
		b.wants("a comment")
		b.write("etc/systemd/system/x.service", "[Service]\nExecStart=/bin/x -v\nEnvironmentFile=-/etc/default/x\n")
		b.unit.NeedDaemonReload = true
		b.wants("edited", "XDaemonReloadNeeded x.service", changed)
		b.unit.NeedDaemonReload = false
		b.wants("reloaded", "XConfigNotLoaded /etc/systemd/system/x.service", changed)
		b.settled()
		b.wants("restarted", changed)
		b.restart()
		b.wants("another agent", changed)
		b.write("etc/systemd/system/x.service", "[Service]\nExecStart=/bin/x\nEnvironmentFile=-/etc/default/x\n")
		b.settled()
		b.wants("put back")
		b.write("etc/default/x", "A=2\n")
		b.wants("environment edited", "XConfigNotLoaded /etc/default/x")
		b.settled()
		b.wants("restarted")
		b.write("bin/y", "program")
		if err := os.Rename(filepath.Join(b.dir, "bin/y"), filepath.Join(b.dir, "bin/x")); err != nil {
			t.Fatal(err)
		}
		b.wants("program replaced", replaced)
		b.restart()
		b.wants("another agent", replaced)
		b.o.Lawful = func(context.Context) bool { return true }
		b.restart()
		b.wants("lawfully")
	})
}

// TestDropIns holds that a drop-in is a declaration, and what is in it is compared.
func TestDropIns(t *testing.T) {
	t.Parallel()
	const name = "etc/systemd/system/x.service.d/10.conf"
	inBubble(t, func(b *bench) {
		time.Sleep(settles)
		b.wants("at first")
		b.write(name, "[Service]\nNice=1\n")
		b.wants("not read", "XDaemonReloadNeeded x.service")
		b.unit.DropInPaths = []string{"/" + name}
		b.settled()
		b.wants("loaded and restarted")
		b.write(name, "[Service]\nNice=2\n")
		b.settled()
		b.wants("edited", "XUnitChanged /"+name)
	})
}

func TestDeclared(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		sum, err := b.wholeSum("etc/systemd/system/x.service")
		if err != nil {
			t.Fatal(err)
		}
		b.o.Declared = map[string]string{"/etc/systemd/system/x.service": "sha256:" + strings.ToUpper(sum)}
		b.Checker = nil
		b.restart()
		b.wants("as declared")
		b.o.Declared = map[string]string{"/etc/systemd/system/x.service": strings.Repeat("0", 64)}
		b.Checker = nil
		b.restart()
		b.wants("not as declared", "XUnitChanged /etc/systemd/system/x.service")
	})
}

// TestPackageManager holds that nothing half done is said while dpkg works, and
// that what stood for long before is not unsaid.
func TestPackageManager(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		b.wants("at first")
		b.write("var/lib/dpkg/lock", "")
		lock, err := os.OpenFile(filepath.Join(b.dir, "var/lib/dpkg/lock"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		hold := func(kind int16) {
			if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind}); err != nil {
				t.Fatal(err)
			}
		}
		hold(unix.F_WRLCK)
		b.unit.NeedDaemonReload = true
		b.wants("dpkg works", "? XDaemonReloadNeeded")
		hold(unix.F_UNLCK)
		b.wants("dpkg is done", "XDaemonReloadNeeded x.service")
		time.Sleep(holdPending)
		hold(unix.F_WRLCK)
		b.wants("after ten minutes", "XDaemonReloadNeeded x.service")
	})
}

// TestSystemdIsSilent holds that a daemon-reexec is no news, and a systemd that
// does not answer for a minute is.
func TestSystemdIsSilent(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		b.fails = errors.New("gone")
		b.wants("nothing known yet", "error")
		b.fails = nil
		b.wants("at first")
		time.Sleep(29 * time.Second)
		b.fails = errors.New("gone")
		b.wants("silent")
		time.Sleep(59 * time.Second)
		b.wants("for 59 s")
		time.Sleep(time.Second)
		b.wants("for a minute", "error")
		b.fails = nil
		b.wants("again")
	})
}

// hears lets the bench listen to systemd until the function it returns is called.
func (b *bench) hears() (deafen func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.service.Watch(ctx, &b.heard) }()
	synctest.Wait()
	return func() { cancel(); <-ended }
}

// TestAskedSeldom holds what makes light looks light: while it hears, systemd is
// asked for all each five minutes, and for one property every 45 s.
func TestAskedSeldom(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		deafen := b.hears()
		b.asked = 0
		looks := func(n int) {
			for range n {
				if _, err := b.Look(b.t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
			}
		}
		looks(120)
		if b.asked != 2 || b.little < 11 || b.little > 14 {
			t.Errorf("asked %d times for all and %d times for little in ten minutes, want 2 and 12 or so", b.asked, b.little)
		}
		deafen()
		b.asked, b.little = 0, 0
		looks(12)
		if b.asked != 12 || b.little != 0 {
			t.Errorf("deaf, it asked %d times in a minute, and %d times for little, want 12 and 0", b.asked, b.little)
		}
	})
}

// TestSilentWhileHearing holds that a systemd that says nothing more is noticed when
// nothing is asked of it but whether what was known stands.
func TestSilentWhileHearing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		defer b.hears()()
		b.look()
		b.fails = errors.New("silent")
		began := time.Now()
		for {
			_, err := b.Look(b.t.Context())
			if took := time.Since(began); err != nil {
				if took < forgive || took > forgive+askEach+5*time.Second {
					t.Errorf("noticed after %s", took)
				}
				break
			} else if took > 5*time.Minute {
				t.Fatal("never noticed")
			}
			time.Sleep(5 * time.Second)
		}
		b.fails = nil
		if _, err := b.Look(b.t.Context()); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}

// TestReloadNeededUnheard holds that a daemon-reload that came to be needed by a file
// that nobody watches is seen within half a minute, and so is that it is no longer.
func TestReloadNeededUnheard(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		defer b.hears()()
		b.look()
		for _, needed := range []bool{true, false} {
			b.unit.NeedDaemonReload = needed
			time.Sleep(askEach)
			s, err := b.Look(b.t.Context())
			if found := len(s.Findings) == 1 && s.Findings[0].Reason == "XDaemonReloadNeeded"; found != needed || err != nil {
				t.Errorf("needed: %v; found %+v, %v", needed, s.Findings, err)
			}
		}
	})
}

func TestExplain(t *testing.T) {
	t.Parallel()
	f := func(reason, subject string) probes.Finding {
		return probes.Finding{Reason: "X" + reason, Subject: subject}
	}
	got := Explain("X", []probes.Finding{f(CrashLooping, "x"), f(NotRunning, "x"), f(UnitChanged, "/a"), f(ConfigNotLoaded, "/a"), f(ConfigNotLoaded, "/b"), f(DaemonReloadNeeded, "x")})
	var names []string
	for _, g := range got {
		names = append(names, g.Reason)
	}
	if want := []string{"XNotRunning", "XUnitChanged", "XConfigNotLoaded"}; !slices.Equal(names, want) || len(got[0].Consequences) != 1 || len(got[1].Consequences) != 2 {
		t.Errorf("%+v, want %v", got, want)
	}
}

// TestFilesAreReadSeldom holds how often files are read of which nothing is heard.
func TestFilesAreReadSeldom(t *testing.T) {
	t.Parallel()
	for hears, want := range map[bool]int{true: 12, false: 60} {
		inBubble(t, func(b *bench) {
			b.Checker.hears.Store(hears)
			b.Checker.Look(b.t.Context())
			fresh := 0
			for range 720 {
				time.Sleep(5 * time.Second)
				if s, err := b.Checker.Look(b.t.Context()); err != nil {
					t.Fatal(err)
				} else if s.Fresh {
					fresh++
				}
			}
			if fresh != want {
				t.Errorf("hearing %v: files were read %d times in an hour, want %d", hears, fresh, want)
			}
		})
	}
}

// TestWatchFilesAnew holds that files are listened to, and others when they are others.
func TestWatchFilesAnew(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	moved := make(chan struct{}, 1)
	ended := make(chan error, 1)
	ear := &told{moved: moved}
	go func() { ended <- b.Watch(ctx, ear) }()
	hears := func(what string) {
		t.Helper()
		select {
		case <-moved:
		case <-time.After(5 * time.Second):
			ear.mu.Lock()
			defer ear.mu.Unlock()
			if ear.lost > 0 {
				t.Skip("this machine has no inotify instance left")
			}
			t.Fatalf("nothing heard of %s", what)
		}
	}
	hears("the unit")
	b.look()
	hears("the files, once it listens")
	for range 3 { // until it is quiet
		select {
		case <-moved:
		case <-time.After(50 * time.Millisecond):
		}
	}
	b.write("etc/x.conf", "answer = 43\n")
	hears("a file")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

type told struct {
	heard
	moved chan struct{}
}

func (h *told) Changed() {
	select {
	case h.moved <- struct{}{}:
	default:
	}
}

// TestRests holds when the last look stands for the next: not when something was heard
// or found, nobody would hear, or the process is stopped or gone; and then every second
// one only.
func TestRests(t *testing.T) {
	t.Parallel()
	inBubble(t, func(b *bench) {
		state := func(c string) {
			name := fmt.Sprintf("proc/%d/stat", b.unit.MainPID)
			stat, err := os.ReadFile(filepath.Join(b.dir, name))
			if err != nil {
				b.t.Fatal(err)
			}
			b.write(name, strings.Replace(string(stat), "(x) S ", "(x) "+c+" ", 1))
		}
		sees := func(findings ...probes.Finding) {
			if _, err := b.Checker.Look(b.t.Context()); err != nil {
				b.t.Fatal(err)
			}
			b.Checker.stirred.Store(false)
			b.Checker.Seen(probes.Look{Findings: findings}, nil)
		}
		rests := func(when string, want bool) {
			b.t.Helper()
			if _, got := b.Checker.Rest(); got != want {
				b.t.Errorf("%s: rests %v", when, got)
			}
		}
		rests("before the first look", false)
		sees()
		rests("nobody would hear", false)
		b.Checker.hears.Store(true)
		b.service.hearing.Store(true)
		sees()
		time.Sleep(5 * time.Second)
		rests("all is well", true)
		time.Sleep(5 * time.Second)
		rests("the second time", false)
		sees(probes.Finding{Reason: "XHung"})
		rests("found", false)
		sees()
		b.Checker.stirred.Store(true)
		rests("heard", false)
		rests("heard, and not looked since", false)
		sees()
		state("T")
		rests("stopped", false)
	})
}
