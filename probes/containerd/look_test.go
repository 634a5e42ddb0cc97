package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// files is a node's root in memory.
type files struct{ fstest.MapFS }

func (f files) Watch(ctx context.Context, l host.Listener, _ ...string) error {
	l.Changed()
	<-ctx.Done()
	return nil
}

func (f files) Lstat(name string) (os.FileInfo, error) { return f.Stat(name) }

type units struct{ unit *host.Unit }

func (u units) Unit(context.Context, string) (host.Unit, error) { return *u.unit, nil }

func (u units) NeedDaemonReload(context.Context, string) (bool, error) {
	return u.unit.NeedDaemonReload, nil
}

func (u units) WatchUnits(ctx context.Context, l host.Listener, _ ...string) error {
	l.Changed()
	<-ctx.Done()
	return nil
}

// standIn is a container runtime that takes its time.
type standIn struct {
	err       error // of every call
	hangs     map[string]bool
	takes     time.Duration
	notReady  string // the network's reason; "" is ready
	sandboxes []host.Sandbox
	info      map[string]string
	asked     map[string]int
}

func (s *standIn) ask(ctx context.Context, call string) error {
	if s.asked == nil {
		s.asked = map[string]int{}
	}
	s.asked[call]++
	if s.hangs[call] {
		<-ctx.Done()
		return host.ErrNoAnswer
	}
	time.Sleep(s.takes)
	return s.err
}

func (s *standIn) Version(ctx context.Context) (host.RuntimeVersion, error) {
	return host.RuntimeVersion{Name: "containerd", Version: "1.6.20"}, s.ask(ctx, "Version")
}

func (s *standIn) Status(ctx context.Context, verbose bool) (host.RuntimeStatus, error) {
	call := "Status"
	if verbose {
		call = "verbose"
	}
	st := host.RuntimeStatus{Conditions: []host.RuntimeCondition{{Type: runtimeReady, Status: true}, {Type: networkReady, Status: s.notReady == "", Reason: s.notReady}}}
	if verbose {
		st.Info = s.info
	}
	return st, s.ask(ctx, call)
}

func (s *standIn) Sandboxes(ctx context.Context) ([]host.Sandbox, error) {
	return slices.Clone(s.sandboxes), s.ask(ctx, "list")
}

func (s *standIn) Socket(context.Context) string { return "/" + host.DefaultCRISocket }
func (s *standIn) Listen(string)                 {}

// world is a node in order.
type world struct {
	*Probe
	root files
	unit host.Unit
	cri  *standIn
	proc string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{root: files{fstest.MapFS{
		"run/containerd/containerd.sock":                             {Mode: os.ModeSocket},
		"usr/bin/containerd":                                         {Mode: 0o755, Data: []byte("ELF")},
		"usr/lib/systemd/system/containerd.service":                  {Data: []byte("[Service]\nExecStart=/usr/bin/containerd\n")},
		"etc/containerd/config.toml":                                 {Data: []byte("version = 2\n")},
		"etc/cni/net.d/10-azure.conflist":                            {Data: []byte(`{"plugins": [{"type": "azure-vnet", "ipam": {"type": "azure-vnet-ipam"}}]}`)},
		"opt/cni/bin/azure-vnet":                                     {Mode: 0o755, Data: []byte("ELF")},
		"opt/cni/bin/azure-vnet-ipam":                                {Mode: 0o755, Data: []byte("ELF")},
		"sys/fs/cgroup/system.slice/containerd.service/cgroup.procs": {Data: []byte("621\n")},
	}}, cri: &standIn{takes: time.Millisecond, hangs: map[string]bool{}, info: map[string]string{"config": `{"cni": {"binDir": "/opt/cni/bin", "confDir": "/etc/cni/net.d", "maxConfNum": 1}}`}}, proc: t.TempDir()}
	w.unit = host.Unit{Id: defaultUnit, LoadState: "loaded", ActiveState: "active", SubState: "running", Result: "success", MainPID: 621, InvocationID: "1",
		FragmentPath: "/usr/lib/systemd/system/containerd.service", ControlGroup: "/system.slice/containerd.service",
		ExecStart: []host.Command{{Path: "/usr/bin/containerd", Args: []string{"/usr/bin/containerd"}}}}
	w.process(t, 1, "systemd")
	w.process(t, 621, "/usr/bin/containerd")
	w.write(t, "uptime", "3700.00 3700.00\n")
	w.Probe = New(w.root, host.OpenProcesses(w.proc), units{&w.unit}, w.cri, Config{})
	return w
}

func (w *world) write(t testing.TB, name, text string) {
	t.Helper()
	at := filepath.Join(w.proc, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (w *world) process(t testing.TB, pid int, args ...string) {
	t.Helper()
	comm := filepath.Base(args[0])
	w.write(t, fmt.Sprint(pid, "/comm"), comm[:min(15, len(comm))]+"\n")
	w.write(t, fmt.Sprint(pid, "/cmdline"), strings.Join(args, "\x00")+"\x00")
	w.write(t, fmt.Sprint(pid, "/stat"), fmt.Sprintf("%d (%s) S 1 1 1 0 -1 0 1 1 1 1 1 1 1 1 20 0 1 0 30000 1 1 1 1 1 1 1 1 1 1 1 1 1 1 17 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n", pid, comm[:min(15, len(comm))]))
}

// group writes who is in containerd's cgroup.
func (w *world) group(pids ...int) {
	var text strings.Builder
	for _, pid := range pids {
		text.WriteString(fmt.Sprintln(pid))
	}
	w.root.MapFS["sys/fs/cgroup/system.slice/containerd.service/cgroup.procs"] = &fstest.MapFile{Data: []byte(text.String())}
}

// reasons takes a look and names what it found, sorted.
func (w *world) reasons(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), w.Spec().Timeout)
	defer cancel()
	began := time.Now()
	look, err := w.Check(ctx)
	if took := time.Since(began); took > w.Spec().Timeout {
		t.Errorf("the look took %v", took)
	}
	if err != nil {
		return "error: " + err.Error()
	}
	var names []string
	for _, f := range look.Findings {
		names = append(names, f.Reason)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func (w *world) want(t *testing.T, when, want string) {
	t.Helper()
	if got := w.reasons(t); got != want {
		t.Errorf("%s: %q, want %q", when, got, want)
	}
}

func (w *world) set(state, sub string, job, pid uint32) {
	w.unit.ActiveState, w.unit.SubState, w.unit.Job, w.unit.MainPID = state, sub, job, pid
	w.Probe.unit.Refresh()
}

// TestRestart restarts the runtime in the middle of looks: a restart says nothing
// by itself, and takes nothing back before the runtime has answered.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.want(t, "in order", "")
		// It went a moment ago; systemd did not tell yet when it was asked first.
		w.cri.err = host.ErrNobodyListens
		w.set("deactivating", "stop-sigterm", 7, 621)
		w.want(t, "going down", "ContainerdNotRunning") // with a hold of a minute
		w.set("activating", "start", 7, 0)
		w.want(t, "coming up", "ContainerdNotRunning")
		w.cri.err = nil
		w.set("active", "running", 0, 621)
		w.want(t, "up", "")

		w.cri.notReady = "NetworkPluginNotReady"
		for range 2 {
			w.want(t, "no network", NetworkPluginNotReady)
			time.Sleep(5 * time.Second)
		}
		w.cri.err = host.ErrNobodyListens
		w.set("deactivating", "stop-sigterm", 7, 621)
		w.want(t, "restarted to mend it", "ContainerdNotRunning NetworkPluginNotReady")
		w.cri.err, w.cri.notReady = nil, ""
		w.set("active", "running", 0, 621)
		w.want(t, "mended", "")

		// What was seen first a moment before was the restart's beginning.
		w.cri.notReady = "NetworkPluginNotReady"
		w.want(t, "no network for a moment", NetworkPluginNotReady)
		w.cri.err = host.ErrNobodyListens
		w.set("deactivating", "stop-sigterm", 7, 621)
		w.want(t, "and going down", "ContainerdNotRunning")
	})
}

// TestSocketRace is a runtime that is gone a moment before systemd says so.
func TestSocketRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.want(t, "in order", "")
		w.cri.err = host.ErrNobodyListens
		w.want(t, "gone and running", RuntimeNotReady)
		w.unit.Job = 7 // not heard yet
		w.want(t, "gone and about to be restarted", "")
	})
}

// TestStarting is a runtime that listens before it has read its state, as
// containerd 1.6.20 does for a second on the lab's nodes: "server is not
// initialized yet".
func TestStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.want(t, "in order", "")
		w.cri.err = host.ErrStarting
		w.unit.ActiveState, w.unit.SubState, w.unit.Job = "activating", "start", 7 // not heard yet
		w.want(t, "restarted and not yet ready", "ContainerdNotRunning")           // with a hold of a minute
		w.write(t, "uptime", "303.00 303.00\n")                                    // it started at 300 s
		w.set("active", "running", 0, 621)
		w.want(t, "ready for systemd and not yet for us", "")
		w.write(t, "uptime", "370.00 370.00\n")
		w.want(t, "never ready", RuntimeNotReady)
		w.cri.err = nil
		w.want(t, "ready", "")
	})
}

func TestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.want(t, "in order", "")
		w.cri.hangs["Status"], w.cri.hangs["Version"], w.cri.hangs["list"] = true, true, true
		for range 3 {
			w.want(t, "nothing answers", Hung)
		}
		w.cri.hangs["Version"] = false
		w.want(t, "the version answers", StoreHung)
		w.cri.hangs["Status"] = false
		time.Sleep(storeEach)
		w.want(t, "the list does not", StoreHung)
		w.want(t, "nor the next", StoreHung)
		w.cri.hangs["list"] = false
		w.want(t, "all answer", "")
	})
}

// TestNetworkStands keeps a network that is not ready while the runtime hangs.
func TestNetworkStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cri.notReady = "x"
		w.want(t, "no network", NetworkPluginNotReady)
		time.Sleep(5 * time.Second)
		w.cri.hangs["Status"], w.cri.hangs["Version"] = true, true
		w.want(t, "hangs", Hung+" "+NetworkPluginNotReady)
		w.want(t, "hangs on", Hung+" "+NetworkPluginNotReady)
	})
}

func shimArgs(id string) []string {
	return []string{"/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", id, "-address", "/run/containerd/containerd.sock"}
}

// TestOrphanShims needs two lists, ten seconds apart.
func TestOrphanShims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cri.sandboxes = []host.Sandbox{{ID: "a", Ready: true}, {ID: "b"}}
		w.process(t, 700, shimArgs("a")...)
		w.process(t, 701, shimArgs("b")...)
		w.process(t, 702, append(shimArgs("c"), "start")...)
		w.process(t, 703, "/usr/bin/containerd-shim-runc-v2", "-namespace", "moby", "-id", "d")
		w.group(621, 700, 701, 702, 703, 999)
		w.want(t, "in order", "")
		if w.shims.count != 2 {
			t.Errorf("%d shims, want 2", w.shims.count)
		}
		lists := w.cri.asked["list"]
		w.process(t, 704, shimArgs("e")...)
		w.group(621, 700, 701, 704)
		time.Sleep(storeEach)
		w.want(t, "one list", "")
		w.want(t, "the same list", "")
		time.Sleep(listsApart)
		w.want(t, "two lists", OrphanShims)
		w.want(t, "as before", OrphanShims)
		if n := w.cri.asked["list"] - lists; n != 2 {
			t.Errorf("%d lists for it, want 2", n)
		}
		w.group(621, 700, 701)
		time.Sleep(storeEach)
		w.want(t, "gone", "")
		// A pod that is being made is listed after its shim was started.
		w.process(t, 705, shimArgs("f")...)
		w.group(621, 700, 701, 705)
		time.Sleep(storeEach)
		w.want(t, "not listed yet", "")
		w.cri.sandboxes = append(w.cri.sandboxes, host.Sandbox{ID: "f", Ready: true})
		time.Sleep(listsApart)
		w.want(t, "listed", "")
		// Without the cgroup all processes are asked.
		w.group(0)
		w.cri.sandboxes = w.cri.sandboxes[1:]
		for range 3 {
			time.Sleep(storeEach)
			w.reasons(t)
		}
		w.want(t, "from all processes", OrphanShims+" "+OrphanShims) // a and e, which runs there
	})
}

// TestSlow slows the runtime down and the machine.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		looks := func(n int, takes func(i int) time.Duration) (got string) {
			for i := range n {
				w.cri.takes = takes(i)
				got = w.reasons(t)
				time.Sleep(5 * time.Second)
			}
			return got
		}
		always := func(d time.Duration) func(int) time.Duration { return func(int) time.Duration { return d } }
		const second = window * learned
		if got := looks(second, always(3*time.Millisecond)); got != "" {
			t.Errorf("while it learns: %q", got)
		}
		busy := func(i int) time.Duration {
			if i%window == 0 {
				return 4 * time.Millisecond
			}
			return 600 * time.Millisecond
		}
		if got := looks(3*window, busy); got != "" {
			t.Errorf("on a busy machine: %q", got)
		}
		if got := looks(3*window, always(19*time.Millisecond)); got != "" {
			t.Errorf("six times as slow: %q", got)
		}
		if got := looks(window-1, always(300*time.Millisecond)); got != "" {
			t.Errorf("less than a minute: %q", got)
		}
		if got := looks(1, always(300*time.Millisecond)); got != Slow {
			t.Errorf("a minute: %q", got)
		}
		if got := looks(100*window, always(300*time.Millisecond)); got != Slow {
			t.Errorf("two hours: %q; it got used to it", got)
		}
		if got := looks(1, always(3*time.Millisecond)); got != "" {
			t.Errorf("one quick answer: %q", got)
		}
	})
}

// TestHeavyParts counts what is asked in an hour of looks.
func TestHeavyParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for range 720 {
			w.want(t, "in order", "")
			time.Sleep(5 * time.Second)
		}
		got := w.cri.asked
		if got["Status"] != 720 || got["verbose"] > 2 || got["Version"] > 2 || got["list"] < 80 || got["list"] > 91 {
			t.Errorf("asked in an hour: %v", got)
		}
	})
}

// TestPluginsAreHeard finds a plugin's loss in the first look after it was heard.
func TestPluginsAreHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.want(t, "in order", "")
		delete(w.root.MapFS, "opt/cni/bin/azure-vnet")
		w.want(t, "not heard", "")
		w.Probe.unit.Refresh()
		w.want(t, "heard", CNIPluginMissing)
		w.root.MapFS["opt/cni/bin/azure-vnet"] = &fstest.MapFile{Mode: 0o755, Data: []byte("x")}
		time.Sleep(time.Minute)
		w.want(t, "mended", "")
	})
}

func TestExplain(t *testing.T) {
	p := &Probe{}
	f := func(reason, subject string) probes.Finding { return probes.Finding{Reason: reason, Subject: subject} }
	for name, c := range map[string]struct {
		given []probes.Finding
		want  string
	}{
		"stopped":        {[]probes.Finding{f(Hung, "h"), f(NetworkPluginNotReady, "n"), f(notRunning, "u"), f(CNIPluginMissing, "p")}, "ContainerdNotRunning[h n] CNIPluginMissing[]"},
		"hangs":          {[]probes.Finding{f(NetworkPluginNotReady, "n"), f(Hung, "h"), f(Slow, "s")}, "ContainerdHung[n s]"},
		"loops":          {[]probes.Finding{f(crashLooping, "u"), f(RuntimeNotReady, "r")}, "ContainerdCrashLooping[r]critical"},
		"one orphan":     {[]probes.Finding{f(OrphanShims, "a")}, "OrphanShims[]"},
		"orphans":        {[]probes.Finding{f(OrphanShims, "a"), f(OrphanShims, "b"), f(OrphanShims, "c")}, "OrphanShims[b c]"},
		"nothing common": {[]probes.Finding{f(CNIPluginMissing, "a"), f(ConfigNotLoaded, "b")}, "CNIPluginMissing[] ContainerdConfigNotLoaded[]"},
	} {
		given := slices.Clone(c.given)
		var got []string
		for _, e := range p.Explain(c.given) {
			var refs []string
			for _, r := range e.Consequences {
				refs = append(refs, r.Subject)
			}
			got = append(got, e.Reason+"["+strings.Join(refs, " ")+"]"+e.Severity.String())
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %s, want %s", name, s, c.want)
		}
		if diff := cmp.Diff(given, c.given); diff != "" {
			t.Errorf("%s: Explain changed what it was given:\n%s", name, diff)
		}
	}
}
