package host

import (
	"context"
	"errors"
	"fmt"

	"github.com/godbus/dbus/v5"
)

// WatchUnits calls l.Changed once when it listens, and then whenever a property
// of one of the units changed, or systemd read its configuration anew. It returns
// nil only when ctx has ended, and an error when the connection has.
func (s *Systemd) WatchUnits(ctx context.Context, l Listener, names ...string) error {
	wanted := []match{
		reloading,
		{path: managerPath, iface: managerIface, member: "UnitFilesChanged"},
	}
	for _, name := range names {
		wanted = append(wanted, match{path: unitPath(name), iface: propertyIface, member: "PropertiesChanged"})
	}
	return s.watch(ctx, l, wanted)
}

// WatchShutdown calls l.Changed once when it listens, and then whenever
// [Systemd.Stopping] may have changed: logind announced a shutdown or called it
// off, or systemd queued a job for shutdown.target or finished one.
func (s *Systemd) WatchShutdown(ctx context.Context, l Listener) error {
	return s.watch(ctx, l, []match{
		{path: managerPath, iface: managerIface, member: "JobNew", unit: shutdownTarget},
		{path: managerPath, iface: managerIface, member: "JobRemoved", unit: shutdownTarget},
		{sender: logind, path: logindPath, iface: logindManager, member: "PrepareForShutdown"},
	})
}

// A match is a signal that is listened to.
type match struct {
	sender        string // "": systemd
	path          dbus.ObjectPath
	iface, member string
	unit          string // of a job signal: the unit that the job is for, its third argument
	name          string // of a change of owner: the name on the bus, its first argument
}

var (
	reloading = match{path: managerPath, iface: managerIface, member: "Reloading"}
	// ownerChanged says that systemd on the bus is another one: after a daemon-reexec.
	ownerChanged = match{sender: busName, path: busPath, iface: busName, member: "NameOwnerChanged", name: manager}
)

// rule is the match as the bus takes it.
func (m match) rule() string {
	sender := m.sender
	if sender == "" {
		sender = manager
	}
	pairs := []string{"sender", sender, "path", string(m.path), "interface", m.iface, "member", m.member}
	if m.unit != "" {
		pairs = append(pairs, "arg2", m.unit)
	}
	if m.name != "" {
		pairs = append(pairs, "arg0", m.name)
	}
	return matchRule(pairs...)
}

// is tells whether a signal is the one.
func (m match) is(sig *dbus.Signal) bool {
	if sig.Path != m.path || sig.Name != m.iface+"."+m.member {
		return false
	}
	has := func(i int, arg string) bool { return arg == "" || len(sig.Body) > i && sig.Body[i] == arg }
	return has(2, m.unit) && has(0, m.name)
}

// watch listens until ctx or the connection ends.
func (s *Systemd) watch(ctx context.Context, l Listener, wanted []match) error {
	if s == nil {
		return errNoSystemd
	}
	link, err := s.connection(ctx, busSocket, privateSocket)
	if err == nil {
		e := &busEar{append(wanted, ownerChanged), l}
		defer link.leave(e)
		err = link.join(ctx, e)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("listen to systemd: %w", err)
	}
	l.Changed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-link.conn.Context().Done():
			return errors.New("listen to systemd: the connection ended")
		case <-link.moved:
			// Some systemds forget who has subscribed. One that does not answer is
			// noticed by who asks it.
			link.subscribe(ctx)
		}
	}
}

const (
	busName = "org.freedesktop.DBus"
	busPath = "/org/freedesktop/DBus"
)
