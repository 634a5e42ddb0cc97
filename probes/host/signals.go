package host

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/godbus/dbus/v5"
)

// WatchUnits calls l.Changed once when it listens, and then whenever a property
// of one of the units changed, or systemd read its configuration anew. It listens
// on the bus with one match rule a unit, since a subscription to all would hear
// every container start; without a bus it listens on systemd's own socket, which
// sends everything, and picks. It returns nil only when ctx has ended, and an
// error when the connection has.
func (s *Systemd) WatchUnits(ctx context.Context, l Listener, names ...string) error {
	wanted := []match{
		{path: managerPath, iface: managerIface, member: "Reloading"},
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
}

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
	return matchRule(pairs...)
}

// is tells whether a signal is the one.
func (m match) is(sig *dbus.Signal) bool {
	if sig.Path != m.path || sig.Name != m.iface+"."+m.member {
		return false
	}
	return m.unit == "" || len(sig.Body) > 2 && sig.Body[2] == m.unit
}

// signalEar hears signals on a connection's own goroutine.
type signalEar struct {
	wanted []match
	l      Listener
}

// DeliverSignal implements [dbus.SignalHandler].
func (e *signalEar) DeliverSignal(_, _ string, sig *dbus.Signal) {
	if slices.ContainsFunc(e.wanted, func(m match) bool { return m.is(sig) }) {
		e.l.Changed()
	}
}

// watch listens until ctx or the connection ends.
func (s *Systemd) watch(ctx context.Context, l Listener, wanted []match) error {
	if s == nil {
		return errNoSystemd
	}
	// systemd on the bus is another one after a daemon-reexec.
	wanted = append(wanted, match{sender: busName, path: busPath, iface: busName, member: "NameOwnerChanged"})
	link, err := s.listen(ctx, l, wanted)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("listen to systemd: %w", err)
	}
	defer link.Close()
	l.Changed()
	select {
	case <-ctx.Done():
		return nil
	case <-link.Context().Done():
		return errors.New("listen to systemd: the connection ended")
	}
}

const (
	busName = "org.freedesktop.DBus"
	busPath = "/org/freedesktop/DBus"
)

// listen subscribes on the bus, or else connects to systemd's own socket, where
// no subscription is needed.
func (s *Systemd) listen(ctx context.Context, l Listener, wanted []match) (*dbus.Conn, error) {
	ear := &signalEar{wanted, l}
	link, busErr := s.connect(ctx, busSocket, ear)
	if busErr == nil {
		if busErr = subscribe(ctx, link, wanted); busErr == nil {
			return link, nil
		}
		link.Close()
	}
	link, err := s.connect(ctx, privateSocket, ear)
	if err != nil {
		return nil, errors.Join(busErr, err)
	}
	return link, nil
}

// subscribe asks the bus for the wanted signals, and systemd to send any at all:
// it does while someone has subscribed.
func subscribe(ctx context.Context, link *dbus.Conn, wanted []match) error {
	ctx, cancel := context.WithTimeout(ctx, busDial)
	defer cancel()
	for _, m := range wanted {
		rule := m.rule()
		if m.member == "NameOwnerChanged" {
			rule += ",arg0='" + manager + "'"
		}
		if err := link.BusObject().CallWithContext(ctx, busName+".AddMatch", 0, rule).Err; err != nil {
			return fmt.Errorf("add a match: %w", err)
		}
	}
	return link.Object(manager, managerPath).CallWithContext(ctx, managerIface+".Subscribe", 0).Err
}
