package azurecni

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// modesAgree is N-MODE.
func (v *view) modesAgree(say func(probes.Finding)) {
	var words []string
	add := func(who string, is mode) {
		if is != unknown {
			words = append(words, who+" "+is.String())
		}
	}
	add("the conflist says", v.conf.mode)
	add("the state file says", v.state.mode)
	add("the kernel looks like", v.kernelIs)
	conf, state, kernel := v.conf.mode, v.state.mode, v.kernelIs
	fits := (conf == unknown || state == unknown || conf == state) &&
		(kernel == unknown || v.mode.like(kernel) && (conf == unknown || conf.like(kernel)) || v.mode == observed || v.mode == transparentVLAN)
	if !fits {
		say(probes.Finding{Subject: "mode", Message: strings.Join(words, ", "), Source: v.conf.path})
	}
}

// uplinkUp is N-UPLINK.
func (v *view) uplinkUp(say func(probes.Finding)) {
	name := v.uplinkName()
	switch l := v.uplink; {
	case l == nil:
		say(probes.Finding{Subject: name, Message: "the node's NIC is missing"})
	case !l.up():
		say(probes.Finding{Subject: name, Message: "the node's NIC is down"})
	case !l.carrier():
		say(probes.Finding{Subject: name, Message: "the node's NIC has no carrier"})
	}
}

// nodeAddress is N-NODE-IP.
func (v *view) nodeAddress(say func(probes.Finding)) {
	place := v.l3Name()
	wanted := v.nodeAddrs()
	if len(wanted) == 0 {
		if !v.hasGlobal(v.l3) {
			say(probes.Finding{Subject: place, Message: "the node's address is gone: no IPv4 address on " + place})
		}
		return
	}
	for _, ip := range wanted {
		where := v.holders(ip)
		if v.l3 == nil || !slices.Contains(where, v.l3) {
			say(probes.Finding{Subject: ip.String(), Message: fmt.Sprintf("the node's address %s is not on %s", ip, place), Observed: names(where), Wanted: place})
			continue
		}
		for _, l := range where {
			if l != v.l3 && !(v.mode&anyBridge != 0 && l == v.uplink) { // that is B-L3-PLACE
				say(probes.Finding{Subject: ip.String(), Message: fmt.Sprintf("the node's address %s is on %s too", ip, l.name), Observed: names(where), Wanted: place})
			}
		}
	}
}

// nodeAddrs are the node's addresses as the CNI's state, DHCP's routes or the
// last look in order knew them.
func (v *view) nodeAddrs() []netip.Addr {
	var list []netip.Addr
	for _, ip := range v.state.nodeIPs {
		if ip.Is4() {
			list = append(list, ip)
		}
	}
	if len(list) > 0 {
		return list
	}
	for i := range v.now.routes {
		r := &v.now.routes[i]
		if r.table == tableMain && r.proto == protoDHCP && r.src.Is4() && v.l3 != nil && r.oif == v.l3.index && !slices.Contains(list, r.src) {
			list = append(list, r.src)
		}
	}
	if len(list) == 0 && v.memory.nodeIP.IsValid() {
		list = append(list, v.memory.nodeIP)
	}
	return list
}

// hasGlobal tells whether a link has an IPv4 address of more than the link.
func (v *view) hasGlobal(l *link) bool {
	return l != nil && slices.ContainsFunc(v.addrsOf[l.index], func(p netip.Prefix) bool { return p.Addr().Is4() && !p.Addr().IsLinkLocalUnicast() })
}

func names(links []*link) string {
	list := make([]string, len(links))
	for i, l := range links {
		list[i] = l.name
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// defaultRoute is N-DEFAULT.
func (v *view) defaultRoute(say func(probes.Finding)) {
	const subject = "default route"
	list := v.defaults()
	if len(list) == 0 {
		say(probes.Finding{Subject: subject, Message: "missing; expected dev " + v.l3Name(), Wanted: "dev " + v.l3Name()})
		return
	}
	best := list[0]
	if wrong := v.wrongDefault(best); wrong != "" {
		say(probes.Finding{Subject: subject, Message: wrong, Observed: v.describe(best), Wanted: "dev " + v.l3Name()})
		return
	}
	for _, r := range list[1:] {
		if r.oif == best.oif && r.kind == unix.RTN_UNICAST {
			say(probes.Finding{Subject: subject, Severity: warning, Hold: 2 * m, Observed: v.describe(r),
				Message: fmt.Sprintf("a second one stands on %s: %s", v.linkName(r.oif), v.describe(r))})
			return
		}
	}
}

// wrongDefault says what is wrong with the default route that wins.
func (v *view) wrongDefault(r *route) string {
	subnet := v.nodeSubnet()
	known := v.knownGateways(subnet)
	_, via, _ := strings.Cut(v.describe(r), "default ")
	switch {
	case r.kind != unix.RTN_UNICAST:
		return "the one that wins is " + kindName(r.kind)
	case v.l3 == nil || r.oif != v.l3.index:
		return fmt.Sprintf("leaves by %s, expected %s", v.linkName(r.oif), v.l3Name())
	case !r.gw.IsValid():
		return "has no gateway (" + via + ")"
	case subnet.IsValid() && !subnet.Contains(r.gw):
		return fmt.Sprintf("its gateway %s is outside of %s", r.gw, subnet)
	case len(v.holders(r.gw)) > 0:
		return fmt.Sprintf("its gateway %s is this node itself", r.gw)
	case len(known) > 0 && !slices.Contains(known, r.gw):
		return fmt.Sprintf("its gateway is %s, expected %s", r.gw, known[0])
	case r.proto != protoDHCP && v.managed():
		return "was not set by DHCP (" + via + ")"
	}
	return ""
}

// knownGateways are those of the node's subnet that the state file or DHCP's
// platform routes tell.
func (v *view) knownGateways(subnet netip.Prefix) (list []netip.Addr) {
	for _, gw := range v.state.gateways {
		if subnet.IsValid() && subnet.Contains(gw) {
			list = append(list, gw)
		}
	}
	for _, ip := range platform {
		for _, r := range v.hosts[ip] {
			if r.proto == protoDHCP && r.table == tableMain && r.gw.IsValid() && !slices.Contains(list, r.gw) {
				list = append(list, r.gw)
			}
		}
	}
	return list
}

// managed tells whether DHCP sets this node's routes: images with a fixed
// address use other protocols.
func (v *view) managed() bool {
	return v.state.dhcp || v.l3 != nil && slices.ContainsFunc(v.now.routes, func(r route) bool {
		return r.table == tableMain && r.proto == protoDHCP && r.oif == v.l3.index
	})
}

// describe writes a route as ip-route(8) does.
func (v *view) describe(r *route) string {
	var b strings.Builder
	if r.kind != unix.RTN_UNICAST {
		b.WriteString(kindName(r.kind) + " ")
	}
	switch {
	case r.dst.Bits() == 0:
		b.WriteString("default")
	case r.dst.IsSingleIP():
		b.WriteString(r.dst.Addr().String())
	default:
		b.WriteString(r.dst.String())
	}
	if r.gw.IsValid() {
		fmt.Fprintf(&b, " via %s", r.gw)
	}
	if r.oif != 0 {
		fmt.Fprintf(&b, " dev %s", v.linkName(r.oif))
	}
	if r.metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.metric)
	}
	return b.String()
}

func kindName(kind uint8) string {
	switch kind {
	case unix.RTN_UNICAST:
		return "unicast"
	case unix.RTN_LOCAL:
		return "local"
	case unix.RTN_BLACKHOLE:
		return "blackhole"
	case unix.RTN_UNREACHABLE:
		return "unreachable"
	case unix.RTN_PROHIBIT:
		return "prohibit"
	case unix.RTN_THROW:
		return "throw"
	}
	return fmt.Sprintf("type %d", kind)
}

// blocks tells whether a route of this type ends packets.
func blocks(kind uint8) bool {
	return kind == unix.RTN_BLACKHOLE || kind == unix.RTN_UNREACHABLE || kind == unix.RTN_PROHIBIT || kind == unix.RTN_THROW
}

// platformRoutes is N-PLATFORM.
func (v *view) platformRoutes(say func(probes.Finding)) {
	for _, ip := range platform {
		if l, ok := v.lookups[ip]; ok {
			switch {
			case l.err != nil && refusal(l.err) == "":
				v.unsure("look up " + ip.String() + ": " + l.err.Error())
			case l.err != nil:
				say(probes.Finding{Subject: ip.String(), Severity: critical, Message: "unreachable: " + refusal(l.err), Wanted: "dev " + v.l3Name()})
				continue
			case v.l3 == nil || l.oif != v.l3.index:
				say(probes.Finding{Subject: ip.String(), Severity: critical, Message: fmt.Sprintf("leaves by %s, expected %s", v.linkName(l.oif), v.l3Name()),
					Observed: "dev " + v.linkName(l.oif), Wanted: "dev " + v.l3Name()})
				continue
			}
		}
		if v.mode == transparent && !v.explicit(ip) && v.wantsExplicit(ip) {
			say(probes.Finding{Subject: ip.String(), Message: "DHCP's own route to it is gone; the default route still covers it", Wanted: "proto dhcp dev " + v.l3Name()})
		}
	}
}

// refusal is what the kernel's routes say instead of a way; "" for an error that
// is not theirs.
func refusal(err error) string {
	switch {
	case errors.Is(err, unix.ENETUNREACH):
		return "no route"
	case errors.Is(err, unix.EHOSTUNREACH):
		return "an unreachable route"
	case errors.Is(err, unix.EACCES):
		return "a prohibit route"
	case errors.Is(err, unix.EINVAL):
		return "a blackhole route"
	}
	return ""
}

// explicit tells whether DHCP's own route to a platform address is there.
func (v *view) explicit(ip netip.Addr) bool {
	return slices.ContainsFunc(v.hosts[ip], func(r *route) bool {
		return r.table == tableMain && r.kind == unix.RTN_UNICAST && r.proto == protoDHCP && v.l3 != nil && r.oif == v.l3.index
	})
}

// wantsExplicit tells whether this node has DHCP's platform routes at all: some
// images do not ask for them. It has them if one is there or was, or if its
// default route is netplan's (metric 100; Azure Linux's is 1024).
func (v *view) wantsExplicit(ip netip.Addr) bool {
	if v.memory.explicit[ip] {
		return true
	}
	if slices.ContainsFunc(platform, v.explicit) {
		return true
	}
	d := v.defaults()
	return len(d) > 0 && d[0].proto == protoDHCP && d[0].metric == 100
}

// forwards is N-FORWARDING.
func (v *view) forwards(say func(probes.Finding)) {
	if v.now.forward4 == 0 {
		say(probes.Finding{Subject: "net.ipv4.ip_forward", Observed: "0", Wanted: "1", Trace: probes.Key{Domain: "sysctl", Name: "net.ipv4.ip_forward"}})
	}
	if v.dual && v.now.forward6 == 0 {
		say(probes.Finding{Subject: "net.ipv6.conf.all.forwarding", Observed: "0", Wanted: "1", Trace: probes.Key{Domain: "sysctl", Name: "net.ipv6.conf.all.forwarding"}})
	}
	if v.now.forward4 == -1 || v.dual && v.now.forward6 == -1 {
		v.unsure(untold("all"))
	}
	if v.now.forward4 == 0 {
		return
	}
	for i := range v.now.links {
		l := &v.now.links[i]
		switch {
		case l != v.l3 && !(podLink(l.name) && v.mode == transparent):
		case !l.conf:
			v.unsure(untold(l.name))
		case l.forwarding == 0:
			key := "net.ipv4.conf." + l.name + ".forwarding"
			say(probes.Finding{Subject: key, Observed: "0", Wanted: "1", Trace: probes.Key{Domain: "sysctl", Name: key}})
		}
	}
}

// untold says that the kernel did not tell a link's settings.
func untold(link string) string { return "the kernel does not tell net.*.conf." + link }

// baseRules is N-RULE-BASE.
func (v *view) baseRules(say func(probes.Finding)) {
	families := []uint8{unix.AF_INET}
	if v.dual {
		families = append(families, unix.AF_INET6)
	}
	for _, family := range families {
		for _, t := range []struct {
			table uint32
			name  string
		}{{tableLocal, "local"}, {tableMain, "main"}} {
			if !slices.ContainsFunc(v.now.rules, func(r rule) bool {
				return r.family == family && r.table == t.table && r.action == 1 && r.plain
			}) {
				say(probes.Finding{Subject: "rule for table " + t.name + inet6(family), Message: "no rule looks up table " + t.name + inet6(family), Observed: "missing"})
			}
		}
	}
}

func inet6(family uint8) string {
	if family == unix.AF_INET6 {
		return " (IPv6)"
	}
	return ""
}

// foreignRules is N-RULE.
func (v *view) foreignRules(say func(probes.Finding)) {
	for _, r := range v.now.rules {
		if (r.family == unix.AF_INET || v.dual) && !v.knownRule(&r) {
			what := fmt.Sprintf("looks up table %d", r.table)
			if r.action != 1 {
				what = fmt.Sprintf("is a %s", map[uint8]string{2: "goto", 6: "blackhole", 7: "unreachable", 8: "prohibit"}[r.action])
			}
			say(probes.Finding{Subject: fmt.Sprintf("rule %d%s", r.priority, inet6(r.family)), Message: "a foreign routing rule " + what, Observed: what})
		}
	}
}

// knownRule tells whether a rule is the kernel's own, Cilium's, or that of
// transparent-tunnel mode.
func (v *view) knownRule(r *rule) bool {
	switch {
	case r.action == 1 && r.plain && (r.priority == 0 && r.table == tableLocal || r.priority == 32766 && r.table == tableMain || r.priority == 32767 && r.table == tableDefault):
		return true
	case r.mark == 3 && r.table == 101 && r.action == 1:
		return true
	case v.conf.cilium || v.mode == cilium:
		return r.priority == 9 || r.priority == 10 || r.priority == 100 && r.table == tableLocal
	}
	return false
}

// A target is an address that matters, and whose it is.
type target struct {
	ip  netip.Addr
	who string // "gateway", "node"; "" is the platform
	pod *pod
}

func (t *target) subject() string {
	switch {
	case t.pod != nil:
		return t.pod.subject(t.ip)
	case t.who != "":
		return t.who + " " + t.ip.String()
	}
	return t.ip.String()
}

// targets are the node's gateway and address, the platform's, and each pod's.
func (v *view) targets() []target {
	list := make([]target, 0, len(v.pods)+8)
	for _, gw := range v.knownGateways(v.nodeSubnet()) {
		list = append(list, target{ip: gw, who: "gateway"})
	}
	for _, ip := range v.nodeAddrs() {
		list = append(list, target{ip: ip, who: "node"})
	}
	for _, ip := range platform {
		list = append(list, target{ip: ip})
	}
	if v.mode&(transparent|anyBridge) != 0 {
		for i := range v.pods {
			for _, ip := range v.pods[i].ips {
				list = append(list, target{ip: ip, pod: &v.pods[i]})
			}
		}
	}
	return list
}

// blockingRoutes is N-ROUTE-TYPE.
func (v *view) blockingRoutes(say func(probes.Finding)) {
	if !slices.ContainsFunc(v.now.routes, func(r route) bool { return blocks(r.kind) }) {
		return
	}
	for _, t := range v.targets() {
		if r := v.wins(t.ip); r != nil && blocks(r.kind) {
			say(probes.Finding{Subject: t.subject(), Message: kindName(r.kind) + " by the route " + v.describe(r), Observed: v.describe(r)})
		}
	}
}

// overlaps is N-OVERLAP: prefixes of another link inside the node's subnet, or
// over it, that take addresses away from the uplink.
func (v *view) overlaps(say func(probes.Finding)) {
	subnet := v.nodeSubnet()
	if !subnet.IsValid() || v.l3 == nil {
		return
	}
	var told []*route
	for _, t := range v.targets() {
		if r := v.wins(t.ip); t.ip.Is4() && subnet.Contains(t.ip) && v.takes(r, t.ip) && !slices.Contains(told, r) {
			told = append(told, r)
			say(probes.Finding{Subject: r.dst.String(), Message: fmt.Sprintf("%s on %s takes %s", r.dst, v.linkName(r.oif), t.subject()), Observed: v.describe(r), Wanted: "dev " + v.l3.name})
		}
	}
	for _, r := range v.nets {
		if r.table == tableMain && r.dst.Addr().Is4() && r.kind == unix.RTN_UNICAST && r.oif != v.l3.index && !r.down && r.oif != 0 && !slices.Contains(told, r) &&
			subnet.Contains(r.dst.Addr()) && r.dst.Bits() >= subnet.Bits() && v.takesSubnet(r, subnet) {
			say(probes.Finding{Subject: r.dst.String(), Message: fmt.Sprintf("%s on %s lies in the node's subnet %s", r.dst, v.linkName(r.oif), subnet), Observed: v.describe(r), Wanted: "dev " + v.l3.name})
		}
	}
}

// takes tells whether a route takes an address that the uplink, or a pod's own
// route, should have. Those to a single pod's address, and pods' or the node's
// addresses on the host, have invariants of their own.
func (v *view) takes(r *route, ip netip.Addr) bool {
	if r == nil || r.kind != unix.RTN_UNICAST && r.kind != unix.RTN_LOCAL || r.oif == v.l3.index || r.down {
		return false
	}
	pod := len(v.owners[ip]) > 0
	switch {
	case r.kind == unix.RTN_LOCAL:
		return !pod && !slices.Contains(v.nodeAddrs(), ip)
	case pod && r.dst.IsSingleIP():
		return v.mode != transparent && !podLink(v.linkName(r.oif))
	}
	return true
}

// takesSubnet tells whether a prefix wins over the uplink's own: it is longer, or
// has a lower metric.
func (v *view) takesSubnet(r *route, subnet netip.Prefix) bool {
	for _, o := range v.nets {
		if o.table == tableMain && o.dst == r.dst && o.oif == v.l3.index && o.metric < r.metric {
			return false
		}
	}
	return true
}

// duplicateIPs is N-DUP-IP.
func (v *view) duplicateIPs(say func(probes.Finding)) {
	for i := range v.pods {
		p := &v.pods[i]
		for _, ip := range p.ips {
			if owners := v.owners[ip]; len(owners) > 1 && owners[0] == i && !v.young(owners) {
				list := make([]string, len(owners))
				for j, o := range owners {
					list[j] = v.pods[o].name
				}
				say(probes.Finding{Subject: ip.String(), Message: "pods share it: " + some(list, len(list), 3), Observed: strings.Join(list, ", ")})
			}
			if on := v.holders(ip); len(on) > 0 {
				say(probes.Finding{Subject: p.subject(ip), Message: "is an address of the host too, on " + names(on), Observed: "on " + names(on)})
			}
		}
	}
}

// young tells whether the pods of a shared address are incarnations of one: a
// sandbox that is made again briefly shows twice.
func (v *view) young(owners []int) bool {
	for _, o := range owners[1:] {
		if v.pods[o].name != v.pods[owners[0]].name {
			return false
		}
	}
	return true
}

// neighborRoom is N-NEIGH-CAP.
func (v *view) neighborRoom(say func(probes.Finding)) {
	count := 0
	for _, n := range v.now.neighs {
		if n.ip.Is4() && n.state != neighNoARP {
			count++
		}
	}
	limit := v.limits.thresh3
	if v.limits.err != nil {
		v.unsure(v.limits.err.Error())
	}
	v.unsure(v.memory.fulls.doubt)
	switch {
	case limit > 0 && count*5 >= int(limit)*4:
		say(probes.Finding{Subject: "neighbour table", Message: fmt.Sprintf("more than 80 %% of gc_thresh3 (%d) is in use", limit), Observed: "full", Wanted: fmt.Sprintf("below %d", limit/5*4)})
	case v.memory.fulls.rising:
		say(probes.Finding{Subject: "neighbour table", Message: "the kernel refuses new neighbours (table_fulls rises)", Observed: "refusing"})
	}
}

// reversePath is N-RPF: evidence beside other findings.
func (v *view) reversePath(say func(probes.Finding)) {
	for i := range v.now.links {
		l := &v.now.links[i]
		switch {
		case l != v.l3 && !podLink(l.name):
		case !l.conf || v.now.rpFilterAll == -1:
			v.unsure(untold(l.name))
		case max(l.rpFilter, v.now.rpFilterAll) == 1:
			v.unsure(v.memory.rpf.doubt)
			if v.memory.rpf.rising {
				say(probes.Finding{Subject: "rp_filter", Message: "strict (1) on " + l.name + ", and packets are dropped by it (IPReversePathFilter rises)", Observed: "1"})
			}
			return
		}
	}
}

// stateFits is N-STATE.
func (v *view) stateFits(say func(probes.Finding)) {
	if v.conf.broken != nil {
		say(probes.Finding{Subject: v.conf.path, Message: "does not parse: " + v.conf.broken.Error()})
	}
	for i, f := range v.state.flaws {
		if i == 0 || v.state.flaws[i-1].path != f.path { // one for each file
			say(probes.Finding{Subject: f.path, Message: f.why})
		}
	}
	if v.state.path == "" && (!v.joined || len(v.pods) > 0) && v.hasPodLinks() {
		say(probes.Finding{Subject: "/" + vnetState, Message: "is missing, and pods' veths are there"})
	}
	if v.state.broken || !v.joined {
		return
	}
	if v.queueErr != nil {
		v.unsure(v.queueErr.Error())
	}
	switch lacking, extra := v.lacking, v.extra; {
	case len(lacking) > 0:
		slices.Sort(lacking)
		say(probes.Finding{Subject: v.state.path, Message: fmt.Sprintf("%d pods are not in it: %s", len(lacking), some(lacking, len(lacking), 3)), Observed: "lacks pods"})
	case len(extra) > 0:
		slices.Sort(extra)
		say(probes.Finding{Subject: v.state.path, Message: fmt.Sprintf("%d of its endpoints have no sandbox: %s", len(extra), some(extra, len(extra), 3)), Observed: "has others"})
	}
}

func (v *view) hasPodLinks() bool {
	return slices.ContainsFunc(v.now.links, func(l link) bool { return podLink(l.name) })
}

// some names the first few of n.
func some(names []string, n, most int) string {
	if n <= most {
		return strings.Join(names, ", ")
	}
	most = min(most, len(names))
	return fmt.Sprintf("%s (+%d more)", strings.Join(names[:most], ", "), n-most)
}
