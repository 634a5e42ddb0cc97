package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TCP asks the kernel for TCP sockets of the agent's own network namespace, which
// is the node's (sock_diag(7)): no right is needed. The zero value is ready; many
// goroutines may ask.
type TCP struct {
	// Candidates lists connections among which the one that is looked for must be, as near and
	// far ends. Where it is nil, or fails, the kernel walks its whole table, which takes it
	// up to 10 ms on a large node.
	Candidates func() ([][2]netip.AddrPort, error)
	// Rest is the least time between two such walks; what was known before the last one is
	// the answer meanwhile.
	Rest time.Duration

	mu   sync.Mutex
	fd   int // 0: none
	buf  []byte
	last *diagID // of the connection that heard from its peer last

	owner  uint64    // cgroup whose connections count; 0: all
	walked time.Time // when the kernel walked its table
}

// Close lets go of the kernel.
func (t *TCP) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fd == 0 {
		return nil
	}
	err := unix.Close(t.fd)
	t.fd = 0
	return err
}

// diagID names a socket (struct inet_diag_sockid).
type diagID struct {
	sport, dport [2]byte
	src, dst     [16]byte
	device       uint32
	cookie       [2]uint32
}

// diagRequest is a request (struct inet_diag_req_v2).
type diagRequest struct {
	family, protocol, ext, _ uint8
	states                   uint32
	id                       diagID
}

// diagReply is how a reply begins (struct inet_diag_msg).
type diagReply struct {
	family, state, timer, retransmits uint8
	id                                diagID
	expires, rqueue, wqueue, uid      uint32
	inode                             uint32
}

const (
	diagInfo     = 2  // INET_DIAG_INFO: struct tcp_info
	diagCgroup   = 21 // INET_DIAG_CGROUP_ID
	diagBytecode = 1  // INET_DIAG_REQ_BYTECODE
	// Where tcpi_last_data_recv is in struct tcp_info (include/uapi/linux/tcp.h), in milliseconds.
	lastDataReceived = 52

	diagWithin = time.Second
)

// Received tells how long ago data came over an established connection to one of
// some addresses, over the one that heard last; not ok where there is none. Only
// connections made in the cgroup with the id owner count (the inode of its folder
// in cgroup2), where the kernel tells (5.9 on); 0 is anybody's. The connection that
// was the answer before is asked first, and alone while it has heard something
// within fresh.
func (t *TCP) Received(from []netip.AddrPort, owner uint64, fresh time.Duration) (age time.Duration, ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.owner = owner
	if t.last != nil {
		t.last, age, err = t.ask(t.last, from)
		if err == nil && t.last != nil && age < fresh {
			return age, true, nil
		}
	}
	if t.Candidates != nil {
		if list, err := t.Candidates(); err == nil {
			t.last, age, err = t.among(list, from)
			return age, t.last != nil, err
		}
	}
	if !t.walked.IsZero() && time.Since(t.walked) < t.Rest {
		return age, t.last != nil, nil
	}
	t.walked = time.Now()
	t.last, age, err = t.walk(from)
	return age, t.last != nil, err
}

// walk has the kernel walk its table.
func (t *TCP) walk(from []netip.AddrPort) (found *diagID, age time.Duration, err error) {
	for _, port := range ports(from) {
		id, younger, err := t.dump(from, port)
		if err != nil {
			return nil, 0, err
		}
		if id != nil && (found == nil || younger < age) {
			found, age = id, younger
		}
	}
	return found, age, nil
}

// among asks for each connection of a list.
func (t *TCP) among(list [][2]netip.AddrPort, from []netip.AddrPort) (found *diagID, age time.Duration, err error) {
	for _, ends := range list {
		if !slices.Contains(from, ends[1]) {
			continue
		}
		id, younger, err := t.ask(idOf(ends[0], ends[1]), from)
		if err != nil {
			return nil, 0, err
		}
		if id != nil && (found == nil || younger < age) {
			found, age = id, younger
		}
	}
	return found, age, nil
}

// idOf names a connection by its ends alone.
func idOf(near, far netip.AddrPort) *diagID {
	id := &diagID{cookie: [2]uint32{^uint32(0), ^uint32(0)}} // INET_DIAG_NOCOOKIE
	binary.BigEndian.PutUint16(id.sport[:], near.Port())
	binary.BigEndian.PutUint16(id.dport[:], far.Port())
	copy(id.src[:], near.Addr().AsSlice())
	copy(id.dst[:], far.Addr().AsSlice())
	return id
}

func ports(of []netip.AddrPort) (list []uint16) {
	for _, a := range of {
		if !slices.Contains(list, a.Port()) {
			list = append(list, a.Port())
		}
	}
	return list
}

// Listens tells whether somebody takes connections on a port, and what tells that
// socket from one that takes its place.
func (t *TCP) Listens(port uint16) (id uint64, ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, family := range []uint8{unix.AF_INET6, unix.AF_INET} {
		r := diagRequest{family: family, protocol: unix.IPPROTO_TCP, states: 1 << TCPListen}
		err = t.each(&r, unix.NLM_F_DUMP, bytecode(diagSource, port), func(m *diagReply, _ []byte) {
			if binary.BigEndian.Uint16(m.id.sport[:]) == port {
				id, ok = uint64(m.id.cookie[1])<<32|uint64(m.id.cookie[0]), true
			}
		})
		if ok || err != nil {
			break
		}
	}
	return id, ok, err
}

// ask asks for one socket; nil where it is no more, or no more established.
func (t *TCP) ask(id *diagID, from []netip.AddrPort) (known *diagID, age time.Duration, err error) {
	r := diagRequest{family: familyOf(id, from), protocol: unix.IPPROTO_TCP, ext: 1 << (diagInfo - 1), states: 1 << TCPEstablished, id: *id}
	err = t.each(&r, 0, nil, func(m *diagReply, attributes []byte) {
		if ms, group, ok := received(attributes); ok && t.counts(group) && m.state == TCPEstablished && slices.Contains(from, m.remote()) {
			found := m.id
			known, age = &found, ms
		}
	})
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return known, age, err
}

// familyOf is the family that a socket was found in.
func familyOf(id *diagID, from []netip.AddrPort) uint8 {
	if slices.ContainsFunc(from, func(a netip.AddrPort) bool { return a.Addr().Is4() }) && [12]byte(id.dst[4:]) == [12]byte{} {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// dump looks for the connection to one of some addresses that heard last.
func (t *TCP) dump(from []netip.AddrPort, port uint16) (found *diagID, age time.Duration, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		r := diagRequest{family: family, protocol: unix.IPPROTO_TCP, ext: 1 << (diagInfo - 1), states: 1 << TCPEstablished}
		if err := t.each(&r, unix.NLM_F_DUMP, bytecode(diagDestination, port), func(m *diagReply, attributes []byte) {
			ms, group, ok := received(attributes)
			if ok && t.counts(group) && slices.Contains(from, m.remote()) && (found == nil || ms < age) {
				id := m.id
				found, age = &id, ms
			}
		}); err != nil {
			return nil, 0, err
		}
	}
	return found, age, nil
}

func (m *diagReply) remote() netip.AddrPort {
	ip := netip.AddrFrom16(m.id.dst).Unmap()
	if m.family == unix.AF_INET {
		ip = netip.AddrFrom4([4]byte(m.id.dst[:4]))
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(m.id.dport[:]))
}

// counts tells whether a connection of a cgroup counts; 0 is not told.
func (t *TCP) counts(group uint64) bool { return t.owner == 0 || group == 0 || group == t.owner }

// received finds the age of the last data among a reply's attributes, and the cgroup
// that the socket was made in, 0 where the kernel does not tell.
func received(attributes []byte) (age time.Duration, group uint64, ok bool) {
	const header = unix.SizeofRtAttr
	for len(attributes) >= header {
		size := int(binary.NativeEndian.Uint16(attributes))
		kind := binary.NativeEndian.Uint16(attributes[2:])
		if size < header || size > len(attributes) {
			break
		}
		switch {
		case kind == diagInfo && size >= header+lastDataReceived+4:
			age, ok = time.Duration(binary.NativeEndian.Uint32(attributes[header+lastDataReceived:]))*time.Millisecond, true
		case kind == diagCgroup && size >= header+8:
			group = binary.NativeEndian.Uint64(attributes[header:])
		}
		attributes = attributes[min((size+3)&^3, len(attributes)):]
	}
	return age, group, ok
}

// Codes of the kernel's filter (INET_DIAG_BC_*): greater or equal, and less or equal.
type diagSide struct{ least, most byte }

var (
	diagSource      = diagSide{2, 3}
	diagDestination = diagSide{4, 5}
)

// bytecode lets the kernel tell of sockets with one port only: two comparisons, each
// followed by its operand; who fails one jumps beyond the end and is left out.
func bytecode(side diagSide, port uint16) []byte {
	b := make([]byte, unix.SizeofRtAttr+16)
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	binary.NativeEndian.PutUint16(b[2:], diagBytecode)
	op := func(at int, code, yes byte, no uint16) {
		b[at], b[at+1] = code, yes
		binary.NativeEndian.PutUint16(b[at+2:], no)
	}
	op(4, side.least, 8, 16+4)
	op(8, 0, 0, port)
	op(12, side.most, 8, 8+4)
	op(16, 0, 0, port)
	return b
}

// each puts a request and takes every reply.
func (t *TCP) each(r *diagRequest, flags uint16, filter []byte, take func(*diagReply, []byte)) (err error) {
	if err := t.open(); err != nil {
		return fmt.Errorf("ask the kernel for sockets: %w", err)
	}
	defer func() {
		if err != nil && !errors.Is(err, unix.ENOENT) {
			unix.Close(t.fd) // what is still under way belongs to nobody
			t.fd = 0
			err = fmt.Errorf("ask the kernel for sockets: %w", err)
		}
	}()
	const size = int(unsafe.Sizeof(diagRequest{}))
	message := make([]byte, unix.SizeofNlMsghdr, 128)
	message = append(message, unsafe.Slice((*byte)(unsafe.Pointer(r)), size)...)
	message = append(message, filter...)
	binary.NativeEndian.PutUint32(message, uint32(len(message)))
	binary.NativeEndian.PutUint16(message[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST|flags)
	walk := flags&unix.NLM_F_DUMP != 0 && r.states&(1<<TCPEstablished) != 0
	if err := t.put(message, walk); err != nil {
		return err
	}
	for {
		n, err := t.get(walk)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return os.ErrDeadlineExceeded
		case err != nil:
			return err
		}
		if done, err := replies(t.buf[:n], flags&unix.NLM_F_DUMP != 0, take); done || err != nil {
			return err
		}
	}
}

// put sends a question, and get takes an answer. The kernel answers a question while it is
// sent, from memory, so that a raw system call does, which spares Go's scheduler. For a
// walk of the whole table it needs milliseconds.
func (t *TCP) put(message []byte, walk bool) error {
	if walk {
		return unix.Sendto(t.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(t.fd), uintptr(unsafe.Pointer(unsafe.SliceData(message))), uintptr(len(message)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func (t *TCP) get(walk bool) (int, error) {
	if !walk {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(t.fd), uintptr(unsafe.Pointer(unsafe.SliceData(t.buf))), uintptr(len(t.buf)), unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EAGAIN {
			return 0, errno
		}
	}
	n, _, err := unix.Recvfrom(t.fd, t.buf, 0)
	return n, err
}

// replies takes the replies in a datagram, and tells whether that was all.
func replies(b []byte, dump bool, take func(*diagReply, []byte)) (done bool, err error) {
	const head, size = unix.SizeofNlMsghdr, int(unsafe.Sizeof(diagReply{}))
	for len(b) >= head {
		length := int(binary.NativeEndian.Uint32(b))
		if length < head || length > len(b) {
			return true, errors.New("a netlink message that is cut off")
		}
		body := b[head:length]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return true, errors.New("a netlink error that is cut off")
			}
			return true, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		case unix.SOCK_DIAG_BY_FAMILY:
			if len(body) < size {
				return true, errors.New("a socket that is cut off")
			}
			var m diagReply
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&m)), size), body)
			take(&m, body[size:])
			done = !dump
		}
		b = b[min((length+3)&^3, len(b)):]
	}
	return done, nil
}

func (t *TCP) open() error {
	if t.fd > 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return err
	}
	within := unix.NsecToTimeval(int64(diagWithin))
	if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &within), unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})); err != nil {
		unix.Close(fd)
		return err
	}
	t.fd = fd
	if t.buf == nil {
		t.buf = make([]byte, 32<<10)
	}
	return nil
}
