package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

const hostile = `<script>alert("x")</script>'&`

// sample is a node with one drift, one blindness and hostile words everywhere.
func sample() agent.Snapshot {
	at := time.Date(2026, 11, 21, 20, 0, 0, 0, time.UTC)
	return agent.Snapshot{Document: agent.Document{SchemaVersion: agent.SchemaVersion, Node: "node0", Time: at.Add(time.Hour),
		Conditions: []agent.Condition{
			{Type: agent.NodeDrift, Status: agent.True, Reason: "SysctlDrift", Message: "SysctlChanged (critical); also KubeletDrift", LastTransitionTime: at, LastCheckTime: at},
			{Type: "RebootPending", Status: agent.False, Reason: "NoRebootRequired", LastTransitionTime: at, LastCheckTime: at},
			{Type: "KubeletDrift", Status: agent.Unknown, Reason: agent.ProbeFailed, Message: hostile, Error: hostile, LastTransitionTime: at, NotJudged: []string{hostile}},
			{Type: "CNIRouteDrift"},
			{Type: "SysctlDrift", Status: agent.True, Reason: "SysctlChanged", Message: "net.ipv4.ip_forward is 0, want 1", LastTransitionTime: at, LastCheckTime: at,
				Findings: []agent.Finding{{Reason: "SysctlChanged", Severity: probes.Critical, Owner: probes.Customer, Subject: hostile, Observed: hostile, Wanted: hostile,
					Source: hostile, Message: hostile, Since: at, Consequences: []probes.Ref{{}}, Actor: &agent.Actor{Pod: hostile, Container: hostile}}}},
		},
		NotApplicable: []agent.NotApplicable{{Probe: "azurecni", Why: hostile}},
		Occurrences:   []agent.Occurrence{{Time: at, Reason: "OOMKilled", Subject: hostile, Message: hostile}},
		Sources:       []agent.Source{{Probe: "sysctl", Lost: 3, Error: hostile}}}}
}

func get(t *testing.T, h http.Handler, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader("body")))
	return w
}

func newServer(t *testing.T, change func(*Config)) *Server {
	t.Helper()
	cfg := Config{Source: sample, Version: "v1", Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "nodedrift_build_info 1") })}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhoSeesWhat(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	for path, want := range map[string][2]int{ // on the network, on loopback
		"/metrics": {200, 200}, "/healthz": {200, 200}, "/readyz": {200, 200}, "/": {404, 200}, "/api/v1/status": {404, 200},
		"/debug/pprof/": {404, 404}, "/other": {404, 404}, "/api/v1/": {404, 404},
	} {
		for i, everything := range []bool{false, true} {
			if w := get(t, s.Handler(everything), "GET", path); w.Code != want[i] {
				t.Errorf("%s with everything=%v: %d, want %d", path, everything, w.Code, want[i])
			}
		}
	}
}

func TestOnlyReading(t *testing.T) {
	t.Parallel()
	h := newServer(t, nil).Handler(true)
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"} {
		for _, path := range []string{"/", "/metrics", "/api/v1/status", "/healthz"} {
			if w := get(t, h, method, path); w.Code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: %d", method, path, w.Code)
			}
		}
	}
	w := get(t, h, "HEAD", "/")
	if w.Code != 200 || !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	h := newServer(t, func(c *Config) {
		c.Alive = func() error { return errors.New("the loop of probe sysctl has not turned for 3s") }
		c.Ready = func() error { return errors.New("probe chrony has not looked yet") }
	}).Handler(false)
	for path, want := range map[string]string{"/healthz": "probe sysctl", "/readyz": "probe chrony"} {
		if w := get(t, h, "GET", path); w.Code != 503 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestPage(t *testing.T) {
	t.Parallel()
	page := get(t, newServer(t, nil).Handler(true), "GET", "/").Body.String()
	if strings.Contains(page, "<script") || strings.Contains(page, `alert("`) {
		t.Error("text from outside reaches the page unescaped")
	}
	at := -1
	for _, want := range []string{`<h1>node0: <span class="True">drift</span>`, "SysctlChanged (critical)", "SysctlDrift <span", "KubeletDrift <span", "CNIRouteDrift <span", "RebootPending <span",
		"What happened", "OOMKilled", "Sources", "3 events lost", "Not on this node"} { // in this order: the worst first
		i := strings.Index(page, want)
		if i < at {
			t.Errorf("%q is at %d, want it after %d", want, i, at)
		}
		at = i
	}
	for _, want := range []string{"(1h0m0s ago)", "last good look never", "acts: you", "not looked yet", "could not look", "explains 1 more"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is missing", want)
		}
	}
	for _, tag := range []string{"ul", "li", "p", "article", "span", "h1", "h2", "h3", "code", "b", "time"} {
		if a, b := strings.Count(page, "<"+tag+">")+strings.Count(page, "<"+tag+" "), strings.Count(page, "</"+tag+">"); a != b {
			t.Errorf("%d <%s> and %d </%s>", a, tag, b, tag)
		}
	}
	if file := os.Getenv("NODEDRIFT_PAGE"); file != "" { // to look at it
		if err := os.WriteFile(file, []byte(page), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPageBeforeTheFirstLook(t *testing.T) {
	t.Parallel()
	h := newServer(t, func(c *Config) { c.Source = func() agent.Snapshot { return agent.Snapshot{} } }).Handler(true)
	if w := get(t, h, "GET", "/"); !strings.Contains(w.Body.String(), "not looked yet") {
		t.Error(w.Body)
	}
}

func TestDocument(t *testing.T) {
	t.Parallel()
	w := get(t, newServer(t, nil).Handler(true), "GET", "/api/v1/status")
	var d agent.Document
	if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil || d.Node != "node0" || len(d.Conditions) != 5 || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%v: %s", err, w.Body)
	}
}

// serve runs a server on a loopback port and returns its address.
func serve(t *testing.T) (addr string, stop func()) {
	t.Helper()
	s := newServer(t, func(c *Config) { c.Listen = []string{"127.0.0.1:0"} })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	return s.Addrs()[0].String(), func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestServes(t *testing.T) {
	t.Parallel()
	addr, stop := serve(t)
	client := &http.Client{Transport: &http.Transport{}}
	resp, err := client.Get("http://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if !strings.Contains(string(b), "SysctlDrift") {
		t.Errorf("%s", b)
	}
	if _, err := New(Config{Listen: []string{addr}}); err == nil {
		t.Error("an address that is taken is no error")
	}
	stop()
	if _, err := client.Get("http://" + addr + "/"); err == nil {
		t.Error("it still answers")
	}
}

func TestLongHeaderIsRefused(t *testing.T) {
	t.Parallel()
	addr, stop := serve(t)
	defer stop()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 10<<20)) }()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.Contains(line, "431") {
		t.Errorf("%q", line)
	}
}

// A thousand slow callers cost at most 4 MiB and keep nobody out.
func TestSlowCallers(t *testing.T) {
	addr, stop := serve(t)
	defer stop()
	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	ask := func() {
		resp, err := client.Get("http://" + addr + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		client.CloseIdleConnections()
	}
	var grown int64
	for range 2 { // the first round brings in the code; the callers themselves live in this process too
		before := rss(t)
		for range 1000 {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nX: "+strings.Repeat("x", 4<<10)) // and never ends; it may have been closed already
		}
		ask()
		grown = rss(t) - before
	}
	t.Logf("grown by %d KiB", grown>>10)
	if grown > 4<<20 && !raceEnabled {
		t.Errorf("a thousand slow callers cost %d KiB", grown>>10)
	}
}

// rss is this process's resident memory after what is free went back.
func rss(t *testing.T) int64 {
	t.Helper()
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

func TestOldestConnectionMakesRoom(t *testing.T) {
	t.Parallel()
	inner := &pipes{next: make(chan net.Conn, 8)}
	l := limit(inner, 2)
	accept := func() (net.Conn, net.Conn) {
		near, far := net.Pipe()
		inner.next <- far
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return near, c
	}
	first, a := accept()
	_, b := accept()
	l.changed(b, http.StateActive)
	second, _ := accept()
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the oldest connection is open: %v", err)
	}
	if len(l.open) != 2 {
		t.Errorf("%d connections are open", len(l.open))
	}
	_ = a.Close() // again: harmless
	_ = b.Close()
	if len(l.open) != 1 {
		t.Errorf("%d connections are open after one was closed", len(l.open))
	}
	_ = second.Close()
}

type pipes struct{ next chan net.Conn }

func (p *pipes) Accept() (net.Conn, error) { return <-p.next, nil }
func (p *pipes) Close() error              { return nil }
func (p *pipes) Addr() net.Addr            { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

func TestLoopback(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{"127.0.0.1": true, "::1": true, "127.8.8.8": true, "0.0.0.0": false, "::": false, "10.240.0.4": false} {
		if got := loopback(&net.TCPAddr{IP: net.ParseIP(addr)}); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	if loopback(&net.UnixAddr{}) {
		t.Error("unknown addresses are not loopback")
	}
}

// What the process tells of itself stays on the node.
func TestSelfIsServedOnLoopbackAlone(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(c *Config) { c.Self = func() any { return map[string]int{"pid": 7} } })
	if w := get(t, s.Handler(true), http.MethodGet, "/api/v1/self"); w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != `{"pid":7}` {
		t.Errorf("on loopback: %d %q", w.Code, w.Body)
	}
	if w := get(t, s.Handler(false), http.MethodGet, "/api/v1/self"); w.Code != http.StatusNotFound {
		t.Errorf("elsewhere: %d %q", w.Code, w.Body)
	}
	if w := get(t, newServer(t, nil).Handler(true), http.MethodGet, "/api/v1/self"); w.Code != http.StatusNotFound {
		t.Errorf("nothing to tell: %d %q", w.Code, w.Body)
	}
}
