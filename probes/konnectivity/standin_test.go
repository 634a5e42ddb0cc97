package konnectivity

import (
	"context"
	"io/fs"
	"net"
	"net/netip"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// fakeSockets are what the kernel would tell of the node's own sockets.
type fakeSockets struct {
	heard    time.Duration // negative: there is no connection
	listener uint64        // kubelet's; 0: none
}

func (s *fakeSockets) Received([]netip.AddrPort, uint64, time.Duration) (time.Duration, bool, error) {
	return s.heard, s.heard >= 0, nil
}

func (s *fakeSockets) Listens(uint16) (uint64, bool, error) { return s.listener, s.listener != 0, nil }

var ownPod = Self{Namespace: "nodedrift-system", Pod: "nodedrift-x7k2p", Token: func() (string, error) { return "token", nil }}

// newProbe is a probe of a recorded node, whose names are those of its /etc/hosts.
func newProbe(n *host.Node) probes.Probe {
	p := New(n.Root, n.Proc, n.Units, n.CRI, ownPod, nil, Config{})
	p.tcp = &fakeSockets{heard: -1, listener: 1}
	p.lookup = func(_ context.Context, name string) ([]netip.Addr, error) {
		if ip, err := netip.ParseAddr(name); err == nil {
			return []netip.Addr{ip}, nil
		}
		b, err := fs.ReadFile(n.Root, "etc/hosts")
		if found := parseHosts(string(b), name); len(found) > 0 || err != nil {
			return found, err
		}
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return p
}
