package azurecni

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// errInterrupted says that the kernel's tables changed while they were dumped
// (NLM_F_DUMP_INTR), three times over: what came is of no one moment.
var errInterrupted = errors.New("the tables changed while they were read")

const (
	dumpTries   = 4
	dumpBuffer  = 256 << 10 // a datagram of a dump is at most 32 KiB (af_netlink.c); more is kept for bursts
	askDeadline = time.Second
	solNetlink  = 270    // SOL_NETLINK
	attrType    = 0x3fff // NLA_TYPE_MASK
)

// A conn asks the kernel over rtnetlink. It reads only, and needs no right. Its
// buffer is used again, so that a dump allocates nothing.
type conn struct {
	proto int // NETLINK_ROUTE, the zero value, or another
	fd    int // -1: not open
	seq   uint32
	buf   []byte
	ask   [64]byte // a request
}

func newConn() *conn { return &conn{fd: -1} }

// open connects to the network namespace of the calling thread.
func (c *conn) open() error {
	if c.fd >= 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, c.proto)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	limit := unix.NsecToTimeval(askDeadline.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	// Before 4.20 the kernel knows no strict check and filters nothing: so do we, again.
	_ = unix.SetsockoptInt(fd, solNetlink, unix.NETLINK_GET_STRICT_CHK, 1)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("open netlink: %w", err)
	}
	c.fd = fd
	if c.buf == nil {
		c.buf = make([]byte, dumpBuffer)
	}
	return nil
}

func (c *conn) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// request sends a header and body, which are in c.ask from 16 on.
func (c *conn) request(kind, flags uint16, size int) error {
	if err := c.open(); err != nil {
		return err
	}
	c.seq++
	b := c.ask[:unix.NLMSG_HDRLEN+size]
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], c.seq)
	binary.NativeEndian.PutUint32(b[12:], 0)
	_, err := unix.Write(c.fd, b) // an unconnected netlink socket speaks to the kernel
	return err
}

// body zeroes and returns the n bytes of a request's body.
func (c *conn) body(n int) []byte {
	b := c.ask[unix.NLMSG_HDRLEN : unix.NLMSG_HDRLEN+n]
	clear(b)
	return b
}

// dump asks for a whole table and passes each message of it to take, which must
// not keep it. begin is called first, and again when the dump has to be repeated.
func (c *conn) dump(what string, kind uint16, size int, begin func(), take func(kind uint16, body []byte)) error {
	for range dumpTries {
		begin()
		err := c.request(kind, unix.NLM_F_DUMP, size)
		if err == nil {
			err = c.receive(take)
		}
		if errors.Is(err, errInterrupted) {
			continue
		}
		if err != nil {
			c.close() // what is left of it must not be taken for another answer
			return fmt.Errorf("list %s: %w", what, err)
		}
		return nil
	}
	return fmt.Errorf("list %s: %w", what, errInterrupted)
}

// receive reads the answer to the last request until its end.
func (c *conn) receive(take func(kind uint16, body []byte)) error {
	interrupted := false
	for {
		n, err := unix.Read(c.fd, c.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			if err == unix.EAGAIN {
				return fmt.Errorf("no answer for %v: %w", askDeadline, err)
			}
			return err
		}
		if n == len(c.buf) {
			return errors.New("a datagram larger than the buffer")
		}
		done, intr, err := c.messages(c.buf[:n], take)
		if interrupted = interrupted || intr; err != nil {
			return err
		}
		if done {
			if interrupted {
				return errInterrupted
			}
			return nil
		}
	}
}

// messages passes on what one datagram holds. It tells whether the answer ended.
func (c *conn) messages(b []byte, take func(kind uint16, body []byte)) (done, interrupted bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return false, interrupted, errors.New("a truncated netlink message")
		}
		kind, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
		mine := binary.NativeEndian.Uint32(b[8:]) == c.seq
		body := b[unix.NLMSG_HDRLEN:size]
		b = b[min(align4(size), len(b)):]
		if !mine {
			continue // the rest of an answer that was given up
		}
		interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
		switch kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if errno := int32(binary.NativeEndian.Uint32(body)); errno < 0 {
					return true, interrupted, unix.Errno(-errno)
				}
			}
			return true, interrupted, nil
		default:
			take(kind, body)
			if flags&unix.NLM_F_MULTI == 0 {
				done = true
			}
		}
	}
	return done, interrupted, nil
}

func align4(n int) int { return (n + 3) &^ 3 }

// attrs yields the attributes in b: type (without its flags) and payload. It
// stops at the first that cannot be one.
func attrs(b []byte) func(yield func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			if size < 4 || size > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) & attrType
			if !yield(kind, b[4:size]) {
				return
			}
			b = b[min(align4(size), len(b)):]
		}
	}
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func u16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.NativeEndian.Uint16(b)
}

func u8(b []byte) uint8 {
	if len(b) == 0 {
		return 0
	}
	return b[0]
}
