package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// busDial bounds connecting and logging in.
const busDial = 2 * time.Second

// A busLink is a connection to the node's bus, or to systemd's own socket. Calls go
// over it, and signals come to everyone who listens.
type busLink struct {
	socket string
	conn   *dbus.Conn
	moved  chan struct{} // systemd is another one, or read its configuration anew

	mu   sync.Mutex
	ears map[*busEar]bool

	adding sync.Mutex      // held while rules are added
	rules  map[string]bool // that the bus knows
}

// A busEar is one who listens.
type busEar struct {
	wanted []match
	l      Listener
}

// connect connects to a socket and logs in by uid (EXTERNAL), within a deadline.
func (s *Systemd) connect(ctx context.Context, socket string) (l *busLink, err error) {
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
	l = &busLink{socket: socket, moved: make(chan struct{}, 1), ears: map[*busEar]bool{}, rules: map[string]bool{}}
	if l.conn, err = dbus.NewConn(newBusConn(conn), dbus.WithSignalHandler(l)); err != nil {
		return nil, err
	}
	err = l.conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))})
	if err == nil && socket == busSocket { // systemd's own socket is no bus
		if err = l.conn.Hello(); err == nil {
			err = l.subscribe(ctx)
		}
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		l.conn.Close()
		return nil, err
	}
	return l, nil
}

// subscribe asks systemd to send signals at all: on the bus it does while someone
// has subscribed. Its own socket needs no subscription and sends everything.
func (l *busLink) subscribe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, busDial)
	defer cancel()
	err := l.conn.Object(manager, managerPath).CallWithContext(ctx, managerIface+".Subscribe", dbus.FlagNoAutoStart).Err
	if answer, ok := errors.AsType[dbus.Error](err); ok && answer.Name == manager+".AlreadySubscribed" {
		return nil
	}
	return err
}

// busPing bounds the question whether the bus is there at all: it answers from memory.
const busPing = 100 * time.Millisecond

// mute tells whether it is the bus that does not answer, and not systemd behind it.
func (l *busLink) mute() bool {
	if l.socket != busSocket {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), busPing)
	defer cancel()
	err := l.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0).Err
	return errors.Is(err, context.DeadlineExceeded)
}

// join begins to listen. The bus is given one match rule for each signal, since
// one for all would wake us for every container start, and keeps it: the signals
// that are ever wanted are few. Systemd's own socket sends everything.
func (l *busLink) join(ctx context.Context, e *busEar) error {
	l.mu.Lock()
	l.ears[e] = true
	l.mu.Unlock()
	if l.socket != busSocket {
		return nil
	}
	l.adding.Lock()
	defer l.adding.Unlock()
	ctx, cancel := context.WithTimeout(ctx, busDial)
	defer cancel()
	for _, m := range e.wanted {
		rule := m.rule()
		if l.rules[rule] {
			continue
		}
		if err := l.conn.BusObject().CallWithContext(ctx, busName+".AddMatch", 0, rule).Err; err != nil {
			return fmt.Errorf("add a match: %w", err)
		}
		l.rules[rule] = true
	}
	return nil
}

// leave ends to listen.
func (l *busLink) leave(e *busEar) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.ears, e)
}

// DeliverSignal implements [dbus.SignalHandler], on the connection's own goroutine.
func (l *busLink) DeliverSignal(_, _ string, sig *dbus.Signal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := range l.ears {
		if slices.ContainsFunc(e.wanted, func(m match) bool { return m.is(sig) }) {
			e.l.Changed()
		}
	}
	if ownerChanged.is(sig) || reloading.is(sig) {
		select {
		case l.moved <- struct{}{}:
		default:
		}
	}
}
