package azurecni

import (
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

// A podGateway is what a pod's own network namespace has.
type podGateway struct {
	via     netip.Addr // of its default route; zero is none
	gateway mac        // of the virtual gateway's neighbour; zero is none
	err     error
}

// hostRoots are where the node's root may be mounted for the agent.
var hostRoots = []string{"", "/host", "/proc/1/root"}

// podGateways implements [netstack]: it enters each pod's network namespace in a
// thread that is thrown away. It needs SYS_ADMIN.
func (*kernel) podGateways(pods []pod) map[string]podGateway {
	found := make(map[string]podGateway, len(pods))
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for i := range pods {
			if p := &pods[i]; p.netns != "" && p.first().Is4() {
				found[p.netns] = readPodGateway(p.netns)
			}
		}
	}()
	<-done
	return found
}

func readPodGateway(netns string) (g podGateway) {
	if g.err = enter(netns); g.err != nil {
		return g
	}
	k := newKernel()
	defer k.close()
	var s snapshot
	if g.err = k.observe(&s, false); g.err != nil {
		return g
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
	return g
}

// enter moves the calling thread into a network namespace below /run/netns.
func enter(netns string) error {
	clean := path.Clean("/" + netns)
	if !strings.HasPrefix(clean, "/run/netns/") && !strings.HasPrefix(clean, "/var/run/netns/") {
		return fmt.Errorf("%q is no network namespace", netns)
	}
	var last error
	for _, root := range hostRoots {
		fd, err := unix.Open(root+"/run/netns/"+path.Base(clean), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			last = err
			continue
		}
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("enter %s: %w", clean, err)
		}
		return nil
	}
	return fmt.Errorf("enter %s: %w", clean, last)
}

// gatewayInPod is T-POD-GW. A pod whose namespace is not known, is shared by
// others (a test's) or has gone is not judged.
func (v *view) gatewayInPod(say func(probes.Finding)) {
	for i := range v.pods {
		p := &v.pods[i]
		g, asked := v.gateways[p.netns]
		l := v.linkNamed(p.veth)
		switch {
		case !p.first().Is4():
		case !asked:
			v.unsure("nobody tells the pods' network namespaces")
		case v.sharedNetNS(p.netns):
			v.unsure("pods share a network namespace")
		case g.err != nil:
			v.unsure(g.err.Error())
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

func (v *view) sharedNetNS(netns string) bool {
	n := 0
	for i := range v.pods {
		if v.pods[i].netns == netns {
			n++
		}
	}
	return n > 1
}
