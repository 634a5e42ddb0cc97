package e2e

import (
	"context"
	"maps"
	"testing"
	"time"
)

// What cannot be had on a lab node.
func init() {
	maps.Copy(fixtureOnly, map[string]string{
		"ContainerdStoreHung":    "nothing makes containerd 1.6.20 hold its store's lock at will",
		"ContainerdSlow":         "the usual speed is known after five minutes, and the lab's noise is larger than any brake that can be put on containerd without hanging it",
		"ContainerdCrashLooping": "it clears after five minutes; KubeletCrashLooping, which is the same code, is shown for real",
	})
}

const (
	conflist       = "/etc/cni/net.d/10-lab.conflist"
	criSocket      = "/run/containerd/containerd.sock"
	criConfig      = "/etc/containerd/config.toml"
	cniPlugins     = "/usr/lib/cni"
	containerdUnit = "/usr/lib/systemd/system/containerd.service"
	criDropIns     = "/run/systemd/system/containerd.service.d"
	restartCRI     = "systemctl restart containerd"
)

// A daemon that is down is told within 5 s, one that hangs within 12 s.
var containerdDown = []fault{
	{name: "stopped", reason: "ContainerdNotRunning", text: "containerd.service does not run: it was stopped", within: 5 * time.Second,
		breaks: "systemctl stop containerd", repairs: "systemctl start containerd"},
	{name: "stopped by a signal", reason: "ContainerdHung", text: "does not answer", within: 12 * time.Second,
		breaks: "kill -STOP $(pidof containerd)", repairs: "kill -CONT $(pidof containerd)"},
	{name: "hangs and is restarted", reason: "ContainerdHung", text: "does not answer", within: 12 * time.Second,
		breaks:  "kill -STOP $(pidof containerd)", // RestartSec=5; once: the third death within ten minutes is a crash loop
		repairs: "p=$(pidof containerd); grep -q 'State:.T' /proc/$p/status && kill -KILL $p; true", clear: 20 * time.Second},
	{name: "CRI disabled", reason: "RuntimeNotReady", text: "without its CRI plugin", within: 5 * time.Second,
		breaks:  "cp " + criConfig + " /root/; sed -i '1s/^/disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\\n/' " + criConfig + "; " + restartCRI,
		repairs: "cp /root/config.toml " + criConfig + "; " + restartCRI},
	{name: "socket removed", reason: "RuntimeNotReady", text: criSocket + " is gone", within: 5 * time.Second,
		breaks: "rm " + criSocket, repairs: restartCRI},
}

// What is pending is told within its hold (1 s in the lab) and 3 s.
var containerdPending = []fault{
	{name: "configuration edited", reason: "ContainerdConfigNotLoaded", text: "sandbox_image", within: 4 * time.Second,
		breaks: "cp " + criConfig + " /root/; sed -i 's/sandbox_image = .*/sandbox_image = \"localhost\\/other:1\"/' " + criConfig, repairs: "cp /root/config.toml " + criConfig},
	{name: "configuration broken", reason: "ContainerdConfigNotLoaded", text: "will not start with it", within: 4 * time.Second,
		breaks: "cp " + criConfig + " /root/; echo '[[' >>" + criConfig, repairs: "cp /root/config.toml " + criConfig},
	{name: "configuration edited and loaded", reason: "ContainerdConfigNotLoaded", text: "max_container_log_line_size", within: 4 * time.Second,
		breaks:  "sed -i 's/^  restrict_oom/  max_container_log_line_size = 17000\\n  restrict_oom/' " + criConfig,
		repairs: restartCRI},
	{name: "drop-in without a reload", reason: "ContainerdDaemonReloadNeeded", text: "containerd.service", within: 4 * time.Second,
		breaks: "mkdir -p " + criDropIns + "; printf '[Service]\\nEnvironment=A=1\\n' >" + criDropIns + "/10-a.conf", repairs: "rm -r " + criDropIns},
	{name: "unit file edited", reason: "ContainerdUnitChanged", text: "containerd.service", within: 4 * time.Second,
		breaks: "cp " + containerdUnit + " /root/; echo 'Environment=B=1' >>" + containerdUnit, repairs: "cp /root/containerd.service " + containerdUnit + "; systemctl daemon-reload"},
	{name: "program replaced", reason: "ContainerdBinaryReplaced", text: "/usr/bin/containerd was replaced", within: 4 * time.Second,
		breaks: "cp /usr/bin/containerd /usr/bin/new; mv /usr/bin/new /usr/bin/containerd", repairs: restartCRI},
}

// A conflist that was taken away and put back is not loaded by containerd 1.6.20
// until it is restarted.
var containerdNetwork = []fault{
	{name: "conflist removed", reason: "NetworkPluginNotReady", text: "no configuration in /etc/cni/net.d", within: 15 * time.Second,
		breaks: "mv " + conflist + " /root/", repairs: "mv /root/10-lab.conflist " + conflist + "; " + restartCRI},
	{name: "conflist put back and not loaded", reason: "NetworkPluginNotReady", text: "is in place and not loaded", within: 15 * time.Second,
		breaks: "mv " + conflist + " /root/; sleep 0.3; mv /root/10-lab.conflist " + conflist, repairs: restartCRI},
	{name: "conflist broken", reason: "NetworkPluginNotReady", text: "10-lab.conflist is not valid JSON", within: 15 * time.Second,
		breaks: "cp " + conflist + " /root/; echo '{ broken' >" + conflist, repairs: "cp /root/10-lab.conflist " + conflist + "; " + restartCRI},
	{name: "main plugin removed", reason: "CNIPluginMissing", text: "CNI plugin ptp of 10-lab.conflist is not in", within: 15 * time.Second,
		breaks: "mv " + cniPlugins + "/ptp /root/", repairs: "mv /root/ptp " + cniPlugins},
	{name: "IPAM plugin removed", reason: "CNIPluginMissing", text: "CNI plugin host-local of 10-lab.conflist is not in", within: 15 * time.Second,
		breaks: "mv " + cniPlugins + "/host-local /root/", repairs: "mv /root/host-local " + cniPlugins},
	{name: "main plugin not executable", reason: "CNIPluginMissing", text: "ptp of 10-lab.conflist is not executable", within: 15 * time.Second,
		breaks: "chmod 644 " + cniPlugins + "/ptp", repairs: "chmod 755 " + cniPlugins + "/ptp"},
	{name: "IPAM plugin not executable", reason: "CNIPluginMissing", text: "host-local of 10-lab.conflist is not executable", within: 15 * time.Second,
		breaks: "chmod 644 " + cniPlugins + "/host-local", repairs: "chmod 755 " + cniPlugins + "/host-local"},
	// In the first list of sandboxes, one a minute, and in a second one ten seconds later.
	{name: "shim without a sandbox", reason: "OrphanShims", text: "shim of sandbox orphan", within: 80 * time.Second, clear: 70 * time.Second,
		breaks:  "ctr -n k8s.io run -d localhost/pause:1 orphan",
		repairs: "ctr -n k8s.io tasks kill -s KILL orphan; sleep 1; ctr -n k8s.io containers delete orphan; true"},
}

func TestContainerd(t *testing.T) {
	need(t)
	for node, list := range map[string][]fault{"node0": containerdDown, "node1": containerdPending, "node2": containerdNetwork} {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			tryAll(t, node, "ContainerdDrift", soonish, list)
			if node == "node0" {
				t.Run("died and restarted", func(t *testing.T) { died(t, node, "Containerd", "containerd", 12*time.Second) }) // RestartSec=5
				t.Run("socket out of reach", func(t *testing.T) { containerdUnknown(t, node) })
			}
		})
	}
}

// containerdUnknown closes the socket's folder to whoever has no capabilities:
// containerd and kubelet go on, and we cannot look.
func containerdUnknown(t *testing.T, node string) {
	until(t, node, "ContainerdDrift", time.Minute, isFalse)
	refill(t, node)
	t.Cleanup(func() {
		_, _ = testLab.Node(node).Exec(context.WithoutCancel(t.Context()), "chmod", "711", "/run/containerd")
	})
	sh(t, node, "chmod 000 /run/containerd")
	c, took := until(t, node, "ContainerdDrift", 30*time.Second, func(c condition) bool { return c.Status != "False" })
	t.Logf("%s: %.1f s: %s %s %q", node, took.Seconds(), c.Status, c.Reason, c.Message)
	if c.Status != "Unknown" || c.Reason != "PermissionDenied" {
		t.Errorf("%s %s, want Unknown PermissionDenied", c.Status, c.Reason)
	}
	sh(t, node, "chmod 711 /run/containerd")
	_, cleared := until(t, node, "ContainerdDrift", 30*time.Second, isFalse)
	t.Logf("%s: False again after %.1f s", node, cleared.Seconds())
}
