package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

func ExampleBody() {
	at := time.Date(2026, 11, 21, 20, 0, 0, 5, time.UTC)
	fmt.Println(string(Body(agent.Snapshot{Document: agent.Document{Node: "node0", Conditions: []agent.Condition{
		{Type: "SysctlDrift", Status: agent.True, Reason: "SysctlChanged", Message: "net.ipv4.ip_forward is 0,\nwant 1", LastTransitionTime: at, LastCheckTime: at.Add(time.Minute)},
		{Type: "KubeletDrift"}, // not looked yet
		{Type: "TimeSyncDrift", Status: agent.Unknown, Reason: agent.ProbeFailed, LastTransitionTime: at},
	}}})))
	// Output:
	// {"apiVersion":"v1","kind":"Node","metadata":{"name":"node0"},"status":{"conditions":[{"type":"SysctlDrift","status":"True","reason":"SysctlChanged","message":"net.ipv4.ip_forward is 0, want 1","lastHeartbeatTime":"2026-11-21T20:01:00Z","lastTransitionTime":"2026-11-21T20:00:00Z"},{"type":"TimeSyncDrift","status":"Unknown","reason":"ProbeFailed","message":"","lastHeartbeatTime":"2026-11-21T20:00:00Z","lastTransitionTime":"2026-11-21T20:00:00Z"}]}}
}

func TestBodyOfNothing(t *testing.T) {
	t.Parallel()
	const want = `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"},"status":{"conditions":[]}}`
	if got := string(Body(agent.Snapshot{Document: agent.Document{Node: "n"}})); got != want {
		t.Errorf("body %s, want %s", got, want)
	}
}

func TestBackoffBounds(t *testing.T) {
	t.Parallel()
	for range 1000 {
		b := backoff{limit: outageLimit}
		var at time.Duration
		n := 1
		for ; at <= 10*time.Minute; n++ {
			wait := b.next(0)
			if wait > time.Minute {
				t.Fatalf("waits %s", wait)
			}
			at += wait
		}
		if n-1 > 20 {
			t.Fatalf("%d requests in 10 min", n-1)
		}
	}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	now := time.Now()
	b := bucket{every: 10 * time.Second, burst: 3}
	for range 3 {
		if at := b.at(now); !at.Equal(now) {
			t.Errorf("waits %s within the burst", at.Sub(now))
		}
		b.take(now)
	}
	if at := b.at(now); at.Sub(now) != 10*time.Second {
		t.Errorf("waits %s after the burst", at.Sub(now))
	}
	if at := b.at(now.Add(time.Hour)); at.Sub(now) != time.Hour {
		t.Errorf("an hour later waits until %s", at.Sub(now))
	}
}

func TestWhatBecomesAnEvent(t *testing.T) {
	t.Parallel()
	tests := []struct {
		h    agent.Happening
		want string
	}{
		{agent.Happening{Kind: agent.Raised, Reason: "R", Severity: probes.Warning}, "Warning"},
		{agent.Happening{Kind: agent.Raised, Reason: "R", Severity: probes.Info}, ""},
		{agent.Happening{Kind: agent.Cleared, Reason: "R", Severity: probes.Critical}, "Normal"},
		{agent.Happening{Kind: agent.Blinded, Reason: agent.ProbeFailed, Severity: probes.Warning}, "Warning"},
		{agent.Happening{Kind: agent.Blinded, Reason: agent.NodeProvisioning, Severity: probes.Warning}, ""},
		{agent.Happening{Kind: agent.Restored, Reason: "H", From: ""}, ""},
		{agent.Happening{Kind: agent.Restored, Reason: "H", From: agent.Unknown}, ""}, // its blindness was never told
		{agent.Happening{Kind: agent.Restored, Reason: "H", From: agent.Unknown, Condition: "Blind", Severity: probes.Info}, "Normal"},
		{agent.Happening{Kind: agent.Occurred, Reason: "OOMKilled", Severity: probes.Warning}, "Warning"},
		{agent.Happening{Kind: agent.Occurred, Reason: "Noted", Severity: probes.Info}, ""},
		{agent.Happening{Kind: agent.Occurred, Reason: agent.NodeShuttingDown, Severity: probes.Info}, "Normal"},
		{agent.Happening{Kind: agent.Restored, Reason: "SysctlDrift", Condition: agent.NodeDrift, From: agent.False, To: agent.True}, ""},
		{agent.Happening{Kind: agent.Restored, Reason: agent.ProvisioningFailed, Condition: agent.NodeDrift, From: agent.False, To: agent.True}, "Warning"},
	}
	for _, test := range tests {
		e := newEvents(newStats())
		e.blind["Blind"] = true
		if got := e.kindOf(&test.h); got != test.want {
			t.Errorf("%s %s: %q, want %q", test.h.Kind, test.h.Reason, got, test.want)
		}
	}
}

func TestQueueDropsTheOldest(t *testing.T) {
	t.Parallel()
	e := newEvents(newStats())
	for i := range maxQueue + 10 {
		e.add([]agent.Happening{{Time: time.Now(), Kind: agent.Raised, Reason: fmt.Sprint("R", i), Severity: probes.Critical}})
	}
	if q, _ := e.first(); q.Reason != "R10" || e.stats.dropped.Load() != 10 || len(e.queue) != maxQueue {
		t.Errorf("first is %s, %d dropped, %d wait", q.Reason, e.stats.dropped.Load(), len(e.queue))
	}
	names := map[string]bool{}
	for _, q := range e.queue {
		names[q.event(&Config{Node: strings.Repeat("n", 253)}, "u", time.Now()).Metadata.Name] = true
	}
	for n := range names {
		if len(names) != maxQueue || len(n) > 253 {
			t.Fatalf("%d names; %s", len(names), n)
		}
	}
}

func TestCodeLabel(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]string{200: "200", 201: "201", 204: "other", 301: "other", 403: "403", 418: "other", 429: "429", 500: "5xx", 503: "5xx", 0: "error", 999: "other"} {
		if got := codeLabel(code, nil); got != want {
			t.Errorf("%d is counted as %q, want %q", code, got, want)
		}
	}
	if got := codeLabel(200, errors.New("unexpected EOF")); got != "error" {
		t.Errorf("a reply cut short is counted as %q", got)
	}
}

// The token file is read again: bound tokens change every hour.
func TestTokenIsReloaded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "token")
		var sent []string
		srv := answers(func(r *http.Request) (*http.Response, error) {
			sent = append(sent, r.Header.Get("Authorization"))
			return answer(200, `{"metadata":{"uid":"u"}}`), nil
		})
		if err := os.WriteFile(file, []byte("first"), 0o600); err != nil {
			t.Fatal(err)
		}
		api := apiAt("http://api", srv)
		api.Transport.BearerTokenFile = file
		c, err := newClient(api, "node0", newStats())
		if err != nil {
			t.Fatal(err)
		}
		for _, token := range []string{"old", "new"} {
			err = errors.Join(err, os.WriteFile(file, []byte(token), 0o600))
			time.Sleep(time.Minute) // client-go caches for 50 s
			_, e := c.read(t.Context(), false)
			err = errors.Join(err, e)
		}
		if want := []string{"Bearer old", "Bearer new"}; err != nil || !slices.Equal(sent, want) {
			t.Errorf("sent %v, error %v", sent, err)
		}
	})
}

type answers func(*http.Request) (*http.Response, error)

func (f answers) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestLongReplyIsRefused(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range maxReply>>16 + 2 {
			_, _ = w.Write(make([]byte, 1<<16))
		}
	}))
	defer srv.Close()
	c, err := newClient(apiAt(srv.URL, nil), "node0", newStats())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.read(t.Context(), false); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("error %v", err)
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, s := range []string{"", "1", "-1", "30", "99999999999999999999", "Fri, 31 Dec 1999 23:59:59 GMT", "1.5", " 7 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d := parseRetryAfter(s, time.Unix(946684700, 0)); d < 0 || d > maxRetryAfter {
			t.Errorf("%q is %s", s, d)
		}
	})
}

func FuzzStatusMessage(f *testing.F) {
	f.Add([]byte(`{"kind":"Status","message":"nodes \"x\" is forbidden"}`))
	f.Add([]byte("<html>\x00\xff\n502"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m := statusMessage(b); len(m) > 256 || strings.ContainsAny(m, "\n\r\x1b") || !utf8.ValidString(m) {
			t.Errorf("%q", m)
		}
	})
}

func FuzzParseNode(f *testing.F) {
	f.Add([]byte(`{"metadata":{"uid":"u","labels":{"a":"b"}},"status":{"nodeInfo":{"bootID":"b"},"conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z"},{"type":"SysctlDrift","status":"True","lastHeartbeatTime":null}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseNode(b)
		if err != nil {
			return
		}
		n.readiness(time.Time{})
		for _, c := range n.ours(allTypes) {
			if c.writtenSince(time.Unix(0, 0)) && !json.Valid(body("n", []condition{c})) {
				t.Errorf("%+v cannot be sent back", c)
			}
		}
	})
}

func FuzzOneLine(f *testing.F) {
	f.Add("a\nb\u202e\xff", 5)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = 3 + limit&1023
		if m := oneLine(s, limit); len(m) > limit || !utf8.ValidString(m) || strings.ContainsAny(m, "\n\t\x1b\u202e") {
			t.Errorf("%q at most %d: %q", s, limit, m)
		}
	})
}
