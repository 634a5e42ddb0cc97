package host

import (
	"encoding/hex"
	"fmt"
	"math"
	"reflect"
	"time"

	"github.com/godbus/dbus/v5"
)

// Unit is what systemd says of a unit. Its fields are named as the properties
// are (org.freedesktop.systemd1(5), "systemctl show"), except Job and the types
// of times: a ...Timestamp is wall-clock time, a ...Monotonic is CLOCK_MONOTONIC,
// and what never happened is zero. Those after Type are a service's.
type Unit struct {
	Id            string // of an alias, the real name
	LoadState     string // "loaded", "not-found", "masked", "bad-setting"
	ActiveState   string // "active", "reloading", "inactive", "failed", "activating", "deactivating"
	SubState      string // "running", "dead", "auto-restart"
	UnitFileState string // "enabled", "disabled", "static"
	FragmentPath  string
	DropInPaths   []string
	// NeedDaemonReload says that files of the unit are newer than what systemd has read.
	NeedDaemonReload bool
	InvocationID     string // hex; another one for each start
	Job              uint32 // the id of the job that is queued or runs, 0 for none

	StateChangeTimestamp            time.Time
	StateChangeTimestampMonotonic   time.Duration
	ActiveEnterTimestamp            time.Time
	ActiveEnterTimestampMonotonic   time.Duration
	ActiveExitTimestamp             time.Time
	ActiveExitTimestampMonotonic    time.Duration
	InactiveEnterTimestamp          time.Time
	InactiveEnterTimestampMonotonic time.Duration
	InactiveExitTimestamp           time.Time
	InactiveExitTimestampMonotonic  time.Duration

	Type           string
	Restart        string
	Result         string // of the last run: "success", "exit-code", "signal", "oom-kill", "watchdog"
	StatusText     string
	ControlGroup   string
	MainPID        uint32 // 0 when none runs
	ControlPID     uint32
	NRestarts      uint32 // automatic ones since the unit was started
	ExecMainPID    uint32
	ExecMainCode   int32 // si_code of sigaction(2): 1 exited, 2 killed, 3 dumped core
	ExecMainStatus int32 // exit status, or signal number

	ExecMainStartTimestamp          time.Time
	ExecMainStartTimestampMonotonic time.Duration
	ExecMainExitTimestamp           time.Time
	ExecMainExitTimestampMonotonic  time.Duration

	Environment []string
	ExecStart   []Command
}

// Command is one command line of a unit.
type Command struct {
	Path string
	Args []string // argv, the program's name first
}

// unitOf makes a Unit of D-Bus properties. One that a systemd does not know is
// zero, but there is no unit without a state, and another type is an error.
func unitOf(props map[string]dbus.Variant) (Unit, error) {
	var u Unit
	fields := reflect.ValueOf(&u).Elem()
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Name
		value, ok := props[name]
		if !ok {
			continue
		}
		if !assign(fields.Field(i).Addr().Interface(), value.Value()) {
			return Unit{}, fmt.Errorf("property %s is a %T", name, value.Value())
		}
	}
	if u.LoadState == "" || u.ActiveState == "" {
		return Unit{}, fmt.Errorf("the answer has no state")
	}
	return u, nil
}

// assign stores one property, and says whether it was of the field's type.
func assign(field, value any) (ok bool) {
	switch f := field.(type) {
	case *string:
		if b, isBytes := value.([]byte); isBytes { // InvocationID
			*f, ok = hex.EncodeToString(b), true
		} else {
			*f, ok = value.(string)
		}
	case *bool:
		*f, ok = value.(bool)
	case *int32:
		*f, ok = value.(int32)
	case *uint32:
		if pair, isPair := value.([]any); isPair && len(pair) > 0 { // Job: id and object path
			value = pair[0]
		}
		*f, ok = value.(uint32)
	case *[]string:
		*f, ok = value.([]string)
	case *time.Time:
		var us uint64
		if us, ok = value.(uint64); us > 0 && us <= math.MaxInt64 {
			*f = time.UnixMicro(int64(us))
		}
	case *time.Duration:
		var us uint64
		if us, ok = value.(uint64); us <= math.MaxInt64/1000 {
			*f = time.Duration(us) * time.Microsecond
		}
	case *[]Command:
		*f, ok = commands(value)
	}
	return ok
}

// commands reads ExecStart, an array of (path, argv, …).
func commands(value any) (all []Command, ok bool) {
	structs, ok := value.([][]any)
	for _, s := range structs {
		if len(s) < 2 {
			return nil, false
		}
		path, isString := s[0].(string)
		args, isStrings := s[1].([]string)
		if !isString || !isStrings {
			return nil, false
		}
		all = append(all, Command{path, args})
	}
	return all, ok
}
