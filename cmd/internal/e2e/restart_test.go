package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/manifests/policytest"
)

// agentPid is the agent's process in a node; "" while there is none.
func agentPid(t *testing.T, node string) string {
	t.Helper()
	out, _ := testLab.Node(node).Exec(t.Context(), "pgrep", "-xo", "nodedrift")
	return strings.TrimSpace(out)
}

// A process that dies forgets nothing: the drift stands through twenty kills.
func TestKilledWhileDrifted(t *testing.T) {
	const node = "node1"
	alone(t, node)
	until(t, node, "SysctlDrift", 30*time.Second, isFalse)
	refill(t, node)
	sh(t, node, "sysctl -w net.ipv4.tcp_fin_timeout=17")
	t.Cleanup(func() {
		_, _ = testLab.Node(node).Exec(context.WithoutCancel(t.Context()), "sysctl", "-w", "net.ipv4.tcp_fin_timeout=60")
	})
	before, _ := until(t, node, "SysctlDrift", 10*time.Second, isTrue("SysctlChanged", "is 17, want 60"))
	hasWarnings := func() (n int) {
		list, err := events(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if e.Type == "Warning" && strings.Contains(e.Message, "is 17, want 60") {
				n++
			}
		}
		return n
	}
	for began := time.Now(); hasWarnings() != 1; time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%d Events tell of the drift, want 1", hasWarnings())
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	flips := make(chan string, 1)
	go watchFlips(ctx, node, before, flips)
	for range 20 {
		pid := agentPid(t, node)
		inNode(t, node, "kill", "-9", pid)
		for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			if next := agentPid(t, node); next != "" && next != pid {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatal("the kubelet does not start the agent again")
			}
		}
	}
	time.Sleep(10 * time.Second) // the last one's start, its first read and its first apply, if it made one
	stop()
	if flip := <-flips; flip != "" {
		t.Error(flip)
	}
	after, _ := until(t, node, "SysctlDrift", soon, isTrue("SysctlChanged", "is 17, want 60"))
	if !after.LastTransitionTime.Equal(before.LastTransitionTime) || after.Message != before.Message {
		t.Errorf("after 20 kills: %s %q, before: %s %q", after.LastTransitionTime, after.Message, before.LastTransitionTime, before.Message)
	}
	if n := hasWarnings(); n != 1 {
		t.Errorf("%d Events tell of the one drift", n)
	}
}

// watchFlips reads the Node until ctx ends, and says what moved.
func watchFlips(ctx context.Context, node string, want condition, flips chan<- string) {
	found := ""
	for ctx.Err() == nil {
		all, err := conditions(ctx, node)
		if c := all["SysctlDrift"]; err == nil && (c.Status != want.Status || c.Reason != want.Reason || !c.LastTransitionTime.Equal(want.LastTransitionTime)) && found == "" {
			found = fmt.Sprintf("SysctlDrift flipped: %s %s since %s %q", c.Status, c.Reason, c.LastTransitionTime, c.Message)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	flips <- found
}

// A stolen token of ours can do to its own Node what we do, and nothing else.
func TestAdmissionPolicy(t *testing.T) {
	l := alone(t, "node2")
	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ NodeName string }
		}
	}
	if err := l.Get(t.Context(), "/api/v1/namespaces/nodedrift-system/pods", &pods); err != nil {
		t.Fatal(err)
	}
	// The agent's own applies would come in between what is compared: it is held still.
	const node = "node2"
	pid := agentPid(t, node)
	inNode(t, node, "kill", "-STOP", pid)
	defer func() {
		inNode(t, node, "kill", "-9", pid) // the next one reads what the requests left, and puts it right
		until(t, node, "SysctlDrift", time.Minute, isFalse)
	}()
	c := policytest.Cluster{URL: l.URL(), Admin: l.Client(), Client: l.Anonymous(), Own: node, Other: "node1"}
	for _, p := range pods.Items {
		if p.Spec.NodeName == c.Own {
			c.Pod = p.Metadata.Name
		}
	}
	if err := c.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Cleanup(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	token, err := c.Token(t.Context(), policytest.Account, c.Pod)
	if err != nil {
		t.Fatal(err)
	}
	refused, accepted := 0, 0
	for _, k := range c.Cases() {
		use := token
		if k.Unbound {
			if use, err = c.Token(t.Context(), policytest.Account, ""); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Try(t.Context(), use, k); err != nil {
			t.Errorf("%s: %v", k.Name, err)
		}
		switch k.Want {
		case policytest.Accepted:
			accepted++
		case policytest.Policy, policytest.RBAC:
			refused++
		}
	}
	t.Logf("%d requests refused, %d of ours accepted", refused, accepted)
	if refused < 30 || accepted == 0 {
		t.Errorf("%d refused, %d accepted: want at least 30 and 1", refused, accepted)
	}
}

// A node that shuts down breaks in every way, lawfully; booted again it starts
// clean.
func TestShutdownAndBoot(t *testing.T) {
	const node = "node2"
	l := alone(t, node)
	before, err := conditions(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	until(t, node, "SysctlDrift", 30*time.Second, isFalse)
	calm(t, node)
	told := newEvents(t, node)
	// Things break on the way down: a declaration that no longer holds is seen
	// after the shutdown has begun.
	unit := "[Unit]\nDefaultDependencies=no\nBefore=shutdown.target\nConflicts=shutdown.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n" +
		"ExecStop=/sbin/sysctl -w net.ipv4.ip_forward=0\nExecStop=/bin/sleep 4\n"
	if _, err := l.Node(node).ExecInput(t.Context(), strings.NewReader(unit), "tee", "/etc/systemd/system/breaks.service"); err != nil {
		t.Fatal(err)
	}
	sh(t, node, "systemctl daemon-reload && systemctl start breaks.service")
	sh(t, node, "systemctl --no-block isolate reboot.target")
	// The agent is killed with its pod's containers at some time; until then, and
	// on the API server from then on, nothing may be True.
	off := make(chan error, 1)
	go func() { off <- l.Node(node).Off(t.Context()) }()
	for ended := false; !ended; {
		select {
		case err := <-off:
			if ended = true; err != nil {
				t.Fatal(err)
			}
		case <-time.After(20 * time.Millisecond):
		}
		all, err := conditions(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"NodeDrift", "SysctlDrift", "RebootPending"} {
			if all[kind].Status == "True" {
				t.Fatalf("%s turned True while the node shut down: %s %q", kind, all[kind].Reason, all[kind].Message)
			}
		}
	}
	if err := l.Node(node).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	announced := 0
	for _, e := range told() {
		switch {
		case e.Type == "Warning":
			t.Errorf("the shutdown left the Event %s %q", e.Reason, e.Message)
		case e.Reason == "NodeShuttingDown":
			announced++
		}
	}
	if announced != 1 {
		t.Errorf("%d Events NodeShuttingDown, want 1", announced)
	}
	sh(t, node, "rm -f /etc/systemd/system/breaks.service; sysctl -w net.ipv4.ip_forward=1")
	for kind := range map[string]bool{"NodeDrift": true, "SysctlDrift": true, "RebootPending": true} {
		c, _ := until(t, node, kind, time.Minute, func(c condition) bool {
			return c.Status == "False" && c.LastHeartbeatTime.After(before[kind].LastHeartbeatTime)
		})
		t.Logf("after the boot: %s %s since %s", c.Type, c.Status, c.LastTransitionTime.Format(time.TimeOnly))
	}
}
