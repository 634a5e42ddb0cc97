package azurecni

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// virtualGateway is every pod's in transparent mode; proxy ARP answers for it.
var virtualGateway = netip.AddrFrom4([4]byte{169, 254, 1, 1})

// A netnsPlace says where a pod's network namespace is to be found.
type netnsPlace struct {
	path string // "/run/netns/cni-..."; "" where nobody tells
	id   int32  // of the peer of the pod's host veth; -1 where nobody tells
}

// A podGateway is what a pod's own network namespace has.
type podGateway struct {
	netns   string     // its path
	via     netip.Addr // of its default route; zero is none
	gateway mac        // of the virtual gateway's neighbour; zero is none
	err     error
}

// netnsPlaces are where the pods' network namespaces are: as the runtime or the
// CNI's state say, else at the other end of their veths.
func (v *view) netnsPlaces() []netnsPlace {
	list := make([]netnsPlace, len(v.pods))
	for i := range v.pods {
		list[i] = netnsPlace{v.pods[i].netns, -1}
		if l := v.linkNamed(v.pods[i].veth); l != nil && l.elsewhere {
			list[i].id = l.peerNS
		}
	}
	return list
}

// namespaces is where network namespaces have names (ip-netns(8)).
const namespaces = "/run/netns"

// podGateways implements [netstack]: it enters each pod's network namespace in a
// thread that is thrown away. It needs SYS_ADMIN.
func (k *kernel) podGateways(root tree, pods []netnsPlace) []podGateway {
	found := make([]podGateway, len(pods))
	var names map[int32]string
	var err error
	for i, p := range pods {
		if p.path == "" && p.id >= 0 && names == nil && err == nil {
			names, err = k.nameNetNS(root)
		}
		switch found[i].netns = cmp.Or(p.path, names[p.id]); {
		case found[i].netns != "":
		case err != nil:
			found[i].err = err
		default:
			found[i].err = errors.New("nobody tells the pods' network namespaces")
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for i := range found {
			if found[i].err == nil {
				found[i].read(root)
			}
		}
	}()
	<-done
	return found
}

// nameNetNS finds the names of network namespaces by the ids that this one has
// for them. Those that have gone meanwhile, and what is none, have no id.
func (k *kernel) nameNetNS(root tree) (map[int32]string, error) {
	entries, err := root.ReadDir(namespaces[1:])
	if err != nil {
		return nil, err
	}
	names := make(map[int32]string, len(entries))
	for _, e := range entries[:min(len(entries), maxEndpoints)] {
		f, err := root.OpenNetNS(namespaces[1:] + "/" + e.Name())
		if err != nil {
			continue
		}
		id, err := k.netnsID(int(f.Fd()))
		f.Close()
		if err != nil {
			return nil, err
		}
		if id >= 0 {
			names[id] = namespaces + "/" + e.Name()
		}
	}
	return names, nil
}

// netnsID is the id that this network namespace has for another one
// (RTM_GETNSID, linux/net_namespace.h); -1 is none.
func (k *kernel) netnsID(fd int) (id int32, err error) {
	const nsID, nsFD = 1, 3 // NETNSA_*
	b := k.body(4 + 8)
	binary.NativeEndian.PutUint16(b[4:], 8)
	binary.NativeEndian.PutUint16(b[6:], nsFD)
	binary.NativeEndian.PutUint32(b[8:], uint32(fd))
	id = -1
	if err = k.request(unix.RTM_GETNSID, 0, len(b)); err == nil {
		err = k.receive(func(_ uint16, b []byte) {
			for kind, v := range attrs(b[min(4, len(b)):]) {
				if kind == nsID {
					id = int32(u32(v))
				}
			}
		})
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // it is no network namespace
		k.close()
		return -1, fmt.Errorf("ask for the id of a network namespace: %w", err)
	}
	return id, nil
}

// read looks into the network namespace.
func (g *podGateway) read(root tree) {
	if g.err = enter(root, g.netns); g.err != nil {
		return
	}
	k := newKernel()
	defer k.close()
	var s snapshot
	if g.err = k.observe(&s, false); g.err != nil {
		return
	}
	for _, r := range s.routes {
		if r.table == tableMain && r.dst.Bits() == 0 && (!g.via.IsValid() || r.gw == virtualGateway) {
			g.via = r.gw
		}
	}
	for _, n := range s.neighs {
		if n.ip == virtualGateway && (n.state == neighValid || n.state == neighPermanent) {
			g.gateway = n.mac
		}
	}
}

// enter moves the calling thread into a network namespace below /run/netns.
func enter(root tree, netns string) error {
	clean := path.Clean("/" + netns)
	if !strings.HasPrefix(clean, namespaces+"/") && !strings.HasPrefix(clean, "/var"+namespaces+"/") {
		return fmt.Errorf("%q is no network namespace", netns)
	}
	f, err := root.OpenNetNS(namespaces[1:] + "/" + path.Base(clean))
	if err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", clean, err)
	}
	return nil
}

// gatewayInPod is T-POD-GW. A pod whose namespace is not known, is shared by
// others (a test's) or has gone is not judged.
func (v *view) gatewayInPod(say func(probes.Finding)) {
	in := make(map[string]int, len(v.gateways))
	for i := range v.gateways {
		in[v.gateways[i].netns]++
	}
	for i := range v.pods {
		p := &v.pods[i]
		if !p.first().Is4() {
			continue
		}
		g, l := &v.gateways[i], v.linkNamed(p.veth)
		switch {
		case g.err != nil:
			v.unsure(g.err.Error())
		case in[g.netns] > 1:
			v.unsure("pods share a network namespace")
		case g.via != virtualGateway:
			say(probes.Finding{Subject: p.subject(p.first()), Message: fmt.Sprintf("in the pod: no default route via %s", virtualGateway), Observed: via(g.via), Wanted: "via " + virtualGateway.String()})
		case l != nil && g.gateway != (mac{}) && g.gateway != l.mac:
			say(probes.Finding{Subject: p.subject(p.first()), Message: fmt.Sprintf("in the pod: %s is at %s, and %s has %s", virtualGateway, g.gateway, l.name, l.mac), Observed: g.gateway.String(), Wanted: l.mac.String()})
		}
	}
}

func via(ip netip.Addr) string {
	if !ip.IsValid() {
		return "missing"
	}
	return "via " + ip.String()
}
