package unit

import (
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// The reasons, without the probe's prefix.
const (
	NotRunning         = "NotRunning"
	CrashLooping       = "CrashLooping"
	DaemonReloadNeeded = "DaemonReloadNeeded"
	UnitChanged        = "UnitChanged"
	ConfigNotLoaded    = "ConfigNotLoaded"
	BinaryReplaced     = "BinaryReplaced"
	Died               = "Died"
)

// Metrics are those of a checker: o.Metric is the daemon's name in them.
func Metrics(o Options) []probes.Metric {
	return []probes.Metric{{Name: o.Metric + "_restarts_total", Counter: true,
		Help: "Starts of " + o.Units[0] + " that systemd made because it had ended by itself, since this agent started."}}
}

// Reasons are the catalogue of a checker. breaks says what stops working while
// the daemon is down.
func Reasons(o Options, breaks string) []probes.Reason {
	unit := o.Units[0]
	r := strings.NewReplacer("UNIT", unit, "BREAKS", breaks)
	list := []probes.Reason{
		{
			Name: NotRunning, Severity: probes.Critical, Owner: o.Owner, Hold: holdDown,
			Meaning:        "UNIT does not run: it was stopped or masked, has failed, or systemd has been starting, stopping or waiting to restart it for over a minute.",
			Breaks:         "BREAKS",
			Confirm:        "systemctl status UNIT; journalctl -u UNIT -n 50",
			Mend:           "Read why it ended (result, exit status or signal), mend that, and run systemctl start UNIT; systemctl unmask UNIT where it is masked. On AKS the node is repaired after about ten minutes of NotReady.",
			FalsePositives: "A unit that somebody stopped on purpose for longer than three seconds.",
			Links:          []string{"https://www.freedesktop.org/software/systemd/man/latest/systemd.service.html", "https://learn.microsoft.com/azure/aks/node-auto-repair"},
		},
		{
			Name: CrashLooping, Severity: probes.Warning, Owner: o.Owner,
			Meaning:        "UNIT ended by itself and was started again by systemd at least three times within ten minutes. Starts that somebody asked for do not count. It clears five minutes after the last one.",
			Breaks:         "BREAKS Between two starts it may look healthy.",
			Confirm:        "systemctl show UNIT -p NRestarts -p Result -p ExecMainStatus; journalctl -u UNIT -n 50",
			Mend:           "Read its last words in the journal. Mostly it is configuration: a flag or file that was edited, an expired certificate, too little memory.",
			FalsePositives: "Somebody who kills the process again and again instead of systemctl restart.",
			Links:          []string{"https://www.freedesktop.org/software/systemd/man/latest/org.freedesktop.systemd1.html"},
		},
		{
			Name: UnitChanged, Severity: probes.Warning, Owner: probes.Customer, Hold: 5 * time.Second,
			Meaning: "The unit file or a drop-in of UNIT differs from what it was when first seen on this boot, or from the sum that the configuration of this agent declares; or the unit was masked. " +
				"A drop-in that appears is a declaration and no finding. Comments do not count, nor do updates by a package manager.",
			Breaks:         "Nothing at once. The next start runs something else than what the node's image brought, and AKS does not support changed units.",
			Confirm:        "systemctl cat UNIT; ls -l --time-style=full-iso /etc/systemd/system/UNIT /etc/systemd/system/UNIT.d",
			Mend:           "Put the old content back, or reimage the node. If the change is meant, move it into a drop-in or declare its sum in the configuration (probes, files).",
			FalsePositives: "An administrator's own tool that rewrites the file. What was changed before this agent first looked is not known.",
			Links:          []string{"https://learn.microsoft.com/azure/aks/support-policies"},
		},
		{
			Name: DaemonReloadNeeded, Severity: probes.Warning, Owner: probes.Customer, Hold: holdPending,
			Meaning:        "The unit file or a drop-in of UNIT was changed on disk, and systemd has not read it: it wants a systemctl daemon-reload. Not judged while dpkg or rpm is at work.",
			Breaks:         "Nothing yet. What was changed is without effect, until a reload for another cause (a package, another unit) puts it into force at a time that nobody chose.",
			Confirm:        "systemctl show UNIT -p NeedDaemonReload -p DropInPaths; systemctl cat UNIT",
			Mend:           "systemctl daemon-reload, then systemctl restart UNIT if the change is meant; otherwise take the change back.",
			FalsePositives: "A file that was touched without a change: systemd goes by its time.",
			Links:          []string{"https://www.freedesktop.org/software/systemd/man/latest/systemctl.html#daemon-reload"},
		},
		{
			Name: ConfigNotLoaded, Severity: probes.Warning, Owner: probes.Customer, Hold: holdPending,
			Meaning: "A file that UNIT reads when it starts (its unit, drop-ins, environment or configuration) holds something else than when the running process started. " +
				"Contents are compared, times are not believed. Not judged while dpkg or rpm is at work.",
			Breaks:         "Nothing yet. The change takes effect at the next restart, whenever that is; a mistake in it will keep UNIT from starting then.",
			Confirm:        "systemctl show UNIT -p ExecMainStartTimestamp; ls -l --time-style=full-iso on the file named",
			Mend:           "systemctl restart UNIT when the change is meant, or put the old content back.",
			FalsePositives: "A file that was rewritten with another order of the same settings, where order is taken to matter.",
			Links:          []string{"https://learn.microsoft.com/azure/aks/custom-node-configuration"},
		},
		{
			Name: BinaryReplaced, Severity: probes.Warning, Owner: probes.Both, Hold: holdPending,
			Meaning: "The program of UNIT was replaced or removed on disk, and the old one still runs: the file is another one than when the process started. Not judged while dpkg or rpm is at work.",
			Breaks:  "Nothing yet. Fixes in the new program are not in force, and the next restart, whenever that is, changes the version.",
			Confirm: "ls -l /proc/$(systemctl show UNIT -p MainPID --value)/exe shows (deleted); systemctl show UNIT -p ExecStart",
			Mend:    "systemctl restart UNIT, drained if you can; or put the old program back. A removed program must come back before the next start.",
			FalsePositives: "AKS's live patching replaces kubelet and restarts it. Where the agent first looks after the start, the file's change time is compared: an attribute that was changed " +
				"after the start looks like a replacement.",
			Links: []string{"https://learn.microsoft.com/azure/aks/auto-upgrade-node-os-image"},
		},
		{
			Name: Died, Severity: probes.Warning, Happens: true, Owner: o.Owner,
			Meaning: "UNIT ended by itself or was killed, and systemd starts it again: once is no state to stand, three times are.",
			Breaks:  "BREAKS For as long as the start takes.",
			Confirm: "journalctl -u UNIT -n 50; journalctl -k -g oom",
			Mend:    "Nothing when it stays at one. The event names who killed it, where that was seen.",
			Links:   []string{"https://www.freedesktop.org/software/systemd/man/latest/systemd.service.html#Restart="},
		},
	}
	for i := range list {
		e := &list[i]
		e.Name = o.Prefix + e.Name
		for _, text := range []*string{&e.Meaning, &e.Breaks, &e.Confirm, &e.Mend, &e.FalsePositives} {
			*text = r.Replace(*text)
		}
	}
	return list
}
