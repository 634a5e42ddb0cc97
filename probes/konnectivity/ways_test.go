package konnectivity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// apiServer is a stand-in for an API server that fetches logs from a kubelet by a real
// connection, and tells in its own form, with Go's own words, why it cannot.
type apiServer struct {
	*httptest.Server
	kubelet  atomic.Pointer[string] // "127.0.0.1:10250"
	asked    atomic.Int64           // for logs
	unsigned atomic.Int64           // requests without the token
}

func newAPIServer(t *testing.T, kubelet *httptest.Server, trusted *x509.CertPool) *apiServer {
	a := &apiServer{}
	address := kubelet.Listener.Addr().String()
	a.kubelet.Store(&address)
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}, DisableKeepAlives: true}}
	a.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer token" {
			a.unsigned.Add(1)
		}
		if r.URL.Path == "/readyz" {
			io.WriteString(w, "ok")
			return
		}
		a.asked.Add(1)
		if r.URL.Path != "/api/v1/namespaces/nodedrift-system/pods/nodedrift-x7k2p/log" || r.URL.Query().Get("tailLines") != "1" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		answer, err := client.Get("https://" + *a.kubelet.Load() + "/containerLogs/nodedrift-system/nodedrift-x7k2p/nodedrift")
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "status": "Failure", "message": err.Error(), "code": 500})
			return
		}
		defer answer.Body.Close()
		io.Copy(w, answer.Body)
	}))
	t.Cleanup(a.Close)
	return a
}

// realProbe is a probe of a node whose kubeconfig names a real server.
func realProbe(t testing.TB, server *httptest.Server) *Probe {
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for name, text := range map[string]string{
		"var/lib/kubelet/kubeconfig":      "clusters:\n- name: a\n  cluster: {server: 'https://" + server.Listener.Addr().String() + "', tls-server-name: example.com, certificate-authority: /etc/kubernetes/certs/ca.crt}\n",
		"etc/kubernetes/certs/ca.crt":     string(ca),
		"var/lib/kubelet/pki/kubelet.crt": "a",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	p := New(root, host.OpenProcesses("/proc"), nil, nil, ownPod, nil, Config{})
	p.cri = noAgents{}
	p.tcp = &fakeSockets{heard: -1, listener: 1}
	return p
}

// noAgents is a runtime without an agent.
type noAgents struct{}

func (noAgents) Sandboxes(context.Context) ([]host.Sandbox, error)        { return nil, nil }
func (noAgents) SandboxDetails(context.Context) ([]host.Sandbox, error)   { return nil, nil }
func (noAgents) Containers(context.Context) ([]host.Container, error)     { return nil, nil }
func (noAgents) ContainerExit(context.Context, string) (host.Exit, error) { return host.Exit{}, nil }

func look(t testing.TB, p *Probe) (probes.Look, error) {
	ctx, cancel := context.WithTimeout(t.Context(), lookWithin)
	defer cancel()
	return p.Check(ctx)
}

// says is what one finding of a look says; "" where there is none.
func says(t testing.TB, p *Probe) (reason, text string) {
	l, err := look(t, p)
	if err != nil || len(l.NotJudged) > 0 || len(l.Findings) > 1 {
		t.Errorf("%+v, %v", l, err)
	}
	for _, f := range l.Findings {
		return f.Reason, f.Message
	}
	return "", ""
}

// The words for a kubelet that cannot be reached are those of real connections.
func TestWayBackForReal(t *testing.T) {
	t.Parallel()
	newKubelet := func() *httptest.Server {
		k := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}\n") }))
		t.Cleanup(k.Close)
		return k
	}
	kubelet := newKubelet()
	trusted := x509.NewCertPool()
	trusted.AddCert(kubelet.Certificate())
	a := newAPIServer(t, kubelet, trusted)
	if reason, text := says(t, realProbe(t, a.Server)); reason != "" {
		t.Errorf("in order: %s %s", reason, text)
	}
	if a.unsigned.Load() != 0 {
		t.Error("a request without the token")
	}

	other := httptest.NewUnstartedServer(http.NotFoundHandler())
	other.TLS = &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}
	other.StartTLS()
	t.Cleanup(other.Close)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	gone := newKubelet()
	gone.Close()
	for _, c := range []struct{ kubelet, want string }{
		{other.Listener.Addr().String(), "it does not accept kubelet's serving certificate"},
		{silent.Addr().String(), "no answer from kubelet's port"},
		{gone.Listener.Addr().String(), "the connection is refused"},
	} {
		a.kubelet.Store(&c.kubelet)
		if reason, text := says(t, realProbe(t, a.Server)); reason != KubeletUnreachable || !strings.HasSuffix(text, c.want) {
			t.Errorf("%s %q, want %q", reason, text, c.want)
		}
	}
}

func selfSigned(t testing.TB) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "another"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// The way there, with real servers that are not the API server.
func TestForwardForReal(t *testing.T) {
	t.Parallel()
	good := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(good.Close)
	other := httptest.NewUnstartedServer(http.NotFoundHandler())
	other.TLS = &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}
	other.StartTLS()
	plainText := httptest.NewServer(http.NotFoundHandler())
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close(); plainText.Close(); silent.Close() })
	for _, c := range []struct{ to, reason, want string }{
		{good.Listener.Addr().String(), "", ""},
		{other.Listener.Addr().String(), APIServerTLSIntercepted, `its certificate is not of the cluster's authority but of "another"`},
		{plainText.Listener.Addr().String(), APIServerTLSIntercepted, "what answers does not speak TLS"},
		{silent.Addr().String(), APIServerUnreachable, "takes connections, and TLS fails: no answer"},
		{"127.0.0.1:1", APIServerUnreachable, "cannot be reached: the connection is refused"},
	} {
		p := realProbe(t, good)
		p.self = Self{}
		e, err := p.findEndpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at := netip.MustParseAddrPort(c.to)
		e.host, e.port = at.Addr().String(), at.Port()
		trip := p.goThere(t.Context(), e)
		reason, text := "", ""
		if trip.failed != nil {
			reason, text = trip.failed.Reason, trip.failed.Message
		}
		if reason != c.reason || !strings.HasSuffix(text, c.want) {
			t.Errorf("%s: %s %q, want %s %q", c.to, reason, text, c.reason, c.want)
		}
	}
}

// A runtime that did not answer is asked again at the next look, and one that did at its
// time.
func TestRuntimeIsAskedAgain(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	server.Close()
	synctest.Test(t, func(t *testing.T) {
		p := realProbe(t, server)
		runtime := &restarting{err: errors.New("starting")}
		p.cri = runtime
		p.procs = host.OpenProcesses(t.TempDir()) // without those of other tests
		for _, step := range []struct {
			err   error
			asked int
		}{{runtime.err, 1}, {runtime.err, 2}, {nil, 3}, {nil, 3}} {
			runtime.err = step.err
			p.refresh(t.Context())
			if (p.agentsErr != nil) != (step.err != nil) || runtime.asked != step.asked {
				t.Errorf("asked %d times (%v), want %d (%v)", runtime.asked, p.agentsErr, step.asked, step.err)
			}
			time.Sleep(5 * time.Second)
		}
	})
}

// restarting is a runtime without an agent that may have an error.
type restarting struct {
	noAgents
	err   error
	asked int
}

func (r *restarting) Sandboxes(context.Context) ([]host.Sandbox, error) {
	r.asked++
	return nil, r.err
}

// dialed is a root whose connections are made by a function.
type dialed struct {
	host.Files
	dial func(address string) (net.Conn, error)
}

func (d dialed) DialTCP(_ context.Context, address string) (net.Conn, error) { return d.dial(address) }

// An hour in which all is well costs no connection, and then one for a line of the log;
// an API server that is gone is tried again every ten seconds.
func TestHowOftenItAsks(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	server.Close()
	synctest.Test(t, func(t *testing.T) {
		p := realProbe(t, server)
		p.endpoint = &endpoint{host: "10.0.0.1", port: 443, name: "a"}
		p.found, p.findEach = time.Now(), 1000*time.Hour
		var mu sync.Mutex
		calls := 0
		dead := true
		p.root = dialed{p.root, func(string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			calls++
			if dead {
				return nil, unix.ETIMEDOUT
			}
			return nil, errors.New("not to be asked")
		}}
		took := func(span time.Duration) (n int) {
			for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(5 * time.Second) {
				if _, err := look(t, p); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			n, calls = calls, 0
			return n
		}
		// Six trips a minute, and one question for a line.
		if n := took(10 * time.Minute); n < 50 || n > 75 {
			t.Errorf("%d connections in ten minutes without an API server", n)
		}
		// From now on both answers are good, and kubelet's connection hears something.
		dead = false
		p.trips.answer, p.trips.ended = trip{to: p.endpoint.String(), addrs: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:443")}}, time.Now()
		p.back.answer, p.back.ended = line{took: 1}, time.Now()
		p.tcp = &fakeSockets{heard: 3 * time.Second, listener: 1}
		if n := took(59 * time.Minute); n != 0 {
			t.Errorf("%d connections within an hour in order", n)
		}
		if n := took(14 * time.Minute); n == 0 { // the first is not answered, others follow it
			t.Error("no connection in an hour and a quarter")
		}
		// kubelet's listening socket is another one: its question comes at once.
		p.back.answer, p.back.ended = line{took: 1}, time.Now()
		took(time.Minute)
		p.tcp = &fakeSockets{heard: 3 * time.Second, listener: 2}
		if n := took(10 * time.Second); n != 1 {
			t.Errorf("%d connections after kubelet was restarted, want 1", n)
		}
	})
}

// pipes is a listener whose connections are in memory, so that a bubble's time passes
// while they wait.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (pipes) Close() error   { return nil }
func (pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p pipes) dial(string) (net.Conn, error) {
	there, back := make(chan []byte, 100), make(chan []byte, 100)
	p <- &pipe{in: there, out: back}
	return &pipe{in: back, out: there}, nil
}

// pipe is one end. It has room for what nobody reads, as TLS's farewell, and no deadlines.
type pipe struct {
	net.Conn // none
	in, out  chan []byte
	rest     []byte
	once     sync.Once
}

func (p *pipe) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		var ok bool
		if p.rest, ok = <-p.in; !ok {
			return 0, io.EOF
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
func (p *pipe) Write(b []byte) (int, error)    { p.out <- slices.Clone(b); return len(b), nil }
func (p *pipe) Close() error                   { p.once.Do(func() { close(p.out) }); return nil }
func (*pipe) SetDeadline(time.Time) error      { return nil }
func (*pipe) SetReadDeadline(time.Time) error  { return nil }
func (*pipe) SetWriteDeadline(time.Time) error { return nil }
func (*pipe) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*pipe) LocalAddr() net.Addr              { return &net.TCPAddr{} }

// A day in order, with a server that counts: its TLS, its requests and their answers are
// real. One request an hour is the promise; make bench prints it.
func TestRequestsInSteadyState(t *testing.T) {
	t.Parallel()
	const day, promised = 24, 24 // hours, requests
	asked := map[string]int{}
	var mu sync.Mutex
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked[r.URL.Path]++
	}))
	server.StartTLS() // for its certificate
	server.Close()
	synctest.Test(t, func(t *testing.T) {
		connections := make(pipes)
		go http.Serve(tls.NewListener(connections, server.TLS), server.Config.Handler)
		defer close(connections)
		p := realProbe(t, server)
		p.root = dialed{p.root, connections.dial}
		p.tcp = &fakeSockets{heard: 3 * time.Second, listener: 1}
		pass := func(span time.Duration) (n int) {
			for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(p.Spec().Every) {
				if l, err := look(t, p); err != nil || len(l.Findings) > 0 {
					t.Fatal(l, err)
				}
			}
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			for _, times := range asked {
				n += times
			}
			return n
		}
		first := pass(time.Minute)
		if first != 2 {
			t.Errorf("%d requests at the start, want one for each way: %v", first, asked)
		}
		n := pass(day*time.Hour) - first
		t.Logf("%d requests to the API server in %d h after the start: %.2f an hour", n, day, float64(n)/day)
		if n > promised || n < promised*3/4 {
			t.Errorf("%d requests in %d h, want at most one an hour, and hardly less: %v", n, day, asked)
		}
	})
}

// What the agent's counters and containers say over time.
func TestCrashLoops(t *testing.T) {
	t.Parallel()
	now := time.Now()
	pod := host.Sandbox{ID: "s", Namespace: namespace, Name: "konnectivity-agent-x", Ready: true}
	of := func(attempt uint32, running bool, age time.Duration) host.Container {
		return host.Container{ID: "c", Sandbox: "s", Attempt: attempt, Running: running, Created: now.Add(-age)}
	}
	for name, c := range map[string]struct {
		containers []host.Container
		exit       host.Exit
		want       string
	}{
		"in order":            {[]host.Container{of(0, true, time.Hour)}, host.Exit{}, ""},
		"one restart":         {[]host.Container{of(0, false, time.Hour), of(1, true, time.Minute)}, host.Exit{At: now, Code: 1, Reason: "Error"}, ""},
		"waits to be started": {[]host.Container{of(4, false, 2*time.Minute)}, host.Exit{At: now, Code: 137, Reason: "OOMKilled"}, "keeps ending: exit code 137 (OOMKilled)"},
		"runs again":          {[]host.Container{of(4, false, 4*time.Minute), of(5, true, time.Minute)}, host.Exit{At: now.Add(-time.Minute), Code: 1, Reason: "Error"}, "keeps ending: exit code 1"},
		"runs for long again": {[]host.Container{of(4, false, 20*time.Minute), of(5, true, 10*time.Minute)}, host.Exit{At: now, Code: 1}, ""},
		"ended after a week":  {[]host.Container{of(4, false, 168*time.Hour), of(5, true, time.Minute)}, host.Exit{At: now.Add(-time.Minute), Code: 1}, ""},
	} {
		p := &Probe{cri: endings{noAgents{}, c.exit}}
		found, err := p.crashLoops(t.Context(), []host.Sandbox{pod}, c.containers)
		text := ""
		for _, f := range found {
			text = f.Message
		}
		if err != nil || !strings.HasSuffix(text, c.want) || c.want == "" && text != "" {
			t.Errorf("%s: %q (%v), want %q", name, text, err, c.want)
		}
	}
}

type endings struct {
	noAgents
	exit host.Exit
}

func (e endings) ContainerExit(context.Context, string) (host.Exit, error) { return e.exit, nil }

// Right after the node stood still nothing is held against the tunnel.
func TestFrozen(t *testing.T) {
	t.Parallel()
	p := &Probe{}
	p.frozen.Store(int64(100 * time.Second))
	for up, want := range map[time.Duration]int{110 * time.Second: 1, 116 * time.Second: 2} {
		l := probes.Look{Findings: []probes.Finding{{Reason: TunnelDown}, {Reason: TunnelKeepaliveUnsafe}}}
		p.hold(up, &l)
		if len(l.Findings) != want || len(l.NotJudged) != 2-want {
			t.Errorf("%s: %+v", up, l)
		}
	}
}

// Names are looked up as the node does.
func TestResolver(t *testing.T) {
	t.Parallel()
	if got := parseHosts("# x\n127.0.0.1 localhost\n10.0.0.1 a.b A.C # a.d\nfe80::1 a.b\nx a.b\n", "a.B."); len(got) != 2 || got[0].String() != "10.0.0.1" {
		t.Errorf("%v", got)
	}
	if got := parseResolv("search x\nnameserver 10.0.0.1\nnameserver x\nnameserver fe80::1%eth0\nnameserver 1.1.1.1\nnameserver 2.2.2.2\n"); strings.Join(got, " ") != "10.0.0.1 fe80::1%eth0 1.1.1.1" {
		t.Errorf("%v", got)
	}
}
