package konnectivity

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/bpf"
	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// This program is also the two ends of a tunnel (so it is for the tests on a lab's nodes,
// too), as far as a probe sees them: a server
// that answers each question, and an agent that holds a TCP connection to it, asks it
// every --keepalive-time, gives it up when an answer is late, and tells of that as
// apiserver-network-proxy v0.36 was seen to.
func TestMain(m *testing.M) {
	runtime.LockOSThread() // the first thread stays in the node's network
	what := os.Getenv("NODEDRIFT_STANDIN")
	if what != "" {
		go func(parent int) { // not longer than the test
			for os.Getppid() == parent {
				time.Sleep(time.Second)
			}
			os.Exit(1)
		}(os.Getppid())
	}
	switch what {
	case "recorded":
		b, err := os.ReadFile(os.Args[1])
		if err == nil {
			err = http.ListenAndServe(os.Args[2], http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(b) }))
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case "server":
		fmt.Fprintln(os.Stderr, serveTunnel())
		os.Exit(1)
	case "agent":
		fmt.Fprintln(os.Stderr, (&standIn{}).run(parseFlags(os.Args)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const (
	tunnelPort = 8132
	late       = 2 * time.Second // in place of gRPC's 20 s
)

func serveTunnel() error {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", tunnelPort))
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go io.Copy(c, c)
	}
}

// standIn is the agent.
type standIn struct {
	mu           sync.Mutex
	open, failed int
	hostile      string
}

func (s *standIn) run(f flags) error {
	s.hostile = os.Getenv("NODEDRIFT_HOSTILE")
	go func() {
		for {
			s.connection(f)
			time.Sleep(500 * time.Millisecond)
		}
	}()
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", s.metrics)
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if s.mu.Lock(); s.open == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		s.mu.Unlock()
	})
	return http.ListenAndServe(fmt.Sprintf(":%d", f.healthPort), mux)
}

// connection holds one connection for as long as it is good.
func (s *standIn) connection(f flags) {
	server := net.JoinHostPort(f.server, strconv.Itoa(int(f.serverPort)))
	c, err := net.DialTimeout("tcp", server, 20*time.Second)
	if err != nil {
		return
	}
	defer c.Close()
	ask := func(within time.Duration) error {
		c.SetDeadline(time.Now().Add(within))
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 1))
		return err
	}
	if ask(20*time.Second) != nil { // the handshake
		return
	}
	s.count(1, 0)
	defer s.count(-1, 1)
	for {
		// It hears the end at once, and silence when it has asked.
		c.SetDeadline(time.Now().Add(f.keepalive))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || ask(late) != nil {
			return
		}
	}
}

func (s *standIn) count(open, failed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.failed = s.open+open, s.failed+failed
}

func (s *standIn) metrics(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	good := fmt.Sprintf("# TYPE %[1]sknown_server_count gauge\n%[1]sknown_server_count 1\n%[1]sopen_server_connections %[2]d\n%[1]sserver_connection_failure_count{direction=\"from_server\"} %[3]d\n",
		prefix, s.open, s.failed)
	s.mu.Unlock()
	switch s.hostile {
	case "":
		io.WriteString(w, good)
	case "1 GB":
		for b, i := make([]byte, 1<<20), 0; i < 1000; i++ {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	case "a million series":
		out := bufio.NewWriter(w)
		for i := range 1_000_000 {
			fmt.Fprintf(out, "%sopen_server_connections{id=\"%d\"} 1\n", prefix, i)
		}
		out.Flush()
	case "gzip":
		w.Header().Set("Content-Encoding", "gzip")
		io.WriteString(w, good)
	case "redirect":
		http.Redirect(w, r, "http://127.0.0.1:1/metrics", http.StatusMovedPermanently)
	case "endless head":
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := io.WriteString(c, "X-A: "+strings.Repeat("a", 1000)+"\r\n"); err != nil {
					return
				}
			}
		}
	case "drip":
		for _, c := range []byte(good) {
			w.Write([]byte{c})
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// A tunnel is a stand-in agent and its server, in a network namespace of their own.
type tunnel struct {
	t             *testing.T
	dir           string
	holder        *exec.Cmd // keeps the namespace
	agent, server *exec.Cmd
}

// newTunnel makes the namespace, the server and the agent.
func newTunnel(t *testing.T, hostile string, args ...string) *tunnel {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	n := &tunnel{t: t, dir: t.TempDir()}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, program), self, 0o755); err != nil {
		t.Fatal(err)
	}
	n.holder = exec.Command("sleep", "1000")
	n.holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	n.begin(n.holder)
	n.inside(func() error { return loopbackUp() })
	n.startServer()
	n.agent = exec.Command(filepath.Join(n.dir, program), append([]string{fmt.Sprintf("--proxy-server-port=%d", tunnelPort), "--proxy-server-host=127.0.0.1"}, args...)...)
	n.agent.Env = []string{"NODEDRIFT_STANDIN=agent", "NODEDRIFT_HOSTILE=" + hostile}
	n.inside(n.agent.Start)
	n.ends(n.agent)
	return n
}

func (n *tunnel) startServer() {
	n.server = exec.Command("/proc/self/exe")
	n.server.Env = []string{"NODEDRIFT_STANDIN=server"}
	n.inside(n.server.Start)
	n.ends(n.server)
}

func (n *tunnel) begin(c *exec.Cmd) {
	n.t.Helper()
	if err := c.Start(); err != nil {
		n.t.Skip("no network namespace: ", err)
	}
	n.ends(c)
}

func (n *tunnel) ends(c *exec.Cmd) {
	n.t.Cleanup(func() { c.Process.Kill(); c.Wait() })
}

// inside runs a function in the namespace, on a thread that ends with it.
func (n *tunnel) inside(do func() error) {
	n.t.Helper()
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		failed <- func() error {
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.holder.Process.Pid))
			if err != nil {
				return err
			}
			defer f.Close()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return do()
		}()
	}()
	if err := <-failed; err != nil {
		n.t.Fatal(err)
	}
}

// loopbackUp is "ip link set lo up".
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

func (n *tunnel) signal(c *exec.Cmd, s syscall.Signal) {
	n.t.Helper()
	if err := c.Process.Signal(s); err != nil {
		n.t.Fatal(err)
	}
	if s == syscall.SIGKILL {
		c.Wait()
	}
}

// insideRoot is a node's root whose addresses are those of the namespace.
type insideRoot struct {
	host.Files
	n *tunnel
}

func (r insideRoot) DialTCP(ctx context.Context, address string) (conn net.Conn, err error) {
	r.n.inside(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp", address)
		return nil
	})
	return conn, err
}

// oneAgent is a runtime with one agent in it, which has run for long.
type oneAgent struct{ pod host.Sandbox }

func (o oneAgent) Sandboxes(context.Context) ([]host.Sandbox, error) {
	return []host.Sandbox{o.pod}, nil
}
func (o oneAgent) SandboxDetails(context.Context) ([]host.Sandbox, error) {
	return []host.Sandbox{o.pod}, nil
}
func (o oneAgent) Containers(context.Context) ([]host.Container, error) {
	return []host.Container{{ID: "/", Sandbox: o.pod.ID, Running: true, Created: time.Now()}}, nil
}
func (o oneAgent) ContainerExit(context.Context, string) (host.Exit, error) { return host.Exit{}, nil }

// onlyAgent lists the stand-in's process only, and says that it has run for long.
type onlyAgent struct {
	host.Processes
	pid int
}

func (p onlyAgent) List() iter.Seq2[*host.Process, error] {
	return func(yield func(*host.Process, error) bool) {
		process, err := p.Process(p.pid)
		yield(process, err)
	}
}

func (p onlyAgent) Uptime() (time.Duration, error) {
	up, err := p.Processes.Uptime()
	return up + 2*young, err
}

// watched is a probe of a tunnel that looks as the agent lets it: when it hears
// something, and every five seconds.
type watched struct {
	mu    sync.Mutex
	look  probes.Look
	err   error
	since map[string]time.Time // findings, by reason, since when they stand
	ever  map[string]bool      // reasons that were found
	looks int
}

type ears struct{ c chan struct{} }

func (e ears) Changed() {
	select {
	case e.c <- struct{}{}:
	default:
	}
}
func (e ears) Saw(probes.Occurrence) {}
func (e ears) Lost(string, uint64)   {}

func (n *tunnel) probe(trace Tracer) *Probe {
	n.t.Helper()
	dir := n.t.TempDir()
	root, err := host.OpenRoot(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { root.Close() })
	if err := os.MkdirAll(filepath.Join(dir, "var/lib/kubelet"), 0o755); err != nil {
		n.t.Fatal(err)
	}
	config := "clusters: [{name: a, cluster: {server: 'https://127.0.0.1:1', proxy-url: 'http://none'}}]\n" // the way there is no matter here
	if err := os.WriteFile(filepath.Join(dir, "var/lib/kubelet/kubeconfig"), []byte(config), 0o644); err != nil {
		n.t.Fatal(err)
	}
	p := New(insideRoot{root, n}, host.Processes{}, nil, nil, Self{}, trace, Config{})
	p.procs = onlyAgent{host.OpenProcesses("/proc"), n.agent.Process.Pid}
	p.cri = oneAgent{host.Sandbox{ID: "a", Namespace: namespace, Name: "konnectivity-agent-x", Ready: true, Known: true, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}}
	return p
}

func (n *tunnel) watch(trace Tracer) *watched {
	p := n.probe(trace)
	w := &watched{since: map[string]time.Time{}, ever: map[string]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	n.t.Cleanup(func() { cancel(); running.Wait() })
	e := ears{make(chan struct{}, 1)}
	running.Go(func() { p.Watch(ctx, e) })
	running.Go(func() {
		for ctx.Err() == nil {
			within, done := context.WithTimeout(ctx, lookWithin)
			look, err := p.Check(within)
			done()
			w.take(look, err)
			select {
			case <-e.c:
			case <-time.After(p.Spec().Every):
			case <-ctx.Done():
			}
		}
	})
	return w
}

func (w *watched) take(look probes.Look, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.since
	w.look, w.err, w.since = look, err, map[string]time.Time{}
	w.looks++
	for _, f := range look.Findings {
		w.ever[f.Reason] = true
		if w.since[f.Reason] = was[f.Reason]; w.since[f.Reason].IsZero() {
			w.since[f.Reason] = time.Now()
		}
	}
}

// raised waits until a reason stands, and returns how long that took with its hold.
func (w *watched) raised(t *testing.T, reason string, within time.Duration) time.Duration {
	t.Helper()
	var hold time.Duration
	for _, r := range reasons {
		if r.Name == reason {
			hold = r.Hold
		}
	}
	began := time.Now()
	for ; time.Since(began) < within; time.Sleep(20 * time.Millisecond) {
		w.mu.Lock()
		since, ok := w.since[reason]
		w.mu.Unlock()
		if ok && time.Since(since) >= hold {
			return time.Since(began)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Fatalf("%s is not raised within %s: %+v (%v)", reason, within, w.look.Findings, w.err)
	return 0
}

// clean waits until nothing is found, but for some reasons, and everything was looked at.
func (w *watched) clean(t *testing.T, within time.Duration, but ...string) {
	t.Helper()
	began := time.Now()
	for ; time.Since(began) < within; time.Sleep(20 * time.Millisecond) {
		w.mu.Lock()
		ok := w.looks > 0 && w.err == nil && !slices.ContainsFunc(w.look.Findings, func(f probes.Finding) bool { return !slices.Contains(but, f.Reason) })
		w.mu.Unlock()
		if ok {
			return
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Fatalf("it is not in order within %s: %+v (%v)", within, w.look.Findings, w.err)
}

// tracer is the real one, as the probe asks it.
type tracer struct{ *bpf.Tracer }

func (t tracer) Sockets(take func(Socket)) error {
	return t.Tracer.Sockets(func(s bpf.Socket) { take(Socket(s)) })
}

// trace runs a tracer until the test ends; it is skipped where the kernel allows none.
func trace(t testing.TB) Tracer {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	tr := tracer{bpf.New(bpf.Config{Root: "/", TCP: true, Log: slog.New(slog.DiscardHandler)})}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { tr.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	<-tr.Tried()
	for _, s := range tr.States() {
		if !s.Active && (s.Detector == "sockets" || s.Detector == "tcp") {
			t.Skip(s.Reason)
		}
	}
	return tr
}

// bothWays runs a test with traced connections, and with the kernel's tables.
func bothWays(t *testing.T, test func(*testing.T, func(testing.TB) Tracer)) {
	t.Parallel()
	t.Run("traced", func(t *testing.T) { t.Parallel(); test(t, trace) })
	t.Run("tables", func(t *testing.T) { t.Parallel(); test(t, func(testing.TB) Tracer { return nil }) })
}

const askEach = "--keepalive-time=30s"

// A server that is killed is told within 3 s, the default hold included; once it is
// back all is well.
func TestTunnelServerKilled(t *testing.T) { bothWays(t, testTunnelServerKilled) }

func testTunnelServerKilled(t *testing.T, trace func(testing.TB) Tracer) {
	n := newTunnel(t, "", askEach)
	time.Sleep(time.Second) // so that the first look sees the connection, moments before it ends
	w := n.watch(trace(t))
	w.clean(t, 10*time.Second)
	n.signal(n.server, syscall.SIGKILL)
	t.Logf("raised after %s", w.raised(t, TunnelDown, 3*time.Second))
	n.startServer()
	w.clean(t, 10*time.Second)
}

// A server that is stopped is told within the keepalive and 35 s.
func TestTunnelServerStopped(t *testing.T) { bothWays(t, testTunnelServerStopped) }

func testTunnelServerStopped(t *testing.T, trace func(testing.TB) Tracer) {
	const keepalive = 3 * time.Second
	n := newTunnel(t, "", "--keepalive-time="+keepalive.String())
	w := n.watch(trace(t))
	w.clean(t, 20*time.Second, TunnelKeepaliveUnsafe) // 3 s, so that the test is short; connected, so that there is what stops
	w.mu.Lock()
	clear(w.ever) // it has not always been connected
	w.mu.Unlock()
	n.signal(n.server, syscall.SIGSTOP)
	t.Logf("raised after %s", w.raised(t, TunnelNotResponding, keepalive+35*time.Second))
	w.mu.Lock()
	if w.ever[TunnelDown] {
		t.Error("a server that is silent was taken for one that is not there")
	}
	w.mu.Unlock()
	n.signal(n.server, syscall.SIGCONT)
	began := time.Now()
	for ; time.Since(began) < 30*time.Second; time.Sleep(50 * time.Millisecond) {
		w.mu.Lock()
		_, still := w.since[TunnelNotResponding]
		w.mu.Unlock()
		if !still {
			return
		}
	}
	t.Error("it does not clear")
}

// An agent that is stopped is told within 12 s.
func TestTunnelAgentStopped(t *testing.T) {
	t.Parallel()
	n := newTunnel(t, "", askEach)
	w := n.watch(nil)
	w.clean(t, 10*time.Second)
	n.signal(n.agent, syscall.SIGSTOP)
	t.Logf("raised after %s", w.raised(t, TunnelAgentHung, 12*time.Second))
	w.mu.Lock()
	said := w.look.Findings[0].Message
	w.mu.Unlock()
	if !strings.Contains(said, "SIGSTOP") {
		t.Errorf("it says %q", said)
	}
	n.signal(n.agent, syscall.SIGCONT)
	w.clean(t, 15*time.Second)
}

// Three drops within ten minutes are told, though each is over in a second.
func TestTunnelUnstable(t *testing.T) {
	t.Parallel()
	n := newTunnel(t, "", askEach)
	w := n.watch(nil)
	w.clean(t, 10*time.Second)
	for range drops {
		n.signal(n.server, syscall.SIGKILL)
		n.startServer()
		time.Sleep(2500 * time.Millisecond)
	}
	w.raised(t, TunnelUnstable, 10*time.Second)
}

// Whatever an agent answers, the look ends, stays small, and is never clean.
func TestTunnelHostileAnswers(t *testing.T) {
	for _, hostile := range []string{"1 GB", "a million series", "gzip", "redirect", "endless head", "drip"} {
		n := newTunnel(t, hostile, askEach)
		p := n.probe(nil)
		time.Sleep(500 * time.Millisecond) // it starts
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ctx, cancel := context.WithTimeout(t.Context(), lookWithin)
		began := time.Now()
		look, err := p.Check(ctx)
		cancel()
		runtime.ReadMemStats(&after)
		hung := len(look.Findings) == 1 && look.Findings[0].Reason == TunnelAgentHung
		if err == nil && !hung {
			t.Errorf("%s: the look is clean: %+v", hostile, look)
		}
		if took, used := time.Since(began), after.TotalAlloc-before.TotalAlloc; took > 2*time.Second || used > 5<<20 {
			t.Errorf("%s: the look took %s and %d bytes", hostile, took, used)
		}
		t.Logf("%s: %v, %d findings", hostile, err, len(look.Findings))
	}
}
