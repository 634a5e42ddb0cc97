package e2e

import (
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
