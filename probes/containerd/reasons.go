package containerd

import (
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// The reasons of this probe beside those of package unit.
const (
	Hung                  = "ContainerdHung"
	RuntimeNotReady       = "RuntimeNotReady"
	NetworkPluginNotReady = "NetworkPluginNotReady"
	CNIPluginMissing      = "CNIPluginMissing"
	StoreHung             = "ContainerdStoreHung"
	Slow                  = "ContainerdSlow"
	OrphanShims           = "OrphanShims"
)

// catalogue is every reason, for a unit of that name.
func catalogue(name string) []probes.Reason {
	return append(unit.Reasons(options(name), "No pod can be started, stopped or looked into on this node; running containers go on. After minutes the node is NotReady."), reasons...)
}

// all is the catalogue of the usual unit.
var all = catalogue(defaultUnit)

var reasons = []probes.Reason{
	{
		Name: Hung, Severity: probes.Critical, Owner: probes.AKS, Hold: 3 * time.Second,
		Meaning: "containerd runs and accepts connections, and answers nobody: neither a status within a second nor its version, which touches no state. It is stopped (SIGSTOP), frozen or deadlocked.",
		Breaks: "No pod can be started, stopped, probed by exec or looked into; running containers go on. systemd sees a healthy unit. kubelet reports the node NotReady after some minutes only, " +
			"or, while it has an old answer, not at all.",
		Confirm:        "timeout 5 crictl version; grep State /proc/$(systemctl show containerd -p MainPID --value)/status (T is stopped)",
		Mend:           "kill -CONT the process if it is stopped (T); otherwise send it SIGUSR1 (it logs its goroutines), save the journal, and systemctl restart containerd: pods survive that. AKS repairs the node after about ten minutes of NotReady.",
		FalsePositives: "A node so short of CPU or IO that nothing answers for seconds; while this agent itself is starved it does not judge.",
		Links:          []string{"https://github.com/containerd/containerd/blob/main/docs/ops.md", "https://learn.microsoft.com/azure/aks/node-auto-repair"},
	},
	{
		Name: RuntimeNotReady, Severity: probes.Critical, Owner: probes.AKS, Hold: 5 * time.Second,
		Meaning: "containerd's unit runs, and the runtime cannot be used: it says RuntimeReady=false, nobody can reach it because its socket is gone or refuses, or it serves no CRI (runtime.v1) because that plugin failed to load or is disabled.",
		Breaks:  "No pod can be started or stopped. With its socket gone containerd still serves those who are connected: the node looks Ready until kubelet reconnects or restarts, and then is not.",
		Confirm: "ls -l /run/containerd/containerd.sock; ss -xl | grep containerd.sock; crictl info | head; ctr plugins ls | grep cri",
		Mend: "A socket that is gone: systemctl restart containerd makes it anew, pods survive; find out who removed it (a cleanup of /run, a second containerd). " +
			"Without CRI: journalctl -u containerd -g io.containerd.grpc.v1.cri says why it did not load: disabled_plugins in config.toml, or no inotify instance is free (fs.inotify.max_user_instances).",
		Links: []string{"https://kubernetes.io/docs/setup/production-environment/container-runtimes/#containerd", "https://learn.microsoft.com/azure/aks/node-auto-repair"},
	},
	{
		Name: NetworkPluginNotReady, Severity: probes.Critical, Owner: probes.Both, Hold: 30 * time.Second,
		Meaning: "containerd has no usable CNI configuration: the folder is empty, the file that wins (the first by name) is broken, or it was not loaded. The message says which; the runtime's own condition does not.",
		Breaks:  "No pod can be started except on the host's network, and the node becomes NotReady. Running pods keep their network.",
		Confirm: "ls -l /etc/cni/net.d; crictl info | grep -i lastCNILoadStatus; python3 -m json.tool the first file",
		Mend: "Restore the configuration: on AKS the azure-cns or cilium DaemonSet, or the node's provisioning, writes it (restart that pod, or reimage the node); remove a stray file that sorts before it. " +
			"Where the file is in place and not loaded: systemctl restart containerd (versions such as 1.6.20 do not notice that it came back).",
		FalsePositives: "A CNI DaemonSet that is being upgraded takes its file away for some seconds. A new node has none until its CNI pod has started.",
		Links:          []string{"https://learn.microsoft.com/azure/aks/azure-cni-overview", "https://github.com/containerd/containerd/blob/main/docs/cri/config.md#cni-config", "https://www.cni.dev/docs/spec/"},
	},
	{
		Name: CNIPluginMissing, Severity: probes.Critical, Owner: probes.Both, Hold: 5 * time.Second,
		Meaning: "A program that the CNI configuration in force names, as plugin or for its addresses (IPAM), is not there, is not executable or is empty. containerd says NetworkReady=true all the same: it does not look.",
		Breaks:  "Every new pod fails with FailedCreatePodSandBox, and pods that end cannot be taken down. The node stays Ready and gets more of them.",
		Confirm: "ls -l /opt/cni/bin; cat the first file in /etc/cni/net.d",
		Mend:    "Restore the program: restart the DaemonSet that installs it (azure-cns, cilium), reinstall the CNI package, chmod 755 it, or reimage the node.",
		FalsePositives: "A plugin that is being replaced is missing for a moment. A plugin may call others by itself (multus, flannel's delegate): " +
			"those are not looked at.",
		Links: []string{"https://www.cni.dev/docs/spec/", "https://github.com/Azure/azure-container-networking", "https://github.com/containerd/containerd/issues/7010"},
	},
	{
		Name: StoreHung, Severity: probes.Critical, Owner: probes.AKS, Hold: 10 * time.Second,
		Meaning: "containerd answers for its version, but the list of its sandboxes (or its status) does not come within seconds: a lock is held, or something below it, a disk or a shim, does not return.",
		Breaks:  "Pods cannot be started or stopped, kubelet's PLEG is stuck and the node becomes NotReady after three minutes. systemd and simple health checks see nothing.",
		Confirm: "timeout 5 crictl version; timeout 10 crictl pods; ps axo pid,stat,wchan:32,comm | awk '$2 ~ /D/'",
		Mend: "Look for processes in state D (disk, NFS) and mend what they wait for. Otherwise kill -USR1 containerd (it logs its goroutines), save the journal, and systemctl restart containerd. " +
			"AKS repairs the node after about ten minutes of NotReady.",
		FalsePositives: "A disk so busy that a list takes seconds.",
		Links:          []string{"https://github.com/containerd/containerd/blob/main/docs/ops.md", "https://learn.microsoft.com/azure/aks/node-auto-repair"},
	},
	{
		Name: Slow, Severity: probes.Warning, Owner: probes.Both, Hold: time.Minute,
		Meaning:        "The fastest of a minute's answers of containerd took over ten times as long as is usual on this node, and over 20 ms. The fastest, since a busy machine makes some answers slow but not each one.",
		Breaks:         "Pods start and stop slowly, exec probes time out. It is often the beginning of ContainerdStoreHung.",
		Confirm:        "time crictl info >/dev/null; top -H -p $(systemctl show containerd -p MainPID --value); cat /proc/pressure/cpu /proc/pressure/io",
		Mend:           "Look what containerd is busy with: many image pulls, a CPU limit on its unit, a throttled disk (IOPS of the node's OS disk), thousands of dead containers.",
		FalsePositives: "A node whose load has changed for good: the usual speed is learned anew with each start of this agent. It is not judged in the first five minutes.",
		Links:          []string{"https://learn.microsoft.com/troubleshoot/azure/azure-kubernetes/availability-performance/identify-high-cpu-consuming-containers-aks", "https://docs.kernel.org/accounting/psi.html"},
	},
	{
		Name: OrphanShims, Severity: probes.Warning, Owner: probes.Both, Hold: 5 * time.Minute,
		Meaning:        "A shim (containerd-shim-runc-v2 in namespace k8s.io) runs on, and containerd has not had its sandbox in two lists: a pod that was torn down half way, or a container that somebody started by hand.",
		Breaks:         "What it holds goes on unseen by Kubernetes: memory, CPU, mounts, ports, an address that may be given to another pod.",
		Confirm:        "pgrep -af 'containerd-shim-runc-v2 -namespace k8s.io'; crictl pods -q",
		Mend:           "Look what runs in it (ps --ppid the shim). When it is of no use: ctr -n k8s.io tasks kill -s KILL the id and ctr -n k8s.io containers delete it, or kill the shim; a reboot clears it for sure.",
		FalsePositives: "Containers made with ctr or nerdctl in namespace k8s.io. A pod whose network takes minutes to set up.",
		Links:          []string{"https://github.com/containerd/containerd/blob/main/core/runtime/v2/README.md", "https://github.com/containerd/containerd/issues/5708"},
	},
}
