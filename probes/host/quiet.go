package host

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// quiet is a connection whose reads and writes are raw system calls: a socket that does
// not block never keeps a thread, and an ordinary system call wakes Go's monitor of
// threads, which costs more than the call.
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
	q.in.number, q.in.name, q.in.wait = unix.SYS_READ, "read", line.Read
	q.out.number, q.out.name, q.out.wait = unix.SYS_WRITE, "write", line.Write
	// Kept, as each would be garbage.
	q.in.try, q.out.try = q.in.call, q.out.call
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

// A transfer is one direction of a connection.
type transfer struct {
	number uintptr // of the system call
	name   string
	wait   func(func(fd uintptr) bool) error // until try is true
	try    func(fd uintptr) bool

	mu    sync.Mutex // of what follows, which is of one call
	b     []byte
	n     int
	errno syscall.Errno
}

// do makes one call that moves something.
func (t *transfer) do(q *quiet, b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b, t.n, t.errno = b, 0, 0
	err := t.wait(t.try)
	t.b = nil // belongs to the caller
	if e, ok := errors.AsType[*net.OpError](err); ok {
		e.Op = t.name // and not "raw-read"
	}
	if err == nil && t.errno != 0 {
		err = &net.OpError{Op: t.name, Net: q.LocalAddr().Network(), Source: q.LocalAddr(), Addr: q.RemoteAddr(), Err: os.NewSyscallError(t.name, t.errno)}
	}
	return t.n, err
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
