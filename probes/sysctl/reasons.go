package sysctl

import (
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// The reasons of this probe.
const (
	BlocksKubeletStart = "SysctlBlocksKubeletStart"
	Changed            = "SysctlChanged"
	KeyMissing         = "SysctlKeyMissing"
	FileTampered       = "SysctlFileTampered"
	FileInvalid        = "SysctlFileInvalid"
	Conflict           = "SysctlConflict"
	Unreadable         = "SysctlUnreadable"
)

var metrics = []probes.Metric{{
	Name: "sysctl_declared_keys",
	Help: "Kernel settings that the node's files, AKS's baseline and the configuration declare, and that are compared.",
}}

// A change must be seen by two sweeps; a key that somebody keeps flipping stays
// one finding until it has been quiet for ten seconds. Files are given the time
// of an editor that writes them in steps.
const (
	holdKey, clearKey = time.Second, 10 * time.Second
	holdFile          = 5 * time.Second
)

var reasons = []probes.Reason{
	{
		Name: BlocksKubeletStart, Severity: probes.Critical, Owner: probes.Customer,
		Hold: holdKey, Clear: clearKey,
		Meaning: "A kernel setting differs from the one value that kubelet, run with protect-kernel-defaults as on AKS, starts with; or the node's files will make it differ at the next boot.",
		Breaks: "Nothing yet. The running kubelet looks at these keys only when it starts: at its next restart (an update, a crash, a reboot) it exits with \"invalid kernel flag\", " +
			"and the node stays NotReady until the value is put right.",
		Confirm: "sysctl vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes; " +
			"tr '\\0' '\\n' </proc/$(pgrep -xo kubelet)/cmdline | grep protect",
		Mend: "Set the key back before kubelet restarts (sysctl -w vm.overcommit_memory=1, vm.panic_on_oom=0, kernel.panic=10, kernel.panic_on_oops=1, kernel.keys.root_maxkeys=1000000, " +
			"kernel.keys.root_maxbytes=25000000), and take the contrary line out of /etc/sysctl.d or out of the DaemonSet that writes it.",
		FalsePositives: "A kubelet whose flag was changed on disk but that has not been restarted since is judged by the flags it runs with.",
		Links: []string{
			"https://github.com/kubernetes/kubernetes/blob/v1.36.3/pkg/kubelet/cm/container_manager_linux.go",
			"https://github.com/kubernetes/kubernetes/issues/66241",
			"https://github.com/Azure/aks-engine/issues/446",
		},
	},
	{
		Name: Changed, Severity: probes.Warning, Owner: probes.Customer,
		Hold: holdKey, Clear: clearKey,
		Meaning: "A kernel setting is not what the node's sysctl.d declares (read as systemd-sysctl reads it), what AKS wrote, or what the configuration of this agent expects. " +
			"Critical for forwarding and bridge-nf-call-*; info where only a file of the distribution below /usr/lib declares it.",
		Breaks: "Depends on the key. net.ipv4.ip_forward=0 or conf.all.forwarding=0: pods of this node lose the network. net.bridge.bridge-nf-call-iptables=0: Services and network policies " +
			"do not see bridged traffic. neigh.default.gc_thresh*, somaxconn, nf_conntrack_max: drops under load. The declared value comes back at the next boot.",
		Confirm: "sysctl KEY; grep -rn KEY /etc/sysctl.d /run/sysctl.d /usr/local/lib/sysctl.d /usr/lib/sysctl.d /etc/sysctl.conf",
		Mend: "Find who writes it (the finding names the pod or unit where that was seen). Wanted: declare it, by the node pool's linuxOSConfig or expect: in this agent's configuration. " +
			"Not wanted: stop the writer, then sysctl --system.",
		FalsePositives: "Lawful second writers are known and left alone: CNI plugins on pods' links, kube-proxy's conntrack values, kubelet without protect-kernel-defaults, Cilium's rp_filter. " +
			"For another one, waive the subject.",
		Links: []string{
			"https://www.freedesktop.org/software/systemd/man/latest/sysctl.d.html",
			"https://learn.microsoft.com/azure/aks/custom-node-configuration",
			"https://github.com/Azure/AKS/issues/3051",
			"https://github.com/Azure/AKS/issues/5529",
		},
	},
	{
		Name: KeyMissing, Severity: probes.Warning, Owner: probes.Customer,
		Hold: 30 * time.Second, Clear: clearKey,
		Meaning: "A declared kernel setting does not exist, mostly because its module is not loaded. Warning for keys that AKS declares and for bridge-nf-call-*; info for other files and for IPv6 keys " +
			"of a kernel without IPv6. Keys that only the distribution declares, \"-key\" lines and globs are allowed to be missing.",
		Breaks:         "The declaration has no effect. Without br_netfilter, iptables does not see bridged pod traffic: kube-proxy's Services fail between pods of one node in bridge mode.",
		Confirm:        "ls /proc/sys/net/bridge; lsmod | grep -e br_netfilter -e nf_conntrack; cat /etc/modules-load.d/*.conf",
		Mend:           "modprobe br_netfilter (or nf_conntrack), see why /etc/modules-load.d does not name it any more, then sysctl --system.",
		FalsePositives: "A kernel built without the feature. Write the line as \"-key = value\" in the file, or waive the subject.",
		Links:          []string{"https://github.com/Azure/AgentBaker/blob/master/parts/linux/cloud-init/artifacts/cse_config.sh"},
	},
	{
		Name: FileTampered, Severity: probes.Warning, Owner: probes.Customer,
		Hold:    holdFile,
		Meaning: "One of AKS's own files (60-CIS.conf, 99-force-bridge-forward.conf, 999-sysctl-aks.conf) is missing, masked, or has lost or changed lines, and was touched after the node was provisioned.",
		Breaks:  "Nothing until the next boot or sysctl --system; then the node loses AKS's hardening, forwarding or network tuning. AKS does not write the files again until the node is reimaged.",
		Confirm: "ls -l --time-style=full-iso /etc/sysctl.d /opt/azure/containers/provision.complete; cat /etc/sysctl.d/999-sysctl-aks.conf",
		Mend:    "Put your own values into a file of your own whose name sorts after AKS's, or into the node pool's linuxOSConfig. Reimage the node to get AKS's files back.",
		FalsePositives: "A newer node image that leaves a file out, on a node where something else was put into /etc/sysctl.d since. Lines in an untouched file are never judged: " +
			"there the file is the truth, whatever this agent's table says.",
		Links: []string{"https://github.com/Azure/AgentBaker/blob/master/parts/linux/cloud-init/artifacts/sysctl-d-60-CIS.conf"},
	},
	{
		Name: FileInvalid, Severity: probes.Warning, Owner: probes.Customer,
		Hold:    holdFile,
		Meaning: "systemd-sysctl rejects a line of a declaration file, or cannot read the file at all (a folder, a FIFO, larger than 1 MiB, an I/O error).",
		Breaks:  "The line, or the whole file, has no effect; systemd-sysctl.service ends in failure. Whoever wrote it believes that it is in force.",
		Confirm: "SYSTEMD_LOG_LEVEL=info /usr/lib/systemd/systemd-sysctl FILE (it applies the file); systemctl status systemd-sysctl",
		Mend:    "Write \"key = value\", a line for each key. Take the file away if it is not one of sysctl's.",
		Links:   []string{"https://www.freedesktop.org/software/systemd/man/latest/sysctl.d.html"},
	},
	{
		Name: Conflict, Severity: probes.Info, Owner: probes.Customer,
		Hold: holdFile,
		Meaning: "Another file sets a key of AKS's 999-sysctl-aks.conf to another value and wins: its name sorts later (9999-mine.conf, zz.conf), or it is /etc/sysctl.conf, " +
			"which sysctl --system reads last and systemd-sysctl does not.",
		Breaks:         "The node pool's linuxOSConfig does not take effect. With /etc/sysctl.conf the value changes with who ran last: AKS's provisioning leaves one, a boot the other; both are accepted.",
		Confirm:        "grep -rn KEY /etc/sysctl.d /etc/sysctl.conf",
		Mend:           "Declare the key in one place: linuxOSConfig, or your own file and not linuxOSConfig.",
		FalsePositives: "An intended override is lawful: this is info for that reason.",
		Links:          []string{"https://learn.microsoft.com/azure/aks/custom-node-configuration"},
	},
	{
		Name: Unreadable, Severity: probes.Info, Owner: probes.Customer,
		Hold: 30 * time.Second, Clear: clearKey,
		Meaning: "A declared kernel setting cannot be read, so it is neither in order nor drifted. A drift seen before stays. For the keys of forwarding and of kubelet's start the whole condition is Unknown instead.",
		Breaks:  "Nothing on the node. This key is not watched.",
		Confirm: "cat /proc/sys/net/core/bpf_jit_harden (as the agent: without CAP_SYS_ADMIN the kernel refuses it)",
		Mend:    "Nothing, or waive the subject. A few keys (net.core.bpf_jit_*) are shown to CAP_SYS_ADMIN only, which this agent does not hold.",
		Links:   []string{"https://docs.kernel.org/admin-guide/sysctl/net.html"},
	},
}
