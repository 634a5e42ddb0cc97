package host

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Dial connects to a unix socket of the node: "run/containerd/containerd.sock".
func (n *Node) Dial(ctx context.Context, name string) (net.Conn, error) {
	d, ok := n.Root.(interface {
		Dial(context.Context, string) (net.Conn, error)
	})
	if !ok {
		return nil, &fs.PathError{Op: "dial", Path: nodePath(name), Err: errors.ErrUnsupported}
	}
	return d.Dial(ctx, name)
}

// Dial connects to a unix socket of the node, however long its path is and wherever in the root its links lead.
func (r *Root) Dial(ctx context.Context, name string) (net.Conn, error) {
	fd, err := ask(r, "dial", name, func(name string) (int, error) {
		fd, err := r.open(name, unix.O_PATH)
		if err != nil {
			return -1, err
		}
		i, err := fstat(fd, name)
		if err == nil && i.mode.Type() != fs.ModeSocket {
			err = errors.New("not a socket")
		}
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(fd))
	if err != nil {
		return nil, &fs.PathError{Op: "dial", Path: nodePath(name), Err: plain(err)}
	}
	return quietly(conn), nil
}

const (
	// maxMessage bounds one D-Bus message: all properties of a service are 30 KiB.
	// The protocol allows 128 MiB.
	maxMessage = 1 << 20
	// busBuffer holds most messages: one read takes one, or several, where the
	// library would take it piece by piece.
	busBuffer = 4 << 10
	// busWrite bounds the time that one message takes to leave.
	busWrite = 2 * time.Second
)

// busConn is a D-Bus connection that refuses messages larger than [maxMessage]
// before anything is allocated for them.
type busConn struct {
	net.Conn
	r busReader
}

func newBusConn(c net.Conn) *busConn {
	return &busConn{Conn: c, r: busReader{r: bufio.NewReaderSize(c, busBuffer)}}
}

func (c *busConn) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	return n, plain(err)
}

func (c *busConn) Write(p []byte) (int, error) {
	if string(p) == "BEGIN\r\n" { // what follows are messages
		c.r.begin()
	}
	c.SetWriteDeadline(time.Now().Add(busWrite))
	n, err := c.Conn.Write(p)
	c.SetWriteDeadline(time.Time{}) // or its timer wakes a thread for nothing
	return n, plain(err)
}

// plain takes the address out of a network error: it is our own descriptor,
// which says nothing to anyone.
func plain(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Err
	}
	return err
}

// busReader passes on lines until begin, and then whole messages.
type busReader struct {
	r io.Reader

	mu     sync.Mutex
	framed bool
	head   [16]byte
	rest   []byte // of the present message's head, not yet passed on
	left   uint64 // bytes of the present message behind its head
}

func (b *busReader) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.framed = true
}

func (b *busReader) Read(p []byte) (int, error) {
	b.mu.Lock()
	framed := b.framed
	b.mu.Unlock()
	if !framed {
		return b.r.Read(p)
	}
	if len(b.rest) == 0 && b.left == 0 {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	if len(b.rest) > 0 {
		n := copy(p, b.rest)
		b.rest = b.rest[n:]
		return n, nil
	}
	n, err := b.r.Read(p[:min(uint64(len(p)), b.left)])
	b.left -= uint64(n)
	return n, err
}

// next reads the fixed part of a message, which tells its size (D-Bus
// specification, "Message Format").
func (b *busReader) next() error {
	head := b.head[:]
	if _, err := io.ReadFull(b.r, head); err != nil {
		return err
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch head[0] {
	case 'l':
	case 'B':
		order = binary.BigEndian
	default:
		return fmt.Errorf("a D-Bus message of byte order %q", head[0])
	}
	body, fields := uint64(order.Uint32(head[4:])), uint64(order.Uint32(head[12:]))
	size := (fields+7)/8*8 + body
	if size > maxMessage {
		return fmt.Errorf("a D-Bus message of %d bytes: %w", size, ErrTooLarge)
	}
	b.rest, b.left = head, size
	return nil
}
