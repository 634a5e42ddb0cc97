package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Where the node's systemd and its message bus listen. The first is systemd's
// own, for root only; it needs no bus.
const (
	privateSocket = "run/systemd/private"
	busSocket     = "run/dbus/system_bus_socket"
)

// busDial bounds connecting and logging in.
const busDial = 2 * time.Second

// errNoSystemd is what a nil Systemd says.
var errNoSystemd = errors.New("no systemd")

// Systemd asks the node's systemd (org.freedesktop.systemd1(5)) and logind.
//
// To be uid 0 on those sockets is authority to change every unit. So this type
// has no method that does, and a test holds the list of calls that it makes.
//
// It connects when it is asked first, and again when the connection has ended:
// a "systemctl daemon-reexec", which each update of systemd does, ends it and
// says nothing. A nil Systemd answers with errors.
type Systemd struct {
	dial func(ctx context.Context, socket string) (net.Conn, error)
	turn chan struct{} // held while calls and links are looked at or changed

	calls *systemd.Conn
	links []*dbus.Conn // of calls: their contexts tell that they ended
	bus   *dbus.Conn   // to logind
}

// NewSystemd returns the systemd of the node whose root is given.
func NewSystemd(root *Root) *Systemd {
	return &Systemd{dial: root.Dial, turn: make(chan struct{}, 1)}
}

// Close closes the connections.
func (s *Systemd) Close() error {
	if s == nil {
		return nil
	}
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.hangUp()
	if s.bus != nil {
		s.bus.Close()
		s.bus = nil
	}
	return nil
}

func (s *Systemd) hangUp() {
	if s.calls != nil {
		s.calls.Close()
	}
	s.calls, s.links = nil, nil
}

// Unit asks for a unit. A unit that there is not is no error to systemd: its
// LoadState is "not-found".
func (s *Systemd) Unit(ctx context.Context, name string) (Unit, error) {
	props, err := call(ctx, s, func(c *systemd.Conn) (map[string]any, error) { return c.GetAllPropertiesContext(ctx, name) })
	if err != nil {
		return Unit{}, fmt.Errorf("ask systemd for %s: %w", name, err)
	}
	u, err := unitOf(props)
	if err != nil {
		return Unit{}, fmt.Errorf("ask systemd for %s: %w", name, err)
	}
	return u, nil
}

// SystemState asks for the manager's state, as "systemctl is-system-running"
// prints it: "running", "degraded", "starting", "stopping".
func (s *Systemd) SystemState(ctx context.Context) (string, error) {
	state, err := call(ctx, s, func(c *systemd.Conn) (string, error) {
		p, err := c.SystemStateContext(ctx)
		if err != nil {
			return "", err
		}
		state, ok := p.Value.Value().(string)
		if !ok {
			return "", errors.New("the answer is no string")
		}
		return state, nil
	})
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

// announced asks logind. Where there is none nothing is announced: then systemd
// alone is to be believed.
func (s *Systemd) announced(ctx context.Context) bool {
	bus, err := s.systemBus(ctx)
	if err != nil {
		return false
	}
	var v dbus.Variant
	err = bus.Object(logind, logindPath).CallWithContext(ctx, getProperty, dbus.FlagNoAutoStart,
		logindManager, "PreparingForShutdown").Store(&v)
	announced, _ := v.Value().(bool)
	return err == nil && announced
}

// Names on the bus.
const (
	manager        = "org.freedesktop.systemd1"
	managerPath    = "/org/freedesktop/systemd1"
	managerIface   = "org.freedesktop.systemd1.Manager"
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

// call makes a call. When it turns out that the connection has ended it is made
// again over a new one, with pauses: a daemon-reexec takes a tenth of a second, in
// which nobody listens.
func call[T any](ctx context.Context, s *Systemd, ask func(*systemd.Conn) (T, error)) (T, error) {
	const pauses = 5 // 10 ms doubling: 310 ms together
	var zero T
	lost := error(nil)
	for i := range pauses + 1 {
		c, err := s.connection(ctx)
		switch {
		case err != nil && (lost == nil || ctx.Err() != nil):
			return zero, err
		case err == nil:
			var v T
			if v, err = ask(c); !endedBy(err) || ctx.Err() != nil {
				return v, err
			}
			c.Close() // which ends its links: the next turn dials
		}
		lost = err
		if i > 0 && !pause(ctx, 5*time.Millisecond<<i) {
			break
		}
	}
	return zero, lost
}

// endedBy tells whether an error is a connection's end, and not an answer.
func endedBy(err error) bool {
	var answer dbus.Error
	if !errors.As(err, &answer) {
		return err != nil
	}
	// Over the bus it is the bus that says that systemd hung up, or is not there.
	return slices.Contains([]string{
		"org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected", "org.freedesktop.DBus.Error.ServiceUnknown",
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

// connection returns the kept connection, or a new one.
func (s *Systemd) connection(ctx context.Context) (*systemd.Conn, error) {
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer s.give()
	if s.calls != nil && !ended(s.links) {
		return s.calls, nil
	}
	s.hangUp()
	var errs []error
	for _, socket := range []string{privateSocket, busSocket} {
		var links []*dbus.Conn
		c, err := systemd.NewConnection(func() (*dbus.Conn, error) {
			link, err := s.connect(ctx, socket, nil)
			if err == nil {
				links = append(links, link)
			}
			return link, err
		})
		if err == nil {
			s.calls, s.links = c, links
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func ended(links []*dbus.Conn) bool {
	for _, l := range links {
		if !l.Connected() {
			return true
		}
	}
	return false
}

// systemBus returns the kept connection to the bus, or a new one.
func (s *Systemd) systemBus(ctx context.Context) (*dbus.Conn, error) {
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	defer s.give()
	if s.bus != nil && s.bus.Connected() {
		return s.bus, nil
	}
	var err error
	s.bus, err = s.connect(ctx, busSocket, nil)
	return s.bus, err
}

// connect connects to a socket and logs in by uid (EXTERNAL), within a deadline.
func (s *Systemd) connect(ctx context.Context, socket string, signals dbus.SignalHandler) (link *dbus.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, busDial)
	defer cancel()
	conn, err := s.dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
			err = fmt.Errorf("log in at /%s: %w", socket, err)
		}
	}()
	// Neither login nor Hello listen to a context.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var options []dbus.ConnOption
	if signals != nil {
		options = append(options, dbus.WithSignalHandler(signals))
	}
	if link, err = dbus.NewConn(newBusConn(conn), options...); err != nil {
		return nil, err
	}
	if err = link.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err == nil && socket == busSocket {
		err = link.Hello() // systemd's own socket is no bus
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		link.Close()
		return nil, err
	}
	return link, nil
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
