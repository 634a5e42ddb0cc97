package azurecni

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// bridgeUp is B-BRIDGE. Before the first pod there is none.
func (v *view) bridgeUp(say func(probes.Finding)) {
	name := v.bridgeName()
	switch l := v.linkNamed(name); {
	case l == nil && len(v.pods) == 0:
	case l == nil:
		say(probes.Finding{Subject: name, Message: "the bridge is missing", Observed: "missing"})
	case l.kind != "bridge":
		say(probes.Finding{Subject: name, Message: "is no bridge but a " + l.kind, Observed: l.kind, Wanted: "bridge"})
	case !l.up():
		say(probes.Finding{Subject: name, Message: "the bridge is down", Observed: "down", Wanted: "up"})
	}
}

// built tells whether bridge mode has been set up since the boot.
func (v *view) built() bool {
	return len(v.pods) > 0 || v.linkNamed(v.bridgeName()) != nil || v.hasPodLinks()
}

// uplinkEnslaved is B-UPLINK-MASTER.
func (v *view) uplinkEnslaved(say func(probes.Finding)) {
	l, name := v.uplink, v.bridgeName()
	if l == nil || !v.built() {
		return
	}
	switch b := v.linkNamed(name); {
	case b == nil || l.master != b.index:
		say(probes.Finding{Subject: l.name, Message: "is no port of " + name + ": pods are cut off from the network", Observed: "master " + v.linkName(l.master), Wanted: "master " + name})
	case l.isPort && l.state != forwardingPort:
		say(probes.Finding{Subject: l.name, Message: "its port of " + name + " is " + portStateName(l.state), Observed: portStateName(l.state), Wanted: "forwarding"})
	}
}

func portStateName(state uint8) string {
	names := []string{"disabled", "listening", "learning", "forwarding", "blocking"}
	if int(state) < len(names) {
		return names[state]
	}
	return fmt.Sprint(state)
}

// addressPlace is B-L3-PLACE.
func (v *view) addressPlace(say func(probes.Finding)) {
	l := v.uplink
	if l == nil || !v.built() {
		return
	}
	for _, p := range v.addrsOf[l.index] {
		if !p.Addr().IsLinkLocalUnicast() {
			say(probes.Finding{Subject: l.name, Message: fmt.Sprintf("has the address %s, which belongs on %s", p, v.bridgeName()), Observed: p.Addr().String(), Wanted: "on " + v.bridgeName()})
		}
	}
	for _, r := range v.defaults() {
		if r.oif == l.index {
			say(probes.Finding{Subject: l.name + " default route", Message: fmt.Sprintf("the route %s belongs on %s", v.describe(r), v.bridgeName()), Observed: v.describe(r), Wanted: "dev " + v.bridgeName()})
		}
	}
}

// bridgeMAC is B-BRIDGE-MAC.
func (v *view) bridgeMAC(say func(probes.Finding)) {
	b := v.linkNamed(v.bridgeName())
	if b == nil || v.uplink == nil || b.mac == v.uplink.mac {
		return
	}
	say(probes.Finding{Subject: b.name, Message: fmt.Sprintf("its MAC is %s, that of %s %s; each change flushes the pods' neighbours", b.mac, v.uplink.name, v.uplink.mac),
		Observed: b.mac.String(), Wanted: v.uplink.mac.String()})
}

const (
	isMissing  = "is missing"
	noVethTold = "the CNI's state does not tell a pod's host veth"
	noMACTold  = "the CNI's state does not tell a pod's MAC"
)

// portUp is B-PORT.
func (v *view) portUp(say func(probes.Finding)) {
	name := v.bridgeName()
	b := v.linkNamed(name)
	v.eachVeth(func(p *pod, l *link) {
		wrong := ""
		switch {
		case l == nil:
			wrong = isMissing
		case b == nil || l.master != b.index:
			wrong = "is no port of " + name
		case !l.up():
			wrong = "is down"
		case !l.carrier():
			wrong = "has no carrier: the pod's end is down"
		case l.isPort && l.state != forwardingPort:
			wrong = "is " + portStateName(l.state) + ", not forwarding"
		default:
			return
		}
		say(probes.Finding{Subject: p.subject(p.first()), Message: fmt.Sprintf("host veth %s %s", p.veth, wrong), Observed: wrong, Wanted: "a forwarding port of " + name})
	})
}

// eachPort calls do for the pods' ports of the bridge and the uplink's.
func (v *view) eachPort(do func(l *link, subject string)) {
	b := v.linkNamed(v.bridgeName())
	if b == nil {
		return
	}
	pods := make(map[string]string, len(v.pods))
	for i := range v.pods {
		pods[v.pods[i].veth] = v.pods[i].subject(v.pods[i].first())
	}
	for i := range v.now.links {
		l := &v.now.links[i]
		if l.master != b.index || l != v.uplink && !podLink(l.name) {
			continue
		}
		if !l.isPort {
			v.unsure("the kernel does not tell the flags of port " + l.name)
			continue
		}
		subject := pods[l.name]
		if subject == "" {
			subject = l.name
		}
		do(l, subject)
	}
}

// portFlags is B-PORT-FLAGS.
func (v *view) portFlags(say func(probes.Finding)) {
	v.eachPort(func(l *link, subject string) {
		for _, f := range []struct {
			name     string
			is, want bool
		}{{"learning", l.learning, true}, {"flood", l.flood, true}, {"isolated", l.isolated, false}, {"guard", l.guard, false}} {
			if f.is != f.want {
				say(probes.Finding{Subject: subject, Message: fmt.Sprintf("port %s: %s is %s", l.name, f.name, onOff(f.is)), Observed: f.name + " " + onOff(f.is), Wanted: f.name + " " + onOff(f.want)})
				return
			}
		}
	})
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// portHairpin is B-HAIRPIN.
func (v *view) portHairpin(say func(probes.Finding)) {
	v.eachPort(func(l *link, subject string) {
		if !l.hairpin && !(l == v.uplink && v.conf.noHairpin) {
			say(probes.Finding{Subject: subject, Message: "port " + l.name + ": hairpin is off", Observed: "hairpin off", Wanted: "hairpin on"})
		}
	})
}

// portOrphan is B-PORT-ORPHAN.
func (v *view) portOrphan(say func(probes.Finding)) {
	b := v.linkNamed(v.bridgeName())
	for i := range v.now.links {
		if l := &v.now.links[i]; b != nil && podLink(l.name) && l.master == b.index && !v.owned[l.name] {
			say(probes.Finding{Subject: l.name, Message: "a port of " + b.name + " without a pod"})
		}
	}
}

// permanent is the bridge's permanent neighbour of an address, or nil.
func (v *view) permanent(ip netip.Addr) *neigh {
	b := v.linkNamed(v.bridgeName())
	for _, n := range v.neighsOf[ip] {
		if b != nil && n.index == b.index && n.state == neighPermanent {
			return n
		}
	}
	return nil
}

// neighborMissing is B-NEIGH-MISSING.
func (v *view) neighborMissing(say func(probes.Finding)) {
	v.eachIP(func(p *pod, ip netip.Addr) {
		if ip.Is4() && v.permanent(ip) == nil {
			say(probes.Finding{Subject: p.subject(ip), Message: "permanent neighbour on " + v.bridgeName() + " is missing", Observed: "missing", Wanted: p.mac.String()})
		}
	})
}

// neighborMAC is B-NEIGH-MAC.
func (v *view) neighborMAC(say func(probes.Finding)) {
	v.eachIP(func(p *pod, ip netip.Addr) {
		switch n := v.permanent(ip); {
		case n == nil:
		case p.mac == mac{}:
			v.unsure(noMACTold)
		case n.mac != p.mac:
			say(probes.Finding{Subject: p.subject(ip), Message: fmt.Sprintf("permanent neighbour is %s; the pod's MAC is %s", n.mac, p.mac), Observed: n.mac.String(), Wanted: p.mac.String()})
		}
	})
}

// neighborStale is B-NEIGH-STALE.
func (v *view) neighborStale(say func(probes.Finding)) {
	b := v.linkNamed(v.bridgeName())
	for i := range v.now.neighs {
		n := &v.now.neighs[i]
		if b != nil && n.index == b.index && n.state == neighPermanent && len(v.owners[n.ip]) == 0 && !v.ownedIP[n.ip] {
			say(probes.Finding{Subject: n.ip.String(), Message: fmt.Sprintf("a permanent neighbour (%s) that no pod has", n.mac), Observed: n.mac.String()})
		}
	}
}

// routeRemains is B-MODE-MIX.
func (v *view) routeRemains(say func(probes.Finding)) {
	for i := range v.now.routes {
		r := &v.now.routes[i]
		if r.table != tableMain || !r.dst.IsSingleIP() || r.kind != unix.RTN_UNICAST || r.proto == protoKernel {
			continue
		}
		if name, ip := v.linkName(r.oif), r.dst.Addr(); podLink(name) || name == v.bridgeName() && len(v.owners[ip]) > 0 {
			say(probes.Finding{Subject: ip.String(), Message: "a route of transparent mode on a node in bridge mode: " + v.describe(r), Observed: v.describe(r)})
		}
	}
}

// conntrack tells of inserts and packets that connection tracking refuses: the
// race that makes DNS answers five seconds late.
func (v *view) conntrack(say func(probes.Finding)) {
	v.unsure(v.memory.conntrack.doubt)
	if v.memory.conntrack.rising {
		say(probes.Finding{Subject: "conntrack", Message: "inserts fail (insert_failed, drop): DNS answers may take 5 s", Observed: "failing"})
	}
}

// dnsServers tells of DNS servers that the CNI lost when it copied the uplink's.
func (v *view) dnsServers(say func(probes.Finding)) {
	if lease := v.counters.leaseDNS; len(lease) > 1 && len(v.state.dns) == 1 && v.state.dns[0] == lease[0] {
		say(probes.Finding{Subject: v.bridgeName(), Message: fmt.Sprintf("has the first of %d DNS servers only", len(lease)), Observed: v.state.dns[0], Wanted: some(lease, len(lease), 3)})
	}
}
