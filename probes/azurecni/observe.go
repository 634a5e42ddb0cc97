package azurecni

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A kernel observes the network namespace of the thread that opened it. One dump
// of each table makes a snapshot.
type kernel struct {
	*conn
	proc  string // "/proc"
	words words
	now   *snapshot // being made, so that the functions below are made once

	takeLink, takeAddr, takeRoute, takeNeigh, takeRule, takeConf func(uint16, []byte)
	none                                                         func()
	beginLinks, beginRoutes                                      func()
	mark                                                         int // where the present dump begins
	family                                                       uint8
	raw, rawNow                                                  [2][]byte // of the last dump of routes, by family, and of the present one
	parsed                                                       [2][]route
}

func newKernel() *kernel {
	k := &kernel{conn: newConn(), proc: "/proc", words: words{}}
	k.none = func() {}
	k.beginLinks = func() { k.now.links = k.now.links[:0] }
	k.beginRoutes = func() { k.rawNow[k.of()] = k.rawNow[k.of()][:0] }
	k.takeLink = func(kind uint16, b []byte) {
		if l, ok := k.words.parseLink(b); ok && kind == unix.RTM_NEWLINK {
			k.now.links = append(k.now.links, l)
		}
	}
	k.takeAddr = func(kind uint16, b []byte) {
		if a, ok := parseAddr(b); ok && kind == unix.RTM_NEWADDR {
			k.now.addrs = append(k.now.addrs, a)
		}
	}
	k.takeRoute = func(kind uint16, b []byte) {
		if kind == unix.RTM_NEWROUTE && len(b) > 0 && b[0] == k.family {
			i := k.of()
			k.rawNow[i] = binary.NativeEndian.AppendUint32(k.rawNow[i], uint32(len(b)))
			k.rawNow[i] = append(k.rawNow[i], b...)
		}
	}
	k.takeNeigh = func(kind uint16, b []byte) {
		if n, ok := parseNeigh(b); ok && kind == unix.RTM_NEWNEIGH {
			k.now.neighs = append(k.now.neighs, n)
		}
	}
	k.takeRule = func(kind uint16, b []byte) {
		if r, ok := parseRule(b); ok && kind == unix.RTM_NEWRULE {
			k.now.rules = append(k.now.rules, r)
		}
	}
	k.takeConf = k.parseConf
	return k
}

// observe makes a snapshot. IPv6 is looked at only where pods have it: each
// link brings three routes and an address of it, which say nothing.
func (k *kernel) observe(s *snapshot, dual bool) error {
	k.now = s
	s.addrs, s.routes, s.neighs, s.rules = s.addrs[:0], s.routes[:0], s.neighs[:0], s.rules[:0]
	err := errors.Join(k.links(), k.families(unix.AF_INET))
	if dual && err == nil {
		err = k.families(unix.AF_INET6)
	}
	return err
}

func (k *kernel) links() error {
	b := k.body(unix.SizeofIfInfomsg + 8)
	binary.NativeEndian.PutUint16(b[unix.SizeofIfInfomsg:], 8)
	binary.NativeEndian.PutUint16(b[unix.SizeofIfInfomsg+2:], unix.IFLA_EXT_MASK)
	binary.NativeEndian.PutUint32(b[unix.SizeofIfInfomsg+4:], skipStats)
	return k.dump("links", unix.RTM_GETLINK, len(b), k.beginLinks, k.takeLink)
}

// families observes what each address family has of its own.
func (k *kernel) families(family uint8) error {
	k.family = family
	s := k.now
	addrs, neighs, rules := len(s.addrs), len(s.neighs), len(s.rules)
	k.body(unix.SizeofIfAddrmsg)[0] = family
	err := k.dump("addresses", unix.RTM_GETADDR, unix.SizeofIfAddrmsg, func() { s.addrs = s.addrs[:addrs] }, k.takeAddr)
	if err != nil {
		return err
	}
	k.body(unix.SizeofRtMsg)[0] = family
	if err := k.dump("rules", unix.RTM_GETRULE, unix.SizeofRtMsg, func() { s.rules = s.rules[:rules] }, k.takeRule); err != nil {
		return err
	}
	k.body(unix.SizeofNdMsg)[0] = family
	if err := k.dump("neighbours", unix.RTM_GETNEIGH, unix.SizeofNdMsg, func() { s.neighs = s.neighs[:neighs] }, k.takeNeigh); err != nil {
		return err
	}
	if err := k.settings(family); err != nil {
		return err
	}
	return k.routes(family)
}

// routes dumps the IPv4 routes of all tables, of IPv6 those of table main. While
// the kernel's answer is the same, byte by byte, it is not parsed again.
func (k *kernel) routes(family uint8) error {
	k.mark, k.family = len(k.now.routes), family
	b := k.body(unix.SizeofRtMsg)
	b[0] = family
	if family == unix.AF_INET6 {
		b[4] = tableMain
	}
	if err := k.dump("routes", unix.RTM_GETROUTE, unix.SizeofRtMsg, k.beginRoutes, k.takeRoute); err != nil {
		return err
	}
	i := k.of()
	if !bytes.Equal(k.rawNow[i], k.raw[i]) {
		k.raw[i], k.rawNow[i] = k.rawNow[i], k.raw[i]
		k.parsed[i] = k.parsed[i][:0]
		for raw := k.raw[i]; len(raw) >= 4; {
			size := int(u32(raw))
			if r, ok := parseRoute(raw[4 : 4+size]); ok {
				k.parsed[i] = append(k.parsed[i], r)
			}
			raw = raw[4+size:]
		}
	}
	k.now.routes = append(k.now.routes[:k.mark], k.parsed[i]...)
	return nil
}

// of is the place of the present family.
func (k *kernel) of() int {
	if k.family == unix.AF_INET6 {
		return 1
	}
	return 0
}

// settings asks for conf.all of a family (RTM_GETNETCONF, linux/netconf.h).
func (k *kernel) settings(family uint8) error {
	const (
		all     = -1 // NETCONFA_IFINDEX_ALL
		ifindex = 1  // NETCONFA_IFINDEX
	)
	if family == unix.AF_INET {
		k.now.forward4, k.now.rpFilterAll = -1, -1
	} else {
		k.now.forward6 = -1
	}
	k.family = family
	b := k.body(4 + 8)
	b[0] = family
	binary.NativeEndian.PutUint16(b[4:], 8)
	binary.NativeEndian.PutUint16(b[6:], ifindex)
	binary.NativeEndian.PutUint32(b[8:], ^uint32(0)+uint32(all+1))
	if err := k.request(unix.RTM_GETNETCONF, 0, len(b)); err != nil {
		return fmt.Errorf("ask for forwarding: %w", err)
	}
	if err := k.receive(k.takeConf); err != nil {
		if family == unix.AF_INET6 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)) {
			return nil // a kernel without IPv6
		}
		k.close()
		return fmt.Errorf("ask for forwarding: %w", err)
	}
	return nil
}

func (k *kernel) parseConf(_ uint16, b []byte) {
	const forwarding, rpFilter = 2, 3 // NETCONFA_*
	if len(b) < 4 {
		return
	}
	for kind, v := range attrs(b[4:]) {
		switch {
		case kind == forwarding && k.family == unix.AF_INET:
			k.now.forward4 = int32(u32(v))
		case kind == forwarding:
			k.now.forward6 = int32(u32(v))
		case kind == rpFilter && k.family == unix.AF_INET:
			k.now.rpFilterAll = int32(u32(v))
		}
	}
}

// lookup asks which route the kernel would take to an address: rules, tables
// and the longest prefix together. An unreachable address is an error of the
// kind that a sender would see.
func (k *kernel) lookup(ip netip.Addr) (found route, err error) {
	b := k.body(unix.SizeofRtMsg + 4 + 4)
	raw := ip.As4()
	b[0], b[1] = unix.AF_INET, 32
	binary.NativeEndian.PutUint16(b[unix.SizeofRtMsg:], 8)
	binary.NativeEndian.PutUint16(b[unix.SizeofRtMsg+2:], unix.RTA_DST)
	copy(b[unix.SizeofRtMsg+4:], raw[:])
	if err := k.request(unix.RTM_GETROUTE, 0, len(b)); err != nil {
		return found, err
	}
	err = k.receive(func(_ uint16, b []byte) {
		found, _ = parseRoute(b) // an answer is a cloned route
	})
	return found, err
}
