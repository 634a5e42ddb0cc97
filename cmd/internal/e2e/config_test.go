package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A changed ConfigMap is in place without a restart; a wrong one changes nothing.
func TestConfigurationIsReloaded(t *testing.T) {
	need(t)
	const node = "node1"
	file := filepath.Join(filepath.Dir(bin), "manifests/overlays/nodelab/nodedrift.yaml")
	shipped, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { configure(t, node, string(shipped)) })
	until(t, node, "RebootPending", 30*time.Second, isFalse)
	refill(t, node)
	pid := agentPid(t, node)

	sh(t, node, "touch /run/reboot-required")
	t.Cleanup(func() {
		_, _ = testLab.Node(node).Exec(context.WithoutCancel(t.Context()), "rm", "-f", "/run/reboot-required")
	})
	until(t, node, "RebootPending", 10*time.Second, isTrue("RebootRequired", ""))

	configure(t, node, string(shipped)+"probes: {reboot: {overdue: 3s, every: 1s}}\n")
	_, raised := until(t, node, "RebootPending", 2*time.Minute, isTrue("RebootOverdue", ""))
	if all, err := conditions(t.Context(), node); err != nil || all["NodeDrift"].Status != "True" {
		t.Errorf("NodeDrift is %+v, want True: an overdue reboot is not routine (%v)", all["NodeDrift"], err)
	}
	sh(t, node, "rm /run/reboot-required")
	_, cleared := until(t, node, "RebootPending", 15*time.Second, isFalse)
	record("RebootOverdue", "condition", raised, cleared)

	configure(t, node, "probes: {sysctl: {evry: 1s}}\n")
	log := func() string {
		out, err := testLab.Kubectl(t.Context(), nil, "-n", "nodedrift-system", "logs", podOn(t, node))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for began := time.Now(); !strings.Contains(log(), `unknown key probes.sysctl.evry; did you mean \"every\"?`); time.Sleep(time.Second) {
		if time.Since(began) > 2*time.Minute {
			t.Fatal("a wrong configuration is not complained of")
		}
	}
	if now := agentPid(t, node); now != pid {
		t.Errorf("the agent was restarted: pid %s, before %s", now, pid)
	}

	configure(t, node, string(shipped)+"waivers: [{reason: SysctlChanged, subject: net.ipv4.tcp_fin_timeout, why: a test}]\n")
	waived := func() bool {
		return strings.Contains(inNode(t, node, "curl", "-sS", "http://127.0.0.1:20258/api/v1/status"), `"waived":true`)
	}
	sh(t, node, "sysctl -w net.ipv4.tcp_fin_timeout=33")
	defer sh(t, node, "sysctl -w net.ipv4.tcp_fin_timeout=60")
	for began := time.Now(); !waived(); time.Sleep(100 * time.Millisecond) {
		if time.Since(began) > 2*time.Minute {
			t.Fatal("the waiver does not work")
		}
	}
	until(t, node, "SysctlDrift", 15*time.Second, isFalse)
}

// configure changes the ConfigMap, and touches the pod so that its kubelet looks
// at once rather than within a minute.
func configure(t *testing.T, node, text string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	dir := t.TempDir()
	name := filepath.Join(dir, "nodedrift.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	made, err := testLab.Kubectl(ctx, nil, "-n", "nodedrift-system", "create", "configmap", "nodedrift", "--from-file", name, "--dry-run=client", "-o", "yaml")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := testLab.Kubectl(ctx, strings.NewReader(made), "replace", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := testLab.Kubectl(ctx, nil, "-n", "nodedrift-system", "annotate", "pod", podOn(t, node), "--overwrite", "e2e/touched="+time.Now().Format(time.RFC3339Nano)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// podOn is the name of the agent's pod on a node.
func podOn(t *testing.T, node string) string {
	t.Helper()
	out, err := testLab.Kubectl(context.WithoutCancel(t.Context()), nil, "-n", "nodedrift-system", "get", "pods", "--field-selector", "spec.nodeName="+node, "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(strings.TrimSpace(out), "pod/")
}
