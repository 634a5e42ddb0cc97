package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Where the node's message bus and its systemd listen. The bus sends the signals
// that are asked for. The other is for root only, needs no bus, and sends all.
const (
	busSocket     = "run/dbus/system_bus_socket"
	privateSocket = "run/systemd/private"
)

// errNoSystemd is what a nil Systemd says.
var errNoSystemd = errors.New("no systemd")

// Systemd asks the node's systemd (org.freedesktop.systemd1(5)) and logind.
//
// To be uid 0 on those sockets is authority to change every unit. So this type
// has no method that does, and a test holds the list of calls that it makes.
//
// It connects when it is asked first, and again when the connection has ended:
// that to systemd's own socket does in a "systemctl daemon-reexec", which each
// update of systemd does. A nil Systemd answers with errors.
type Systemd struct {
	dial func(ctx context.Context, socket string) (net.Conn, error)
	turn chan struct{} // held while link is looked at or changed
	link *busLink      // one for all: who is answered over it would hear over it
	mute time.Time     // when the bus was found not to answer; zero: never
}

// muteFor is how long a bus that did not answer is not asked while systemd's own socket is.
const muteFor = time.Minute

// NewSystemd returns the systemd of the node whose root is given.
func NewSystemd(root *Root) *Systemd {
	return &Systemd{dial: root.Dial, turn: make(chan struct{}, 1)}
}

// Close closes the connection.
func (s *Systemd) Close() error {
	if s == nil {
		return nil
	}
	s.turn <- struct{}{}
	defer s.give()
	s.hangUp()
	return nil
}

func (s *Systemd) hangUp() {
	if s.link != nil {
		s.link.conn.Close()
	}
	s.link = nil
}

// Unit asks for a unit. A unit that there is not is no error to systemd: its
// LoadState is "not-found".
func (s *Systemd) Unit(ctx context.Context, name string) (Unit, error) {
	var props map[string]dbus.Variant
	err := s.call(ctx, &props, unitPath(name), propertyIface+".GetAll", "")
	if err != nil {
		return Unit{}, fmt.Errorf("ask systemd for %s: %w", name, err)
	}
	u, err := unitOf(props)
	if err != nil {
		return Unit{}, fmt.Errorf("ask systemd for %s: %w", name, err)
	}
	return u, nil
}

// NeedDaemonReload asks for that property of a unit alone: it is the one that
// changes and no signal tells, as systemd looks at the unit's files when asked.
func (s *Systemd) NeedDaemonReload(ctx context.Context, name string) (bool, error) {
	needs, err := property[bool](ctx, s, unitPath(name), unitIface, "NeedDaemonReload")
	if err != nil {
		return false, fmt.Errorf("ask systemd for %s: %w", name, err)
	}
	return needs, nil
}

// SystemState asks for the manager's state, as "systemctl is-system-running"
// prints it: "running", "degraded", "starting", "stopping".
func (s *Systemd) SystemState(ctx context.Context) (string, error) {
	state, err := property[string](ctx, s, managerPath, managerIface, "SystemState")
	if err != nil {
		return "", fmt.Errorf("ask systemd for its state: %w", err)
	}
	return state, nil
}

// Stopping tells whether the node is shutting down: shutdown.target is active or
// queued, or logind has announced it and waits for those who asked for a delay,
// as kubelet does.
func (s *Systemd) Stopping(ctx context.Context) (bool, error) {
	state, err := s.SystemState(ctx)
	switch {
	case err != nil:
		return false, err
	case state == "stopping":
		return true, nil
	case state == "initializing" || state == "starting":
		// A manager that is still starting says so, even with a shutdown queued.
		u, err := s.Unit(ctx, shutdownTarget)
		if err != nil || u.Job != 0 || u.ActiveState == "active" {
			return err == nil, err
		}
	}
	return s.announced(ctx), nil
}

// announced asks logind. Where there is no bus nothing is announced: then systemd
// alone is to be believed. A bus that has come back is gone over to.
func (s *Systemd) announced(ctx context.Context) bool {
	l, err := s.connection(ctx, busSocket)
	if err != nil {
		return false
	}
	var v dbus.Variant
	err = l.conn.Object(logind, logindPath).CallWithContext(ctx, getProperty, dbus.FlagNoAutoStart,
		logindManager, "PreparingForShutdown").Store(&v)
	announced, _ := v.Value().(bool)
	return err == nil && announced
}

// Names on the bus.
const (
	manager        = "org.freedesktop.systemd1"
	managerPath    = "/org/freedesktop/systemd1"
	managerIface   = "org.freedesktop.systemd1.Manager"
	unitIface      = "org.freedesktop.systemd1.Unit"
	propertyIface  = "org.freedesktop.DBus.Properties"
	getProperty    = propertyIface + ".Get"
	logind         = "org.freedesktop.login1"
	logindPath     = "/org/freedesktop/login1"
	logindManager  = "org.freedesktop.login1.Manager"
	shutdownTarget = "shutdown.target"
)

// take waits for one's turn.
func (s *Systemd) take(ctx context.Context) error {
	if s == nil {
		return errNoSystemd
	}
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Systemd) give() { <-s.turn }

// call makes a call to systemd and stores the answer. When it turns out that
// systemd hung up it is made again, with pauses: a daemon-reexec takes a tenth of a
// second, in which nobody listens.
func (s *Systemd) call(ctx context.Context, answer any, path dbus.ObjectPath, method string, args ...any) error {
	const pauses = 5 // 10 ms doubling: 310 ms together
	lost := error(nil)
	for i := range pauses + 1 {
		l, err := s.connection(ctx, busSocket, privateSocket)
		switch {
		case err != nil && (lost == nil || ctx.Err() != nil):
			return err
		case err == nil:
			c := l.conn.Object(manager, path).CallWithContext(ctx, method, dbus.FlagNoAutoStart, args...)
			if err = c.Err; err != nil && ctx.Err() != nil && l.mute() {
				s.leave(l)
			}
			if !endedBy(err) || ctx.Err() != nil {
				return c.Store(answer)
			}
			if _, fromBus := errors.AsType[dbus.Error](err); !fromBus {
				l.conn.Close() // the next turn dials
			}
		}
		lost = err
		if i > 0 && !pause(ctx, 5*time.Millisecond<<i) {
			break
		}
	}
	return lost
}

// leave lets go of a bus that does not answer: systemd's own socket may.
func (s *Systemd) leave(l *busLink) {
	s.turn <- struct{}{}
	defer s.give()
	s.mute = time.Now()
	if s.link == l {
		s.hangUp()
	}
}

// property asks for one property.
func property[T any](ctx context.Context, s *Systemd, path dbus.ObjectPath, iface, name string) (value T, err error) {
	var v dbus.Variant
	if err := s.call(ctx, &v, path, getProperty, iface, name); err != nil {
		return value, err
	}
	value, ok := v.Value().(T)
	if !ok {
		return value, fmt.Errorf("property %s is a %T", name, v.Value())
	}
	return value, nil
}

// endedBy tells whether an error is a connection's end, and not an answer.
func endedBy(err error) bool {
	var answer dbus.Error
	if !errors.As(err, &answer) {
		return err != nil
	}
	// Over the bus it is the bus that says that systemd hung up, or is not there.
	return slices.Contains([]string{
		"org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected",
		"org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner",
	}, answer.Name)
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// connection returns the kept connection if it is over one of the sockets, or a
// new one over the first that answers.
func (s *Systemd) connection(ctx context.Context, sockets ...string) (*busLink, error) {
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer s.give()
	if s.link != nil && s.link.conn.Connected() && slices.Contains(sockets, s.link.socket) {
		return s.link, nil
	}
	var errs []error
	for _, socket := range sockets {
		if socket == busSocket && !s.mute.IsZero() && time.Since(s.mute) < muteFor {
			errs = append(errs, errors.New("the bus does not answer"))
			continue
		}
		l, err := s.connect(ctx, socket)
		if err == nil {
			s.hangUp()
			s.link = l
			return l, nil
		}
		errs = slices.Insert(errs, 0, err) // systemd's own says most
	}
	return nil, errors.Join(errs...)
}

// unitPath is a unit's object path (systemd.unit(5), sd_bus_path_encode(3)).
func unitPath(name string) dbus.ObjectPath {
	return dbus.ObjectPath(managerPath + "/unit/" + systemd.PathBusEscape(name))
}

// matchRule writes a match rule (D-Bus specification, "Match Rules").
func matchRule(pairs ...string) string {
	rule := []string{"type='signal'"}
	for i := 0; i < len(pairs); i += 2 {
		rule = append(rule, pairs[i]+"='"+pairs[i+1]+"'")
	}
	return strings.Join(rule, ",")
}
