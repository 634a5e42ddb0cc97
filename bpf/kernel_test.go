package bpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// needBPF skips a test where the kernel or the caller's rights do not allow it.
func needBPF(t testing.TB) {
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
	tr := tracedWith(t, Config{Sysctl: true, TCP: true, Clock: inVM()}, keys...) // other kernels may refuse the clock's
	for _, why := range missing(tr) {
		t.Error(why)
	}
	return tr
}

func tracedWith(t testing.TB, cfg Config, keys ...string) *Tracer {
	t.Helper()
	cfg.Root, cfg.Log = "/", slog.New(slog.NewTextHandler(t.Output(), nil))
	tr := New(cfg)
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
	case <-time.After(time.Minute):
		t.Fatal("not attached after a minute")
	}
	return tr
}

// missing are detectors that do not work though they are asked for, and the kernel
// allows them.
func missing(tr *Tracer) (all []string) {
	for _, s := range tr.States() {
		if s.Asked && !s.Active && !(s.Detector == socketsDetector && confidential()) {
			all = append(all, "detector "+s.Detector+": "+s.Reason)
		}
	}
	return all
}

// Every detector works on this kernel; the log says which, and vmtest makes a table of it.
func TestDetectorsOfThisKernel(t *testing.T) {
	needBPF(t)
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	for _, s := range traced(t).States() {
		t.Logf("%s: detector %-7s active %v %s", text(name.Release[:]), s.Detector, s.Active, s.Reason)
	}
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

// The unit is told by the cgroup, whatever the process calls itself.
func TestWriterIsToldByItsCgroup(t *testing.T) {
	needBPF(t)
	at, err := findTrees("/")
	if err != nil {
		t.Fatal(err)
	}
	unit := "nodedrift-test" + strconv.Itoa(os.Getpid()) + ".service"
	dir := at.unified.dir + "/" + unit + "/kubelet.service"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		for range 100 {
			if os.Remove(dir) == nil && os.Remove(filepath.Dir(dir)) == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	tr := traced(t, "kernel/printk_ratelimit_burst")
	before := monotonic()
	shell(t, "echo 0 >"+dir+"/cgroup.procs; echo kubelet >/proc/self/comm; read v </proc/sys/kernel/printk_ratelimit_burst; echo $v >/proc/sys/kernel/printk_ratelimit_burst")
	time.Sleep(50 * time.Millisecond)
	if got, _ := tr.Who(probes.Key{Domain: "sysctl", Name: someKey}, before); got.Unit != unit || got.Pod != "" {
		t.Errorf("written by %+v, want %s", got, unit)
	}
}

// limited runs a program in a memory cgroup of 32 MiB, to its end.
func limited(t *testing.T, program ...string) (pid int) {
	t.Helper()
	const limit = 32 << 20
	dir, file := "/sys/fs/cgroup/memory/nodedrift-test", "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		dir, file = "/sys/fs/cgroup/nodedrift-test", "memory.max"
	}
	dir += strconv.Itoa(os.Getpid())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skip("no memory cgroup can be made:", err)
	}
	t.Cleanup(func() {
		for range 100 {
			if os.Remove(dir) == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	if err := os.WriteFile(dir+"/"+file, []byte(strconv.Itoa(limit)), 0); err != nil {
		t.Skip("no memory limit can be set:", err)
	}
	cmd := exec.Command("sh", "-c", "echo 0 >"+dir+"/cgroup.procs; exec "+strings.Join(program, " "))
	t.Log(program[0], cmd.Run())
	return cmd.Process.Pid
}

// An OOM kill in a memory cgroup made for it.
func TestOOMKillIsHeard(t *testing.T) {
	needBPF(t)
	tr := traced(t)
	saw := make(chan probes.Occurrence, 16)
	defer tr.listen(&hearing{h: sawHearer{newEar(), saw}})()
	pid := limited(t, "tail", "/dev/zero")
	for {
		select {
		case o := <-saw:
			if t.Log(o); o.Reason == OOMKilled && strings.Contains(o.Message, fmt.Sprintf("tail (pid %d) was killed", pid)) {
				return
			}
		case <-time.After(3 * time.Second):
			t.Fatal("an OOM kill was not heard")
		}
	}
}

type sawHearer struct {
	*ear
	saw chan probes.Occurrence
}

func (s sawHearer) Saw(o probes.Occurrence) {
	select {
	case s.saw <- o:
	default:
	}
}

// Without BPF the kernel log tells.
func TestOOMKillIsReadFromTheLog(t *testing.T) {
	needBPF(t)
	tr, told := scripted(t, nil)
	tr.klog = &klog{since: monotonic()}
	if _, err := tr.klog.read(); err != nil {
		t.Skip(err)
	}
	limited(t, "tail", "/dev/zero")
	tr.fallBack()
	if got := strings.Join(told.told(), "\n"); !strings.Contains(got, "out of memory: tail was killed") {
		t.Errorf("told %q", got)
	}
}

// Programs of others stay where they are, and ours beside them.
func TestBesideOthers(t *testing.T) {
	needBPF(t)
	first, second := traced(t, "kernel/printk_ratelimit_burst"), traced(t, "kernel/printk_ratelimit_burst")
	before := monotonic()
	shell(t, "read v </proc/sys/kernel/printk_ratelimit_burst; echo $v >/proc/sys/kernel/printk_ratelimit_burst")
	time.Sleep(100 * time.Millisecond)
	for _, tr := range []*Tracer{first, second} {
		if _, ok := tr.Who(probes.Key{Domain: "sysctl", Name: someKey}, before); !ok {
			t.Error("a write was not heard by both")
		}
	}
}

// A burst is lost in part, is counted, and asks for a look; no write is refused.
func TestBurstIsCounted(t *testing.T) {
	needBPF(t)
	tr := traced(t, "kernel/printk_ratelimit_burst")
	e := newEar()
	defer tr.OnWrite(e)()
	const name = "/proc/sys/kernel/printk_ratelimit_burst"
	value, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	const burst = 100_000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	for range burst {
		if _, err := f.WriteAt(value, 0); err != nil {
			t.Fatal("a write is refused:", err)
		}
	}
	took := time.Since(began)
	s := tr.States()[0]
	for waited := time.Duration(0); waited < 3*Beat; waited += 100 * time.Millisecond { // the last beat may have been amid the burst
		if s = tr.States()[0]; s.Events+s.Lost >= burst {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	runtime.ReadMemStats(&after)
	t.Logf("%d writes in %s: %d heard, %d lost; heap %d KiB -> %d KiB", burst, took, s.Events, s.Lost, before.HeapInuse>>10, after.HeapInuse>>10)
	const others = 1000 // may write here at the same time: the detector hears the whole machine
	if n := s.Events + s.Lost; n < burst || n > burst+others {
		t.Errorf("%d writes, %d heard and %d lost", burst, s.Events, s.Lost)
	}
	if s.Lost > 0 && e.lost.Load() == 0 {
		t.Error("nobody was told of the loss")
	}
}

// What is missing is said, and nothing fails: a process without rights.
func TestWithoutRights(t *testing.T) {
	needBPF(t)
	if os.Getenv("NODEDRIFT_TEST_POOR") == "" {
		for _, drop := range []string{"-bpf,-sys_admin", "-perfmon,-sys_admin", "-net_admin,-sys_admin"} {
			cmd := exec.Command("setpriv", "--bounding-set", drop, "--inh-caps", drop, os.Args[0], "-test.run=^TestWithoutRights$", "-test.v")
			cmd.Env = append(os.Environ(), "NODEDRIFT_TEST_POOR="+drop)
			out, err := cmd.CombinedOutput()
			if errors.Is(err, exec.ErrNotFound) {
				t.Skip(err)
			}
			if err != nil {
				t.Errorf("without %s: %v\n%s", drop, err, out)
			}
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, "kernel_test.go") {
					t.Log(drop, strings.TrimSpace(line))
				}
			}
		}
		return
	}
	tr := New(Config{Root: "/", Sysctl: true, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	look, err := NewProbe(tr).Check(ctx)
	t.Logf("%v, not judged %q", err, look.NotJudged)
	if len(look.NotJudged) == 0 || !strings.Contains(look.NotJudged[0], "capabilities are missing") {
		t.Errorf("it does not say what is missing: %q", look.NotJudged)
	}
	if s := tr.States(); !strings.Contains(os.Getenv("NODEDRIFT_TEST_POOR"), "net_admin") == s[1].Active {
		t.Errorf("detectors that need no such right: %+v", s)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// line is a TCP connection over loopback: the end that dialled, and the other.
type line struct {
	peer     netip.AddrPort // of the first
	near     *net.TCPConn
	far      *net.TCPConn
	listener net.Listener
}

func newLine() (*line, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &line{peer: netip.MustParseAddrPort(l.Addr().String()), listener: l}
	return k, k.again()
}

// again makes the connection anew.
func (k *line) again() error {
	near, err := net.Dial("tcp4", k.peer.String())
	if err != nil {
		return err
	}
	far, err := k.listener.Accept()
	if err != nil {
		return err
	}
	k.near, k.far = near.(*net.TCPConn), far.(*net.TCPConn)
	return nil
}

func (k *line) close() {
	k.near.Close()
	k.far.Close()
	k.listener.Close()
}

// The first thread stays the test's own: one that another goroutine has left in a network
// namespace of its own would be taken for the process's.
func init() { runtime.LockOSThread() }

// elsewhere runs functions in a network namespace of their own, until the test ends.
func elsewhere(t *testing.T) (netns uint32, inside func(func() error)) {
	t.Helper()
	work, done := make(chan func() error), make(chan error)
	t.Cleanup(func() { close(work) })
	go func() {
		runtime.LockOSThread() // the thread ends with it
		for do := range work {
			done <- do()
		}
	}()
	inside = func(do func() error) {
		t.Helper()
		work <- do
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	inside(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		info, err := os.Stat("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		netns = uint32(info.Sys().(*syscall.Stat_t).Ino)
		return loopback(unix.IFF_UP)
	})
	return netns, inside
}

// loopback is "ip link set lo up", or down.
func loopback(flags uint16) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// A connection that is reset is told of, in the node's network and in an agent's; one
// that is closed in order, or of anybody else's network, is not.
func TestConnectionsToPeersAreHeard(t *testing.T) {
	needBPF(t)
	tr := traced(t)
	saw := make(chan probes.Occurrence, 16)
	defer tr.listen(&hearing{h: sawHearer{newEar(), saw}})()
	netns, inside := elsewhere(t)
	var here, agents *line
	var err error
	if here, err = newLine(); err != nil {
		t.Fatal(err)
	}
	defer here.close()
	inside(func() (err error) { agents, err = newLine(); return err })
	defer agents.close()
	later := func() { // as if a minute had passed
		tr.rare.limit.mu.Lock()
		defer tr.rare.limit.mu.Unlock()
		clear(tr.rare.limit.said)
	}
	heard := func(k *line) bool {
		t.Helper()
		later()
		_ = k.far.SetLinger(0)
		k.far.Close() // a reset
		select {
		case o := <-saw:
			if o.Reason != TunnelReset || o.Subject != k.peer.String() || o.Message != "the connection to "+k.peer.String()+" was reset" {
				t.Errorf("%+v", o)
			}
			return true
		case <-time.After(time.Second):
			return false
		}
	}
	tr.Peers([]netip.AddrPort{here.peer, agents.peer}, nil)
	if heard(agents) {
		t.Error("a reset in somebody else's network is told of")
	}
	if !heard(here) {
		t.Error("a reset in the node's network was not heard")
	}
	tr.Peers([]netip.AddrPort{here.peer, agents.peer}, []uint32{netns})
	inside(agents.again)
	if !heard(agents) {
		t.Error("a reset in an agent's network was not heard")
	}
	if _, ok := tr.Left(netns); ok {
		t.Error("the agent ended a connection that was reset")
	}
	inside(agents.again)
	began := time.Now()
	agents.near.Close() // in order
	agents.far.Close()
	ok := false
	for range 100 {
		var ago time.Duration
		if ago, ok = tr.Left(netns); ok {
			if ago < 0 || ago > time.Since(began) {
				t.Errorf("it ended the connection %s ago", ago)
			}
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !ok {
		t.Error("that the agent ended a connection was not heard")
	}
	select {
	case o := <-saw:
		t.Errorf("a connection that ends in order is told of: %+v", o)
	case <-time.After(200 * time.Millisecond):
	}
	agents.listener.Close()
	later()
	inside(func() error {
		if agents.again() == nil {
			return errors.New("a port that nobody listens on takes a connection")
		}
		return nil
	})
	for range 100 {
		if _, ok = tr.Left(netns); !ok {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if ok {
		t.Error("a peer that refuses is one that is silent")
	}
	if o := <-saw; o.Message != "the connection to "+agents.peer.String()+" could not be made: connection refused" {
		t.Errorf("%+v", o)
	}
	tr.Peers([]netip.AddrPort{here.peer, agents.peer}, nil)
	if _, ok := tr.Left(netns); ok {
		t.Error("what is known of an agent that is gone is kept")
	}
}

// called gives this process another name until the test ends.
func called(t testing.TB, name string) {
	t.Helper()
	const comm = "/proc/self/comm"
	old, err := os.ReadFile(comm)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(comm, []byte(name), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(comm, old, 0) })
}

// needSockets skips a test where the kernel lets no program follow the files of a process.
func needSockets(t *testing.T) {
	needBPF(t)
	if confidential() {
		t.Skip("lockdown=confidentiality: tables are read instead")
	}
}

// Connections of an agent are listed as they are, in whatever network namespace, and
// what is sent again to its peers is counted.
func TestConnectionsAreListed(t *testing.T) {
	needSockets(t)
	tr := traced(t)
	own := func() (process *Socket, all map[netip.AddrPort]Socket) {
		t.Helper()
		all = map[netip.AddrPort]Socket{}
		err := tr.Sockets(func(s Socket) {
			switch {
			case s.PID != os.Getpid():
			case s.State == 0:
				process = &s
			default:
				all[s.Remote] = s
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return process, all
	}
	if p, all := own(); p != nil || len(all) > 0 {
		t.Errorf("a process of another name is listed: %+v %+v", p, all)
	}
	called(t, "proxy-agent")
	if _, err := tr.count(); err != nil {
		t.Fatal(err)
	}
	netns, inside := elsewhere(t)
	var k *line
	inside(func() (err error) { k, err = newLine(); return err })
	defer k.close()
	p, all := own()
	if p == nil || p.Process != "proxy-agent" || p.Netns == netns || p.Netns == 0 || p.Cgroup == 0 {
		t.Fatalf("the process: %+v", p)
	}
	near := netip.MustParseAddrPort(k.near.LocalAddr().String())
	if s, want := all[k.peer], (Socket{os.Getpid(), "proxy-agent", p.Cgroup, netns, near, k.peer, 1, 0, 0}); s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	if s := all[near]; s.Local != k.peer {
		t.Errorf("the other end: %+v", s)
	}
	if _, ok := all[netip.AddrPort{}]; ok {
		t.Error("the listening socket is listed")
	}

	tr.Peers([]netip.AddrPort{k.peer}, []uint32{netns})
	before, ok := tr.retransmits()
	if !ok {
		t.Error("nobody counts what is sent again")
	}
	inside(func() error { return loopback(0) })
	if _, err := k.near.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, all = own(); all[k.peer].Retransmits >= 3 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if s := all[k.peer]; s.Unacked != 5 || s.Retransmits < 3 {
		t.Errorf("nothing is acknowledged: %+v", s)
	}
	if n, _ := tr.retransmits(); n-before < 3 {
		t.Errorf("%d segments were sent again", n-before)
	}
	inside(func() error { return loopback(unix.IFF_UP) })
}

// More connections or processes than are told are an error, not a part of the truth.
func TestTooManyConnections(t *testing.T) {
	needSockets(t)
	tr := traced(t)
	called(t, "kubelet")
	if _, err := tr.count(); err != nil {
		t.Fatal(err)
	}
	k, err := newLine()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	defer k.near.Close() // again puts others in their place
	defer k.far.Close()
	count := func() (n int, err error) {
		err = tr.Sockets(func(s Socket) {
			if s.PID == os.Getpid() && s.State != 0 {
				n++
			}
		})
		return n, err
	}
	const many = 100
	for range many - 1 {
		if err := k.again(); err != nil {
			t.Fatal(err)
		}
		defer k.near.Close()
		defer k.far.Close()
	}
	if n, err := count(); n != 2*many || err != nil {
		t.Errorf("%d connections (%v), want %d", n, err, 2*many)
	}
	for range 50 {
		if err := k.again(); err != nil {
			t.Fatal(err)
		}
		defer k.near.Close()
		defer k.far.Close()
	}
	if n, err := count(); !errors.Is(err, errTooMany) {
		t.Errorf("%d connections (%v), want an error", n, err)
	}
	known := tr.state(socketsDetector).d.Load().coll.Variables[socketsVarKnown]
	for _, c := range []struct {
		processes uint32
		want      error
	}{{0, nil}, {1 << 20, errTooMany}} { // no node has so many BPF maps, which are its steps
		if err := known.Set(c.processes); err != nil {
			t.Fatal(err)
		}
		if n, err := count(); !errors.Is(err, c.want) {
			t.Errorf("%d processes: %d connections (%v), want error %v", c.processes, n, err, c.want)
		}
	}
	for _, s := range tr.States() {
		if s.Detector == socketsDetector && !s.Active {
			t.Errorf("it is given up for it: %s", s.Reason)
		}
	}
}

// A daemon's thread that is blocked (its child of vfork does not go on) is counted.
func TestBlockedThreadIsCounted(t *testing.T) {
	needBPF(t)
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	const source = "#include <unistd.h>\nint main(void) { if (!vfork()) { sleep(20); _exit(0); } }"
	if err := os.WriteFile(dir+"/k.c", []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(gcc, "-w", "-o", dir+"/chronyd", dir+"/k.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(dir + "/chronyd")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	tr := traced(t)
	find := func(what string, census func() ([]blocked, error)) (found blocked) {
		for range 100 {
			all, err := census()
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range all {
				if int(b.By.PID) == cmd.Process.Pid && text(b.By.Comm[:]) == "chronyd" {
					return b
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("a blocked thread was not counted by %s", what)
		return found
	}
	kernel := find("the kernel", tr.count)
	proc := find("/proc", func() ([]blocked, error) { return readCensus("/proc"), nil })
	if kernel.Switches != proc.Switches || kernel.Thread != proc.Thread || proc.Start == 0 {
		t.Errorf("the kernel says %d switches of %d, /proc %d of %d (start %d)", kernel.Switches, kernel.Thread, proc.Switches, proc.Thread, proc.Start)
	}
	if k, p := tr.state(censusDetector).d.Load().identify(&kernel.By), (*detector)(nil).identify(&proc.By); k != p {
		t.Errorf("the kernel says %+v, /proc %+v", k, p)
	}
}

// A tracer that has ended says that it cannot tell.
func TestEndedTracer(t *testing.T) {
	needSockets(t)
	tr := New(Config{Root: "/", TCP: true, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	<-tr.Tried()
	if err := tr.Sockets(func(Socket) {}); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := tr.Sockets(func(Socket) {}); err == nil {
		t.Error("it goes on to tell")
	}
	tr.Peers([]netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:443")}, []uint32{1})
	if _, ok := tr.Left(1); ok {
		t.Error("it goes on to hear")
	}
}
