package bpf

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/nodedrift/nodedrift/probes"
)

const (
	uid       = "1b9e3f6a-0c4d-4e5f-8a7b-9c0d1e2f3a4b"
	uidFolder = "kubepods-burstable-pod1b9e3f6a_0c4d_4e5f_8a7b_9c0d1e2f3a4b.slice"
)

var cid = strings.Repeat("0123456789abcdef", 4)

func TestIdentify(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]identity{
		"kubepods.slice/kubepods-burstable.slice/" + uidFolder + "/cri-containerd-" + cid + ".scope": {pod: uid, container: cid},
		"kubepods.slice/kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice":                 {pod: uid},
		"kubepods/besteffort/pod" + uid + "/" + cid:                                                  {pod: uid, container: cid},
		"kubepods/podd41d8cd98f00b204e9800998ecf8427e/" + cid:                                        {pod: "d41d8cd98f00b204e9800998ecf8427e", container: cid},
		"system.slice/kubelet.service":                                                               {unit: "kubelet.service"},
		"system.slice/run-u5.service":                                                                {unit: "run-u5.service"},
		"user.slice/user-1000.slice/session-3.scope":                                                 {unit: "session-3.scope"},
		"user.slice/user-1000.slice/user@1000.service/app.slice/fake.service":                        {unit: "user@1000.service"},
		"init.scope": {unit: "init.scope"},
		"":           {},
		"system.slice/containerd.service/kubepods.slice/" + uidFolder: {unit: "containerd.service"},
		// Whoever may make cgroups below its own can choose any name, and stays who it is.
		"kubepods.slice/" + uidFolder + "/cri-containerd-" + cid + ".scope/kubelet.service":                {pod: uid, container: cid},
		"kubepods.slice/" + uidFolder + "/x/kubepods-pod" + strings.Repeat("a", 32) + ".slice":             {pod: uid},
		"system.slice/evil.service/kubepods/pod" + uid:                                                     {unit: "evil.service"},
		"kubepods.slice/kubepods-podzzzz3f6a_0c4d_4e5f_8a7b_9c0d1e2f3a4b.slice":                            {},
		"kubepods.slice/tripod" + strings.Repeat("a", 32):                                                  {},
		"system.slice/a\x1b[2Jb.service":                                                                   {unit: `a\x1b[2Jb.service`},
		"kubepods.slice/kubepods-burstable.slice/" + uidFolder + "/crio-" + cid + ".scope/container/inner": {pod: uid, container: cid},
	} {
		if got := identify(strings.Split(path, "/")); got != want {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
}

func TestPathIsReadFromTheRootOn(t *testing.T) {
	t.Parallel()
	// A cgroup of 11 levels; the kernel side keeps the 8 nearest to the root.
	var a actorEvent
	a.Where, a.Steps = inside, 11
	for s := range 11 { // s counts from the leaf
		copy(a.Names[s%nameCount][:], fmt.Sprintf("level%d\x00%s", 11-s, "what was there before"))
	}
	if got, want := strings.Join(a.path(), " "), "level1 level2 level3 level4 level5 level6 level7 level8"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := (&actorEvent{Where: tooDeep, Steps: 24}).path(); got != nil {
		t.Errorf("a path that does not reach the root is taken for one: %q", got)
	}
}

func TestPodLogs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := fstest.MapFS{
			"var/log/pods/kube-system_tuner-x7k2_" + uid + "/tuner/0.log": {},
			"var/log/pods/no_pod/x": {},
			"var/log/containers/tuner-x7k2_kube-system_main-loop-" + cid + ".log": {},
		}
		p := NewPodLogs(root)
		if pod, container := p.Name(uid, cid); pod != "kube-system/tuner-x7k2" || container != "main-loop" {
			t.Fatalf("%q %q", pod, container)
		}
		if _, container := p.Name(uid, strings.Repeat("a", 64)); container != "tuner" {
			t.Errorf("the only container of a pod is %q, not named before its link is there", container)
		}
		clear(root)
		time.Sleep(time.Hour)
		for _, wait := range []time.Duration{0, remembered - time.Second} {
			time.Sleep(wait)
			p.Name("somebody else", "")
			if pod, _ := p.Name(uid, cid); pod != "kube-system/tuner-x7k2" {
				t.Errorf("a pod deleted %s ago is %q", wait, pod)
			}
		}
		time.Sleep(2 * time.Second)
		p.Name("somebody else", "")
		if pod, container := p.Name(uid, cid); pod != "" || container != "" {
			t.Errorf("a pod deleted long ago is %q %q", pod, container)
		}
	})
}

// names is a Resolver.
type names map[string]string

func (n names) Name(uid, _ string) (pod, container string) { return n[uid], "" }

func TestJournal(t *testing.T) {
	t.Parallel()
	known := names{}
	j := newJournal(known)
	key := probes.Key{Domain: "sysctl", Name: "net.ipv4.ip_forward"}
	j.put(key, act{mono: 20, who: identity{pod: uid}, by: Actor{PID: 2, Comm: "kubelet"}})
	j.put(key, act{mono: 10, who: identity{unit: "late.service"}, by: Actor{PID: 1}})
	if got, ok := j.who(key, 20); !ok || got != (Actor{PID: 2, Comm: "kubelet", Pod: uid}) {
		t.Errorf("%+v %v", got, ok)
	}
	known[uid] = "default/late"
	if got, _ := j.who(key, 0); got.Pod != "default/late" {
		t.Errorf("a name learned later is not told: %+v", got)
	}
	if got, ok := j.who(key, 21); ok {
		t.Errorf("nobody did anything since, yet %+v", got)
	}
	for i := range 3 * maxKeys {
		j.put(probes.Key{Domain: "sysctl", Name: fmt.Sprint(i)}, act{mono: time.Duration(100 + i)})
	}
	if n := len(j.acts); n != maxKeys {
		t.Errorf("%d keys are kept, want %d", n, maxKeys)
	}
	if _, ok := j.who(probes.Key{Domain: "sysctl", Name: fmt.Sprint(3*maxKeys - 1)}, 0); !ok {
		t.Error("the newest key was forgotten")
	}
}

func TestParseMounts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ mounts, root, unified, pids string }{
		"unified": {"30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/", "/sys/fs/cgroup", ""},
		"hybrid": {"40 35 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n43 35 0:36 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"/", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"},
		"in a pod": {"30 23 0:26 /.. /sys/fs/cgroup ro - cgroup2 cgroup ro\n31 23 0:26 /../../.. /host/sys/fs/cgroup ro master:1 - cgroup2 cgroup rw\n" +
			"32 23 0:26 / /host/run/containerd/x/sys/fs/cgroup ro - cgroup2 cgroup rw\n", "/host", "/host/sys/fs/cgroup", ""},
		"none":  {"30 23 0:26 / /hostile/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/host", "", ""},
		"junk":  {"\n - cgroup2\n1 2 3 4 5 - cgroup2 x\n", "/host", "", ""},
		"no v2": {"40 35 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n", "/", "", "/sys/fs/cgroup/pids"},
	} {
		if unified, pids := parseMounts(strings.NewReader(c.mounts), c.root); unified != c.unified || pids != c.pids {
			t.Errorf("%s: %q and %q, want %q and %q", name, unified, pids, c.unified, c.pids)
		}
	}
}

// A cgroup is found when it is first asked for, however soon after another; who makes
// ever new ones does not keep the agent reading.
func TestWalkFindsNewCgroups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &walk{tree: tree{dir: t.TempDir()}}
		made := func(name string) uint64 {
			dir := filepath.Join(w.tree.dir, "kubepods", name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			tr, err := openTree(dir)
			if err != nil {
				t.Fatal(err)
			}
			return tr.id
		}
		const many = 50
		var found int
		for i := range many {
			name := fmt.Sprint("pod", i)
			switch got := strings.Join(w.find(made(name)), "/"); got {
			case "kubepods/" + name:
				found++
			case "":
			default:
				t.Errorf("%s found as %s", name, got)
			}
		}
		if want := int(maxSpare / readAgain); found != want {
			t.Errorf("%d of %d found at once, want %d", found, many, want)
		}
		time.Sleep(readAgain)
		if got := w.find(made("later")); len(got) != 2 || got[1] != "later" {
			t.Errorf("a moment later: %q", got)
		}
	})
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"sysctl": "sysctl", "a\nb": `a\nb`, "\x1b[31m": `\x1b[31m`, "\xff": `\xff`, "héllo": "héllo", strings.Repeat("x", 99): strings.Repeat("x", 16)} {
		if got := printable(in, 16); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Events are read as the C programs lay them out.
func TestEventsAreLaidOutAsInC(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		load func() (*ebpf.CollectionSpec, error)
		name string
		is   reflect.Type
	}{
		{loadSysctl, "sysctl_event", reflect.TypeFor[sysctlEvent]()}, {loadSysctl, "actor", reflect.TypeFor[actorEvent]()},
		{loadExit, "event", reflect.TypeFor[event]()}, {loadCensus, "blocked", reflect.TypeFor[blocked]()}, {loadTcp, "tcp_event", reflect.TypeFor[tcpEvent]()},
		{loadSockets, "connection", reflect.TypeFor[connection]()}, {loadSockets, "end", reflect.TypeFor[endpoint]()},
	} {
		spec, err := c.load()
		if err != nil {
			t.Fatal(err)
		}
		var s *btf.Struct
		if err := spec.Types.TypeByName(c.name, &s); err != nil {
			t.Fatal(err)
		}
		if uintptr(s.Size) != c.is.Size() || len(s.Members) != c.is.NumField() {
			t.Fatalf("%s has %d bytes and %d members, in Go %d and %d", c.name, s.Size, len(s.Members), c.is.Size(), c.is.NumField())
		}
		for i, m := range s.Members {
			f := c.is.Field(i)
			if size, _ := btf.Sizeof(m.Type); uintptr(m.Offset.Bytes()) != f.Offset || uintptr(size) != f.Type.Size() {
				t.Errorf("%s.%s is %d bytes at %d, in Go %d at %d", c.name, m.Name, size, m.Offset.Bytes(), f.Type.Size(), f.Offset)
			}
		}
	}
}

// occurred is a Hearer that keeps what it is told.
type occurred struct {
	*ear
	saw []probes.Occurrence
}

func (o *occurred) Saw(x probes.Occurrence) { o.saw = append(o.saw, x) }

func (o *occurred) told() (lines []string) {
	for _, x := range o.saw {
		lines = append(lines, x.Reason+" "+x.Subject+": "+x.Message)
	}
	return lines
}

// scripted returns a tracer that hears what the test tells it.
func scripted(t *testing.T, pods Resolver) (*Tracer, *occurred) {
	tr := New(Config{Pods: pods, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	for _, s := range tr.states {
		s.d.Store(&detector{})
	}
	o := &occurred{ear: newEar()}
	t.Cleanup(tr.listen(&hearing{h: o}))
	return tr, o
}

// task is somebody with a cgroup path.
func task(pid, parent uint32, comm, path string) (a actorEvent) {
	a.Time, a.Start, a.PID, a.Parent, a.Where = uint64(monotonic()), uint64(pid)*1000, pid, parent, inside
	copy(a.Comm[:], comm)
	parts := strings.Split(path, "/")
	a.Steps = uint32(len(parts))
	for i, p := range parts {
		copy(a.Names[(len(parts)-1-i)%nameCount][:], p)
	}
	return a
}

func signalTo(target, by actorEvent, n uint32) *event {
	return &event{Kind: kindSignal, Number: n, Target: target.PID, TargetStart: target.Start, TargetComm: target.Comm, By: by}
}

func TestWhoEndedADaemonIsTold(t *testing.T) {
	t.Parallel()
	const pod = "kubepods.slice/" + uidFolder
	kubelet := task(100, 1, "kubelet", "system.slice/kubelet.service")
	for name, c := range map[string]struct {
		events []*event
		want   string
		by     string // whom the journal names, of kubelet.service
	}{
		"a pod": {[]*event{signalTo(kubelet, task(7, 6, "sh", pod), 9), {Kind: kindExit, Number: 9, By: kubelet}},
			"DaemonKilled kubelet.service: kubelet.service (pid 100) was ended by SIGKILL", "ci/runner-9"},
		"a session, politely": {[]*event{signalTo(kubelet, task(7, 6, "kill", "user.slice/user-0.slice/session-3.scope"), 15), {Kind: kindExit, By: kubelet}},
			"DaemonKilled kubelet.service: kubelet.service (pid 100) was ended by SIGTERM", "session-3.scope"},
		"systemd, as it is told": {[]*event{signalTo(kubelet, task(1, 0, "systemd", "init.scope"), 15), {Kind: kindExit, By: kubelet}}, "", ""},
		"systemd's watchdog": {[]*event{signalTo(kubelet, task(1, 0, "systemd", "init.scope"), 6), {Kind: kindExit, Number: 6, By: kubelet}},
			"DaemonKilled kubelet.service: kubelet.service (pid 100) was ended by SIGABRT", "init.scope"},
		"itself":           {[]*event{{Kind: kindExit, Number: 11, By: kubelet}}, "DaemonKilled kubelet.service: kubelet.service (pid 100) was ended by SIGSEGV", ""},
		"nobody: it ended": {[]*event{{Kind: kindExit, Number: 1 << 8, By: kubelet}}, "", ""},
		"two threads tell of one end": {[]*event{{Kind: kindExit, Number: 9, By: kubelet}, {Kind: kindExit, Number: 9, By: kubelet}},
			"DaemonKilled kubelet.service: kubelet.service (pid 100) was ended by SIGKILL", ""},
		"a namesake in a pod": {[]*event{{Kind: kindExit, Number: 9, By: task(100, 1, "kubelet", pod)}}, "", ""},
		"a child of it":       {[]*event{{Kind: kindExit, Number: 9, By: task(101, 100, "kubelet", "system.slice/kubelet.service")}}, "", ""},
		"an earlier owner of the pid": {[]*event{signalTo(actorEvent{PID: 100, Start: 1}, task(7, 6, "sh", pod), 9), {Kind: kindExit, Number: 9, By: kubelet}},
			"DaemonKilled kubelet.service: kubelet.service (pid 100) was ended by SIGKILL", ""},
		"outside of the node": {[]*event{{Kind: kindExit, Number: 9, By: func() actorEvent { k := kubelet; k.Where = outside; return k }()}}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr, told := scripted(t, names{uid: "ci/runner-9"})
			for _, e := range c.events {
				tr.rare.heard(e)
			}
			if got := strings.Join(told.told(), "\n"); got != c.want {
				t.Errorf("told %q, want %q", got, c.want)
			}
			// A look in between found it running: systemd is told last.
			who, _ := tr.Who(probes.Key{Domain: "unit", Name: "kubelet.service"}, time.Duration(kubelet.Time)+unnoticed/2)
			if got := who.Pod + who.Unit; got != c.by {
				t.Errorf("by %q, want %q", got, c.by)
			}
		})
	}
}

func TestOOMKillIsToldWithItsPod(t *testing.T) {
	t.Parallel()
	tr, told := scripted(t, names{uid: "shop/cart-1"})
	tr.rare.heard(&event{Kind: kindOOM, Memory: 8192, By: task(5, 4, "java", "kubepods.slice/"+uidFolder+"/cri-containerd-"+cid+".scope")})
	tr.rare.heard(&event{Kind: kindOOM, By: task(6, 1, "big\x1b", "system.slice/big.service")})
	other := task(7, 1, "elsewhere", "x")
	other.Where = outside
	tr.rare.heard(&event{Kind: kindOOM, By: other})
	want := "OOMKilled shop/cart-1: out of memory: java (pid 5) was killed; it held 32 MiB\n" +
		`OOMKilled big.service: out of memory: big\x1b (pid 6) was killed`
	if got := strings.Join(told.told(), "\n"); got != want {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
}

func TestAStormIsOneSummary(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, told := scripted(t, nil)
		say := func() {
			tr.rare.limit.say(tr, OOMKilled, "a/b", func() probes.Occurrence { return probes.Occurrence{Message: "killed"} })
		}
		for range 1000 {
			say()
		}
		time.Sleep(quietFor)
		tr.rare.limit.flush(tr)
		time.Sleep(quietFor)
		tr.rare.limit.flush(tr)
		say()
		want := "OOMKilled a/b: killed\nOOMKilled a/b: killed; and 999 more like it within a minute\nOOMKilled a/b: killed"
		if got := strings.Join(told.told(), "\n"); got != want {
			t.Errorf("told\n%s\nwant\n%s", got, want)
		}
		for i := range 10 * maxTracked {
			tr.rare.limit.say(tr, OOMKilled, fmt.Sprint(i), func() probes.Occurrence { return probes.Occurrence{} })
		}
		if n := len(tr.rare.limit.said); n > maxTracked+1 {
			t.Errorf("%d subjects are tracked", n)
		}
	})
}

// What is wrong with the end of a connection is told; what both ends, or this one, want
// is not. The numbers are Linux's on amd64 and arm64.
func TestHowAConnectionEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		e    tcpEvent
		want string
	}{
		{tcpEvent{Kind: tcpReset}, "was reset"},
		{tcpEvent{Kind: tcpFailed, Error: 111}, "could not be made: connection refused"},
		{tcpEvent{Kind: tcpFailed, Error: 110, Retransmits: 7}, "could not be made: connection timed out"},
		{tcpEvent{Kind: tcpFailed, Retransmits: 1}, "could not be made: no answer"},
		{tcpEvent{Kind: tcpFailed}, ""}, // given up at once, as one of two addresses is
		{tcpEvent{Kind: tcpClosed}, ""}, // its process ended
		{tcpEvent{Kind: tcpClosed, Error: 104}, ""},
		{tcpEvent{Kind: tcpClosed, Error: 110}, "ended: connection timed out"},
		{tcpEvent{Kind: tcpLeft}, ""},
	} {
		if got := c.e.how(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.e, got, c.want)
		}
	}
}

// A control plane that is restarted refuses for a while: one occurrence, and a summary
// each minute.
func TestARestartOfAPeerIsNoStorm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr, told := scripted(t, nil)
		tr.Peers([]netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:443")}, nil)
		e := tcpEvent{Kind: tcpReset, Peer: endpoint{Addr: netip.MustParseAddr("10.0.0.1").As16(), Port: 443}}
		s := &state{}
		for i := range 30 { // seconds
			tr.heardTCP(s, &e)
			e.Kind, e.Error = tcpFailed, 111
			if i == 0 {
				other := e
				other.Peer.Port = 8443
				tr.heardTCP(s, &other)
			}
			time.Sleep(time.Second)
			tr.rare.limit.flush(tr)
		}
		time.Sleep(5 * time.Minute)
		tr.rare.limit.flush(tr)
		want := "TunnelReset 10.0.0.1:443: the connection to 10.0.0.1:443 was reset\n" +
			"TunnelReset 10.0.0.1:443: the connection to 10.0.0.1:443 was reset; and 29 more like it within a minute"
		if got := strings.Join(told.told(), "\n"); got != want {
			t.Errorf("told\n%s\nwant\n%s", got, want)
		}
	})
}

func TestBlockedThreadsAreToldOnceAfterAMinute(t *testing.T) {
	t.Parallel()
	w := ward{}
	still, moving := blocked{Start: 1, Thread: 1, Switches: 5}, blocked{Start: 2, Thread: 2}
	told := 0
	for at := time.Duration(0); at <= 5*time.Minute; at += censusSoon {
		moving.Switches++
		for _, b := range w.hung([]blocked{still, moving}, at) {
			if told++; b.Thread != 1 || at != hungAfter {
				t.Errorf("thread %d is told after %s", b.Thread, at)
			}
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	if w.hung(nil, 0); len(w) != 0 {
		t.Errorf("%d threads that run again are kept", len(w))
	}
}

func TestNilTracerKnowsNothing(t *testing.T) {
	t.Parallel()
	var tr *Tracer
	tr.Watch([]string{"x"})
	tr.OnWrite(newEar())()
	tr.Peers(nil, nil)
	if _, ok := tr.Who(probes.Key{}, 0); ok || tr.States() != nil {
		t.Error("it knows something")
	}
	if _, ok := tr.Left(1); ok || tr.Sockets(func(Socket) {}) == nil {
		t.Error("it knows connections")
	}
	if _, err := NewProbe(tr).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "running agent") {
		t.Error(err)
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add("kubepods.slice/" + uidFolder + "/cri-containerd-" + cid + ".scope")
	f.Add("system.slice/x.service")
	f.Fuzz(func(t *testing.T, path string) {
		id := identify(strings.Split(path, "/"))
		if id.pod != "" && (id.unit != "" || !isUID(id.pod)) || id.container != "" && len(id.container) != 64 {
			t.Errorf("%q: %+v", path, id)
		}
	})
}

func TestParseKlog(t *testing.T) {
	t.Parallel()
	log := "<6>[   10.000001] oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a,task=old,pid=1,uid=0\n" +
		"<6>[   20.000002] oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/kubepods.slice,task_memcg=/kubepods.slice/" + uidFolder +
		"/cri-containerd-" + cid + ".scope,task=a,pid=9,b,pid=1234,uid=0\n" +
		"<3>[   30.000003] INFO: task jbd2/sda:1:99 blocked for more than 120 seconds.\n" +
		"<3>[   31.000003] INFO: task x:7 blocked in I/O wait for more than 241 seconds.\n" +
		"oom-kill:constraint=,task_memcg=/x,task=y,pid=1,uid=0\n<6>[    9999999999.000000] oom-kill:\n<6>[   25.0] half a li"
	found, newest := parseKlog([]byte(log), 15*time.Second)
	want := []entry{
		{reason: OOMKilled, comm: "a,pid=9,b", pid: "1234", path: []string{"kubepods.slice", uidFolder, "cri-containerd-" + cid + ".scope"}},
		{reason: TaskHung, comm: "jbd2/sda:1", pid: "99", seconds: "120"},
		{reason: TaskHung, comm: "x", pid: "7", seconds: "241"},
	}
	if !reflect.DeepEqual(found, want) || newest != 31*time.Second+3*time.Microsecond {
		t.Errorf("%+v until %s, want %+v", found, newest, want)
	}
	if found, _ := parseKlog([]byte(log), newest); found != nil {
		t.Errorf("told twice: %+v", found)
	}
}

func FuzzParseKlog(f *testing.F) {
	f.Add([]byte("<6>[   20.000002] oom-kill:constraint=C,task_memcg=/a,task=b,pid=1,uid=0\n"))
	f.Fuzz(func(t *testing.T, log []byte) {
		if _, newest := parseKlog(log, time.Second); newest < time.Second {
			t.Error(newest)
		}
	})
}
