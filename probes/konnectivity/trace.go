package konnectivity

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/nodedrift/nodedrift/probes/host"
)

// A Socket is a TCP connection of kubelet or of a konnectivity-agent, or the process
// itself.
type Socket struct {
	PID           int
	Process       string // its name, which it may choose
	Cgroup        uint64 // of the process: the inode of its folder in cgroup2
	Netns         uint32 // inode
	Local, Remote netip.AddrPort
	State         uint8  // as in [host.TCPSocket]; 0: this is the process, told before its connections
	Unacked       uint32 // bytes sent and not acknowledged, or not sent yet
	Retransmits   uint32 // of what waits to be acknowledged, in a row
}

// A Tracer tells in microseconds what connections there are. Without one the same is
// read from the kernel's tables, whose whole hash is walked for it: 10 ms on a large node.
type Tracer interface {
	// Sockets passes all connections of kubelet and the agents to take. An error is that they
	// cannot all be told.
	Sockets(take func(Socket)) error
	// Left tells how long ago a process of a network namespace ended a connection to a peer
	// before the peer did, and was not refused another one since. It is no socket of the
	// process any more.
	Left(netns uint32) (ago time.Duration, ok bool)
	// Peers says whose connections matter to those who listen: to which addresses, and in
	// which network namespaces beside the node's.
	Peers(addrs []netip.AddrPort, pods []uint32)
}

// traced is what the tracer has told in the look that is under way, and was told itself.
type traced struct {
	tracer Tracer // nil: there is none

	asked   bool
	sockets []Socket
	err     error

	addrs []netip.AddrPort
	pods  []uint32
}

var errUntraced = errors.New("connections are not traced")

// list asks once in a look.
func (t *traced) list() ([]Socket, error) {
	if t.tracer == nil {
		return nil, errUntraced
	}
	if !t.asked {
		t.asked, t.sockets = true, t.sockets[:0]
		t.err = t.tracer.Sockets(func(s Socket) { t.sockets = append(t.sockets, s) })
	}
	return t.sockets, t.err
}

// kubelets are the ends of kubelet's connections. One that was started a moment ago is
// not listed yet, which is an error.
func (p *Probe) kubelets() (list [][2]netip.AddrPort, err error) {
	all, err := p.traced.list()
	if err != nil {
		return nil, err
	}
	owner, listed := p.owner(), false
	for _, s := range all {
		if s.Process != kubelet || owner != 0 && owner != s.Cgroup {
			continue
		}
		listed = true
		if s.State == host.TCPEstablished {
			list = append(list, [2]netip.AddrPort{s.Local, s.Remote})
		}
	}
	if !listed {
		return nil, errUntraced
	}
	return list, nil
}

const kubelet = "kubelet" // comm of its process

// finWait is how long the kernel remembers a connection that this end has closed and the
// other has not (net.ipv4.tcp_fin_timeout's default).
const finWait = time.Minute

// readTrace takes in an agent's connections to its server as they are now; not ok where
// they are not told.
func (p *Probe) readTrace(a *agent) (ok bool) {
	all, err := p.traced.list()
	if err != nil {
		return false
	}
	table := []host.TCPSocket{}
	for _, s := range all {
		switch {
		case s.PID != a.process.PID():
		case s.State == 0:
			a.netns, ok = s.Netns, true
		case a.serves(s.Remote):
			table = append(table, host.TCPSocket{Local: s.Local, Remote: s.Remote, State: s.State, Unacked: s.Unacked, Retransmits: s.Retransmits})
		}
	}
	if !ok {
		return false
	}
	if len(table) > 0 {
		a.peers = a.peers[:0]
		for _, s := range table {
			a.peers = append(a.peers, s.Remote)
		}
	}
	// What it closed itself is told by the kernel's table for a minute, and no more by its
	// process: who does not answer to that does not answer.
	ago, left := p.traced.tracer.Left(a.netns)
	if left && ago < finWait && len(a.peers) > 0 {
		table = append(table, host.TCPSocket{Remote: a.peers[0], State: tcpFinWait2})
	}
	a.table = table
	return true
}

// serves tells whether an address is the agent's server.
func (a *agent) serves(remote netip.AddrPort) bool {
	return remote.Port() == a.flags.serverPort && (!remote.Addr().IsLoopback() || a.flags.server == remote.Addr().String())
}

// tellPeers says whose connections are to be listened to.
func (p *Probe) tellPeers() {
	t := &p.traced
	if t.tracer == nil {
		return
	}
	last, _, _ := p.trips.get()
	addrs, pods := slices.Clone(last.addrs), []uint32(nil)
	for _, a := range p.agents {
		addrs = append(addrs, a.peers...)
		if !a.sandbox.HostNetwork && a.netns != 0 {
			pods = append(pods, a.netns)
		}
	}
	slices.SortFunc(addrs, func(a, b netip.AddrPort) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
	})
	addrs = slices.Compact(addrs)
	slices.Sort(pods)
	pods = slices.Compact(pods)
	if !slices.Equal(addrs, t.addrs) || !slices.Equal(pods, t.pods) {
		t.addrs, t.pods = addrs, pods
		t.tracer.Peers(addrs, pods)
	}
}
