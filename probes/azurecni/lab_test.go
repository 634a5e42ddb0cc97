package azurecni

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// A lab is a node's networking as Azure CNI leaves it, in network namespaces of
// the test's own, and the CNI's files in a root of its own. The test's goroutine
// keeps its thread, which is in the node's namespace.
type lab struct {
	testing.TB
	mode      string // "transparent" or "bridge"
	dual      bool
	root      string
	node      *netlink.Handle // the node's namespace
	inside    *netlink.Handle // the pods' ends
	fabric    *netlink.Handle
	pods      []labPod
	nodeMAC   net.HardwareAddr
	addresses int            // given out
	ns        netns.NsHandle // the node's
	ends, fab netns.NsHandle // where the pods' ends are, and the other end of eth0
}

type labPod struct {
	name      string // default/pod-0001
	ip        netip.Addr
	ip6       netip.Addr
	veth, end string
	mac       net.HardwareAddr
	container string
	netns     string // its name; "" is none
}

const (
	labNode, labGateway = "10.240.0.4", "10.240.0.1"
	labMAC              = "00:0d:3a:11:22:33"
)

// newLab makes a node with n pods. It skips the test without root.
func newLab(t testing.TB, mode string, n int, dual bool) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	l := &lab{TB: t, mode: mode, dual: dual, root: t.TempDir()}
	var handles []netns.NsHandle
	open := func() *netlink.Handle {
		ns, err := netns.New()
		if err != nil {
			t.Skip("cannot make a network namespace: ", err)
		}
		h, err := netlink.NewHandleAt(ns)
		l.must(err)
		handles = append(handles, ns)
		lo, err := h.LinkByName("lo")
		l.must(err, h.LinkSetUp(lo))
		return h
	}
	l.fabric, l.inside, l.node = open(), open(), open() // the last one is where the thread stays
	t.Cleanup(func() {
		for i, h := range []*netlink.Handle{l.fabric, l.inside, l.node} {
			h.Close()
			handles[i].Close()
		}
	})
	l.fab, l.ends, l.ns = handles[0], handles[1], handles[2]
	l.nodeMAC, _ = net.ParseMAC(labMAC)
	l.uplink()
	for range n {
		l.add()
	}
	l.write()
	l.settle()
	return l
}

// settle waits until the kernel has told every port and link of its carrier,
// which it does a little later than it has it.
func (l *lab) settle() {
	l.Helper()
	k := newKernel()
	defer k.close()
	var seen snapshot
	for range 300 {
		l.must(k.observe(&seen, false))
		if !slices.ContainsFunc(seen.links, func(k link) bool { return !k.carrier() || k.isPort && k.state != forwardingPort }) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.Fatal("the lab's links do not come up")
}

func (l *lab) must(errs ...error) {
	l.Helper()
	if err := errors.Join(errs...); err != nil {
		l.Fatal(err)
	}
}

// uplink makes eth0, and azure0 above it in bridge mode.
func (l *lab) uplink() {
	fab, _ := net.ParseMAC("12:34:56:78:9a:bc")
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = "eth0", l.nodeMAC, 1500
	l.must(l.node.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "fab0", PeerHardwareAddr: fab, PeerNamespace: netlink.NsFd(l.fab)}))
	peer, err := l.fabric.LinkByName("fab0")
	l.must(err)
	l.must(l.fabric.LinkSetUp(peer), l.fabric.AddrAdd(peer, labAddr(labGateway+"/12")))
	top := l.link("eth0")
	l.must(l.node.LinkSetUp(top))
	if l.mode == "bridge" {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "azure0"
		l.must(l.node.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		eth0 := top
		top = l.link("azure0")
		l.must(l.node.LinkSetMaster(eth0, top), l.node.LinkSetUp(top), l.node.LinkSetHairpin(eth0, true))
	}
	index := top.Attrs().Index
	l.must(l.node.AddrAdd(top, labAddr(labNode+"/12")))
	routes := []netlink.Route{{LinkIndex: index, Gw: net.ParseIP(labGateway)}}
	if l.mode == "transparent" {
		routes = append(routes, netlink.Route{LinkIndex: index, Dst: labNet(labGateway + "/32"), Scope: netlink.SCOPE_LINK})
		for _, ip := range platform {
			routes = append(routes, netlink.Route{LinkIndex: index, Dst: labNet(ip.String() + "/32"), Gw: net.ParseIP(labGateway)})
		}
	}
	for _, r := range routes {
		r.Protocol, r.Priority, r.Src = protoDHCP, 100, net.ParseIP(labNode)
		l.must(l.node.RouteAdd(&r))
	}
	l.sysctl("net/ipv4/ip_forward", "1")
	if l.dual {
		l.sysctl("net/ipv6/conf/all/forwarding", "1")
	}
}

func labAddr(s string) *netlink.Addr {
	a, err := netlink.ParseAddr(s)
	if err != nil {
		panic(err)
	}
	return a
}

func labNet(s string) *net.IPNet { return labAddr(s).IPNet }

// sysctl writes a key of the node; the thread is in its namespace.
func (l *lab) sysctl(key, value string) {
	l.Helper()
	l.must(os.WriteFile("/proc/sys/"+key, []byte(value), 0))
}

func (l *lab) link(name string) netlink.Link {
	l.Helper()
	found, err := l.node.LinkByName(name)
	l.must(err)
	return found
}

// add makes a pod as an ADD of the CNI does, without writing the state file.
func (l *lab) add() *labPod {
	l.Helper()
	l.addresses++
	i := l.addresses
	k := i%4000 + 9
	p := labPod{name: fmt.Sprintf("default/pod-%04d", i), ip: netip.AddrFrom4([4]byte{10, 240, byte(k / 250), byte(k%250 + 1)}), container: fmt.Sprintf("%040x", i), end: fmt.Sprintf("c%d", i)}
	p.mac = net.HardwareAddr{2, 0, 10, 0xf0, byte(i / 256), byte(i % 256)}
	p.veth = vethOf(p.name)
	if l.dual {
		p.ip6 = netip.MustParseAddr(fmt.Sprintf("fd00:240::%x", k))
	}
	l.make(&p)
	l.pods = append(l.pods, p)
	return &l.pods[len(l.pods)-1]
}

// make makes a pod's links, routes and neighbours.
func (l *lab) make(p *labPod) {
	l.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = p.veth, 1500, constantMAC[:]
	if l.mode == "bridge" {
		attrs.HardwareAddr = slices.Concat(net.HardwareAddr{6}, p.mac[1:])
	}
	l.must(l.node.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: p.end, PeerHardwareAddr: p.mac, PeerNamespace: netlink.NsFd(l.ends)}))
	end, err := l.inside.LinkByName(p.end)
	l.must(err, l.inside.LinkSetUp(end))
	veth := l.link(p.veth)
	if l.mode == "bridge" {
		azure0 := l.link("azure0")
		l.must(l.node.LinkSetMaster(veth, azure0), l.node.LinkSetUp(veth), l.node.LinkSetHairpin(veth, true))
		l.must(l.node.NeighSet(l.neigh(p)))
	} else {
		l.must(l.node.LinkSetUp(veth))
		l.must(l.node.RouteAdd(l.route(p)))
		l.sysctl("net/ipv4/conf/"+p.veth+"/proxy_arp", "1")
	}
	if l.dual {
		l.sysctl("net/ipv6/conf/"+p.veth+"/accept_ra", "0")
		l.must(l.node.RouteAdd(l.route6(p)))
	}
}

// repair takes away all that is on the node, and makes it anew with the same pods.
func (l *lab) repair() {
	l.Helper()
	links, err := l.node.LinkList()
	l.must(err)
	for _, k := range links {
		if k.Attrs().Name != "lo" {
			_ = l.node.LinkDel(k) // it may have gone with its other end
		}
	}
	lo := l.link("lo")
	addrs, err := l.node.AddrList(lo, unix.AF_INET)
	l.must(err)
	for i := range addrs {
		if !addrs[i].IP.IsLoopback() {
			l.must(l.node.AddrDel(lo, &addrs[i]))
		}
	}
	routes, err := l.node.RouteListFiltered(unix.AF_INET, &netlink.Route{}, netlink.RT_FILTER_TABLE) // of all tables
	l.must(err)
	for i := range routes {
		if routes[i].Protocol != protoKernel {
			l.must(l.node.RouteDel(&routes[i]))
		}
	}
	rules, err := l.node.RuleList(unix.AF_INET)
	l.must(err)
	for i := range rules {
		l.must(l.node.RuleDel(&rules[i]))
	}
	for _, r := range []*netlink.Rule{l.rule(0, tableLocal), l.rule(32766, tableMain), l.rule(32767, tableDefault)} {
		l.must(l.node.RuleAdd(r))
	}
	l.uplink()
	for i := range l.pods {
		l.make(&l.pods[i])
	}
	l.write()
	l.settle()
}

// del removes a pod as a DEL and the end of its namespace do.
func (l *lab) del(i int) {
	l.Helper()
	p := l.pods[i]
	l.pods = slices.Delete(l.pods, i, i+1)
	if l.mode == "transparent" {
		l.must(l.node.RouteDel(l.route(&p)))
	} else {
		l.must(l.node.NeighDel(l.neigh(&p)))
	}
	l.must(l.node.LinkDel(l.link(p.veth)))
}

func (l *lab) route(p *labPod) *netlink.Route {
	l.Helper()
	return &netlink.Route{LinkIndex: l.link(p.veth).Attrs().Index, Dst: labNet(p.ip.String() + "/32"), Protocol: protoStatic, Scope: netlink.SCOPE_UNIVERSE}
}

func (l *lab) route6(p *labPod) *netlink.Route {
	return &netlink.Route{LinkIndex: l.link(p.veth).Attrs().Index, Dst: labNet(p.ip6.String() + "/128"), Protocol: protoStatic}
}

func (l *lab) neigh(p *labPod) *netlink.Neigh {
	dev := p.veth
	if l.mode == "bridge" {
		dev = "azure0"
	}
	return &netlink.Neigh{LinkIndex: l.link(dev).Attrs().Index, IP: p.ip.AsSlice(), HardwareAddr: p.mac, State: netlink.NUD_PERMANENT}
}

// write writes the conflist and the state file, by rename as the CNI does.
func (l *lab) write() {
	l.Helper()
	l.file("etc/cni/net.d/10-azure.conflist", fmt.Sprintf(`{"name":"azure","plugins":[{"type":"azure-vnet","mode":%q,"bridge":"azure0","ipam":{"type":"azure-vnet-ipam"}}]}`, l.mode))
	l.file(vnetState, l.state())
}

func (l *lab) file(name, content string) {
	l.Helper()
	at := filepath.Join(l.root, name)
	l.must(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at+".tmp", []byte(content), 0o600), os.Rename(at+".tmp", at))
}

// state is azure-vnet.json.
func (l *lab) state() string {
	type object = map[string]any
	endpoints := object{}
	for _, p := range l.pods {
		ips := []object{{"IP": p.ip.String(), "Mask": "//AAAA=="}}
		if l.dual {
			ips = append(ips, object{"IP": p.ip6.String(), "Mask": "//////////8AAAAAAAAAAA=="})
		}
		namespace, name, _ := strings.Cut(p.name, "/")
		endpoints[p.container[32:]+"-eth0"] = object{"Id": p.container[32:] + "-eth0", "IfName": "eth0", "HostIfName": p.veth, "ContainerID": p.container,
			"MacAddress": base64.StdEncoding.EncodeToString(p.mac), "IPAddresses": ips, "PODName": name, "PODNameSpace": namespace, "NetworkNameSpace": p.netns, "NICType": "InfraNIC"}
	}
	bridge, ips := "", []object(nil)
	if l.mode == "bridge" {
		bridge, ips = "azure0", []object{{"IP": labNode, "Mask": "//AAAA=="}}
	}
	b, err := json.Marshal(object{"Network": object{"ExternalInterfaces": object{"eth0": object{"Name": "eth0", "BridgeName": bridge, "IPAddresses": ips,
		"MacAddress": base64.StdEncoding.EncodeToString(l.nodeMAC), "IPv4Gateway": "0.0.0.0", "Subnets": []string{"10.240.0.0/12"},
		"DNSInfo":  object{"Servers": []string{"168.63.129.16"}},
		"Networks": object{"azure": object{"Mode": l.mode, "Subnets": []object{{"Gateway": labGateway}}, "Endpoints": endpoints}}}}}})
	l.must(err)
	return string(b)
}

// probe returns a new probe of the lab. It must be asked by the test's goroutine.
func (l *lab) probe(config Config) *Probe {
	l.Helper()
	files, err := host.OpenRoot(l.root)
	l.must(err)
	p := New(files, nil, config)
	l.Cleanup(func() { files.Close(); p.kernel.(*kernel).close() })
	return p
}

var stateOnly = Config{Expect: expectStateFile}

// look takes one look with a new probe, and explains it as if every hold were over.
func (l *lab) look(config Config) []probes.Finding {
	l.Helper()
	return l.again(l.probe(config))
}

func (l *lab) again(p *Probe) []probes.Finding {
	l.Helper()
	p.stale.Store(true)
	look, err := p.Check(l.Context())
	l.must(err)
	return p.Explain(look.Findings)
}

// ids are the findings' invariants, and those of their consequences.
func ids(found []probes.Finding) (roots, effects []string) {
	for _, f := range found {
		roots = append(roots, f.ID)
		for _, c := range f.Consequences {
			if c.ID != f.ID && !slices.Contains(effects, c.ID) {
				effects = append(effects, c.ID)
			}
		}
	}
	slices.Sort(effects)
	return roots, effects
}

func (l *lab) rule(priority, table int) *netlink.Rule {
	r := netlink.NewRule()
	r.Priority, r.Table, r.Family = priority, table, unix.AF_INET
	return r
}

// enterNode moves the thread back into the node's namespace.
func (l *lab) enterNode() { l.must(netns.Set(l.ns)) }

func (l *lab) end(p *labPod) netlink.Link {
	l.Helper()
	found, err := l.inside.LinkByName(p.end)
	l.must(err)
	return found
}
