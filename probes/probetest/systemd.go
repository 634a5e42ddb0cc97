package probetest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes/host"
)

// Systemd is a stand-in for a node's systemd, its message bus and logind: a
// small service on the node's two sockets that speaks D-Bus and answers what
// package host asks. What a real systemd does is known from real ones; this one
// says what a test tells it to, and notes what it was asked.
type Systemd struct {
	mu       sync.Mutex
	state    string
	units    map[dbus.ObjectPath]host.Unit
	shutdown bool
	silent   bool
	mute     string // this socket alone is silent
	faults   map[dbus.ObjectPath]error
	asked    []string
	clients  map[net.Conn]*client
	serial   uint32
}

// client is one who is connected.
type client struct {
	socket     string // it came by
	subscribed bool
	rules      []map[string]string // match rules by their keys
}

// Sockets of a node below its root.
const (
	PrivateSocket = "run/systemd/private"
	BusSocket     = "run/dbus/system_bus_socket"
)

// ServeSystemd lets a stand-in listen on sockets below a node's root, until the
// test ends. The state is the manager's: "running".
func ServeSystemd(t testing.TB, root, state string, units map[string]host.Unit, sockets ...string) *Systemd {
	t.Helper()
	s := &Systemd{state: state, units: map[dbus.ObjectPath]host.Unit{}, clients: map[net.Conn]*client{}, faults: map[dbus.ObjectPath]error{}}
	for name, u := range units {
		s.units[unitPath(name)] = u
	}
	for _, socket := range sockets {
		s.listen(t, root, socket)
	}
	t.Cleanup(s.Drop)
	return s
}

// listen serves one socket. Its folder is reached by descriptor: a socket's path
// may have 107 bytes only.
func (s *Systemd) listen(t testing.TB, root, socket string) {
	t.Helper()
	folder := filepath.Join(root, filepath.Dir(socket))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(root, socket)) // a recorded file stands for the socket
	fd, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(socket)))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.clients[conn] = &client{socket: socket}
			s.mu.Unlock()
			serving.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		s.Drop()
		serving.Wait()
		unix.Close(fd)
	})
}

// Clients returns how many are connected.
func (s *Systemd) Clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.clients)
}

// Drop ends all connections, as a daemon-reexec does.
func (s *Systemd) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.clients {
		conn.Close()
		delete(s.clients, conn)
	}
}

// Set changes a unit.
func (s *Systemd) Set(name string, u host.Unit) { s.change(func() { s.units[unitPath(name)] = u }) }

// SetState changes the manager's state.
func (s *Systemd) SetState(state string) { s.change(func() { s.state = state }) }

// Announce lets logind announce a shutdown, or call it off.
func (s *Systemd) Announce(shutdown bool) { s.change(func() { s.shutdown = shutdown }) }

// Fail lets questions about a unit be answered with an error.
func (s *Systemd) Fail(name string, err error) { s.change(func() { s.faults[unitPath(name)] = err }) }

// Silence lets questions go unanswered.
func (s *Systemd) Silence(silent bool) { s.change(func() { s.silent = silent }) }

// Mute makes it give no answer on one socket; "" on none.
func (s *Systemd) Mute(socket string) { s.change(func() { s.mute = socket }) }

func (s *Systemd) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// Asked returns all calls so far: "org.freedesktop.DBus.Properties.Get(…)".
func (s *Systemd) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
}

// Signal sends a signal to everyone who is connected to systemd, and to everyone on
// the bus who has subscribed and asked for it.
func (s *Systemd) Signal(path dbus.ObjectPath, iface, member string, body ...any) {
	msg := &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(path), dbus.FieldInterface: dbus.MakeVariant(iface), dbus.FieldMember: dbus.MakeVariant(member),
		dbus.FieldSender: dbus.MakeVariant("org.freedesktop.systemd1"),
	}}
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn, c := range s.clients {
		if c.socket == PrivateSocket || c.subscribed && slices.ContainsFunc(c.rules, func(r map[string]string) bool { return matches(r, msg) }) {
			s.send(conn, msg)
		}
	}
}

// matches tells whether a match rule is for a signal (D-Bus specification, "Match
// Rules"). Who sends it the stand-in does not tell apart.
func matches(rule map[string]string, msg *dbus.Message) bool {
	for key, want := range rule {
		var got string
		switch key {
		case "path":
			got = string(header[dbus.ObjectPath](msg, dbus.FieldPath))
		case "interface":
			got = header[string](msg, dbus.FieldInterface)
		case "member":
			got = header[string](msg, dbus.FieldMember)
		case "arg0", "arg2":
			if i := int(key[3] - '0'); len(msg.Body) > i {
				got, _ = msg.Body[i].(string)
			}
		default:
			continue
		}
		if got != want {
			return false
		}
	}
	return true
}

// parseRule reads "type='signal',path='/a'".
func parseRule(rule string) map[string]string {
	keys := map[string]string{}
	for pair := range strings.SplitSeq(rule, ",") {
		key, value, _ := strings.Cut(pair, "=")
		keys[key] = strings.Trim(value, "'")
	}
	return keys
}

// UnitChanged sends what systemd sends when a property of a unit changed.
func (s *Systemd) UnitChanged(name string) {
	s.Signal(unitPath(name), "org.freedesktop.DBus.Properties", "PropertiesChanged",
		"org.freedesktop.systemd1.Unit", map[string]dbus.Variant{}, []string{"ActiveState"})
}

// Raw writes bytes to everyone who is connected.
func (s *Systemd) Raw(b []byte) {
	s.change(func() {
		for conn := range s.clients {
			conn.Write(b)
		}
	})
}

func unitPath(name string) dbus.ObjectPath {
	return dbus.ObjectPath("/org/freedesktop/systemd1/unit/" + systemd.PathBusEscape(name))
}

// serve lets one client log in and answers its calls.
func (s *Systemd) serve(conn net.Conn) {
	defer s.change(func() {
		conn.Close()
		delete(s.clients, conn)
	})
	in := bufio.NewReader(conn)
	if err := login(in, conn); err != nil {
		return
	}
	for {
		msg, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.reply(conn, msg)
		s.mu.Unlock()
	}
}

// login is the server's half of the EXTERNAL exchange (D-Bus specification,
// "Authentication Protocol").
func login(in *bufio.Reader, out io.Writer) error {
	if b, err := in.ReadByte(); err != nil || b != 0 {
		return errors.New("no null byte")
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		answer := "ERROR\r\n"
		switch {
		case line == "BEGIN\r\n":
			return nil
		case line == "AUTH\r\n":
			answer = "REJECTED EXTERNAL\r\n"
		case strings.HasPrefix(line, "AUTH EXTERNAL"):
			answer = "OK 0123456789abcdef0123456789abcdef\r\n"
		}
		if _, err := io.WriteString(out, answer); err != nil {
			return err
		}
	}
}

func header[T any](msg *dbus.Message, field dbus.HeaderField) T {
	v, _ := msg.Headers[field].Value().(T)
	return v
}

// reply answers one call.
func (s *Systemd) reply(conn net.Conn, msg *dbus.Message) {
	if msg.Type != dbus.TypeMethodCall {
		return
	}
	path, method := header[dbus.ObjectPath](msg, dbus.FieldPath), header[string](msg, dbus.FieldInterface)+"."+header[string](msg, dbus.FieldMember)
	s.asked = append(s.asked, fmt.Sprintf("%s%v", method, msg.Body))
	c := s.clients[conn]
	if c == nil || s.silent || s.mute == c.socket { // dropped meanwhile, or not to be answered
		return
	}
	body, err := s.answer(c, path, method, msg.Body)
	if fault := s.faults[path]; fault != nil {
		err = fault
	}
	reply := &dbus.Message{Type: dbus.TypeMethodReply, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(msg.Serial()),
	}}
	if err != nil {
		reply.Type, reply.Body = dbus.TypeError, []any{err.Error()}
		name := "org.freedesktop.DBus.Error.UnknownMethod"
		if named, ok := errors.AsType[dbus.Error](err); ok {
			name = named.Name
		}
		reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant(name)
	}
	s.send(conn, reply)
}

// answer is what a call returns.
func (s *Systemd) answer(c *client, path dbus.ObjectPath, method string, args []any) ([]any, error) {
	switch method {
	case "org.freedesktop.DBus.Hello":
		if c.socket == BusSocket {
			return []any{":1.7"}, nil
		}
	case "org.freedesktop.DBus.AddMatch":
		if rule, ok := args[0].(string); ok && c.socket == BusSocket {
			c.rules = append(c.rules, parseRule(rule))
			return nil, nil
		}
	case "org.freedesktop.systemd1.Manager.Subscribe":
		if c.subscribed {
			return nil, dbus.Error{Name: "org.freedesktop.systemd1.AlreadySubscribed", Body: []any{"Client is already subscribed."}}
		}
		c.subscribed = c.socket == BusSocket
		return nil, nil
	case "org.freedesktop.DBus.Properties.GetAll":
		u, ok := s.units[path]
		if !ok {
			u = host.Unit{LoadState: "not-found", ActiveState: "inactive", SubState: "dead"}
		}
		return []any{properties(u)}, nil
	case "org.freedesktop.DBus.Properties.Get":
		switch fmt.Sprint(args...) {
		case "org.freedesktop.systemd1.UnitNeedDaemonReload":
			return []any{dbus.MakeVariant(s.units[path].NeedDaemonReload)}, nil
		case "org.freedesktop.systemd1.ManagerSystemState":
			return []any{dbus.MakeVariant(s.state)}, nil
		case "org.freedesktop.login1.ManagerPreparingForShutdown":
			if c.socket == BusSocket {
				return []any{dbus.MakeVariant(s.shutdown)}, nil
			}
		}
	}
	return nil, fmt.Errorf("the stand-in knows no %s%v on %s", method, args, c.socket)
}

// send writes a message with a serial number, which it must have.
func (s *Systemd) send(conn net.Conn, msg *dbus.Message) {
	if len(msg.Body) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(msg.Body...))
	}
	var buf bytes.Buffer
	if err := msg.EncodeTo(&buf, binary.LittleEndian); err != nil {
		panic(err) // a mistake in the stand-in
	}
	s.serial++
	binary.LittleEndian.PutUint32(buf.Bytes()[8:], s.serial)
	conn.Write(buf.Bytes())
}

// properties writes a unit as systemd does.
func properties(u host.Unit) map[string]dbus.Variant {
	type job struct {
		ID   uint32
		Path dbus.ObjectPath
	}
	type command struct {
		Path               string
		Args               []string
		Ignore             bool
		Start, StartMono   uint64
		Exit, ExitMono     uint64
		PID                uint32
		ExitCode, ExitStat int32
	}
	props := map[string]dbus.Variant{}
	fields := reflect.ValueOf(u)
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Name
		var value any
		switch f := fields.Field(i).Interface().(type) {
		case time.Time:
			value = uint64(0)
			if !f.IsZero() {
				value = uint64(f.UnixMicro())
			}
		case time.Duration:
			value = uint64(f / time.Microsecond)
		case []host.Command:
			all := []command{}
			for _, c := range f {
				all = append(all, command{Path: c.Path, Args: append([]string{}, c.Args...)})
			}
			value = all
		case []string:
			value = append([]string{}, f...)
		default:
			value = f
		}
		switch name {
		case "Job":
			value = job{u.Job, dbus.ObjectPath("/org/freedesktop/systemd1/job/" + strconv.Itoa(int(u.Job)))}
		case "InvocationID":
			id, err := hex.DecodeString(u.InvocationID)
			if err != nil {
				panic(err)
			}
			value = id
		}
		props[name] = dbus.MakeVariant(value)
	}
	return props
}

// parseUnit reads a unit as "systemctl show UNIT" prints it. A property that
// host.Unit has not is an error.
func parseUnit(text string) (host.Unit, error) {
	u := host.Unit{LoadState: "loaded", ActiveState: "active", SubState: "running"}
	fields := reflect.ValueOf(&u).Elem()
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		field := fields.FieldByName(key)
		if !ok || !field.IsValid() {
			return u, fmt.Errorf("%q is no property of host.Unit", key)
		}
		if err := setProperty(field.Addr().Interface(), value); err != nil {
			return u, fmt.Errorf("%s: %w", key, err)
		}
	}
	return u, nil
}

// systemctlTime is how systemctl prints a time.
const systemctlTime = "Mon 2006-01-02 15:04:05 MST"

func setProperty(field any, value string) (err error) {
	if value == "" || value == "n/a" || value == "[not set]" {
		reflect.ValueOf(field).Elem().SetZero()
		return nil
	}
	switch f := field.(type) {
	case *string:
		*f = value
	case *bool:
		switch value {
		case "yes", "no":
			*f = value == "yes"
		default:
			err = fmt.Errorf("%q is not yes or no", value)
		}
	case *int32:
		var n int64
		n, err = strconv.ParseInt(value, 10, 32)
		*f = int32(n)
	case *uint32:
		var n uint64
		n, err = strconv.ParseUint(value, 10, 32)
		*f = uint32(n)
	case *[]string:
		*f = strings.Fields(value)
	case *time.Time:
		*f, err = time.Parse(systemctlTime, value)
	case *time.Duration:
		var us uint64
		us, err = strconv.ParseUint(value, 10, 64)
		*f = time.Duration(min(us, math.MaxInt64/1000)) * time.Microsecond
	case *[]host.Command:
		var c host.Command
		c, err = parseCommand(value)
		*f = append(*f, c)
	default:
		err = fmt.Errorf("no way to write a %T", field)
	}
	return err
}

// parseCommand reads "{ path=/usr/bin/x ; argv[]=/usr/bin/x -a ; ignore_errors=no ; … }".
func parseCommand(s string) (c host.Command, err error) {
	inner, ok := strings.CutPrefix(s, "{ ")
	if !ok {
		return c, errors.New("a command begins with {")
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(inner, " }"), " ; ") {
		switch key, value, _ := strings.Cut(part, "="); key {
		case "path":
			c.Path = value
		case "argv[]":
			c.Args = strings.Fields(value)
		}
	}
	if c.Path == "" {
		return c, errors.New("a command has a path")
	}
	return c, nil
}
