package azurecni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// podGatewayWays break a pod's own namespace.
var podGatewayWays = []struct {
	name   string
	breaks func(l *lab, route *netlink.Route, gateway *netlink.Neigh) error
}{
	{"no default route", func(l *lab, route *netlink.Route, _ *netlink.Neigh) error { return l.inside.RouteDel(route) }},
	{"another router", func(l *lab, route *netlink.Route, _ *netlink.Neigh) error {
		other := *route
		other.Gw = net.ParseIP("169.254.1.2")
		other.Flags = int(netlink.FLAG_ONLINK)
		return l.inside.RouteReplace(&other)
	}},
	{"another MAC", func(l *lab, _ *netlink.Route, gateway *netlink.Neigh) error {
		gateway.HardwareAddr = wrongMAC()
		return l.inside.NeighSet(gateway)
	}},
}

// TestPodGateway breaks what is inside of a pod's own namespace. The namespace is found by its path, and where nobody tells that by the pod's veth.
func TestPodGateway(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 0, false)
	name := fmt.Sprintf("azurecni-%d", os.Getpid())
	inside, err := netns.NewNamed(name)
	l.enterNode()
	if err != nil {
		t.Skip("cannot make a network namespace with a name: ", err)
	}
	t.Cleanup(func() { inside.Close(); _ = netns.DeleteNamed(name) })
	l.ends = inside
	l.inside, err = netlink.NewHandleAt(inside)
	l.must(err)
	pod := l.add()
	pod.netns = namespaces + "/" + name
	l.file(pod.netns, "")
	l.must(unix.Mount(pod.netns, l.root+pod.netns, "", unix.MS_BIND, ""), os.WriteFile(l.root+namespaces+"/left-behind", nil, 0o644))
	t.Cleanup(func() { _ = unix.Unmount(l.root+pod.netns, unix.MNT_DETACH) })
	l.write()
	l.settle()
	end := l.end(pod)
	l.must(l.inside.AddrAdd(end, labAddr(pod.ip.String()+"/32")))
	first := &netlink.Route{LinkIndex: end.Attrs().Index, Dst: labNet("169.254.1.1/32"), Scope: netlink.SCOPE_LINK}
	route := &netlink.Route{LinkIndex: end.Attrs().Index, Gw: net.ParseIP("169.254.1.1")}
	gateway := &netlink.Neigh{LinkIndex: end.Attrs().Index, IP: net.ParseIP("169.254.1.1"), HardwareAddr: constantMAC[:], State: netlink.NUD_PERMANENT}
	l.must(l.inside.RouteAdd(first), l.inside.RouteAdd(route), l.inside.NeighSet(gateway))

	cns := fmt.Sprintf(`{"Endpoints": {%q: {"PodName": "pod-0001", "PodNamespace": "default", "IfnameToIPMap": {"eth0": {"IPv4": [{"IP": %q}], "HostVethName": %q}}}}}`, pod.container, pod.ip, pod.veth)
	for _, file := range []string{vnetState, cnsState} {
		if file == cnsState {
			l.must(os.Remove(filepath.Join(l.root, vnetState)))
			l.file(cnsState, cns)
		}
		p := l.probe(Config{Expect: expectStateFile, PodGateway: true})
		check := func(what string, want ...string) {
			t.Helper()
			p.stale.Store(true)
			look, err := p.Check(t.Context())
			roots, _ := ids(look.Findings)
			if err != nil || !slices.Equal(roots, want) || len(reasonsOf(look.NotJudged, PodGatewayLost)) > 0 {
				t.Errorf("%s, %s: found %v, %v, not judged %q", file, what, roots, err, look.NotJudged)
			}
		}
		check("in order")
		for _, w := range podGatewayWays {
			l.must(w.breaks(l, route, gateway))
			check(w.name, "T-POD-GW")
			gateway.HardwareAddr = constantMAC[:]
			l.must(l.inside.RouteReplace(route), l.inside.NeighSet(gateway))
			check("repaired")
		}
	}
	files, err := host.OpenRoot(l.root)
	l.must(err)
	defer files.Close()
	for _, name := range []string{"", "/etc/passwd", "/run/netns/../../etc/passwd", "/proc/1/ns/net", namespaces + "/left-behind", namespaces + "/gone"} {
		if err := enter(files, name); err == nil {
			t.Errorf("entered %q", name)
		}
	}
}

// ebtablesWays break the rules of a bridge one after the other.
var ebtablesWays = []struct {
	name string
	args []string
	text string
}{
	{"the first pod's dnat", []string{"-D", "PREROUTING", "2"}, "PREROUTING dnat"},
	{"its arpreply", []string{"-D", "PREROUTING", "1"}, "PREROUTING arpreply"},
	{"the NIC's snat", []string{"-F", "POSTROUTING"}, "2 pods lack their ebtables rules"},
}

// TestEbtables breaks the rules of a bridge, as ebtables-nft keeps them.
func TestEbtables(t *testing.T) {
	t.Parallel()
	ebtables, err := exec.LookPath("ebtables")
	if err != nil {
		t.Skip("no ebtables to set rules with")
	}
	l := newLab(t, "bridge", 2, false)
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(ebtables, append([]string{"-t", "nat"}, args...)...).CombinedOutput(); err != nil {
			t.Skipf("ebtables %v: %v: %s", args, err, out)
		}
	}
	run("-A", "POSTROUTING", "-s", "Unicast", "-o", "eth0", "-j", "snat", "--to-src", labMAC, "--snat-arp", "--snat-target", "ACCEPT")
	for _, p := range l.pods {
		run("-A", "PREROUTING", "-p", "ARP", "--arp-op", "Request", "--arp-ip-dst", p.ip.String(), "-j", "arpreply", "--arpreply-mac", p.mac.String())
		run("-A", "PREROUTING", "-p", "IPv4", "-i", "eth0", "--ip-dst", p.ip.String(), "-j", "dnat", "--to-dst", p.mac.String(), "--dnat-target", "ACCEPT")
	}
	config := Config{Expect: expectStateFile, Ebtables: true}
	if found := l.look(config); len(found) > 0 {
		t.Fatalf("in order: %+v", found)
	}
	for _, w := range ebtablesWays {
		run(w.args...)
		if found := l.look(config); len(found) != 1 || found[0].ID != "B-EBT" || !strings.Contains(found[0].Message, w.text) {
			t.Errorf("without %s: found %+v", w.name, found)
		}
	}
}

// sandboxes is a runtime that knows what it is told.
type sandboxes struct {
	list []host.Sandbox
	err  error
}

func (s *sandboxes) SandboxDetails(context.Context) ([]host.Sandbox, error) { return s.list, s.err }

func (l *lab) sandboxes() *sandboxes {
	s := &sandboxes{}
	for i := range l.pods {
		s.list = append(s.list, l.pods[i].sandbox())
	}
	return s
}

// sandbox is the pod as the runtime knows it, for an hour.
func (p *labPod) sandbox() host.Sandbox {
	namespace, name, _ := strings.Cut(p.name, "/")
	b := host.Sandbox{ID: p.container, Namespace: namespace, Name: name, Ready: true, Known: true, IPs: []netip.Addr{p.ip}, NetNS: "/run/netns/" + name, Created: time.Now().Add(-time.Hour)}
	if p.ip6.IsValid() {
		b.IPs = append(b.IPs, p.ip6)
	}
	return b
}

// TestSandboxes asks the runtime which pods should work.
func TestSandboxes(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 4, false)
	r := l.sandboxes()
	// Lawful: a pod of the host's network, a completed pod that keeps its veth, a
	// second incarnation, a sandbox that has no address yet.
	r.list[3].Ready = false
	r.list = append(r.list, host.Sandbox{ID: "h", Namespace: "kube-system", Name: "kube-proxy-1", Ready: true, Known: true, HostNetwork: true, IPs: []netip.Addr{netip.MustParseAddr(labNode)}},
		host.Sandbox{ID: "n", Namespace: "default", Name: "new", Ready: true, Known: true})
	p := l.probe(Config{})
	p.cri = r
	if found := l.again(p); len(found) > 0 {
		t.Fatalf("in order: %+v", found)
	}
	l.must(l.node.RouteDel(l.route(&l.pods[3])))
	if found := l.again(p); len(found) > 0 {
		t.Fatalf("a completed pod's route: %+v", found)
	}
	l.must(l.node.RouteDel(l.route(&l.pods[0])))
	found := l.again(p)
	if len(found) != 1 || found[0].ID != "T-ROUTE-MISSING" || found[0].Hold != 15*s ||
		found[0].Subject+": "+found[0].Message != "default/pod-0001 (10.240.0.11): route missing; expected dev azva19a9b20ac0" {
		t.Errorf("found %+v", found)
	}
	r.list[0].Created = time.Now()
	if found := l.again(p); found[0].Hold < 59*s {
		t.Errorf("a young sandbox: hold %v", found[0].Hold)
	}
	l.must(l.node.RouteAdd(l.route(&l.pods[0])))
	r.list = slices.Delete(r.list, 1, 2) // its endpoint has leaked
	if roots, _ := ids(l.again(p)); !slices.Equal(roots, []string{"N-STATE"}) {
		t.Errorf("a leaked endpoint: found %v", roots)
	}
	l.file(queued+"/0123", "")
	if found := l.again(p); len(found) > 0 {
		t.Errorf("a release that waits: found %+v", found)
	}
	// A pod that went right after the runtime was asked: the next look asks again.
	l.must(l.node.RouteDel(l.route(&l.pods[0])))
	if look, err := p.Check(t.Context()); err != nil || len(look.Findings) != 1 {
		t.Errorf("a pod that just went: %+v, %v", look, err)
	}
	r.list[0].Ready = false
	p.readAt = p.readAt.Add(-pause)
	if look, err := p.Check(t.Context()); err != nil || len(look.Findings) > 0 {
		t.Errorf("a pod that went: %+v, %v", look, err)
	}
	r.err = errors.New("nobody listens")
	p.stale.Store(true)
	if look, err := p.Check(t.Context()); err == nil || len(look.Findings) > 0 {
		t.Errorf("a dead runtime: %+v, %v", look, err)
	}
	l.must(l.node.RouteDel(l.defaultRoute()))
	look, err := p.Check(t.Context())
	if got, _ := ids(look.Findings); err == nil || !slices.Equal(got, []string{"N-DEFAULT"}) || len(reasonsOf(look.NotJudged, PodRouteMissing)) == 0 {
		t.Errorf("a dead runtime and no default route: %+v, %v", look, err)
	}
	r.err = nil
	if look, err := p.Check(t.Context()); err != nil || len(reasonsOf(look.NotJudged, PodRouteMissing)) > 0 {
		t.Errorf("a runtime that came back: %+v, %v", look, err)
	}
}

// TestNetworkd restarts systemd-networkd: what breaks then has 30 s, and is its doing.
func TestNetworkd(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 3, false)
	p := l.probe(stateOnly)
	l.file("run/systemd/units/x", "")
	at := filepath.Join(l.root, invoked)
	l.must(os.Symlink("0123", at))
	if found := l.again(p); len(found) > 0 {
		t.Fatal(found)
	}
	for i := range l.pods {
		l.must(l.node.RouteDel(l.route(&l.pods[i])))
	}
	found := l.again(p)
	if len(found) != 1 || found[0].Hold != networkd || !strings.Contains(found[0].Message, "systemd-networkd restarted") || found[0].Trace.Name != "systemd-networkd.service" {
		t.Errorf("found %+v", found)
	}
	past := unix.NsecToTimespec(time.Now().Add(-time.Hour).UnixNano())
	l.must(unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{past, past}, unix.AT_SYMLINK_NOFOLLOW))
	p = l.probe(stateOnly)
	if found := l.again(p); found[0].Hold != 15*s || strings.Contains(found[0].Message, "networkd") {
		t.Errorf("an hour later: %+v", found)
	}
}

// TestNotApplicable looks at nodes of other CNIs.
func TestNotApplicable(t *testing.T) {
	for name, files := range map[string]fstest.MapFS{
		"kubenet":   {"etc/cni/net.d/10-containerd-net.conflist": {Data: []byte(`{"plugins":[{"type":"bridge","bridge":"cbr0"}]}`)}},
		"calico":    {"etc/cni/net.d/10-calico.conflist": {Data: []byte(`{"plugins":[{"type":"calico"}]}`)}},
		"no folder": {"etc/hostname": {}},
		"empty":     {"etc/cni/net.d/README": {}},
		"cilium":    {"etc/cni/net.d/05-cilium.conflist": {Data: []byte(`{"plugins":[{"type":"cilium-cni"}]}`)}},
	} {
		p := newProbe(memoryTree{files}, nil, newKernel(), stateOnly)
		if _, err := p.Check(t.Context()); !errors.Is(err, probes.ErrNotApplicable) || !strings.Contains(err.Error(), "no Azure CNI configuration") {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := newProbe(memoryTree{fstest.MapFS{"etc/cni/net.d/10-x.conflist": {Data: []byte("{")}}}, nil, newKernel(), stateOnly)
	if _, err := p.Check(t.Context()); err == nil || errors.Is(err, probes.ErrNotApplicable) {
		t.Errorf("a conflist that does not parse: %v", err)
	}
}

type memoryTree struct{ fstest.MapFS }

func (memoryTree) Watch(context.Context, host.Listener, ...string) error { return nil }
func (memoryTree) OpenNetNS(string) (*os.File, error)                    { return nil, errors.ErrUnsupported }

// TestModes reads the conflists of AKS.
func TestModes(t *testing.T) {
	for content, want := range map[string]mode{
		`{"plugins":[{"type":"azure-vnet","mode":"transparent"},{"type":"portmap"}]}`:       transparent,
		`{"plugins":[{"type":"azure-vnet","mode":"bridge"}]}`:                               bridged,
		`{"plugins":[{"type":"azure-vnet"}]}`:                                               tunnel,
		`{"plugins":[{"type":"azure-vnet","mode":"transparent-vlan","multiTenancy":true}]}`: transparentVLAN,
		`{"plugins":[{"type":"azure-vnet","mode":"transparent"},{"type":"cilium-cni"}]}`:    transparent,
		`{"plugins":[{"type":"cilium-cni","ipam":{"type":"azure-ipam"}}]}`:                  cilium,
		`{"plugins":[{"type":"azure-vnet","mode":"something new"}]}`:                        observed,
		`{"type":"azure-vnet","mode":"transparent"}`:                                        transparent,
		`{"plugins":[{"type":"bridge"}]}`:                                                   unknown,
	} {
		if c, err := parseConflist([]byte(content)); err != nil || c.mode != want {
			t.Errorf("%s: %v, %v", content, c.mode, err)
		}
	}
}

// TestInterrupted dumps tables that change all the time.
func TestInterrupted(t *testing.T) {
	c := newConn()
	c.seq = 7
	message := func(kind, flags uint16, seq byte, body ...byte) []byte {
		return append([]byte{byte(16 + len(body)), 0, 0, 0, byte(kind), 0, byte(flags), 0, seq, 0, 0, 0, 0, 0, 0, 0}, body...)
	}
	took := 0
	take := func(uint16, []byte) { took++ }
	done, intr, err := c.messages(slices.Concat(message(24, unix.NLM_F_MULTI, 6), message(24, unix.NLM_F_MULTI|unix.NLM_F_DUMP_INTR, 7), message(unix.NLMSG_DONE, unix.NLM_F_MULTI, 7, 0, 0, 0, 0)), take)
	if !done || !intr || err != nil || took != 1 {
		t.Errorf("done %t, interrupted %t, %v, %d messages", done, intr, err, took)
	}
	if _, _, err := c.messages([]byte{200, 0, 0, 0, 24, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0}, take); err == nil {
		t.Error("a truncated message is taken")
	}
	if _, _, err := c.messages(message(unix.NLMSG_ERROR, 0, 7, 0xf3, 0xff, 0xff, 0xff), take); !errors.Is(err, unix.EACCES) {
		t.Errorf("an error is %v", err)
	}
}

// brokenStack is a kernel that cannot be dumped.
type brokenStack struct {
	netstack
	err error
}

func (b *brokenStack) observe(s *snapshot, dual bool) error {
	if b.err != nil {
		s.routes = s.routes[:0] // half a dump
		return b.err
	}
	return b.netstack.observe(s, dual)
}

// TestCouldNotLook interrupts the dumps of one look: it is an error with no
// finding, and the next look is clean again.
func TestCouldNotLook(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 3, false)
	p := l.probe(stateOnly)
	b := &brokenStack{netstack: p.kernel}
	real := p.kernel.(*kernel)
	p.kernel = b
	t.Cleanup(func() { p.kernel = real })
	for _, err := range []error{nil, errInterrupted, nil, unix.ENOBUFS, nil} {
		b.err = err
		look, got := p.Check(t.Context())
		if !errors.Is(got, err) || len(look.Findings) > 0 {
			t.Errorf("with %v: %+v, %v", err, look, got)
		}
	}
}

// TestHostileNames has a pod whose name is not one.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 2, false)
	l.edit(vnetState, `"pod-0001"`, `"a\nb\u001b[31m (10.240.0.12)"`)
	l.must(l.node.RouteDel(l.route(&l.pods[0])))
	found := l.look(stateOnly)
	if len(found) != 1 || found[0].ID != "T-ROUTE-MISSING" || !strings.HasSuffix(found[0].Subject, "(10.240.0.11)") {
		t.Errorf("found %+v", found)
	}
	l.edit(vnetState, `"HostIfName":"`+l.pods[1].veth+`"`, `"HostIfName":"../../x\n"`)
	if roots, _ := ids(l.look(stateOnly)); !slices.Contains(roots, "N-STATE") {
		t.Errorf("found %v", roots)
	}
}

// TestCNS asks azure-cns on loopback, and nobody else.
func TestCNS(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/debug/ipaddresses" {
			http.Error(w, "no", http.StatusNotFound)
			return
		}
		w.Write([]byte(`[{"ID":"1","IPAddress":"10.240.0.99","NCID":"x"},{"IPAddress":"nonsense"}]`))
	}))
	defer server.Close()
	e := (&expectation{ownedIP: map[netip.Addr]bool{}})
	if err := e.addCNS(t.Context(), server.URL); err != nil || !e.ownedIP[netip.MustParseAddr("10.240.0.99")] {
		t.Errorf("%v, %v", e.ownedIP, err)
	}
	for _, url := range []string{"http://10.0.0.1:10090", "http://example.com", "://", "http://127.0.0.1:1"} {
		if err := e.addCNS(t.Context(), url); err == nil {
			t.Errorf("%s was asked", url)
		}
	}
}

// FuzzState reads any state file: it parses, or is flawed, and never panics.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"Network":{"ExternalInterfaces":{"eth0":{"Networks":{"azure":{"Mode":"transparent","Endpoints":{"a":{"IPAddresses":[{"IP":"10.0.0.1","Mask":"//AAAA=="}]}}}}}}}}`))
	f.Add([]byte(`{"Endpoints":{"a":{"PodName":"p","IfnameToIPMap":{"eth0":{"IPv4":[{"IP":"10.0.0.1"}],"HostVethName":"azv1","MacAddress":"02:00:00:00:00:01"}}}}}`))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, s := range []state{parseVnet(bytes.Clone(b)), parseCNS(bytes.Clone(b))} {
			if s.broken && (len(s.flaws) == 0 || len(s.endpoints) > 0) {
				t.Errorf("broken without a flaw, or with endpoints: %+v", s)
			}
			e := expectState(&s)
			if s.broken && e.unknown == "" {
				t.Error("pods are expected from a broken file")
			}
			for _, p := range e.pods {
				if p.veth != "" && !isInterface(p.veth) || !p.first().IsValid() {
					t.Errorf("pod %+v", p)
				}
			}
		}
	})
}

// FuzzConflist reads any conflist.
func FuzzConflist(f *testing.F) {
	f.Add([]byte(`{"plugins":[{"type":"azure-vnet","mode":"bridge","bridge":"azure0"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parseConflist(b); err == nil && !isInterface(c.bridge) {
			t.Errorf("%+v", c)
		}
	})
}

// FuzzNetlink parses any message.
func FuzzNetlink(f *testing.F) {
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := words{}
		w.parseLink(b)
		parseAddr(b)
		parseRoute(b)
		parseNeigh(b)
		parseRule(b)
		matters(b)
		(&conn{seq: 1}).messages(b, func(uint16, []byte) {})
	})
}
