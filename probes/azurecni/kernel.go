package azurecni

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Numbers of the kernel's that package unix does not have.
const (
	skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS

	// IFLA_INET_CONF is an array of IPV4_DEVCONF_*, from 1 (linux/ip.h).
	conf4Forwarding, conf4ProxyARP, conf4RPFilter = 0, 2, 7
	// IFLA_INET6_CONF is an array of DEVCONF_*, from 0 (linux/ipv6.h).
	conf6Forwarding, conf6AcceptRA = 0, 3

	slaveBridge    = 4 // IFLA_INFO_SLAVE_KIND
	slaveData      = 5 // IFLA_INFO_SLAVE_DATA
	portState      = 1 // IFLA_BRPORT_*
	portHairpin    = 4
	portGuard      = 5
	portLearning   = 8
	portFlood      = 9
	portIsolated   = 33
	forwardingPort = 3 // BR_STATE_FORWARDING

	tableMain, tableLocal, tableDefault = 254, 255, 253
	protoKernel, protoBoot, protoStatic = 2, 3, 4
	protoRA, protoDHCP                  = 9, 16
	ifLowerUp                           = 1 << 16 // IFF_LOWER_UP
	linkDown                            = 16      // RTNH_F_LINKDOWN
	cloned                              = 0x200   // RTM_F_CLONED
	nudFailed, nudNoARP, nudPermanent   = 0x20, 0x40, 0x80
	nudIncomplete, nudNone              = 0x01, 0x00
	rtaNextHopID                        = 30 // RTA_NH_ID
)

// mac is a hardware address; its zero value is none.
type mac [6]byte

// A link is a network interface as one dump has it, its settings included.
type link struct {
	index, master int32
	name, kind    string // kind: "veth", "bridge"; "" is hardware, or a kind without a name
	mac           mac
	mtu, flags    uint32
	elsewhere     bool  // its peer is in another network namespace
	peerNS        int32 // and that one's id, as this one has it

	conf                            bool // the kernel told the settings below
	forwarding, proxyARP, rpFilter  int32
	conf6                           bool
	forwarding6, acceptRA           int32
	isPort                          bool // a bridge's port, and the kernel told the flags below
	state                           uint8
	hairpin, guard, learning, flood bool
	isolated                        bool
}

func (l *link) up() bool      { return l.flags&unix.IFF_UP != 0 }
func (l *link) carrier() bool { return l.flags&ifLowerUp != 0 }

// An addr is an address of an interface.
type addr struct {
	index  int32
	prefix netip.Prefix
	scope  uint8
}

// A route is one of the kernel's, its unspecified destination as 0.0.0.0/0 or ::/0.
type route struct {
	dst                     netip.Prefix
	gw, src                 netip.Addr
	oif                     int32 // of the first hop
	table, metric           uint32
	proto, scope, kind, tos uint8
	hops                    uint8 // of a multipath route
	object                  bool  // its next hop is an object of its own
	down                    bool  // RTNH_F_LINKDOWN
}

// A neigh is a neighbour. Its state is coarse, so that traffic alone changes nothing.
type neigh struct {
	index   int32
	ip      netip.Addr
	mac     mac
	state   neighState
	updated uint32 // only of a failed one: ticks since it was last tried
}

type neighState uint8

const (
	neighNone neighState = iota
	neighValid
	neighFailed
	neighPermanent
	neighNoARP
)

// A rule is a policy routing rule.
type rule struct {
	family   uint8
	priority uint32
	table    uint32
	action   uint8 // FR_ACT_*: 1 is a lookup
	mark     uint32
	plain    bool // it selects every packet
}

// A snapshot is the kernel's networking at one moment, as far as dumps can be
// of one moment. Its slices are used again.
type snapshot struct {
	links  []link
	addrs  []addr
	routes []route
	neighs []neigh
	rules  []rule

	forward4, forward6 int32 // ip_forward, conf.all.forwarding of IPv6; -1 unknown
	rpFilterAll        int32
}

func (s *snapshot) same(o *snapshot) bool {
	return s.forward4 == o.forward4 && s.forward6 == o.forward6 && s.rpFilterAll == o.rpFilterAll &&
		slices.Equal(s.routes, o.routes) && slices.Equal(s.links, o.links) && slices.Equal(s.addrs, o.addrs) &&
		slices.Equal(s.neighs, o.neighs) && slices.Equal(s.rules, o.rules)
}

// words keeps one copy of each name that the kernel tells.
type words map[string]string

func (w words) of(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	if s, ok := w[string(b)]; ok {
		return s
	}
	if len(w) > 4096 {
		clear(w)
	}
	s := string(b)
	w[s] = s
	return s
}

// parseLink reads an RTM_NEWLINK.
func (w words) parseLink(b []byte) (l link, ok bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return l, false
	}
	l.index, l.flags = int32(u32(b[4:])), u32(b[8:])
	for kind, v := range attrs(b[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = w.of(v)
		case unix.IFLA_ADDRESS:
			if len(v) == len(l.mac) {
				copy(l.mac[:], v)
			}
		case unix.IFLA_MTU:
			l.mtu = u32(v)
		case unix.IFLA_MASTER:
			l.master = int32(u32(v))
		case unix.IFLA_LINK_NETNSID:
			l.peerNS = int32(u32(v))
			l.elsewhere = l.peerNS >= 0
		case unix.IFLA_LINKINFO:
			w.parseLinkInfo(&l, v)
		case unix.IFLA_AF_SPEC:
			l.parseSettings(v)
		}
	}
	return l, l.index > 0
}

func (w words) parseLinkInfo(l *link, b []byte) {
	bridged := false
	for kind, v := range attrs(b) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			l.kind = w.of(v)
		case slaveBridge:
			bridged = w.of(v) == "bridge"
		case slaveData:
			if !bridged {
				continue
			}
			l.isPort = true
			for kind, v := range attrs(v) {
				switch kind {
				case portState:
					l.state = u8(v)
				case portHairpin:
					l.hairpin = u8(v) != 0
				case portGuard:
					l.guard = u8(v) != 0
				case portLearning:
					l.learning = u8(v) != 0
				case portFlood:
					l.flood = u8(v) != 0
				case portIsolated:
					l.isolated = u8(v) != 0
				}
			}
		}
	}
}

// parseSettings reads IFLA_AF_SPEC: the link's conf/ keys of both families.
func (l *link) parseSettings(b []byte) {
	for family, v := range attrs(b) {
		for kind, v := range attrs(v) {
			switch {
			case family == unix.AF_INET && kind == 1 && len(v) >= 4*(conf4RPFilter+1): // IFLA_INET_CONF
				l.conf = true
				l.forwarding, l.proxyARP, l.rpFilter = int32(u32(v[4*conf4Forwarding:])), int32(u32(v[4*conf4ProxyARP:])), int32(u32(v[4*conf4RPFilter:]))
			case family == unix.AF_INET6 && kind == 2 && len(v) >= 4*(conf6AcceptRA+1): // IFLA_INET6_CONF
				l.conf6 = true
				l.forwarding6, l.acceptRA = int32(u32(v[4*conf6Forwarding:])), int32(u32(v[4*conf6AcceptRA:]))
			}
		}
	}
}

// parseAddr reads an RTM_NEWADDR.
func parseAddr(b []byte) (a addr, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, false
	}
	bits := int(b[1])
	a.scope, a.index = b[3], int32(u32(b[4:]))
	var ip netip.Addr
	for kind, v := range attrs(b[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_LOCAL: // of a point-to-point link, IFA_ADDRESS is the other end
			ip, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS:
			if !ip.IsValid() {
				ip, _ = netip.AddrFromSlice(v)
			}
		}
	}
	a.prefix = netip.PrefixFrom(ip, bits)
	return a, ip.IsValid()
}

// parseRoute reads an RTM_NEWROUTE.
func parseRoute(b []byte) (r route, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return r, false
	}
	zero := netip.IPv4Unspecified()
	switch b[0] {
	case unix.AF_INET:
	case unix.AF_INET6:
		zero = netip.IPv6Unspecified()
	default:
		return r, false
	}
	bits, flags := int(b[1]), u32(b[8:])
	r.tos, r.table, r.proto, r.scope, r.kind = b[3], uint32(b[4]), b[5], b[6], b[7]
	r.down = flags&linkDown != 0
	dst := zero
	for kind, v := range attrs(b[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(v)
		case unix.RTA_GATEWAY:
			r.gw, _ = netip.AddrFromSlice(v)
		case unix.RTA_PREFSRC:
			r.src, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			r.oif = int32(u32(v))
		case unix.RTA_TABLE:
			r.table = u32(v)
		case unix.RTA_PRIORITY:
			r.metric = u32(v)
		case rtaNextHopID:
			r.object = true
		case unix.RTA_VIA:
			if len(v) > 2 {
				r.gw, _ = netip.AddrFromSlice(v[2:])
			}
		case unix.RTA_MULTIPATH:
			r.parseHops(v)
		}
	}
	r.dst = netip.PrefixFrom(dst, bits)
	return r, r.dst.IsValid() && flags&cloned == 0
}

// parseHops reads RTA_MULTIPATH, a row of struct rtnexthop.
func (r *route) parseHops(b []byte) {
	for len(b) >= unix.SizeofRtNexthop {
		size := int(u16(b))
		if size < unix.SizeofRtNexthop || size > len(b) {
			return
		}
		if r.hops++; r.hops == 1 {
			r.oif = int32(u32(b[4:]))
			for kind, v := range attrs(b[unix.SizeofRtNexthop:size]) {
				if kind == unix.RTA_GATEWAY {
					r.gw, _ = netip.AddrFromSlice(v)
				}
			}
		}
		b = b[min(align4(size), len(b)):]
	}
}

// parseNeigh reads an RTM_NEWNEIGH.
func parseNeigh(b []byte) (n neigh, ok bool) {
	if len(b) < unix.SizeofNdMsg || b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return n, false
	}
	n.index = int32(u32(b[4:]))
	state := u16(b[8:])
	switch {
	case state&nudPermanent != 0:
		n.state = neighPermanent
	case state&nudNoARP != 0:
		n.state = neighNoARP
	case state&nudFailed != 0:
		n.state = neighFailed
	case state == nudNone, state&nudIncomplete != 0:
		n.state = neighNone
	default:
		n.state = neighValid
	}
	for kind, v := range attrs(b[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			n.ip, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			if len(v) == len(n.mac) {
				copy(n.mac[:], v)
			}
		case unix.NDA_CACHEINFO: // confirmed, used, updated, references
			if n.state == neighFailed && len(v) >= 12 {
				n.updated = u32(v[8:])
			}
		}
	}
	return n, n.ip.IsValid()
}

// parseRule reads an RTM_NEWRULE.
func parseRule(b []byte) (r rule, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return r, false
	}
	// struct fib_rule_hdr: family, dst_len, src_len, tos, table, res1, res2, action, flags
	r.family, r.table, r.action = b[0], uint32(b[4]), b[7]
	const invert = 2 // FIB_RULE_INVERT
	r.plain = b[1] == 0 && b[2] == 0 && b[3] == 0 && u32(b[8:])&invert == 0
	for kind, v := range attrs(b[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.FRA_PRIORITY:
			r.priority = u32(v)
		case unix.FRA_TABLE:
			r.table = u32(v)
		case unix.FRA_FWMARK:
			r.mark = u32(v)
			r.plain = r.plain && r.mark == 0
		case unix.FRA_IIFNAME, unix.FRA_OIFNAME, unix.FRA_UID_RANGE, unix.FRA_IP_PROTO, unix.FRA_SPORT_RANGE, unix.FRA_DPORT_RANGE, unix.FRA_TUN_ID:
			r.plain = false
		}
	}
	return r, true
}
