package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"

	"github.com/nodedrift/nodedrift/probes"
)

// The Go shape of tcp.bpf.c; a test compares them.
type tcpPeer struct {
	Addr [16]byte
	Port uint16
	_    [3]uint16
}

type tcpEvent struct {
	Time  uint64
	Kind  uint32
	Error uint32
	Peer  tcpPeer
	Local uint16
	_     [3]uint16
}

// How a connection ended.
const (
	tcpFailed = iota + 1 // it was never there
	tcpClosed            // by either end, or by an error
	tcpReset             // by the peer or something between
)

const tcpDetector = "tcp"

func (p *tcpPeer) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(p.Addr).Unmap(), p.Port)
}

// attachTCP loads and attaches the detector of connections to watched peers.
func (l *loader) attachTCP() (*detector, error) {
	d := &detector{}
	load := func() (*ebpf.CollectionSpec, error) { return loadTcp() }
	ring := l.ring
	l.ring = nil // its own: connections may be many
	defer func() { l.ring = ring }()
	if err := l.loadRare(d, load, "", map[string]any{"netns": l.netns}); err != nil {
		return nil, err
	}
	if err := l.attachTo(d); err != nil {
		d.close()
		return nil, err
	}
	return d, d.open("events")
}

// Peers says which TCP peers matter: the API server, the other end of the tunnel.
// It takes no right to BPF.
func (t *Tracer) Peers(peers []netip.AddrPort) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers = make(map[netip.AddrPort]bool, len(peers))
	for _, p := range peers {
		t.peers[netip.AddrPortFrom(p.Addr().Unmap(), p.Port())] = true
	}
	t.filterPeers()
}

// filterPeers passes the peers on to the kernel. The caller holds the lock.
func (t *Tracer) filterPeers(also ...netip.AddrPort) {
	s := t.state(tcpDetector)
	if s == nil || s.d.Load() == nil {
		return
	}
	filter := make([]byte, 1024/8)
	add := func(p netip.AddrPort) {
		a := p.Addr().As16()
		h := hashKey(string(a[:])+string([]byte{byte(p.Port()), byte(p.Port() >> 8)})) % 1024
		filter[h/8] |= 1 << (h % 8)
	}
	for p := range t.peers {
		add(p)
	}
	for _, p := range also {
		add(p)
	}
	if err := s.d.Load().coll.Variables["filter"].Set(filter); err != nil {
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
	t.mu.Lock()
	t.testPeer = addr
	t.filterPeers(addr)
	t.mu.Unlock()
	if c, err := net.DialTimeout("tcp4", addr.String(), time.Second); err == nil {
		c.Close()
	}
	return nil
}

// heardTCP takes in one event of the TCP detector.
func (t *Tracer) heardTCP(s *state, e *tcpEvent) {
	peer := e.Peer.addr()
	t.mu.Lock()
	watched, test := t.peers[peer], peer == t.testPeer
	if test {
		t.testPeer = netip.AddrPort{}
		t.filterPeers()
	}
	t.mu.Unlock()
	if test {
		s.returned()
	}
	if !watched {
		return
	}
	s.events.Add(1)
	how := "was reset"
	switch {
	case e.Kind == tcpFailed:
		how = "could not be made: " + unix.Errno(e.Error).Error()
	case e.Kind == tcpClosed && (e.Error == 0 || unix.Errno(e.Error) == unix.ECONNRESET):
		return // in order, or told by tcpReset
	case e.Kind == tcpClosed:
		how = "ended: " + unix.Errno(e.Error).Error()
	}
	t.rare.limit.say(t, TunnelReset, peer.String(), func() probes.Occurrence {
		return probes.Occurrence{Message: fmt.Sprintf("the connection to %s %s", peer, how), Trace: probes.Key{Domain: "peer", Name: peer.String()}}
	})
}
