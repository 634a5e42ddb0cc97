package azurecni

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses of the platform: the wire server, which also answers DNS, and the
// instance metadata service.
var platform = []netip.Addr{netip.AddrFrom4([4]byte{168, 63, 129, 16}), netip.AddrFrom4([4]byte{169, 254, 169, 254})}

// A memory is what a look keeps for the next ones. It makes nothing drift by
// itself: it knows what was there before.
type memory struct {
	nodeIP    netip.Addr          // the uplink's, when it was in order
	explicit  map[netip.Addr]bool // platform routes that were there
	constMAC  bool                // host veths had the constant MAC
	fulls     counter             // inserts that the neighbour table refused
	rpf       counter             // packets that reverse path filtering dropped
	conntrack counter             // connections that tracking failed to insert, and packets it dropped
	failed    map[netip.Addr]int  // looks in a row in which a neighbour failed anew
}

// A lookup is the kernel's answer to where a packet would go.
type lookup struct {
	route
	err error
}

// A view is one look: what should be and what is.
type view struct {
	*expectation
	conf   *conflist
	state  *state
	config *Config
	memory *memory
	now    *snapshot
	at     time.Time

	lookups  map[netip.Addr]lookup
	limits   neighLimits
	counters counters
	gateways []podGateway // of the pods, when they were asked for
	rules    *bridgeRules // ebtables, when they were asked for
	doubt    string       // why the invariant under judgement may be broken unseen

	mode, kernelIs mode
	uplink         *link // the NIC's
	l3             *link // the one that has its address: the uplink, or the bridge

	byName   map[string]*link
	byIndex  map[int32]*link
	hosts    map[netip.Addr][]*route // /32 and /128 of the tables local, main and default
	nets     []*route                // all other routes of these tables
	routedTo map[int32]int           // routes of single addresses to a link
	addrsOf  map[int32][]netip.Prefix
	neighsOf map[netip.Addr][]*neigh
}

// index makes the view ready to be asked.
func (v *view) index() {
	v.byName, v.byIndex = make(map[string]*link, len(v.now.links)), make(map[int32]*link, len(v.now.links))
	for i := range v.now.links {
		l := &v.now.links[i]
		v.byName[l.name], v.byIndex[l.index] = l, l
	}
	v.hosts, v.routedTo, v.nets = make(map[netip.Addr][]*route, len(v.now.routes)), map[int32]int{}, nil
	single := make([]*route, 0, len(v.now.routes))
	for i := range v.now.routes {
		r := &v.now.routes[i]
		if r.table != tableLocal && r.table != tableMain && r.table != tableDefault || r.kind == unix.RTN_BROADCAST || r.kind == unix.RTN_MULTICAST {
			continue
		}
		if !r.dst.IsSingleIP() {
			v.nets = append(v.nets, r)
			continue
		}
		if ip := r.dst.Addr(); v.hosts[ip] != nil {
			v.hosts[ip] = append(v.hosts[ip], r)
		} else { // mostly the only one: its slice is a part of one for all
			single = append(single, r)
			v.hosts[ip] = single[len(single)-1 : len(single) : len(single)]
		}
		if r.table == tableMain && r.kind == unix.RTN_UNICAST {
			v.routedTo[r.oif]++
		}
	}
	v.addrsOf = map[int32][]netip.Prefix{}
	for _, a := range v.now.addrs {
		v.addrsOf[a.index] = append(v.addrsOf[a.index], a.prefix)
	}
	v.neighsOf = make(map[netip.Addr][]*neigh, len(v.now.neighs))
	for i := range v.now.neighs {
		n := &v.now.neighs[i]
		v.neighsOf[n.ip] = append(v.neighsOf[n.ip], n)
	}
	v.findUplink()
	v.settleMode()
	if v.unknown == "" && !v.joined && v.state.path == "" && v.hasPodLinks() {
		v.unknown = "there is no state file"
	}
	v.l3 = v.uplink
	if v.mode&anyBridge != 0 {
		v.l3 = v.linkNamed(v.bridgeName())
	}
	if v.mode == transparent {
		v.nameVeths()
	}
}

func (v *view) linkNamed(name string) *link { return v.byName[name] }

func (v *view) bridgeName() string {
	if v.state.bridge != "" {
		return v.state.bridge
	}
	if v.conf.bridge != "" {
		return v.conf.bridge
	}
	return "azure0"
}

// findUplink finds the NIC: as the state file names it, by name or by MAC; else
// as DHCP or the default route shows it. A VF has the same MAC, and the uplink as
// its master.
func (v *view) findUplink() {
	if v.state.uplink != "" {
		if v.uplink = v.linkNamed(v.state.uplink); v.uplink != nil {
			return
		}
		for i := range v.now.links {
			l := &v.now.links[i]
			if v.state.uplinkMAC != (mac{}) && l.mac == v.state.uplinkMAC && l.kind != "bridge" && !podLink(l.name) && (l.master == 0 || l.isPort) {
				v.uplink = l
				return
			}
		}
		return
	}
	index := int32(0)
	for i := range v.now.routes {
		if r := &v.now.routes[i]; r.table == tableMain && r.proto == protoDHCP && r.dst.Addr().Is4() && v.nic(r.oif) != nil {
			index = r.oif
			break
		}
	}
	if index == 0 {
		if eth0 := v.linkNamed("eth0"); eth0 != nil {
			index = eth0.index
		} else if d := v.defaults(); len(d) > 0 && v.nic(d[0].oif) != nil {
			index = d[0].oif
		}
	}
	v.uplink = v.byIndex[index]
}

// nic is the link with an index unless it can be no uplink.
func (v *view) nic(index int32) *link {
	l := v.byIndex[index]
	if l == nil || l.kind == "bridge" || podLink(l.name) || l.flags&unix.IFF_LOOPBACK != 0 {
		return nil
	}
	return l
}

func (v *view) uplinkName() string {
	switch {
	case v.uplink != nil:
		return v.uplink.name
	case v.state.uplink != "":
		return v.state.uplink
	}
	return "eth0"
}

func (v *view) l3Name() string {
	if v.mode&anyBridge != 0 {
		return v.bridgeName()
	}
	return v.uplinkName()
}

// defaults are the IPv4 default routes of table main, the best first.
func (v *view) defaults() []*route {
	var list []*route
	for i := range v.now.routes {
		if r := &v.now.routes[i]; r.table == tableMain && r.dst.Bits() == 0 && r.dst.Addr().Is4() {
			list = append(list, r)
		}
	}
	slices.SortStableFunc(list, better)
	return list
}

func better(a, b *route) int { return int(min(a.metric, 1<<30)) - int(min(b.metric, 1<<30)) }

// wins is the route that tables local, main and default, in this order, have for
// an address: the longest prefix, the lowest metric. nil is none.
func (v *view) wins(ip netip.Addr) *route {
	for _, table := range []uint32{tableLocal, tableMain, tableDefault} {
		var best *route
		for _, r := range v.hosts[ip] {
			if r.table == table && r.tos == 0 && (best == nil || r.metric < best.metric) {
				best = r
			}
		}
		for _, r := range v.nets {
			if r.table == table && r.tos == 0 && r.dst.Contains(ip) &&
				(best == nil || r.dst.Bits() > best.dst.Bits() || r.dst.Bits() == best.dst.Bits() && r.metric < best.metric) {
				best = r
			}
		}
		if best != nil && best.kind != unix.RTN_THROW {
			return best
		}
		if best != nil && table == tableMain {
			return best // table default is empty: a throw is the end
		}
	}
	return nil
}

// hostRoutes are the routes of table main and default to one pod's address, the
// best first. They are not to be changed: a single one, as every pod in order
// has, is not copied.
func (v *view) hostRoutes(ip netip.Addr) []*route {
	all := v.hosts[ip]
	if len(all) == 1 && all[0].made() {
		return all
	}
	var list []*route
	for _, r := range all {
		if r.made() {
			list = append(list, r)
		}
	}
	slices.SortStableFunc(list, func(a, b *route) int { // table main goes first; a TOS is not every packet's
		return cmp.Or(cmp.Compare(b.table, a.table), cmp.Compare(min(a.tos, 1), min(b.tos, 1)), better(a, b))
	})
	return list
}

// made tells whether somebody made a route, and not the kernel with an address.
func (r *route) made() bool {
	return r.table != tableLocal && r.proto != protoRA && r.proto != protoKernel
}

// nodeSubnet is the subnet of the address that the uplink has; zero for none.
func (v *view) nodeSubnet() netip.Prefix {
	if v.l3 == nil {
		return netip.Prefix{}
	}
	for _, p := range v.addrsOf[v.l3.index] {
		if p.Addr().Is4() && !p.Addr().IsLinkLocalUnicast() && p.Bits() < 32 {
			return p.Masked()
		}
	}
	return netip.Prefix{}
}

// hasAddr tells whether any link of the host has an address.
func (v *view) holders(ip netip.Addr) (links []*link) {
	for _, a := range v.now.addrs {
		if l := v.byIndex[a.index]; a.prefix.Addr() == ip && l != nil {
			links = append(links, l)
		}
	}
	return links
}

// linkName names a link by its index.
func (v *view) linkName(index int32) string {
	if l := v.byIndex[index]; l != nil {
		return l.name
	}
	return "nothing"
}
