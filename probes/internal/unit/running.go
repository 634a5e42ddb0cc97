package unit

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// How long a unit may be down: one that nobody is about to start, and one that
// systemd is at work on.
const (
	holdDown = 3 * time.Second
	holdBusy = time.Minute
)

// notRunning makes the finding of a unit that does not run.
func (c *Checker) notRunning(u host.Unit) (probes.Finding, bool) {
	text, hold := down(u)
	if text == "" {
		return probes.Finding{}, false
	}
	name := c.name(u)
	return probes.Finding{Reason: c.reason(NotRunning), Subject: name, Message: name + " " + text, Observed: u.ActiveState, Wanted: "active",
		Hold: hold, Trace: probes.Key{Domain: "unit", Name: name}}, true
}

// name is the unit's real name.
func (c *Checker) name(u host.Unit) string {
	if u.Id != "" {
		return u.Id
	}
	return c.o.Units[0]
}

// down says why a unit does not run, and how long that may last; "" when it does.
func down(u host.Unit) (text string, hold time.Duration) {
	switch u.ActiveState {
	case "active", "reloading", "refreshing", "maintenance":
		return "", 0
	case "activating":
		if strings.HasPrefix(u.SubState, "auto-restart") {
			return "waits to be started again: " + ended(u), holdBusy
		}
		return "does not get started: it is in " + u.SubState, holdBusy
	case "deactivating":
		return "does not get stopped: it is in " + u.SubState, holdBusy
	}
	switch {
	case u.Job != 0:
		return "is to be started and is not: " + ended(u), holdBusy
	case u.LoadState == "not-found":
		return "is gone, and its unit file too", holdDown
	case u.LoadState == "masked":
		return "is masked and does not run", holdDown
	case u.ActiveState == "failed":
		return "has failed: " + ended(u), holdDown
	}
	return "does not run: " + ended(u), holdDown
}

// ended says how the last run ended (systemd.exec(5), "$SERVICE_RESULT").
func ended(u host.Unit) string {
	signal := unix.SignalName(unix.Signal(u.ExecMainStatus))
	if signal == "" {
		signal = fmt.Sprintf("signal %d", u.ExecMainStatus)
	}
	switch u.Result {
	case "", "success":
		return "it was stopped"
	case "exit-code":
		if u.ExecMainCode == 1 && u.ExecMainStatus != 0 {
			return fmt.Sprintf("exit status %d", u.ExecMainStatus)
		}
		return "a command before its start failed"
	case "signal":
		if u.ExecMainCode == 1 {
			return "a command before its start was killed"
		}
		return "killed by " + signal
	case "core-dump":
		return "dumped core by " + signal
	case "oom-kill":
		return "killed for lack of memory (oom-kill)"
	case "watchdog":
		return "killed by its watchdog"
	case "timeout":
		return "timed out"
	case "start-limit-hit":
		return "started too often, systemd gives up (start-limit-hit)"
	}
	return u.Result
}

// Up tells whether a unit, as its Service says, has been up for a while, and if
// not, why. There being no such unit is up: then nothing waits for it.
func Up(u host.Unit, now time.Duration, atLeast time.Duration) (why string, ok bool) {
	switch {
	case u.LoadState == "not-found":
		return "", true
	case !active(u):
		return u.Id + " is " + u.ActiveState, false
	case u.Job != 0:
		return u.Id + " is being started or stopped", false
	}
	if since := u.ActiveEnterTimestampMonotonic; since > 0 && now >= since && now-since < atLeast {
		return u.Id + " has just been started", false
	}
	return "", true
}
