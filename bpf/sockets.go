package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// A Socket is a TCP connection of kubelet or of a konnectivity-agent, or the process
// itself.
type Socket struct {
	PID           int
	Process       string         // its name, which it may choose
	Cgroup        uint64         // of the process: the inode of its folder in cgroup2
	Netns         uint32         // inode
	Local, Remote netip.AddrPort // an IPv4 address in IPv6's form is told as IPv4
	State         uint8          // as in /proc/PID/net/tcp; 0: this is the process, told before its connections
	Unacked       uint32         // bytes sent and not acknowledged, or not sent yet
	Retransmits   uint32         // of what waits to be acknowledged, in a row
}

// An endpoint is one end of a TCP connection: the Go shape of headers/tcp.h.
type endpoint struct {
	Addr [16]byte
	Port uint16
	_    [3]uint16
}

func (e *endpoint) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(e.Addr).Unmap(), e.Port)
}

// connection is the Go shape of sockets.bpf.c; a test compares them.
type connection struct {
	Local, Remote endpoint
	Cgroup        uint64
	PID           uint32
	Netns         uint32
	Comm          [16]byte
	Unacked       uint32
	State         uint8
	Retransmits   uint8
	More          uint8
	_             uint8
}

// lastState of a connection is that there are no more: END of sockets.bpf.c.
const lastState = 255

const socketsDetector = "sockets"

// attachSockets loads and attaches the iterator of the connections of those that a
// census remembers.
func (l *loader) attachSockets(census *detector) (*detector, error) {
	if census == nil {
		return nil, errors.New("without the census nobody knows whose connections matter")
	}
	spec, err := loadSockets()
	if err != nil {
		return nil, err
	}
	d := &detector{}
	if d.coll, err = l.load(spec, nil, map[string]*ebpf.Map{"leaders": census.coll.Maps["leaders"]}); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	at, err := link.AttachIter(link.IterOptions{Program: d.coll.Programs[socketsProgSockets]})
	if err != nil {
		d.close()
		return nil, fmt.Errorf("attach %s: %w", socketsProgSockets, plain(err))
	}
	d.links = append(d.links, at)
	return d, nil
}

// count takes a census, the only one at a time, and says how many it remembers.
func (t *Tracer) count() ([]blocked, error) {
	t.walks.Lock()
	defer t.walks.Unlock()
	census := t.state(censusDetector).d.Load()
	all, err := census.census()
	if s := t.state(socketsDetector); s != nil && s.d.Load() != nil {
		var found uint32
		if err == nil {
			err = census.coll.Variables[censusVarFound].Get(&found)
		}
		err = errors.Join(err, s.d.Load().coll.Variables[socketsVarKnown].Set(found))
	}
	return all, err
}

// Sockets passes each TCP connection of kubelet and the konnectivity-agents of this
// node to take, in whatever network namespace, in microseconds. One that was started
// within the last half minute may be missing. Sockets that listen are left out, and
// those that their process has closed. An error is that not all can be told. It takes
// no right to BPF from Linux 5.19 on.
func (t *Tracer) Sockets(take func(Socket)) error {
	if t == nil {
		return errors.New("list connections: not attached")
	}
	s := t.state(socketsDetector)
	if s == nil || s.d.Load() == nil {
		return errors.New("list connections: not attached")
	}
	t.walks.Lock()
	defer t.walks.Unlock()
	err := t.sockets(s.d.Load(), take)
	if errors.Is(err, errTooMany) {
		return err // of this moment
	}
	if err != nil { // before Linux 5.19 it takes CAP_BPF, which the agent gives up
		s.set(false, err.Error())
		return err
	}
	s.set(true, "")
	return nil
}

// trySockets finds out whose connections matter, and lists them.
func (t *Tracer) trySockets() error {
	s := t.state(socketsDetector)
	_, err := t.count()
	if err == nil {
		t.walks.Lock()
		err = t.sockets(s.d.Load(), func(Socket) {})
		t.walks.Unlock()
	}
	if err == nil || errors.Is(err, errTooMany) {
		s.returned()
		return nil
	}
	return err
}

var errTooMany = errors.New("more processes, or a process with more files or connections, than are looked at")

// sockets reads the iterator. The caller holds the lock of walks.
func (t *Tracer) sockets(d *detector, take func(Socket)) error {
	fd, err := openIter(d.links[0].(*link.Iter))
	if err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	defer unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	var e connection
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e))
	many, whole := false, false
	if t.listed == nil {
		t.listed = make([]byte, 8<<10)
	}
read:
	for kept := 0; ; {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&t.listed[kept])), uintptr(len(t.listed)-kept))
		switch {
		case errno == unix.EINTR || errno == unix.EAGAIN: // the kernel wants to breathe
			continue
		case errno != 0:
			return fmt.Errorf("list connections: %w", errno)
		case n == 0:
			break read
		}
		rest := t.listed[:kept+int(n)]
		for ; len(rest) >= len(raw); rest = rest[len(raw):] {
			copy(raw, rest)
			many = many || e.More != 0
			if e.State == lastState {
				whole = true
				continue
			}
			take(Socket{int(e.PID), text(e.Comm[:]), e.Cgroup, e.Netns, e.Local.addr(), e.Remote.addr(), e.State, e.Unacked, uint32(e.Retransmits)})
		}
		kept = copy(t.listed, rest)
	}
	switch {
	case many:
		return fmt.Errorf("list connections: %w", errTooMany)
	case !whole:
		return errors.New("list connections: cut short")
	}
	return nil
}

// openIter makes a walk (bpf(2), BPF_ITER_CREATE). It and its reads are raw system calls:
// they take microseconds and wait for nobody, and an ordinary one wakes Go's monitor of
// threads, which takes ten times as much.
func openIter(of *link.Iter) (fd uintptr, err error) {
	attr := struct{ link, flags uint32 }{link: uint32(of.FD())}
	fd, _, errno := unix.RawSyscall(unix.SYS_BPF, unix.BPF_ITER_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return 0, errno
	}
	return fd, nil
}
