package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/transport"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

// fakeAPI stands in for the API server: one Node, its conditions owned by type,
// and Events. It is a RoundTripper, so that it works in a synctest bubble.
type fakeAPI struct {
	mu         sync.Mutex
	uid        string
	boot       string
	conditions []condition
	events     []event
	log        []request
	fail       func(*http.Request) (*http.Response, error) // nil, nil: answer
	lose       func(*http.Request) bool                    // the reply gets lost, after the work was done
}

type request struct {
	at     time.Time
	method string
	path   string
	query  string
	accept string
	body   string
}

func (f *fakeAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	f.log = append(f.log, request{time.Now(), r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Get("Accept"), string(body)})
	if f.fail != nil {
		if resp, err := f.fail(r); resp != nil || err != nil {
			return resp, err
		}
	}
	code, reply := f.answer(r, body)
	if f.lose != nil && f.lose(r) {
		return nil, errors.New("connection reset by peer")
	}
	return answer(code, reply), nil
}

func (f *fakeAPI) answer(r *http.Request, body []byte) (int, string) {
	switch {
	case r.URL.Path == "/api/v1/namespaces/default/events" && r.Method == "POST":
		var e event
		if err := json.Unmarshal(body, &e); err != nil {
			return 400, status("bad event")
		}
		if slices.ContainsFunc(f.events, func(o event) bool { return o.Metadata.Name == e.Metadata.Name }) {
			return 409, status("already exists")
		}
		f.events = append(f.events, e)
		return 201, `{"kind":"PartialObjectMetadata"}`
	case f.uid == "" || !strings.HasPrefix(r.URL.Path, "/api/v1/nodes/node0"):
		return 404, status("nodes \"node0\" not found")
	case r.Method == "PATCH":
		var n node
		if err := json.Unmarshal(body, &n); err != nil {
			return 400, status("bad apply")
		}
		f.conditions = n.Status.Conditions
		return 200, fmt.Sprintf(`{"kind":"PartialObjectMetadata","metadata":{"name":"node0","uid":%q}}`, f.uid)
	}
	var n node
	n.Metadata.UID, n.Metadata.Labels, n.Status.NodeInfo.BootID = f.uid, map[string]string{"agentpool": "np1"}, f.boot
	n.Metadata.Annotations, n.Status.NodeInfo.KubeletVersion = map[string]string{livePatch: "1.33.3"}, "v1.33.2"
	n.Status.Conditions = append(slices.Clone(f.conditions), condition{Type: "Ready", Status: agent.True, Reason: "KubeletReady", LastTransitionTime: time.Now().Add(-time.Hour)})
	b, _ := json.Marshal(n)
	return 200, string(b)
}

func status(message string) string { return fmt.Sprintf(`{"kind":"Status","message":%q}`, message) }

func answer(code int, body string) *http.Response {
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader([]byte(body)))}
}

// apiAt is an API server that is reached by a transport; nil: as usual.
func apiAt(at string, by http.RoundTripper) *API {
	u, err := url.Parse(at)
	if err != nil {
		panic(err)
	}
	return &API{URL: u, Transport: transport.Config{Transport: by}}
}

func refuse(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }

func (f *fakeAPI) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// count counts requests by method ("" is any) since a time.
func (f *fakeAPI) count(method string, since time.Time) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.log {
		if (method == "" || r.method == method) && !r.at.Before(since) {
			n++
		}
	}
	return n
}

func (f *fakeAPI) condition(t string) condition {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conditions {
		if c.Type == t {
			return c
		}
	}
	return condition{}
}

func (f *fakeAPI) sent() []event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

// truth is the agent's side: what Source returns and what was adopted.
type truth struct {
	mu      sync.Mutex
	list    []agent.Condition
	adopted []string
	since   map[string]time.Time // adopted transition times by type and status
	ready   []agent.Readiness
}

func (t *truth) Snapshot() agent.Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	return agent.Snapshot{Document: agent.Document{Node: "node0", Time: time.Now(), Conditions: slices.Clone(t.list)}}
}

func (t *truth) Adopt(c string, s agent.Status, reason string, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.adopted = append(t.adopted, fmt.Sprintf("%s %s %s", c, s, reason))
	t.since[c+string(s)] = at
}

func (t *truth) Ready(r agent.Readiness) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ready = append(t.ready, r)
}

// put replaces or adds a condition, looked at just now.
func (t *truth) put(c agent.Condition) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.LastCheckTime = time.Now()
	i := slices.IndexFunc(t.list, func(o agent.Condition) bool { return o.Type == c.Type })
	if i < 0 {
		i = len(t.list)
		t.list = append(t.list, agent.Condition{})
	}
	c.LastTransitionTime = t.list[i].LastTransitionTime
	if c.Status != t.list[i].Status {
		c.LastTransitionTime = time.Now()
		if at, ok := t.since[c.Type+string(c.Status)]; ok && t.list[i].Status == "" {
			c.LastTransitionTime = at
		}
	}
	t.list[i] = c
}

func good(kind string) agent.Condition {
	return agent.Condition{Type: kind, Status: agent.False, Reason: "AsDeclared"}
}

func bad(kind, subject string, s probes.Severity) agent.Condition {
	return agent.Condition{Type: kind, Status: agent.True, Reason: "Changed", Message: subject + " changed",
		Findings: []agent.Finding{{Reason: "Changed", Subject: subject, Severity: s}}}
}

func raised(kind, reason string) agent.Happening {
	return agent.Happening{Time: time.Now(), Kind: agent.Raised, Condition: kind, From: agent.False, To: agent.True, Reason: reason,
		Severity: probes.Critical, Message: "net.ipv4.ip_forward is 0, want 1"}
}

var allTypes = []string{agent.NodeDrift, "SysctlDrift", "KubeletDrift", "Old"}

// world is a publisher between a truth and an API server, in a bubble.
type world struct {
	*truth
	api  *fakeAPI
	pub  *Publisher
	logs *bytes.Buffer
	stop func()
}

// newWorld makes a world with two healthy conditions that is not running yet.
func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{truth: &truth{since: map[string]time.Time{}}, api: &fakeAPI{uid: "uid-1", boot: "boot-1"}, logs: &bytes.Buffer{}}
	w.put(good("SysctlDrift"))
	w.put(good("KubeletDrift"))
	cfg := Config{Node: "node0", Pod: "nodedrift-x", Types: allTypes, Boot: time.Now().Add(-time.Hour), Source: w.Snapshot, Adopter: w.truth, Ready: w.Ready,
		API: apiAt("http://api", w.api), Log: slog.New(slog.NewTextHandler(w.logs, nil))}
	if change != nil {
		change(&cfg)
	}
	pub, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.pub = pub
	return w
}

// run starts the publisher; stop ends it and waits.
func (w *world) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.pub.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// change puts a condition and tells the publisher.
func (w *world) change(c agent.Condition, happened ...agent.Happening) {
	w.put(c)
	w.pub.Publish(happened)
}
