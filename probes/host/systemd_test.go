package host_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

// kubelet is a unit with everything set.
var kubelet = host.Unit{
	Id: "kubelet.service", LoadState: "loaded", ActiveState: "active", SubState: "running", UnitFileState: "enabled",
	FragmentPath: "/etc/systemd/system/kubelet.service", DropInPaths: []string{"/etc/systemd/system/kubelet.service.d/10-tlsbootstrap.conf"},
	NeedDaemonReload: true, InvocationID: "0123456789abcdef0123456789abcdef", Job: 42,
	ActiveEnterTimestamp: time.UnixMicro(1_760_000_000_123_456), ActiveEnterTimestampMonotonic: 17 * time.Second,
	Type: "notify", Restart: "always", Result: "success", ControlGroup: "/system.slice/kubelet.service",
	MainPID: 4242, NRestarts: 3, ExecMainPID: 4242, ExecMainCode: 2, ExecMainStatus: 9,
	Environment: []string{"A=b"}, ExecStart: []host.Command{{Path: "/usr/local/bin/kubelet", Args: []string{"/usr/local/bin/kubelet", "--v=2"}}},
}

func serve(t *testing.T, sockets ...string) (*host.Systemd, *probetest.Systemd) {
	t.Helper()
	dir := t.TempDir()
	standIn := probetest.ServeSystemd(t, dir, "running", map[string]host.Unit{"kubelet.service": kubelet}, sockets...)
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := host.NewSystemd(root)
	t.Cleanup(func() { s.Close(); root.Close() })
	return s, standIn
}

var bothSockets = []string{probetest.PrivateSocket, probetest.BusSocket}

func TestUnit(t *testing.T) {
	t.Parallel()
	for _, socket := range bothSockets {
		s, _ := serve(t, socket)
		u, err := s.Unit(t.Context(), "kubelet.service")
		if !reflect.DeepEqual(u, kubelet) || err != nil {
			t.Errorf("%s: %+v, %v", socket, u, err)
		}
		if needs, err := s.NeedDaemonReload(t.Context(), "kubelet.service"); !needs || err != nil {
			t.Errorf("%s: needs a daemon-reload: %v, %v", socket, needs, err)
		}
		u, err = s.Unit(t.Context(), "absent@x-y.service")
		if u.LoadState != "not-found" || err != nil {
			t.Errorf("%s: %+v, %v", socket, u, err)
		}
	}
}

func TestStopping(t *testing.T) {
	t.Parallel()
	s, standIn := serve(t, bothSockets...)
	is := func(want bool, why string) {
		t.Helper()
		if got, err := s.Stopping(t.Context()); got != want || err != nil {
			t.Errorf("%s: %v, %v", why, got, err)
		}
	}
	is(false, "running")
	standIn.Announce(true)
	is(true, "announced by logind")
	standIn.Announce(false)
	is(false, "called off")
	standIn.SetState("stopping")
	is(true, "stopping")
	standIn.SetState("starting")
	is(false, "starting")
	standIn.Set("shutdown.target", host.Unit{LoadState: "loaded", ActiveState: "inactive", Job: 7})
	is(true, "queued while starting")
}

func TestStoppingWithoutABus(t *testing.T) {
	t.Parallel()
	s, standIn := serve(t, probetest.PrivateSocket)
	if got, err := s.Stopping(t.Context()); got || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	standIn.SetState("stopping")
	if got, err := s.Stopping(t.Context()); !got || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

// TestSystemdReexec ends the connections as a daemon-reexec does, or a bus that is
// started again: the next call goes over a new one.
func TestSystemdReexec(t *testing.T) {
	t.Parallel()
	for _, socket := range bothSockets {
		s, standIn := serve(t, socket)
		for range 20 {
			if _, err := s.Unit(t.Context(), "kubelet.service"); err != nil {
				t.Fatal(err)
			}
			standIn.Drop()
		}
	}
}

// TestSystemdGoneFromTheBus holds that a systemd that hung up on the bus ends no
// connection: who listens hears of it again over the same one, which systemd is
// asked for anew.
func TestSystemdGoneFromTheBus(t *testing.T) {
	t.Parallel()
	s, standIn := serve(t, probetest.BusSocket)
	l, done := newListener(), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- s.WatchUnits(ctx, l, "kubelet.service") }()
	l.hears(t, "the subscription")
	standIn.Fail("kubelet.service", dbus.Error{Name: "org.freedesktop.DBus.Error.NoReply"})
	if _, err := s.Unit(t.Context(), "kubelet.service"); err == nil {
		t.Error("nobody answered, and it was no error")
	}
	standIn.Fail("kubelet.service", nil)
	standIn.Signal("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged", "org.freedesktop.systemd1", "", ":1.8")
	l.hears(t, "another systemd")
	if _, err := s.Unit(t.Context(), "kubelet.service"); err != nil {
		t.Error(err)
	}
	for subscribed := func() (n int) {
		for _, call := range standIn.Asked() {
			if strings.Contains(call, "Subscribe") {
				n++
			}
		}
		return n
	}; subscribed() < 2; time.Sleep(time.Millisecond) {
		if t.Context().Err() != nil {
			t.Fatal("it has not subscribed anew")
		}
	}
	cancel()
	if err := <-done; err != nil || standIn.Clients() != 1 {
		t.Errorf("%v, %d connections", err, standIn.Clients())
	}
}

// TestBusComesBack holds that what goes over systemd's own socket while there is no
// bus goes over to the bus when it is back: it alone tells of announced shutdowns.
func TestBusComesBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	private := probetest.ServeSystemd(t, dir, "running", nil, probetest.PrivateSocket)
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := host.NewSystemd(root)
	t.Cleanup(func() { s.Close(); root.Close() })
	l, done := newListener(), make(chan error, 1)
	go func() { done <- s.WatchShutdown(t.Context(), l) }()
	l.hears(t, "the subscription")
	if stopping, err := s.Stopping(t.Context()); stopping || err != nil || private.Clients() != 1 {
		t.Errorf("without a bus: %v, %v, %d connections", stopping, err, private.Clients())
	}
	bus := probetest.ServeSystemd(t, dir, "running", nil, probetest.BusSocket)
	bus.Announce(true)
	if stopping, err := s.Stopping(t.Context()); !stopping || err != nil {
		t.Errorf("with a bus: %v, %v", stopping, err)
	}
	if err := <-done; err == nil {
		t.Error("who listened beside the bus is not told to listen anew")
	}
}

// TestOneConnection listens as the whole agent does, and asks: all goes over one
// connection, everyone hears what is theirs, and who leaves deafens nobody.
func TestOneConnection(t *testing.T) {
	t.Parallel()
	for _, socket := range bothSockets {
		s, standIn := serve(t, socket)
		type watch struct {
			names []string
			listener
			leave context.CancelFunc
			ended chan error
		}
		watches := []watch{{names: []string{"kubelet.service"}}, {names: []string{"containerd.service"}}, {names: []string{"containerd.service"}},
			{names: []string{"chrony.service", "chronyd.service"}}, {names: []string{"ntp.service", "systemd-timesyncd.service"}}, {}}
		for i := range watches {
			w := &watches[i]
			w.listener, w.ended = newListener(), make(chan error, 1)
			var ctx context.Context
			ctx, w.leave = context.WithCancel(t.Context())
			l, ended, names := w.listener, w.ended, w.names
			go func() {
				if names == nil {
					ended <- s.WatchShutdown(ctx, l)
				} else {
					ended <- s.WatchUnits(ctx, l, names...)
				}
			}()
		}
		for i, w := range watches {
			w.hears(t, fmt.Sprint("subscription ", i))
		}
		if _, err := s.Stopping(t.Context()); err != nil {
			t.Error(err)
		}
		if n := standIn.Clients(); n != 1 {
			t.Errorf("%s: %d connections, want 1", socket, n)
		}
		watches[1].leave()
		if err := <-watches[1].ended; err != nil {
			t.Error(err)
		}
		watches = slices.Delete(watches, 1, 2)
		for i, w := range watches {
			for _, name := range w.names {
				standIn.UnitChanged(name)
				w.hears(t, name)
			}
			if w.names == nil {
				standIn.Signal("/org/freedesktop/login1", "org.freedesktop.login1.Manager", "PrepareForShutdown", true)
				w.hears(t, "logind")
			}
			for j, other := range watches {
				if len(other.listener) > 0 {
					t.Errorf("%s: listener %d hears what is for %d", socket, j, i)
				}
			}
		}
		standIn.Drop()
		for i, w := range watches {
			if err := <-w.ended; err == nil {
				t.Errorf("%s: listener %d is not told that the connection ended", socket, i)
			}
			w.leave()
		}
	}
}

// TestSystemdReadsOnly holds the list of calls: on these sockets uid 0 may do
// everything, so what is sent there is what this agent can be made to do.
func TestSystemdReadsOnly(t *testing.T) {
	t.Parallel()
	s, standIn := serve(t, bothSockets...)
	l := newListener()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- s.WatchUnits(ctx, l, "kubelet.service") }()
	l.hears(t, "the subscription")
	go func() { done <- s.WatchShutdown(ctx, l) }()
	l.hears(t, "the subscription")
	s.Unit(ctx, "kubelet.service")
	s.NeedDaemonReload(ctx, "kubelet.service")
	s.Stopping(ctx)
	cancel()
	if err := errors.Join(<-done, <-done); err != nil {
		t.Error(err)
	}
	allowed := []string{
		"org.freedesktop.DBus.Hello",
		"org.freedesktop.DBus.AddMatch",
		"org.freedesktop.DBus.Peer.Ping",
		"org.freedesktop.DBus.Properties.Get",
		"org.freedesktop.DBus.Properties.GetAll",
		"org.freedesktop.systemd1.Manager.Subscribe",
	}
	asked := standIn.Asked()
	for _, call := range asked {
		if name, _, _ := strings.Cut(call, "["); !slices.Contains(allowed, name) {
			t.Errorf("a call that is not on the list: %s", call)
		}
		if strings.Contains(call, "AddMatch") && strings.Contains(call, "PropertiesChanged") && !strings.Contains(call, "path='/org/freedesktop/systemd1/unit/kubelet_2eservice'") {
			t.Errorf("a match that is not narrow: %s", call)
		}
	}
	if len(asked) < 10 {
		t.Errorf("only %d calls were seen", len(asked))
	}
}

func TestSystemdAbsent(t *testing.T) {
	t.Parallel()
	s, _ := serve(t)
	_, err := s.Unit(t.Context(), "kubelet.service")
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "dial /run/systemd/private: no such file or directory") {
		t.Error(err)
	}
	if err := s.WatchUnits(t.Context(), newListener(), "kubelet.service"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	var none *host.Systemd
	if _, err := none.Stopping(t.Context()); err == nil || none.Close() != nil || none.WatchShutdown(t.Context(), newListener()) == nil {
		t.Error("a nil Systemd answers")
	}
}

// TestMuteBus holds that a bus that hangs is left for systemd's own socket, by who asks
// and by who listens.
func TestMuteBus(t *testing.T) {
	t.Parallel()
	s, standIn := serve(t, bothSockets...)
	l, ended := newListener(), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch := func() { ended <- s.WatchUnits(ctx, l, "kubelet.service") }
	go watch()
	l.hears(t, "the subscription")
	standIn.Mute(probetest.BusSocket)
	short, done := context.WithTimeout(ctx, 50*time.Millisecond)
	defer done()
	if _, err := s.Unit(short, "kubelet.service"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the bus is mute: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("it listens on to a bus that is mute")
	}
	if u, err := s.Unit(ctx, "kubelet.service"); err != nil || u.Id != "kubelet.service" {
		t.Errorf("%+v, %v", u, err)
	}
	go watch()
	l.hears(t, "the subscription")
	standIn.UnitChanged("kubelet.service")
	l.hears(t, "a change")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestSystemdSilent asks one that never answers, and one that is no systemd.
func TestSystemdSilent(t *testing.T) {
	t.Parallel()
	s, standIn := serve(t, bothSockets...)
	if _, err := s.Unit(t.Context(), "kubelet.service"); err != nil {
		t.Fatal(err)
	}
	standIn.Silence(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Unit(ctx, "kubelet.service"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := s.NeedDaemonReload(ctx, "kubelet.service"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	standIn.Silence(false)
	if _, err := s.Unit(t.Context(), "kubelet.service"); err != nil {
		t.Error(err)
	}
	// A message of 100 MiB is refused, and the next call finds a new connection.
	huge := append([]byte{'l', 2, 0, 1}, make([]byte, 12)...)
	binary.LittleEndian.PutUint32(huge[4:], 100<<20)
	standIn.Raw(huge)
	if _, err := s.Unit(t.Context(), "kubelet.service"); err != nil {
		t.Error(err)
	}
}

func TestDialIsNoSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "run/systemd/private"), 0o755)
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	node := &host.Node{Root: root}
	if _, err := node.Dial(t.Context(), "run/systemd/private"); err == nil || err.Error() != "dial /run/systemd/private: not a socket" {
		t.Error(err)
	}
}

// listener is a host.Listener that a test waits on.
type listener chan struct{}

func newListener() listener { return make(listener, 1) }

func (l listener) Changed() {
	select {
	case l <- struct{}{}:
	default:
	}
}

func (l listener) Lost(string, uint64) {}

func (l listener) hears(t *testing.T, what string) {
	t.Helper()
	select {
	case <-l:
	case <-time.After(10 * time.Second):
		t.Fatalf("not heard: %s", what)
	}
}

func TestWatchUnits(t *testing.T) {
	t.Parallel()
	for _, socket := range bothSockets {
		s, standIn := serve(t, socket)
		l, done := newListener(), make(chan error, 1)
		go func() { done <- s.WatchUnits(t.Context(), l, "kubelet.service") }()
		l.hears(t, "the subscription")
		standIn.UnitChanged("kubelet.service")
		l.hears(t, "a change")
		standIn.UnitChanged("other.service")
		standIn.Signal("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "UnitNew", "x.scope", dbus.ObjectPath("/x"))
		standIn.Signal("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "Reloading", true)
		l.hears(t, "a reload")
		select {
		case <-l:
			t.Error("another unit's change is heard")
		default:
		}
		standIn.Drop()
		if err := <-done; err == nil || err.Error() != "listen to systemd: the connection ended" {
			t.Error(err)
		}
	}
}

func TestWatchShutdown(t *testing.T) {
	t.Parallel()
	for _, socket := range bothSockets {
		s, standIn := serve(t, socket)
		ctx, cancel := context.WithCancel(t.Context())
		l, done := newListener(), make(chan error, 1)
		go func() { done <- s.WatchShutdown(ctx, l) }()
		l.hears(t, "the subscription")
		standIn.Signal("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "JobNew", uint32(7), dbus.ObjectPath("/x"), "kubelet.service")
		standIn.Signal("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "JobNew", uint32(7), dbus.ObjectPath("/x"), "shutdown.target")
		l.hears(t, "a job for shutdown.target")
		standIn.Signal("/org/freedesktop/login1", "org.freedesktop.login1.Manager", "PrepareForShutdown", true)
		l.hears(t, "logind")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
