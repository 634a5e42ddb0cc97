package azurecni

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// A fault breaks one invariant in a lab of three pods.
type fault struct {
	mode, id, name string
	dual           bool
	config         Config
	break_         func(l *lab)
	effects        []string // invariants that may break with it
}

func (l *lab) bridgeTo(name string) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	l.must(l.node.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	b := l.link(name)
	l.must(l.node.LinkSetUp(b))
	return b
}

func (l *lab) routeAdd(dst, dev string, change func(*netlink.Route)) {
	l.Helper()
	r := &netlink.Route{Dst: labNet(dst), Protocol: protoStatic}
	if dev != "" {
		r.LinkIndex = l.link(dev).Attrs().Index
	}
	if change != nil {
		change(r)
	}
	l.must(l.node.RouteAdd(r))
}

func (l *lab) edit(name, old, new string) {
	l.Helper()
	at := filepath.Join(l.root, name)
	b, err := os.ReadFile(at)
	l.must(err)
	if !strings.Contains(string(b), old) {
		l.Fatalf("%s has no %q", name, old)
	}
	l.file(name, strings.ReplaceAll(string(b), old, new))
}

func (l *lab) orphan(name, master string, elsewhere bool) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: "loose0"}
	l.must(l.node.LinkAdd(v))
	if elsewhere {
		end := l.link("loose0")
		l.must(l.node.LinkSetNsPid(end, 1))
	}
	if master != "" {
		l.must(l.node.LinkSetMaster(l.link(name), l.link(master)))
	}
}

func (l *lab) defaultRoute() *netlink.Route {
	dev := "eth0"
	if l.mode == "bridge" {
		dev = "azure0"
	}
	return &netlink.Route{LinkIndex: l.link(dev).Attrs().Index, Gw: net.ParseIP(labGateway), Protocol: protoDHCP, Priority: 100, Src: net.ParseIP(labNode)}
}

func wrongMAC() net.HardwareAddr { return net.HardwareAddr{2, 0xff, 0xff, 0xff, 0xff, 0xff} }

// faults break every invariant in at least two ways.
var faults = []fault{
	{mode: "transparent", id: "N-MODE", name: "conflist", break_: func(l *lab) { l.edit("etc/cni/net.d/10-azure.conflist", "transparent", "bridge") }},
	{mode: "bridge", id: "N-MODE", name: "state", break_: func(l *lab) { l.edit(vnetState, `"Mode":"bridge"`, `"Mode":"transparent"`) }},
	{mode: "transparent", id: "N-UPLINK", name: "down", break_: func(l *lab) { l.must(l.node.LinkSetDown(l.link("eth0"))) }, effects: []string{"N-DEFAULT", "N-PLATFORM"}},
	{mode: "transparent", id: "N-UPLINK", name: "carrier", break_: func(l *lab) {
		fab, err := l.fabric.LinkByName("fab0")
		l.must(err, l.fabric.LinkSetDown(fab))
	}},
	{mode: "bridge", id: "N-UPLINK", name: "gone", break_: func(l *lab) { l.must(l.node.LinkDel(l.link("eth0"))) }, effects: []string{"B-NEIGH-MISSING"}},
	{mode: "transparent", id: "N-NODE-IP", name: "lost", break_: func(l *lab) { l.must(l.node.AddrDel(l.link("eth0"), labAddr(labNode+"/12"))) }, effects: []string{"N-DEFAULT", "N-PLATFORM"}},
	{mode: "bridge", id: "N-NODE-IP", name: "lost", break_: func(l *lab) { l.must(l.node.AddrDel(l.link("azure0"), labAddr(labNode+"/12"))) }, effects: []string{"B-NEIGH-MISSING", "N-DEFAULT", "N-PLATFORM"}},
	{mode: "transparent", id: "N-NODE-IP", name: "twice", break_: func(l *lab) { l.must(l.node.AddrAdd(l.link("lo"), labAddr(labNode+"/32"))) }},
	{mode: "transparent", id: "N-DEFAULT", name: "gone", break_: func(l *lab) { l.must(l.node.RouteDel(l.defaultRoute())) }},
	{mode: "transparent", id: "N-DEFAULT", name: "itself", break_: func(l *lab) {
		l.must(l.node.RouteAdd(&netlink.Route{LinkIndex: l.link("eth0").Attrs().Index, Gw: net.ParseIP(labNode), Priority: 10}))
	}},
	{mode: "bridge", id: "N-DEFAULT", name: "second", break_: func(l *lab) {
		r := l.defaultRoute()
		r.Priority = 101
		l.must(l.node.RouteAdd(r))
	}},
	{mode: "transparent", id: "N-PLATFORM", name: "dhcp route", break_: func(l *lab) {
		l.must(l.node.RouteDel(&netlink.Route{Dst: labNet("168.63.129.16/32")}))
	}},
	{mode: "transparent", id: "N-PLATFORM", name: "another link", break_: func(l *lab) { l.routeAdd("169.254.169.254/32", l.pods[0].veth, nil) }, effects: []string{"T-ROUTE-STALE"}},
	{mode: "bridge", id: "N-PLATFORM", name: "another link", break_: func(l *lab) { l.bridgeTo("docker0"); l.routeAdd("169.254.169.254/32", "docker0", nil) }},
	{mode: "transparent", id: "N-FORWARDING", name: "node", break_: func(l *lab) { l.sysctl("net/ipv4/ip_forward", "0") }},
	{mode: "transparent", id: "N-FORWARDING", name: "link", break_: func(l *lab) { l.sysctl("net/ipv4/conf/"+l.pods[0].veth+"/forwarding", "0") }},
	{mode: "bridge", id: "N-FORWARDING", name: "node", break_: func(l *lab) { l.sysctl("net/ipv4/ip_forward", "0") }},
	{mode: "transparent", id: "N-RULE-BASE", name: "local", break_: func(l *lab) { l.must(l.node.RuleDel(l.rule(0, tableLocal))) }},
	{mode: "transparent", id: "N-RULE-BASE", name: "main", break_: func(l *lab) { l.must(l.node.RuleDel(l.rule(32766, tableMain))) }, effects: []string{"N-PLATFORM"}},
	{mode: "transparent", id: "N-RULE", name: "table", break_: func(l *lab) { l.must(l.node.RuleAdd(l.rule(1000, 200))) }},
	{mode: "bridge", id: "N-RULE", name: "mark", break_: func(l *lab) {
		r := l.rule(99, 201)
		r.Mark = 7
		l.must(l.node.RuleAdd(r))
	}},
	{mode: "transparent", id: "N-ROUTE-TYPE", name: "pod", break_: func(l *lab) {
		l.must(l.node.RouteDel(l.route(&l.pods[0])))
		l.routeAdd(l.pods[0].ip.String()+"/32", "", func(r *netlink.Route) { r.Type = unix.RTN_BLACKHOLE })
	}, effects: []string{"T-ROUTE-MISSING"}},
	{mode: "bridge", id: "N-ROUTE-TYPE", name: "platform", break_: func(l *lab) {
		l.routeAdd("168.63.129.16/32", "", func(r *netlink.Route) { r.Type = unix.RTN_UNREACHABLE })
	}, effects: []string{"N-PLATFORM"}},
	{mode: "transparent", id: "N-ROUTE-TYPE", name: "gateway", break_: func(l *lab) {
		l.routeAdd(labGateway+"/32", "", func(r *netlink.Route) { r.Type, r.Priority = unix.RTN_PROHIBIT, 1 })
	}},
	{mode: "transparent", id: "N-OVERLAP", name: "inside", break_: func(l *lab) { l.routeAdd("10.240.0.0/24", l.pods[0].veth, nil) }},
	{mode: "bridge", id: "N-OVERLAP", name: "over the gateway", break_: func(l *lab) { l.routeAdd("10.240.0.0/28", l.pods[0].veth, nil) }},
	{mode: "transparent", id: "N-DUP-IP", name: "host", break_: func(l *lab) { l.must(l.node.AddrAdd(l.link("lo"), labAddr(l.pods[0].ip.String()+"/32"))) }, effects: []string{"T-VETH-ADDR"}},
	{mode: "bridge", id: "N-DUP-IP", name: "pods", break_: func(l *lab) {
		l.must(l.node.NeighDel(l.neigh(&l.pods[1])))
		l.edit(vnetState, l.pods[1].ip.String()+`"`, l.pods[0].ip.String()+`"`)
	}},
	{mode: "transparent", id: "N-STATE", name: "empty", break_: func(l *lab) { l.file(vnetState, "") }},
	{mode: "transparent", id: "N-STATE", name: "truncated", break_: func(l *lab) { l.file(vnetState, l.state()[:300]) }},
	{mode: "transparent", id: "N-STATE", name: "missing", break_: func(l *lab) { l.must(os.Remove(filepath.Join(l.root, vnetState))) }},
	{mode: "transparent", id: "N-STATE", name: "another type", break_: func(l *lab) { l.file(vnetState, `{"Network":[1,2]}`) }},

	{mode: "transparent", id: "T-ROUTE-MISSING", name: "one", break_: func(l *lab) { l.must(l.node.RouteDel(l.route(&l.pods[0]))) }},
	{mode: "transparent", id: "T-ROUTE-MISSING", name: "all", break_: func(l *lab) {
		for i := range l.pods {
			l.must(l.node.RouteDel(l.route(&l.pods[i])))
		}
	}},
	{mode: "transparent", id: "T-ROUTE-WRONG-DEV", name: "veth", break_: func(l *lab) {
		r := l.route(&l.pods[0])
		r.LinkIndex = l.link(l.pods[1].veth).Attrs().Index
		l.must(l.node.RouteReplace(r))
	}},
	{mode: "transparent", id: "T-ROUTE-WRONG-DEV", name: "gateway", break_: func(l *lab) {
		l.must(l.node.RouteReplace(&netlink.Route{Dst: labNet(l.pods[0].ip.String() + "/32"), LinkIndex: l.link("eth0").Attrs().Index, Gw: net.ParseIP(labGateway), Protocol: protoStatic}))
	}},
	{mode: "transparent", id: "T-ROUTE-DUP", name: "metric", break_: func(l *lab) {
		l.routeAdd(l.pods[0].ip.String()+"/32", l.pods[1].veth, func(r *netlink.Route) { r.Priority = 50 })
	}},
	{mode: "transparent", id: "T-ROUTE-DUP", name: "blackhole", break_: func(l *lab) {
		l.routeAdd(l.pods[0].ip.String()+"/32", "", func(r *netlink.Route) { r.Type, r.Priority = unix.RTN_BLACKHOLE, 10 })
	}},
	{mode: "transparent", id: "T-ROUTE-DUP", name: "table default", break_: func(l *lab) {
		l.routeAdd(l.pods[0].ip.String()+"/32", l.pods[0].veth, func(r *netlink.Route) { r.Table = tableDefault })
	}},
	{mode: "transparent", id: "T-ROUTE-ATTR", name: "boot", break_: func(l *lab) {
		r := l.route(&l.pods[0])
		r.Protocol, r.Scope = protoBoot, netlink.SCOPE_LINK
		l.must(l.node.RouteReplace(r))
	}},
	{mode: "transparent", id: "T-ROUTE-ATTR", name: "metric", break_: func(l *lab) {
		r := l.route(&l.pods[0])
		l.must(l.node.RouteDel(r))
		r.Priority = 5
		l.must(l.node.RouteAdd(r))
	}},
	{mode: "transparent", id: "T-ROUTE-STALE", name: "other", break_: func(l *lab) { l.routeAdd("10.240.0.99/32", l.pods[0].veth, nil) }},
	{mode: "transparent", id: "T-ROUTE-STALE", name: "pod gone", break_: func(l *lab) {
		l.routeAdd("10.241.7.7/32", l.pods[2].veth, func(r *netlink.Route) { r.Protocol = protoBoot })
	}},
	{mode: "transparent", id: "T-VETH-MISSING", name: "deleted", break_: func(l *lab) { l.must(l.node.LinkDel(l.link(l.pods[0].veth))) }, effects: []string{"T-ROUTE-MISSING"}},
	{mode: "transparent", id: "T-VETH-MISSING", name: "renamed", break_: func(l *lab) { l.must(l.node.LinkSetName(l.link(l.pods[0].veth), "azvffffffffff1")) }, effects: []string{"T-ROUTE-WRONG-DEV", "T-VETH-ORPHAN"}},
	{mode: "transparent", id: "T-VETH-MISSING", name: "a bridge", break_: func(l *lab) {
		l.must(l.node.LinkDel(l.link(l.pods[0].veth)))
		l.bridgeTo(l.pods[0].veth)
	}, effects: []string{"T-ROUTE-MISSING"}},
	{mode: "transparent", id: "T-VETH-STATE", name: "down", break_: func(l *lab) { l.must(l.node.LinkSetDown(l.link(l.pods[0].veth))) }, effects: []string{"T-ROUTE-MISSING"}},
	{mode: "transparent", id: "T-VETH-STATE", name: "carrier", break_: func(l *lab) { l.must(l.inside.LinkSetDown(l.end(&l.pods[0]))) }},
	{mode: "transparent", id: "T-VETH-ORPHAN", name: "here", break_: func(l *lab) { l.orphan("azvdeadbeef001", "", false) }},
	{mode: "transparent", id: "T-VETH-ORPHAN", name: "elsewhere", break_: func(l *lab) {
		l.orphan("azvdeadbeef002", "", true)
		l.must(l.node.LinkSetUp(l.link("azvdeadbeef002")))
		l.routeAdd("10.240.9.9/32", "azvdeadbeef002", nil)
	}, effects: []string{"T-ROUTE-STALE"}},
	{mode: "transparent", id: "T-VETH-MAC", name: "udev", break_: func(l *lab) { l.must(l.node.LinkSetHardwareAddr(l.link(l.pods[0].veth), wrongMAC())) }},
	{mode: "transparent", id: "T-VETH-MAC", name: "two", break_: func(l *lab) {
		for i := range 2 {
			l.must(l.node.LinkSetHardwareAddr(l.link(l.pods[i].veth), net.HardwareAddr{0x5e, 0, 0, 0, 0, byte(i)}))
		}
	}},
	{mode: "transparent", id: "T-VETH-MTU", name: "lower", break_: func(l *lab) { l.must(l.node.LinkSetMTU(l.link(l.pods[0].veth), 1400)) }},
	{mode: "transparent", id: "T-VETH-MTU", name: "higher", break_: func(l *lab) { l.must(l.node.LinkSetMTU(l.link(l.pods[0].veth), 9000)) }},
	{mode: "transparent", id: "T-PROXY-ARP", name: "off", break_: func(l *lab) { l.sysctl("net/ipv4/conf/"+l.pods[0].veth+"/proxy_arp", "0") }},
	{mode: "transparent", id: "T-PROXY-ARP", name: "all off", break_: func(l *lab) {
		for _, p := range l.pods {
			l.sysctl("net/ipv4/conf/"+p.veth+"/proxy_arp", "0")
		}
	}},
	{mode: "transparent", id: "T-VETH-ADDR", name: "pod's", break_: func(l *lab) { l.must(l.node.AddrAdd(l.link(l.pods[0].veth), labAddr(l.pods[0].ip.String()+"/32"))) }, effects: []string{"N-DUP-IP"}},
	{mode: "transparent", id: "T-VETH-ADDR", name: "foreign", break_: func(l *lab) { l.must(l.node.AddrAdd(l.link(l.pods[0].veth), labAddr("192.168.7.1/24"))) }},
	{mode: "transparent", id: "T-VETH-ADDR", name: "table local", break_: func(l *lab) {
		l.routeAdd(l.pods[0].ip.String()+"/32", "lo", func(r *netlink.Route) { r.Type, r.Table, r.Scope = unix.RTN_LOCAL, tableLocal, netlink.SCOPE_HOST })
	}},
	{mode: "transparent", id: "T-NEIGH", name: "permanent", break_: func(l *lab) {
		n := l.neigh(&l.pods[0])
		n.HardwareAddr = wrongMAC()
		l.must(l.node.NeighSet(n))
	}},
	{mode: "transparent", id: "T-NEIGH", name: "reachable", break_: func(l *lab) {
		n := l.neigh(&l.pods[0])
		n.HardwareAddr, n.State = wrongMAC(), netlink.NUD_REACHABLE
		l.must(l.node.NeighSet(n))
	}},
	{mode: "transparent", id: "T-NEIGH", name: "right but permanent", break_: func(l *lab) { l.must(l.node.NeighSet(l.neigh(&l.pods[0]))) }},
	{mode: "transparent", id: "T-MODE-MIX", name: "azure0", break_: func(l *lab) { l.bridgeTo("azure0") }},
	{mode: "transparent", id: "T-MODE-MIX", name: "uplink", break_: func(l *lab) { l.must(l.node.LinkSetMaster(l.link("eth0"), l.bridgeTo("br9"))) }},
	{mode: "transparent", id: "T-MODE-MIX", name: "veth", break_: func(l *lab) { l.must(l.node.LinkSetMaster(l.link(l.pods[0].veth), l.bridgeTo("br9"))) }},
	{mode: "transparent", id: "T-V6", name: "route", dual: true, break_: func(l *lab) { l.must(l.node.RouteDel(l.route6(&l.pods[0]))) }},
	{mode: "transparent", id: "T-V6", name: "accept_ra", dual: true, break_: func(l *lab) { l.sysctl("net/ipv6/conf/"+l.pods[0].veth+"/accept_ra", "1") }},
	{mode: "transparent", id: "N-FORWARDING", name: "IPv6", dual: true, break_: func(l *lab) { l.sysctl("net/ipv6/conf/all/forwarding", "0") }, effects: []string{"T-V6"}},
	{mode: "transparent", id: "T-ROUTE-WRONG-DEV", name: "IPv6", dual: true, break_: func(l *lab) {
		r := l.route6(&l.pods[0])
		l.must(l.node.RouteDel(r))
		r.LinkIndex = l.link(l.pods[1].veth).Attrs().Index
		l.must(l.node.RouteAdd(r))
	}},

	{mode: "bridge", id: "B-BRIDGE", name: "deleted", break_: func(l *lab) { l.must(l.node.LinkDel(l.link("azure0"))) },
		effects: []string{"B-NEIGH-MISSING", "B-PORT", "B-UPLINK-MASTER", "N-DEFAULT", "N-NODE-IP", "N-PLATFORM"}},
	{mode: "bridge", id: "B-BRIDGE", name: "down", break_: func(l *lab) { l.must(l.node.LinkSetDown(l.link("azure0"))) },
		effects: []string{"B-NEIGH-MISSING", "B-PORT", "B-UPLINK-MASTER", "N-DEFAULT", "N-PLATFORM"}},
	{mode: "bridge", id: "B-UPLINK-MASTER", name: "no master", break_: func(l *lab) { l.must(l.node.LinkSetNoMaster(l.link("eth0"))) }, effects: []string{"B-BRIDGE-MAC", "B-NEIGH-MISSING"}},
	{mode: "bridge", id: "B-UPLINK-MASTER", name: "another", break_: func(l *lab) { l.must(l.node.LinkSetMaster(l.link("eth0"), l.bridgeTo("br9"))) }, effects: []string{"B-BRIDGE-MAC", "B-NEIGH-MISSING"}},
	{mode: "bridge", id: "B-L3-PLACE", name: "address", break_: func(l *lab) { l.must(l.node.AddrAdd(l.link("eth0"), labAddr(labNode+"/12"))) }, effects: []string{"N-OVERLAP"}},
	{mode: "bridge", id: "B-L3-PLACE", name: "DHCP again", break_: func(l *lab) {
		l.must(l.node.AddrDel(l.link("azure0"), labAddr(labNode+"/12")), l.node.AddrAdd(l.link("eth0"), labAddr(labNode+"/12")))
		r := l.defaultRoute()
		r.LinkIndex = l.link("eth0").Attrs().Index
		l.must(l.node.RouteAdd(r))
	}, effects: []string{"B-NEIGH-MISSING", "N-DEFAULT", "N-NODE-IP", "N-PLATFORM"}},
	{mode: "bridge", id: "B-BRIDGE-MAC", name: "a pod's", break_: func(l *lab) { l.must(l.node.LinkSetHardwareAddr(l.link("azure0"), l.pods[0].mac)) }, effects: []string{"B-NEIGH-MISSING"}},
	{mode: "bridge", id: "B-BRIDGE-MAC", name: "a lower port", break_: func(l *lab) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = "low0", net.HardwareAddr{0, 0, 0, 0, 0, 1}
		l.must(l.node.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "low1"}))
		l.must(l.node.LinkSetMaster(l.link("low0"), l.link("azure0")))
	}, effects: []string{"B-NEIGH-MISSING"}},
	{mode: "bridge", id: "B-PORT", name: "no master", break_: func(l *lab) { l.must(l.node.LinkSetNoMaster(l.link(l.pods[0].veth))) }},
	{mode: "bridge", id: "B-PORT", name: "deleted", break_: func(l *lab) { l.must(l.node.LinkDel(l.link(l.pods[0].veth))) }},
	{mode: "bridge", id: "B-PORT", name: "carrier", break_: func(l *lab) { l.must(l.inside.LinkSetDown(l.end(&l.pods[0]))) }},
	{mode: "bridge", id: "B-PORT-FLAGS", name: "learning", break_: func(l *lab) { l.must(l.node.LinkSetLearning(l.link(l.pods[0].veth), false)) }},
	{mode: "bridge", id: "B-PORT-FLAGS", name: "isolated", break_: func(l *lab) { l.must(l.node.LinkSetIsolated(l.link(l.pods[0].veth), true)) }},
	{mode: "bridge", id: "B-HAIRPIN", name: "uplink", break_: func(l *lab) { l.must(l.node.LinkSetHairpin(l.link("eth0"), false)) }},
	{mode: "bridge", id: "B-HAIRPIN", name: "pod", break_: func(l *lab) { l.must(l.node.LinkSetHairpin(l.link(l.pods[0].veth), false)) }},
	{mode: "bridge", id: "B-PORT-ORPHAN", name: "here", break_: func(l *lab) { l.orphan("azvdeadbeef001", "azure0", false) }, effects: []string{"B-HAIRPIN"}},
	{mode: "bridge", id: "B-PORT-ORPHAN", name: "elsewhere", break_: func(l *lab) { l.orphan("azvdeadbeef002", "azure0", true) }, effects: []string{"B-HAIRPIN"}},
	{mode: "bridge", id: "B-NEIGH-MISSING", name: "one", break_: func(l *lab) { l.must(l.node.NeighDel(l.neigh(&l.pods[0]))) }},
	{mode: "bridge", id: "B-NEIGH-MISSING", name: "dynamic", break_: func(l *lab) {
		n := l.neigh(&l.pods[0])
		n.State = netlink.NUD_STALE
		l.must(l.node.NeighSet(n))
	}},
	{mode: "bridge", id: "B-NEIGH-MAC", name: "wrong", break_: func(l *lab) {
		n := l.neigh(&l.pods[0])
		n.HardwareAddr = wrongMAC()
		l.must(l.node.NeighSet(n))
	}},
	{mode: "bridge", id: "B-NEIGH-MAC", name: "another pod's", break_: func(l *lab) {
		n := l.neigh(&l.pods[0])
		n.HardwareAddr = l.pods[1].mac
		l.must(l.node.NeighSet(n))
	}},
	{mode: "bridge", id: "B-NEIGH-STALE", name: "one", break_: func(l *lab) {
		n := l.neigh(&l.pods[0])
		n.IP = net.ParseIP("10.240.0.99")
		l.must(l.node.NeighSet(n))
	}},
	{mode: "bridge", id: "B-NEIGH-STALE", name: "many", break_: func(l *lab) {
		for i := range 5 {
			n := l.neigh(&l.pods[0])
			n.IP = net.IPv4(10, 240, 9, byte(i+1))
			l.must(l.node.NeighSet(n))
		}
	}},
	{mode: "bridge", id: "B-MODE-MIX", name: "veth", break_: func(l *lab) { l.routeAdd(l.pods[0].ip.String()+"/32", l.pods[0].veth, nil) }},
	{mode: "bridge", id: "B-MODE-MIX", name: "bridge", break_: func(l *lab) { l.routeAdd(l.pods[0].ip.String()+"/32", "azure0", nil) }},
}

// TestFaults breaks every invariant: the look finds it, at its head, with nothing
// beside it but what follows from it; and clears after the repair.
func TestFaults(t *testing.T) {
	for _, f := range faults {
		t.Run(f.id+"/"+f.mode+"/"+f.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, f.mode, 3, f.dual)
			config := f.config
			config.Expect = expectStateFile
			p := l.probe(config)
			if found := l.again(p); len(found) > 0 {
				t.Fatalf("the clean lab: %+v", found)
			}
			f.break_(l)
			for who, found := range map[string][]probes.Finding{"the agent": l.again(p), "a check": l.look(config)} {
				if roots, effects := ids(found); !slices.Equal(roots, []string{f.id}) || !slices.Equal(effects, f.effects) {
					t.Errorf("%s found %v with effects %v, want %s with %v\n%+v", who, roots, effects, f.id, f.effects, found)
				}
			}
			l.repair()
			if found := l.again(p); len(found) > 0 {
				t.Errorf("after the repair: %+v", found)
			}
		})
	}
}

// TestEveryInvariantIsBroken counts in how many ways the tables of faults break
// each invariant: at least two.
func TestEveryInvariantIsBroken(t *testing.T) {
	ways := map[string]int{"T-POD-GW": len(podGatewayWays), "B-EBT": len(ebtablesWays)}
	for _, f := range faults {
		ways[f.id]++
	}
	for _, f := range slowFaults {
		ways[f.id]++
	}
	for _, inv := range invariants {
		if ways[inv.id] < 2 {
			t.Errorf("%s is broken in %d ways, want 2", inv.id, ways[inv.id])
		}
		delete(ways, inv.id)
		if !slices.ContainsFunc(reasons, func(r probes.Reason) bool { return r.Name == inv.reason }) {
			t.Errorf("%s has no reason %s", inv.id, inv.reason)
		}
	}
	if len(ways) > 0 {
		t.Errorf("%v are no invariants", ways)
	}
	if len(invariants) != 43+2 { // of the facts, and those of bridge mode beyond them
		t.Errorf("there are %d invariants", len(invariants))
	}
}

// TestClean looks at nodes in order, of all sizes.
func TestClean(t *testing.T) {
	for _, mode := range []string{"transparent", "bridge"} {
		for _, n := range []int{0, 3, 30, 250} {
			for _, dual := range []bool{false, true} {
				if dual && mode == "bridge" || testing.Short() && n > 30 {
					continue
				}
				t.Run(fmt.Sprintf("%s/%d/dual=%t", mode, n, dual), func(t *testing.T) {
					t.Parallel()
					l := newLab(t, mode, n, dual)
					if n > 0 { // docker's bridge is down, and lawful
						l.must(l.node.AddrAdd(l.bridgeTo("docker0"), labAddr("172.17.0.1/16")))
					}
					if found := l.look(stateOnly); len(found) > 0 {
						t.Errorf("found %+v", found)
					}
				})
			}
		}
	}
}

// TestMany loses every route of a node: one finding with a count and three names.
func TestMany(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 250, false)
	for i := range l.pods {
		l.must(l.node.RouteDel(l.route(&l.pods[i])))
	}
	found := l.look(stateOnly)
	if len(found) != 1 || len(found[0].Consequences) != 250 || found[0].Severity != critical {
		t.Fatalf("%d findings", len(found))
	}
	const want = "250 routes missing: default/pod-0001 (10.240.0.11), default/pod-0002 (10.240.0.12), default/pod-0003 (10.240.0.13) (+247 more)"
	if found[0].Message != want {
		t.Errorf("message %q, want %q", found[0].Message, want)
	}
}

// TestTooMany loses more routes than the agent keeps findings: all are counted.
func TestTooMany(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 600, false)
	for i := range l.pods {
		l.must(l.node.RouteDel(l.route(&l.pods[i])))
	}
	look, err := l.probe(stateOnly).Check(t.Context())
	l.must(err)
	found := (*Probe)(nil).Explain(look.Findings)
	if len(look.Findings) > maxFindings || len(found) != 1 || !strings.HasPrefix(found[0].Message, "600 routes missing: default/pod-0001 (") || !strings.HasSuffix(found[0].Message, " (+597 more)") {
		t.Errorf("%d findings, explained as %+v", len(look.Findings), found)
	}
}

// TestFit makes findings of several kinds fit: few of a kind are all kept, of
// many the number is, and a cause explains those that are only counted.
func TestFit(t *testing.T) {
	t.Parallel()
	var all []probes.Finding
	add := func(n int, f probes.Finding) {
		for i := range n {
			f.Subject, f.Hold = fmt.Sprintf("default/p%04d (10.0.0.1)", i), time.Duration(i)*time.Second
			all = append(all, f)
		}
	}
	add(1, probes.Finding{ID: "N-RULE", Severity: warning})
	add(3, probes.Finding{ID: "T-VETH-STATE", Severity: critical})
	add(300, probes.Finding{ID: "T-ROUTE-MISSING", Severity: critical})
	add(400, probes.Finding{ID: "T-VETH-MTU", Severity: info})
	if got := fit(all[:512]); len(got) != 512 || got[511].Subject == others {
		t.Errorf("what fits became %d", len(got))
	}
	got := fit(all)
	stand, holds := map[string]int{}, map[string]time.Duration{}
	for i := range got {
		stand[got[i].ID] += stands(&got[i])
		holds[got[i].ID] = max(holds[got[i].ID], got[i].Hold)
	}
	if len(got) > maxFindings || stand["T-VETH-STATE"] != 3 || stand["T-ROUTE-MISSING"] != 300 || stand["T-VETH-MTU"] != 400 || holds["T-VETH-MTU"] != 399*time.Second {
		t.Errorf("%d findings stand for %v, with holds %v", len(got), stand, holds)
	}
	var messages strings.Builder
	for _, f := range (*Probe)(nil).Explain(got) {
		messages.WriteString(f.Message + "\n")
	}
	if !strings.Contains(messages.String(), "400 host veths have another MTU: ") || !strings.Contains(messages.String(), "297 routes missing: ") || !strings.Contains(messages.String(), "3 host veths are down: ") {
		t.Errorf("explained as %s", messages.String())
	}
	all = nil
	add(300, probes.Finding{ID: "T-VETH-STATE", Severity: critical})
	add(300, probes.Finding{ID: "T-ROUTE-MISSING", Severity: critical})
	if found := (*Probe)(nil).Explain(fit(all)); len(found) != 1 || !strings.HasPrefix(found[0].Message, "300 host veths are down: ") {
		t.Errorf("explained as %+v", found)
	}
}

// TestNeighborFailed has a pod that does not answer ARP. To have failed once, or
// long ago, is normal for a pod that nobody talks to; to fail anew in three looks
// in a row is a finding. It clears with an answer.
func TestNeighborFailed(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 2, false)
	p, pod := l.probe(stateOnly), &l.pods[0]
	l.sysctl("net/ipv4/neigh/"+pod.veth+"/retrans_time_ms", "10")
	l.sysctl("net/ipv4/neigh/"+pod.veth+"/mcast_solicit", "1")
	l.again(p)
	for i, asks := range []bool{true, false, true, false, true} {
		time.Sleep(50 * time.Millisecond) // the kernel counts a neighbour's age in 10 ms
		if asks {
			l.ask(pod.ip, neighFailed)
		}
		found := l.again(p)
		if want := i / 4; len(found) != want || want == 1 && (found[0].ID != "T-NEIGH" || found[0].Message != "the pod does not answer ARP") {
			t.Errorf("look %d: found %+v", i+1, found)
		}
	}
	l.must(l.inside.AddrAdd(l.end(pod), labAddr(pod.ip.String()+"/12")))
	l.ask(pod.ip, neighValid)
	if found := l.again(p); len(found) > 0 {
		t.Errorf("with an answer: found %+v", found)
	}
}

// ask sends a packet to a pod, and waits until its neighbour is in a state.
func (l *lab) ask(ip netip.Addr, state neighState) {
	l.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // of this thread's namespace
	l.must(err)
	defer unix.Close(fd)
	asked := time.Now()
	l.must(unix.Sendto(fd, []byte("?"), 0, &unix.SockaddrInet4{Port: 9, Addr: ip.As4()}))
	k := newKernel()
	defer k.close()
	var s snapshot
	for range 1000 {
		l.must(k.observe(&s, false))
		if slices.ContainsFunc(s.neighs, func(n neigh) bool {
			return n.ip == ip && n.state == state && (state != neighFailed || time.Duration(n.updated)*10*time.Millisecond < time.Since(asked))
		}) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	l.Fatalf("the neighbour of %s does not come into state %d", ip, state)
}
