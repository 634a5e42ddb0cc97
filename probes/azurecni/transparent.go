package azurecni

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// constantMAC is every host veth's since CNI 1.4.31 (ACN PR #1524).
var constantMAC = mac{0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa}

// sandboxGrace is how long after its sandbox was made a pod's route may be late.
const sandboxGrace = 60 * s

// eachIP calls do for every address of a pod that should work, once for each.
func (v *view) eachIP(do func(p *pod, ip netip.Addr)) {
	for i := range v.pods {
		p := &v.pods[i]
		for j, ip := range p.ips {
			if !v.shared || v.owners[ip][0] == i && (j == 0 || ip != p.ips[0]) {
				do(p, ip)
			}
		}
	}
}

// hasRoute tells whether an address has a unicast route of its own.
func (v *view) hasRoute(ip netip.Addr) bool {
	for _, r := range v.hosts[ip] {
		if r.table == tableMain && r.kind == unix.RTN_UNICAST && r.made() {
			return true
		}
	}
	return false
}

// routeMissing is T-ROUTE-MISSING. Many at once are critical.
func (v *view) routeMissing(say func(probes.Finding)) {
	var missing []probes.Finding
	total := 0
	v.eachIP(func(p *pod, ip netip.Addr) {
		if !ip.Is4() {
			return
		}
		if total++; !v.hasRoute(ip) {
			missing = append(missing, v.missingRoute(p, ip))
		}
	})
	many := len(missing) > 3 || len(missing)*5 > total
	for _, f := range missing {
		if many {
			f.Severity = critical
		}
		say(f)
	}
}

func (v *view) missingRoute(p *pod, ip netip.Addr) probes.Finding {
	f := probes.Finding{Subject: p.subject(ip), Message: "route missing; expected dev " + p.veth, Observed: "missing", Wanted: "dev " + p.veth}
	if age := v.at.Sub(p.created); !p.created.IsZero() && age < sandboxGrace && age >= 0 {
		f.Hold = max(sandboxGrace-age, 15*s)
	}
	return f
}

// routeWrongDevice is T-ROUTE-WRONG-DEV.
func (v *view) routeWrongDevice(say func(probes.Finding)) {
	v.eachIP(func(p *pod, ip netip.Addr) {
		list := v.hostRoutes(ip)
		if len(list) == 0 {
			return
		}
		if p.veth == "" {
			v.unsure(noVethTold)
			return
		}
		r := list[0]
		if r.kind != unix.RTN_UNICAST || v.linkName(r.oif) == p.veth && !r.gw.IsValid() {
			return
		}
		say(probes.Finding{Subject: p.subject(ip), Message: fmt.Sprintf("route goes to %s; expected dev %s", v.hop(r), p.veth),
			Observed: "dev " + v.linkName(r.oif), Wanted: "dev " + p.veth})
	})
}

// hop is where a route leads.
func (v *view) hop(r *route) string {
	if r.gw.IsValid() {
		return fmt.Sprintf("%s via %s", v.linkName(r.oif), r.gw)
	}
	return v.linkName(r.oif)
}

// routeTwice is T-ROUTE-DUP.
func (v *view) routeTwice(say func(probes.Finding)) {
	v.eachIP(func(p *pod, ip netip.Addr) {
		if list := v.hostRoutes(ip); len(list) > 1 || len(list) == 1 && list[0].hops > 1 {
			r := list[len(list)-1]
			say(probes.Finding{Subject: p.subject(ip), Message: fmt.Sprintf("%d routes; the extra one: %s", max(len(list), int(r.hops)), v.describe(r)), Observed: v.describe(r), Wanted: "dev " + p.veth})
		}
	})
}

// routeAttributes is T-ROUTE-ATTR.
func (v *view) routeAttributes(say func(probes.Finding)) {
	v.eachIP(func(p *pod, ip netip.Addr) {
		list := v.hostRoutes(ip)
		if len(list) == 0 || list[0].kind != unix.RTN_UNICAST || v.linkName(list[0].oif) != p.veth || list[0].gw.IsValid() {
			return
		}
		r, metric := list[0], uint32(0)
		if ip.Is6() {
			metric = 1024
		}
		if r.proto != protoStatic || r.scope != unix.RT_SCOPE_UNIVERSE || r.metric != metric {
			say(probes.Finding{Subject: p.subject(ip), Message: fmt.Sprintf("route was not made by the CNI (proto %d scope %d metric %d)", r.proto, r.scope, r.metric),
				Observed: fmt.Sprintf("proto %d scope %d metric %d", r.proto, r.scope, r.metric), Wanted: fmt.Sprintf("proto %d scope 0 metric %d", protoStatic, metric)})
		}
	})
}

// routeStale is T-ROUTE-STALE.
func (v *view) routeStale(say func(probes.Finding)) {
	for i := range v.now.routes {
		r := &v.now.routes[i]
		if r.table != tableMain || !r.dst.IsSingleIP() || r.kind != unix.RTN_UNICAST || !r.made() || !podLink(v.linkName(r.oif)) {
			continue
		}
		if ip := r.dst.Addr(); len(v.owners[ip]) == 0 && !v.ownedIP[ip] {
			say(probes.Finding{Subject: ip.String(), Message: fmt.Sprintf("route to %s, which no pod has", v.linkName(r.oif)), Observed: "dev " + v.linkName(r.oif)})
		}
	}
}

// eachVeth calls do for each pod that should work, with its host veth; nil is none.
func (v *view) eachVeth(do func(p *pod, l *link)) {
	for i := range v.pods {
		p := &v.pods[i]
		if p.veth == "" {
			v.unsure(noVethTold)
			continue
		}
		do(p, v.linkNamed(p.veth))
	}
}

// vethMissing is T-VETH-MISSING.
func (v *view) vethMissing(say func(probes.Finding)) {
	v.eachVeth(func(p *pod, l *link) {
		switch {
		case l == nil:
			say(probes.Finding{Subject: p.subject(p.first()), Message: "host veth " + p.veth + " is missing", Observed: "missing", Wanted: p.veth})
		case l.kind != "veth":
			say(probes.Finding{Subject: p.subject(p.first()), Message: fmt.Sprintf("%s is no veth but a %s", p.veth, l.kind), Observed: l.kind, Wanted: "veth"})
		}
	})
}

// eachLive calls do for each pod whose host veth is there.
func (v *view) eachLive(do func(p *pod, l *link)) {
	v.eachVeth(func(p *pod, l *link) {
		if l != nil && l.kind == "veth" {
			do(p, l)
		}
	})
}

// vethDown is T-VETH-STATE.
func (v *view) vethDown(say func(probes.Finding)) {
	v.eachLive(func(p *pod, l *link) {
		switch {
		case !l.up():
			say(probes.Finding{Subject: p.subject(p.first()), Message: "host veth " + l.name + " is down", Observed: "down", Wanted: "up"})
		case !l.carrier():
			say(probes.Finding{Subject: p.subject(p.first()), Message: "host veth " + l.name + " has no carrier: the pod's end is down", Observed: "no carrier", Wanted: "up"})
		}
	})
}

// vethOrphan is T-VETH-ORPHAN.
func (v *view) vethOrphan(say func(probes.Finding)) {
	for i := range v.now.links {
		l := &v.now.links[i]
		if !podLink(l.name) {
			continue
		}
		switch {
		case v.owned[l.name] && !l.elsewhere && l.kind == "veth":
			say(probes.Finding{Subject: l.name, Hold: 2 * m, Message: "both ends of it are on the host", Observed: "here"})
		case v.owned[l.name]:
		case !l.elsewhere:
			say(probes.Finding{Subject: l.name, Hold: 2 * m, Message: "a veth without a pod, both ends on the host", Observed: "here"})
		default:
			say(probes.Finding{Subject: l.name, Message: "a veth without a pod", Observed: "elsewhere"})
		}
	}
}

// vethMAC is T-VETH-MAC. A CNI before 1.4.31 left MACs random: then none is the
// constant one, and nothing is held to it.
func (v *view) vethMAC(say func(probes.Finding)) {
	if !v.memory.constMAC && !v.anyConstantMAC() {
		return
	}
	v.eachLive(func(p *pod, l *link) {
		if l.mac != constantMAC {
			say(probes.Finding{Subject: p.subject(p.first()), Message: fmt.Sprintf("MAC of %s is %s; the pod sends to %s", l.name, l.mac, constantMAC), Observed: l.mac.String(), Wanted: constantMAC.String()})
		}
	})
}

func (v *view) anyConstantMAC() (found bool) {
	v.eachLive(func(_ *pod, l *link) { found = found || l.mac == constantMAC })
	return found
}

// vethMTU is T-VETH-MTU. Pods older than a raise of the uplink's keep their lower one.
func (v *view) vethMTU(say func(probes.Finding)) {
	if v.uplink == nil {
		return
	}
	v.eachLive(func(p *pod, l *link) {
		if l.mtu == v.uplink.mtu {
			return
		}
		f := probes.Finding{Subject: p.subject(p.first()), Message: fmt.Sprintf("MTU of %s is %d, that of %s %d", l.name, l.mtu, v.uplink.name, v.uplink.mtu),
			Observed: fmt.Sprint(l.mtu), Wanted: fmt.Sprint(v.uplink.mtu)}
		if l.mtu < v.uplink.mtu {
			f.Severity = info
		}
		say(f)
	})
}

// vethProxyARP is T-PROXY-ARP.
func (v *view) vethProxyARP(say func(probes.Finding)) {
	v.eachLive(func(p *pod, l *link) {
		if !l.conf {
			v.unsure(untold(l.name))
		} else if l.proxyARP == 0 {
			key := "net.ipv4.conf." + l.name + ".proxy_arp"
			say(probes.Finding{Subject: p.subject(p.first()), Message: key + " is 0, want 1: the pod cannot find its gateway", Observed: "0", Wanted: "1",
				Trace: probes.Key{Domain: "sysctl", Name: key}})
		}
	})
}

// vethAddress is T-VETH-ADDR: addresses on pods' links, and pods' addresses in
// table local, which eats their traffic.
func (v *view) vethAddress(say func(probes.Finding)) {
	for i := range v.now.links {
		l := &v.now.links[i]
		if !podLink(l.name) {
			continue
		}
		for _, p := range v.addrsOf[l.index] {
			if p.Addr().Is4() {
				say(probes.Finding{Subject: l.name, Message: fmt.Sprintf("has the address %s on the host", p), Observed: p.Addr().String()})
			}
		}
	}
	v.eachIP(func(p *pod, ip netip.Addr) {
		for _, r := range v.hosts[ip] {
			if r.table == tableLocal && r.kind == unix.RTN_LOCAL {
				say(probes.Finding{Subject: p.subject(ip), Message: "is local to the host: table local has it on " + v.linkName(r.oif), Observed: "dev " + v.linkName(r.oif), Wanted: "dev " + p.veth})
				return
			}
		}
	})
}

// failedLooks is in how many looks in a row a neighbour must have failed anew.
const failedLooks = 3

// vethNeighbor is T-NEIGH.
func (v *view) vethNeighbor(say func(probes.Finding)) {
	v.eachIP(func(p *pod, ip netip.Addr) {
		l := v.linkNamed(p.veth)
		if l == nil {
			return
		}
		for _, n := range v.neighsOf[ip] {
			wrong := ""
			switch {
			case n.index != l.index || n.state == neighNone || n.state == neighNoARP:
			case n.state == neighFailed && v.memory.failed[ip] >= failedLooks:
				wrong = "the pod does not answer ARP"
			case n.state == neighFailed:
			case p.mac == mac{} && n.state == neighValid:
				v.unsure(noMACTold)
			case p.mac != (mac{}) && n.mac != p.mac:
				wrong = fmt.Sprintf("neighbour on %s is %s; the pod's MAC is %s", l.name, n.mac, p.mac)
			case n.state == neighPermanent:
				wrong = "neighbour on " + l.name + " is permanent; it stays when the pod's MAC changes"
			}
			if wrong != "" {
				say(probes.Finding{Subject: p.subject(ip), Message: wrong, Observed: n.mac.String(), Wanted: p.mac.String()})
			}
		}
	})
}

// bridgeRemains is T-MODE-MIX.
func (v *view) bridgeRemains(say func(probes.Finding)) {
	for i := range v.now.links {
		l := &v.now.links[i]
		switch {
		case l.kind == "bridge" && len(l.name) > 5 && l.name[:5] == "azure":
			say(probes.Finding{Subject: l.name, Message: "a bridge of bridge mode on a node in transparent mode", Observed: "bridge"})
		case l == v.uplink && l.master != 0:
			say(probes.Finding{Subject: l.name, Message: "the node's NIC is a port of " + v.linkName(l.master), Observed: "master " + v.linkName(l.master)})
		case podLink(l.name) && l.master != 0:
			say(probes.Finding{Subject: l.name, Message: "a pod's veth is a port of " + v.linkName(l.master), Observed: "master " + v.linkName(l.master)})
		}
	}
}

// dualStack is T-V6.
func (v *view) dualStack(say func(probes.Finding)) {
	if !v.dual {
		return
	}
	v.eachIP(func(p *pod, ip netip.Addr) {
		if ip.Is6() && !v.hasRoute(ip) {
			f := v.missingRoute(p, ip)
			f.Reason = PodRouteMissing
			say(f)
		}
	})
	v.eachLive(func(p *pod, l *link) {
		if !l.conf6 {
			v.unsure(untold(l.name))
		} else if l.acceptRA != 0 {
			key := "net.ipv6.conf." + l.name + ".accept_ra"
			say(probes.Finding{Subject: p.subject(p.first()), Hold: 60 * s, Message: fmt.Sprintf("%s is %d, want 0", key, l.acceptRA), Observed: fmt.Sprint(l.acceptRA), Wanted: "0",
				Trace: probes.Key{Domain: "sysctl", Name: key}})
		}
	})
	switch v.now.forward6 {
	case -1:
		v.unsure(untold("all"))
	case 0:
		say(probes.Finding{Subject: "net.ipv6.conf.all.forwarding", Severity: critical, Hold: 30 * s, Message: "pods have no IPv6: net.ipv6.conf.all.forwarding is 0, want 1", Observed: "0", Wanted: "1"})
	}
}
