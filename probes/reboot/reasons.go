package reboot

import "github.com/nodedrift/nodedrift/probes"

// The reasons of this probe.
const (
	Required               = "RebootRequired"
	Overdue                = "RebootOverdue"
	KernelOutdated         = "KernelOutdated"
	ServiceRestartRequired = "ServiceRestartRequired"
)

var metrics = []probes.Metric{{
	Name: pendingSince,
	Help: "When the distribution's reboot marker was made, in Unix seconds; 0 while there is none.",
}}

var reasons = []probes.Reason{
	{
		Name: Overdue, Severity: probes.Warning, Owner: probes.Customer,
		Meaning: "The distribution has asked for a reboot for longer than a week (probes.reboot.overdue).",
		Breaks: "The node runs a kernel or libraries with known holes, in spite of being patched on disk. AKS does not reboot for it: on the Unmanaged channel nobody does, " +
			"on SecurityPatch only for some kernel patches.",
		Confirm:        "ls -l --time-style=full-iso /run/reboot-required; sort -u /run/reboot-required.pkgs",
		Mend:           "Drain and reboot the node, upgrade its node image, or run kured. On channel NodeImage the next weekly image replaces the node.",
		FalsePositives: "An image older than its updates asks again after each reimage (kured#147): upgrade the node image instead.",
		Links: []string{
			"https://learn.microsoft.com/azure/aks/auto-upgrade-node-os-image",
			"https://github.com/kubereboot/kured/issues/173",
			"https://github.com/kubereboot/kured/issues/147",
		},
	},
	{
		Name: Required, Severity: probes.Warning, Routine: true, Owner: probes.Customer,
		Meaning:        "The distribution asks for a reboot: an update of the kernel, libc or the like is installed and not running.",
		Breaks:         "Nothing. The update is without effect until the node is rebooted. Routine: it does not turn NodeDrift True.",
		Confirm:        "ls -l /run/reboot-required; sort -u /run/reboot-required.pkgs (Azure Linux writes no list)",
		Mend:           "Let kured or the next node image do it, or drain and reboot the node.",
		FalsePositives: "A marker that an administrator has touched. On channel SecurityPatch it may stand for days by design.",
		Links: []string{
			"https://github.com/Azure/AKS/issues/797",
			"https://learn.microsoft.com/azure/aks/node-updates-kured",
			"https://learn.microsoft.com/azure/aks/auto-upgrade-node-os-image",
		},
	},
	{
		Name: KernelOutdated, Severity: probes.Info, Owner: probes.Customer,
		Meaning:        "A newer kernel of the same flavour than the running one is installed; a reboot would start it. Seen even where the marker was removed.",
		Breaks:         "Nothing. The newer kernel's fixes are not in force.",
		Confirm:        "uname -r; ls /boot/vmlinuz-* /usr/lib/modules",
		Mend:           "Reboot the node, or upgrade its node image.",
		FalsePositives: "A boot loader that is set to an older kernel on purpose. A kernel rebuilt under the same release (Debian does so) is not seen.",
		Links:          []string{"https://learn.microsoft.com/azure/aks/auto-upgrade-node-os-image"},
	},
	{
		Name: ServiceRestartRequired, Severity: probes.Info, Owner: probes.Customer,
		Meaning: "A system service still runs a library or program that an update has replaced. Pods are not looked at.",
		Breaks:  "Nothing. The update is without effect for this service until it is restarted. AKS's SecurityPatch channel installs without a drain, so it leaves this behind.",
		Confirm: "grep -l ' (deleted)$' /proc/[0-9]*/maps; or: needrestart -r l",
		Mend:    "systemctl restart the unit, or reboot the node; some (dbus, systemd itself) only come right with a reboot.",
		FalsePositives: "A service that unlinks its own files after loading them. Reading other processes' maps needs root with ptrace rights: " +
			"in a pod this is mostly not judged, nodedrift check as root on the node judges it.",
		Links: []string{"https://man7.org/linux/man-pages/man5/proc_pid_maps.5.html"},
	},
}
