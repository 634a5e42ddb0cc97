package e2e

import (
	"context"
	"strings"
	"testing"
	"time"
)

// The first test of all (tests run in the order of their files): fresh nodes with
// fresh agents say that they are in order, and nothing else.
func TestHealthyNodesAreFalse(t *testing.T) {
	need(t)
	began := time.Now()
	for _, node := range []string{"node0", "node1", "node2"} {
		for kind, reason := range map[string]string{"NodeDrift": "NoDrift", "SysctlDrift": "SysctlsAsDeclared", "RebootPending": "NoRebootRequired"} {
			c, _ := until(t, node, kind, 30*time.Second, isFalse)
			if c.Reason != reason {
				t.Errorf("%s on %s: reason %s, want %s", kind, node, c.Reason, reason)
			}
		}
	}
	t.Logf("three nodes False %.1f s after the DaemonSet was applied", time.Since(began).Seconds())
	if out, err := testLab.Kubectl(t.Context(), nil, "-n", "nodedrift-system", "rollout", "status", "ds/nodedrift", "--timeout=30s"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, node := range []string{"node0", "node1", "node2"} {
		list, err := events(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			t.Errorf("a healthy node has the Event %s %s %q", e.Type, e.Reason, e.Message)
		}
	}
}

// While the API server is away the probes go on, and the truth is told within a
// minute of its return. (The second test: connections that could not be made are told
// of for a minute, and others shall not hear of them.)
func TestAPIServerAway(t *testing.T) {
	l := need(t)
	const node = "node0"
	until(t, node, "SysctlDrift", 30*time.Second, isFalse)
	if err := l.APIServerStop(t.Context()); err != nil {
		t.Fatal(err)
	}
	away := time.Now()
	sh(t, node, "sysctl -w net.ipv4.tcp_keepalive_time=60")
	t.Cleanup(func() {
		_, _ = l.Node(node).Exec(context.WithoutCancel(t.Context()), "sysctl", "-w", "net.ipv4.tcp_keepalive_time=7200")
	})
	for !finds(t, node, "SysctlChanged") {
		if time.Since(away) > 5*time.Second {
			t.Fatal("the probes stand still while the API server is away")
		}
	}
	if out := inNode(t, node, "curl", "-sS", "--max-time", "5", "http://127.0.0.1:20258/healthz"); !strings.Contains(out, "ok") {
		t.Errorf("healthz while the API server is away: %q", out)
	}
	time.Sleep(time.Until(away.Add(time.Minute)))
	if err := l.APIServerStart(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, took := until(t, node, "SysctlDrift", time.Minute, isTrue("SysctlChanged", "tcp_keepalive_time is 60, want 7200"))
	t.Logf("the truth %.1f s after the API server was back", took.Seconds())
	sh(t, node, "sysctl -w net.ipv4.tcp_keepalive_time=7200")
	until(t, node, "SysctlDrift", 15*time.Second, isFalse)
}
