package host

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// quiet is a connection that wakes the program as seldom as it can. Its reads and writes
// are raw system calls: a socket that does not block never keeps a thread, and an ordinary
// system call wakes Go's monitor of threads, which costs more than the call. Its deadlines
// become timers only while there is to wait: also one that was taken back in time wakes
// the program and that monitor.
type quiet struct {
	net.Conn
	line    syscall.RawConn
	whole   bool // what is moved are datagrams, of which one may be empty
	in, out transfer
}

// quietly makes a connection quiet; one without a socket is left as it is.
func quietly(c net.Conn) net.Conn {
	s, ok := c.(syscall.Conn)
	if !ok {
		return c
	}
	line, err := s.SyscallConn()
	if err != nil {
		return c
	}
	q := &quiet{Conn: c, line: line}
	switch c.LocalAddr().Network() {
	case "udp", "unixgram":
		q.whole = true
	}
	q.in = transfer{number: unix.SYS_READ, name: "read", now: line.Control, wait: line.Read, arm: c.SetReadDeadline}
	q.out = transfer{number: unix.SYS_WRITE, name: "write", now: line.Control, wait: line.Write, arm: c.SetWriteDeadline}
	for _, t := range []*transfer{&q.in, &q.out} { // kept, as each would be garbage
		t.try, t.once = t.call, func(fd uintptr) { t.done = t.call(fd) }
	}
	return q
}

// Read reads what has come, and waits for it.
func (q *quiet) Read(b []byte) (int, error) {
	n, err := q.in.do(q, b)
	if n == 0 && err == nil && len(b) > 0 && !q.whole {
		return 0, io.EOF
	}
	return n, err
}

// Write writes everything, or one datagram.
func (q *quiet) Write(b []byte) (sum int, err error) {
	for {
		n, err := q.out.do(q, b[sum:])
		if sum += n; err != nil || sum >= len(b) || q.whole {
			return sum, err
		}
	}
}

// SyscallConn lets others at the socket.
func (q *quiet) SyscallConn() (syscall.RawConn, error) { return q.line, nil }

// SetDeadline bounds reads and writes.
func (q *quiet) SetDeadline(t time.Time) error {
	return errors.Join(q.in.setDeadline(t), q.out.setDeadline(t))
}

// SetReadDeadline bounds reads.
func (q *quiet) SetReadDeadline(t time.Time) error { return q.in.setDeadline(t) }

// SetWriteDeadline bounds writes.
func (q *quiet) SetWriteDeadline(t time.Time) error { return q.out.setDeadline(t) }

// A transfer is one direction of a connection.
type transfer struct {
	number uintptr // of the system call
	name   string
	now    func(func(fd uintptr)) error      // once
	wait   func(func(fd uintptr) bool) error // until it is true
	arm    func(time.Time) error

	try  func(fd uintptr) bool
	once func(fd uintptr)

	mu    sync.Mutex // of what follows, which is of one call
	b     []byte
	done  bool
	n     int
	errno syscall.Errno

	times    sync.Mutex // of what follows
	deadline time.Time
	waits    bool
}

func (t *transfer) setDeadline(at time.Time) error {
	t.times.Lock()
	defer t.times.Unlock()
	t.deadline = at
	if t.waits {
		return t.arm(at)
	}
	return nil
}

// do makes one call that moves something.
func (t *transfer) do(q *quiet, b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b, t.done, t.n, t.errno = b, false, 0, 0
	err := t.move()
	t.b = nil // belongs to the caller
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err // of "raw-read"
	}
	if err == nil && t.errno != 0 {
		err = os.NewSyscallError(t.name, t.errno)
	}
	if err != nil {
		err = &net.OpError{Op: t.name, Net: q.LocalAddr().Network(), Source: q.LocalAddr(), Addr: q.RemoteAddr(), Err: err}
	}
	return t.n, err
}

func (t *transfer) move() error {
	t.times.Lock()
	late := !t.deadline.IsZero() && !time.Now().Before(t.deadline)
	t.times.Unlock()
	if late {
		return os.ErrDeadlineExceeded
	}
	err := t.now(t.once)
	if err != nil || t.done {
		return err
	}
	t.times.Lock()
	t.waits = true
	err = t.arm(t.deadline)
	t.times.Unlock()
	if err == nil {
		err = t.wait(t.try)
	}
	t.times.Lock()
	defer t.times.Unlock()
	t.waits = false
	if !t.deadline.IsZero() {
		t.arm(time.Time{})
	}
	return err
}

// call is false when there is to wait.
func (t *transfer) call(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall(t.number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.b))), uintptr(len(t.b)))
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		case 0:
			t.n = int(n)
		default:
			t.errno = errno
		}
		return true
	}
}
