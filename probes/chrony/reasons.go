package chrony

import (
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// The reasons of this probe.
const (
	NotRunning              = "Chrony" + unit.NotRunning
	ConfigNotLoaded         = "Chrony" + unit.ConfigNotLoaded
	Hung                    = "ChronyHung"
	NoTimeSource            = "NoTimeSource"
	ClockOffset             = "ClockOffset"
	ClockErrorGrowing       = "ClockErrorGrowing"
	ClockDisciplinedByOther = "ClockDisciplinedByOther"
	ClockUnsynchronized     = "ClockUnsynchronized"
	TimeSourceNotDeclared   = "TimeSourceNotDeclared"
	WrongPTPClock           = "WrongPTPClock"
	TimeDaemonConflict      = "TimeDaemonConflict"
	ClockStepped            = "ClockStepped"
	NodeFrozen              = "NodeFrozen"
)

// Metrics.
const (
	offsetSeconds     = "chrony_offset_seconds"
	rmsSeconds        = "chrony_rms_offset_seconds"
	frequencyPPM      = "chrony_frequency_ppm"
	skewPPM           = "chrony_skew_ppm"
	dispersionSeconds = "chrony_root_dispersion_seconds"
	stratum           = "chrony_stratum"
	reachRatio        = "chrony_reach_ratio"
	sampleAge         = "chrony_last_sample_age_seconds"
	maxErrorSeconds   = "clock_max_error_seconds"
)

func metrics(c Config) []probes.Metric {
	return append(unit.Metrics(options(c)),
		probes.Metric{Name: offsetSeconds, Help: "How far the node's clock is ahead of chronyd's time (its pending correction, and what the last sample of the selected source says beyond it); negative when it is behind."},
		probes.Metric{Name: rmsSeconds, Help: "Long-term average of chronyd's offset."},
		probes.Metric{Name: frequencyPPM, Help: "Rate by which the clock would be wrong if chronyd did not correct it, in parts per million; positive is fast."},
		probes.Metric{Name: skewPPM, Help: "Estimated error of the frequency, in parts per million."},
		probes.Metric{Name: dispersionSeconds, Help: "Accumulated dispersion up to the reference clock."},
		probes.Metric{Name: stratum, Help: "Hops to a reference clock, by chronyd; it stays as it was when all sources are lost."},
		probes.Metric{Name: reachRatio, Help: "Share of the last eight polls of the selected source that were answered."},
		probes.Metric{Name: sampleAge, Help: "Age of the last sample of the selected source; absent when there was none."},
		probes.Metric{Name: maxErrorSeconds, Help: "The kernel's bound of its clock's error (adjtimex, maxerror); 16 s when nobody disciplines it."})
}

const breaks = "The clock runs free: first it drifts by a second or so a day, later certificates, tokens and leases fail."

func reasons(c Config) []probes.Reason { return append(unit.Reasons(options(c), breaks), own...) }

const (
	manual = "https://chrony-project.org/doc/4.6/chrony.conf.html"
	azure  = "https://learn.microsoft.com/azure/virtual-machines/linux/time-sync"
)

var own = []probes.Reason{
	{
		Name: Hung, Severity: probes.Critical, Owner: probes.Both, Hold: 5 * time.Second,
		Meaning:        "chronyd runs and does not answer on its command port within 0.4 s: it is stopped by a signal, or starved.",
		Breaks:         breaks,
		Confirm:        "chronyc -h 127.0.0.1 tracking; ps -o pid,stat,wchan:20,cmd -C chronyd",
		Mend:           "kill -CONT it where it is stopped (state T), otherwise systemctl restart it.",
		FalsePositives: "A packet filter that drops UDP port 323 on loopback.",
		Links:          []string{"https://chrony-project.org/doc/4.6/chronyc.html"},
	},
	{
		Name: NoTimeSource, Severity: probes.Critical, Owner: probes.Both, Hold: 5 * time.Second,
		Meaning: "chronyd has no source to follow: none answers (reachability 0), it trusts none, or the one it follows has given no time for four polls (at least 32 s). " +
			"Leap status and stratum go on looking fine. Not judged in the first minute of chronyd, and for three polls after the node stood still.",
		Breaks:         breaks,
		Confirm:        "chronyc -n sources -v; chronyc tracking; ls -l /dev/ptp*; cat /sys/class/ptp/ptp*/clock_name",
		Mend:           "On AKS the source is the Hyper-V clock (PHC0): see that hv_utils is loaded and /dev/ptp0 or /dev/ptp_hyperv is there, else reboot the node. For NTP servers: names, routes, firewalls (UDP 123).",
		FalsePositives: "Servers that are offline on purpose.",
		Links:          []string{azure, manual},
	},
	{
		Name: ClockOffset, Severity: probes.Warning, Owner: probes.Both, Hold: 15 * time.Second,
		Meaning:        "By chronyd the node's clock is off by more than 50 ms; critical from 500 ms. Not judged for three polls after the node stood still.",
		Breaks:         "Times in logs and traces are out of order; from seconds on tokens, certificates, leases and quorum databases fail.",
		Confirm:        "chronyc tracking (System time, Last offset); chronyc -n sources",
		Mend:           "Wait while chronyd slews or steps it. Where it stays, chronyd may not set the clock (-x, no makestep), or follows a wrong source.",
		FalsePositives: "A server that is itself wrong: then the clock is right and chronyd is not.",
		Links:          []string{manual + "#makestep", azure},
	},
	{
		Name: ClockErrorGrowing, Severity: probes.Warning, Owner: probes.Both, Hold: 15 * time.Second,
		Meaning: "The kernel's bound of its clock's error (maxerror) is over 100 ms, beside what four polls of chronyd's source allow: nobody has corrected the clock for minutes. " +
			"Judged only where chronyd disciplines the clock.",
		Breaks:         breaks,
		Confirm:        "chronyc tracking; adjtimex --print (maxerror), or node_timex_maxerror_seconds",
		Mend:           "See why chronyd does not update the clock: systemctl status chrony chronyd; chronyc -n sources.",
		FalsePositives: "A source that is far away (root distance over 100 ms).",
		Links:          []string{"https://man7.org/linux/man-pages/man2/adjtimex.2.html"},
	},
	{
		Name: ClockDisciplinedByOther, Severity: probes.Warning, Owner: probes.Customer, Hold: 5 * time.Minute,
		Meaning:        "For five minutes the kernel's clock has run at another rate than chronyd set, always to the same side: another program sets it. Judged only where chronyd disciplines the clock.",
		Breaks:         "Two programs correct each other; the clock swings.",
		Confirm:        "chronyc tracking (Frequency) beside adjtimex --print (frequency in 1/65536 ppm, tick); systemctl list-units '*ntp*' '*time*' 'p*c2sys*'",
		Mend:           "Stop the other one: a second daemon, a pod with CAP_SYS_TIME, phc2sys.",
		FalsePositives: "An offset that chronyd slews away for longer than five minutes.",
		Links:          []string{"https://man7.org/linux/man-pages/man2/adjtimex.2.html"},
	},
	{
		Name: ClockUnsynchronized, Severity: probes.Critical, Owner: probes.Both, Hold: 15 * time.Second,
		Meaning: "The kernel holds its clock for not synchronized (STA_UNSYNC). Judged only where chronyd disciplines the clock and its files have rtcsync: " +
			"without it the flag is set on every healthy node.",
		Breaks:         breaks + " The hardware clock is not kept right either: after the next boot the node begins with a wrong time.",
		Confirm:        "timedatectl (System clock synchronized: no); chronyc tracking",
		Mend:           "See why chronyd does not update the clock: systemctl status chrony chronyd; chronyc -n sources.",
		FalsePositives: "rtcsync that was added and not loaded yet; somebody who set the clock by hand a moment ago.",
		Links:          []string{manual + "#rtcsync"},
	},
	{
		Name: TimeSourceNotDeclared, Severity: probes.Warning, Owner: probes.Customer, Hold: time.Minute,
		Meaning: "chronyd follows a source that its files do not name, or does not use one that they do (chrony.conf with its include, confdir and sourcedir). " +
			"A distribution's default counts as declared, and so does what is compiled in where there is no file.",
		Breaks:         "The node takes its time from somebody whom nobody chose; after a restart of chronyd it is another one.",
		Confirm:        "chronyc -N sources; grep -rE '^(server|pool|peer|refclock)' /etc/chrony /etc/chrony.conf",
		Mend:           "systemctl restart chrony (or chronyd), or chronyc reload sources. If the source is meant, write it into chrony's files.",
		FalsePositives: "A server that chronyc has deleted for a test.",
		Links:          []string{manual + "#sourcedir"},
	},
	{
		Name: WrongPTPClock, Severity: probes.Warning, Owner: probes.Both, Hold: time.Minute,
		Meaning:        "The PTP device of a refclock line in chrony's files is not the hypervisor's clock, or no PTP clock: /dev/ptp0 may be a network card's after a reboot.",
		Breaks:         "chronyd follows a clock that nobody sets, and holds it for right.",
		Confirm:        "cat /sys/class/ptp/ptp*/clock_name; ls -l /dev/ptp*; grep refclock /etc/chrony/chrony.conf /etc/chrony.conf",
		Mend:           "Name /dev/ptp_hyperv, which udev points at the right one, in place of /dev/ptp0, and restart chronyd.",
		FalsePositives: "A network card's clock that a PTP grandmaster sets, on purpose.",
		Links:          []string{azure},
	},
	{
		Name: TimeDaemonConflict, Severity: probes.Warning, Owner: probes.Customer, Hold: time.Minute,
		Meaning: "Another unit that sets a clock is active beside chrony: systemd-timesyncd, ntp, ntpd, ntpsec, openntpd, phc2sys or ptp4l. " +
			"One that runs in a pod has no unit: see ClockDisciplinedByOther.",
		Breaks:         "Two programs correct each other; the clock swings.",
		Confirm:        "systemctl status chrony chronyd and the unit named",
		Mend:           "systemctl disable --now one of them; on AKS chrony stays.",
		FalsePositives: "ptp4l that sets a network card's clock only, and leaves the node's to chrony.",
		Links:          []string{azure},
	},
	{
		Name: ClockStepped, Severity: probes.Warning, Happens: true, Owner: probes.Both,
		Meaning:        "The clock was set by more than 50 ms at once, forward or back. One that follows a freeze of the node within a minute is the freeze's and is not told.",
		Breaks:         "Timers on the wall clock fire early or late, times in logs jump; a step back can make leases and tokens valid again, or not yet.",
		Confirm:        "journalctl -u chrony -u chronyd -g 'stepped|wrong by'; journalctl -g 'Time jumped|Time has been changed'",
		Mend:           "Nothing when chronyd did it (makestep): find out why the clock had been wrong. Otherwise find who sets it: date, timedatectl, a pod with CAP_SYS_TIME; with bpf.clock in the configuration the message names them.",
		FalsePositives: "AKS's chrony may step at any time (makestep 1.0 -1): that is its policy.",
		Links:          []string{manual + "#makestep"},
	},
	{
		Name: NodeFrozen, Severity: probes.Warning, Happens: true, Owner: probes.AKS,
		Meaning:        "The whole node stood still for more than two seconds, as in a live migration or when a VM is paused. A throttled or starved agent is told apart by the time that it waited for a CPU.",
		Breaks:         "Leases and tunnels time out in the meantime; the clock may be stepped afterwards.",
		Confirm:        "Azure's scheduled events (Freeze) of that time; journalctl -k -g 'clocksource|hv_utils|soft lockup'",
		Mend:           "Nothing: it is over. Where it comes often, ask Azure, or use a VM size without live migration.",
		FalsePositives: "An agent that was itself stopped by a signal or by the cgroup freezer.",
		Links:          []string{"https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events"},
	},
}
