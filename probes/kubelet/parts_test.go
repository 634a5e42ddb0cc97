package kubelet

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

func TestHolds(t *testing.T) {
	t.Parallel()
	want := map[string]time.Duration{NotRunning: 3 * time.Second, CrashLooping: 0, Unhealthy: 4 * time.Second, Hung: 4 * time.Second, SyncLoopStuck: 0,
		CertificateBroken: 10 * time.Second, CertificateExpiring: time.Minute, ServesOldCertificate: 10 * time.Minute, AlphaFeature: 0,
		"KubeletDaemonReloadNeeded": 10 * time.Minute, ConfigNotLoaded: 10 * time.Minute, "KubeletBinaryReplaced": 10 * time.Minute, "KubeletUnitChanged": 5 * time.Second}
	for _, r := range reasons(Config{}) {
		if hold, ok := want[r.Name]; !r.Happens && (!ok || hold != r.Hold) {
			t.Errorf("%s is held for %s, want %s", r.Name, r.Hold, hold)
		}
	}
}

// TestLate holds the two thresholds of a certificate's end.
func TestLate(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, c := range []struct {
		life, left time.Duration
		want       probes.Severity
	}{
		{365 * day, 30 * day, 0},
		{365 * day, 29 * day, probes.Warning},
		{365 * day, 73 * time.Hour, probes.Warning},
		{365 * day, 71 * time.Hour, probes.Critical},
		{30 * day, 58 * time.Hour, 0},
		{30 * day, 57 * time.Hour, probes.Critical}, // 8 % of a short life
		{day, 2 * time.Hour, 0},
		{day, time.Hour, probes.Critical},
		{365 * day, -time.Hour, probes.Critical},
	} {
		now := time.Now()
		cert := &certificate{leaf: &x509.Certificate{NotBefore: now.Add(c.left - c.life), NotAfter: now.Add(c.left)}}
		if got := cert.late(now); got != c.want {
			t.Errorf("%s of %s left: %q, want %q", c.left, c.life, got, c.want)
		}
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	f := func(reason, message string) probes.Finding {
		return probes.Finding{Reason: reason, Subject: reason, Message: message}
	}
	for name, c := range map[string]struct{ list, want []probes.Finding }{
		"a broken certificate keeps kubelet from starting": {
			[]probes.Finding{f(CrashLooping, ""), f(CertificateBroken, ""), f(NotRunning, "has failed: exit status 1")}, []probes.Finding{f(CertificateBroken, "")}},
		"who was stopped was stopped": {
			[]probes.Finding{f(CertificateBroken, ""), f(NotRunning, "it was stopped")}, []probes.Finding{f(CertificateBroken, ""), f(NotRunning, "it was stopped")}},
		"a dead mount": {[]probes.Finding{f(Hung, ""), f(SyncLoopStuck, ""), f(Unhealthy, "")}, []probes.Finding{f(SyncLoopStuck, "")}},
	} {
		got := explain(slices.Clone(c.list))
		if !slices.EqualFunc(got, c.want, func(a, b probes.Finding) bool { return a.Reason == b.Reason }) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestThreads holds that a thread hangs when it has been in state D for three
// looks and has not run.
func TestThreads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		thread := func(state string, switches int) {
			task := filepath.Join(dir, "7/task/9")
			if err := os.MkdirAll(task, 0o755); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"stat": "9 (a) b) " + state + " 1 7\n", "status": fmt.Sprintf("Name:\ta\nvoluntary_ctxt_switches:\t%d\nnonvoluntary_ctxt_switches:\t1\n", switches)} {
				if err := os.WriteFile(filepath.Join(task, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		thread("S", 1)
		p, err := host.OpenProcesses(dir).Process(7)
		if err != nil {
			t.Fatal(err)
		}
		st := &unit.State{Run: unit.Run{Main: p}, Running: true}
		var th threads
		look := func() bool {
			time.Sleep(threadsEach)
			found, why := th.look("kubelet.service", st)
			if len(why) > 0 {
				t.Error(why)
			}
			return len(found) > 0
		}
		for i := range 5 { // busy: in state D at each look, and it runs in between
			thread("D", i)
			if look() {
				t.Fatal("a busy thread hangs")
			}
		}
		thread("D", 100)
		for i, want := range []bool{false, false, true, true} {
			if got := look(); got != want {
				t.Errorf("look %d: %t, want %t", i, got, want)
			}
		}
		thread("S", 101)
		if look() {
			t.Error("a thread that runs again hangs")
		}
	})
}

// tcp is a root that connects to a test server, whatever the address.
type tcp struct {
	tree
	to func() (net.Conn, error)
}

func (d tcp) DialTCP(context.Context, string) (net.Conn, error) { return d.to() }

// TestHealthKeepsItsConnection holds that a look at a healthy kubelet opens no
// connection, that one which the server has closed is made anew, and that
// redirects and endless answers are not followed.
func TestHealthKeepsItsConnection(t *testing.T) {
	t.Parallel()
	dials, status, body := 0, 200, "ok"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status == 302 {
			w.Header().Set("Location", "http://203.0.113.1/")
		}
		w.WriteHeader(status)
		w.Write([]byte(body))
	}))
	defer server.Close()
	h := &health{root: tcp{to: func() (net.Conn, error) {
		dials++
		return net.Dial("tcp", server.Listener.Addr().String())
	}}}
	defer h.close()
	st := &unit.State{Running: true}
	st.Since = time.Hour
	look := func() []string {
		var names []string
		found, notJudged := h.look(t.Context(), "http://127.0.0.1:10248/healthz", "kubelet.service", st)
		for _, f := range found {
			names = append(names, f.Reason)
		}
		return append(names, notJudged...)
	}
	h.noLoop = true
	for range 5 {
		if got := look(); len(got) > 0 || dials != 1 {
			t.Fatalf("%v over %d connections", got, dials)
		}
	}
	server.CloseClientConnections()
	if got := look(); len(got) > 0 || dials != 2 {
		t.Errorf("%v over %d connections, want a second one", got, dials)
	}
	status = 302
	if got := look(); !slices.Equal(got, []string{Unhealthy}) {
		t.Errorf("redirected: %v", got)
	}
	status, body = 500, strings.Repeat("[-]a failed: x\n", 100000)
	if got := look(); !slices.Equal(got, []string{Unhealthy}) {
		t.Errorf("endless: %v", got)
	}
	h.close()
	h.root = tcp{to: func() (net.Conn, error) { return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED} }}
	st.Since = 10 * time.Second
	found, _ := h.look(t.Context(), "http://127.0.0.1:10248/healthz", "kubelet.service", st)
	if len(found) != 1 || found[0].Hold != 50*time.Second {
		t.Errorf("a kubelet that has just started: %+v, want a hold of 50 s", found)
	}
	h.root = tcp{to: func() (net.Conn, error) { return nil, errors.New("strange") }}
	if got := look(); len(got) != 2 || !strings.HasPrefix(got[0], Unhealthy+": ") {
		t.Errorf("an error that says nothing: %v", got)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	file, err := parseConfig([]byte("healthzPort: 10000\nhealthzBindAddress: \"::\"\naddress: 10.0.0.4\nfeatureGates: {A: true, B: true}\nserverTLSBootstrap: true\nunknown: {x: 1}\n"))
	if err != nil {
		t.Fatal(err)
	}
	s := settings{file: file}
	if got := s.healthz(); got != "http://[::1]:10000/healthz" {
		t.Error(got)
	}
	if got := s.serving(); got != "10.0.0.4:10250" {
		t.Error(got)
	}
	s.args = []string{"kubelet", "--healthz-port", "0", "--feature-gates=B=false,C=true", "--address=0.0.0.0", "--port=1", "--rotate-server-certificates=false", "--cert-dir=/x"}
	if got := s.healthz() + s.serving() + s.certDir(); got != "127.0.0.1:1"+"x" || s.bootstrap() {
		t.Error(got)
	}
	if g := s.featureGates(); !g["A"] || g["B"] || !g["C"] {
		t.Error(g)
	}
	if _, err := parseConfig([]byte("{secret: [")); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a broken file: %v", err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("healthzPort: 10248\nfeatureGates: {A: true}\n"), "--feature-gates=A=true")
	f.Add([]byte(`{"kind": "KubeletConfiguration", "address": "0.0.0.0"}`), "--healthz-port=1")
	f.Add([]byte("users:\n- name: a\n  user: {client-certificate: /x, client-key: /y}\n"), "")
	f.Fuzz(func(t *testing.T, content []byte, arg string) {
		file, err := parseConfig(content)
		s := settings{file: file, args: []string{"kubelet", arg}}
		s.healthz()
		s.serving()
		alpha(s, func() uint8 { return 30 })
		parseKubeconfig(content)
		if once := normal("", content); err == nil {
			if twice := normal("", once); string(once) != string(twice) {
				t.Errorf("%q becomes %q, and that %q", content, once, twice)
			}
		}
	})
}

func FuzzPair(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), []byte(""))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		if c := parsePair(cert, key); c.leaf == nil && c.broken == "" {
			t.Error("neither a certificate nor a fault")
		}
	})
}
