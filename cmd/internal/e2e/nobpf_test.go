package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Without BPF every drift has the condition and the reason that it has with it; who
// did it is not known, and status, metrics and check say so.
func TestWithoutBPF(t *testing.T) {
	need(t)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		_, _ = testLab.Kubectl(ctx, nil, "apply", "-k", filepath.Join(filepath.Dir(bin), "manifests/overlays/nodelab"))
		renew(ctx, t)
	})
	const container = "/spec/template/spec/containers/0"
	t.Run("no capabilities", func(t *testing.T) {
		nameless(t, `[{"op": "remove", "path": "`+container+`/securityContext/capabilities/add"}]`, "capabilities are missing: BPF, PERFMON, NET_ADMIN")
	})
	t.Run("off", func(t *testing.T) {
		nameless(t, `[{"op": "add", "path": "`+container+`/args/-", "value": "--bpf=off"}]`, "BPF is off (--bpf=off)")
	})
	t.Run("drift", TestDrift)
	tryAll(t, "node0", "KubeletDrift", soonish, kubeletDown[:1])
}

// nameless changes the DaemonSet, and holds every node against what it must say.
func nameless(t *testing.T, patch, why string) {
	t.Helper()
	if out, err := testLab.Kubectl(t.Context(), nil, "-n", "nodedrift-system", "patch", "ds", "nodedrift", "--type=json", "-p", patch); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	renew(t.Context(), t)
	for _, n := range testLab.Nodes() {
		node := n.Name()
		for _, kind := range []string{"SysctlDrift", "KubeletDrift", "ContainerdDrift", "RebootPending"} {
			until(t, node, kind, time.Minute, isFalse)
		}
		says := func(command string) string { // its exit code is the node's, not its own
			out, _ := testLab.Kubectl(t.Context(), nil, "-n", "nodedrift-system", "exec", podOn(t, node), "--", "/nodedrift", command, "--root=/host")
			return out
		}
		if out := says("status"); !strings.Contains(out, "who did what is not known: "+why) {
			t.Errorf("%s: status does not say %q:\n%s", node, why, out)
		}
		if out := says("check"); !strings.Contains(out, "who did what is known to the running agent only") {
			t.Errorf("%s: check does not say that it cannot know who:\n%s", node, out)
		}
		active := strings.Count(sh(t, node, "curl -sS http://127.0.0.1:20258/metrics"), "\nnodedrift_bpf_detector_active{")
		off := strings.Count(sh(t, node, "curl -sS http://127.0.0.1:20258/metrics | grep '^nodedrift_bpf_detector_active{.*} 0'"), "\n")
		if active == 0 || off != active {
			t.Errorf("%s: %d detectors in the metrics, %d of them off", node, active, off)
		}
	}
	fault{reason: "SysctlChanged", condition: "SysctlDrift", text: "net.ipv4.ip_forward is 0, want 1; 60-e2e.conf; acts: you",
		breakBy: func(t *testing.T, node string) {
			toolbox(t, node, "nameless", "write", "/proc/sys/net/ipv4/ip_forward", "0")
		},
		repairs: "sysctl -w net.ipv4.ip_forward=1"}.try(t, "node0")
}

// renew replaces all pods of the agent's at once, and waits for the new ones.
func renew(ctx context.Context, t *testing.T) {
	for _, args := range [][]string{{"delete", "pods", "--all", "--wait=true"}, {"rollout", "status", "ds/nodedrift", "--timeout=90s"}} {
		if out, err := testLab.Kubectl(ctx, nil, append([]string{"-n", "nodedrift-system"}, args...)...); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
