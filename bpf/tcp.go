package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"

	"github.com/nodedrift/nodedrift/probes"
)

// tcpEvent is the Go shape of tcp.bpf.c; a test compares them.
type tcpEvent struct {
	Time        uint64
	Kind        uint32
	Error       uint32
	Peer        endpoint
	Local       uint16
	Retransmits uint8
	_           uint8
	Netns       uint32
}

// How a connection ended.
const (
	tcpFailed = iota + 1 // it was never there
	tcpClosed            // by either end, or by an error
	tcpReset             // by the peer or something between
	tcpLeft              // by this end, in an agent's network
)

const tcpDetector = "tcp"

// attachTCP loads and attaches the detector of connections to watched peers.
func (l *loader) attachTCP() (*detector, error) {
	d := &detector{}
	load := func() (*ebpf.CollectionSpec, error) { return loadTcp() }
	ring := l.ring
	l.ring = nil // its own: connections may be many
	defer func() { l.ring = ring }()
	if err := l.loadRare(d, load, "", map[string]any{"spaces": [maxSpaces]uint32{l.netns}}); err != nil {
		return nil, err
	}
	if err := l.attachTo(d); err != nil {
		d.close()
		return nil, err
	}
	return d, d.open("events")
}

// maxSpaces is how many network namespaces are listened to, the node's included.
const maxSpaces = 8

// peers are the ends of TCP connections that matter, and what is known of them.
type peers struct {
	netns uint32                   // the node's
	addrs map[netip.AddrPort]bool  // the API server's, the tunnel's other end
	pods  []uint32                 // network namespaces of konnectivity-agents
	left  map[uint32]time.Duration // by such a namespace, see Left; monotonic
	test  netip.AddrPort           // its failure is the detector's test
}

// Peers says which TCP peers matter: the API server, the other end of the tunnel;
// and in which network namespaces (inodes) beside the node's connections to them
// count: those of konnectivity-agents, of which seven at most are listened to. It
// takes no right to BPF.
func (t *Tracer) Peers(addrs []netip.AddrPort, pods []uint32) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &t.peers
	p.addrs = make(map[netip.AddrPort]bool, len(addrs))
	for _, a := range addrs {
		p.addrs[netip.AddrPortFrom(a.Addr().Unmap(), a.Port())] = true
	}
	p.pods = slices.Clone(pods)
	maps.DeleteFunc(p.left, func(netns uint32, _ time.Duration) bool { return !slices.Contains(pods, netns) })
	t.filterPeers()
}

// Left tells how long ago a process of an agent's network namespace ended a
// connection to a peer before the peer did; not ok where that is not known.
func (t *Tracer) Left(netns uint32) (ago time.Duration, ok bool) {
	if t == nil {
		return 0, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at, ok := t.peers.left[netns]
	return monotonic() - at, ok
}

// filterPeers passes the peers on to the kernel. The caller holds the lock.
func (t *Tracer) filterPeers() {
	s, p := t.state(tcpDetector), &t.peers
	if s == nil || s.d.Load() == nil {
		return
	}
	filter := make([]byte, 1024/8)
	add := func(p netip.AddrPort) {
		a := p.Addr().As16()
		h := hashKey(string(a[:])+string([]byte{byte(p.Port()), byte(p.Port() >> 8)})) % 1024
		filter[h/8] |= 1 << (h % 8)
	}
	for a := range p.addrs {
		add(a)
	}
	if p.test.IsValid() {
		add(p.test)
	}
	spaces := [maxSpaces]uint32{p.netns}
	copy(spaces[1:], p.pods)
	vars := s.d.Load().coll.Variables
	if err := errors.Join(vars["spaces"].Set(spaces), vars["filter"].Set(filter)); err != nil {
		t.cfg.Log.Warn("cannot say which peers to watch", "error", err)
	}
}

// tryTCP fails to connect to a port of this machine that nobody listens on.
func (t *Tracer) tryTCP() error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	t.testPeer(addr)
	if c, err := net.DialTimeout("tcp4", addr.String(), time.Second); err == nil {
		c.Close()
	}
	return nil
}

func (t *Tracer) testPeer(addr netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers.test = addr
	t.filterPeers()
}

// heardTCP takes in one event of the TCP detector.
func (t *Tracer) heardTCP(s *state, e *tcpEvent) {
	peer := e.Peer.addr()
	t.mu.Lock()
	watched, test := t.peers.addrs[peer], peer == t.peers.test
	switch {
	case !watched || !slices.Contains(t.peers.pods, e.Netns):
	case e.Kind == tcpLeft:
		t.peers.left[e.Netns] = time.Duration(e.Time)
	case e.Kind == tcpFailed && e.Error != 0:
		delete(t.peers.left, e.Netns)
	}
	t.mu.Unlock()
	if test {
		t.testPeer(netip.AddrPort{})
		s.returned()
	}
	if !watched {
		return
	}
	s.events.Add(1)
	if how := e.how(); how != "" {
		t.rare.limit.say(t, TunnelReset, peer.String(), func() probes.Occurrence {
			return probes.Occurrence{Message: fmt.Sprintf("the connection to %s %s", peer, how), Trace: probes.Key{Domain: "peer", Name: peer.String()}}
		})
	}
}

// how says what is wrong with the way a connection ended; "" is nothing: both ends, or
// this one alone, were done with it.
func (e *tcpEvent) how() string {
	errno := unix.Errno(e.Error)
	switch {
	case e.Kind == tcpReset:
		return "was reset"
	case e.Kind == tcpFailed && errno != 0:
		return "could not be made: " + errno.Error()
	case e.Kind == tcpFailed && e.Retransmits > 0: // its process gave up
		return "could not be made: no answer"
	case e.Kind == tcpClosed && errno != 0 && errno != unix.ECONNRESET: // which tcpReset tells
		return "ended: " + errno.Error()
	}
	return ""
}

// retransmits is how many segments to watched peers were sent again.
func (t *Tracer) retransmits() (n uint64, ok bool) {
	s := t.state(tcpDetector)
	if s == nil || s.d.Load() == nil {
		return 0, false
	}
	err := s.d.Load().coll.Variables["retransmits"].Get(&n) // shared memory
	return n, err == nil
}
