package e2e

import (
	"context"
	"crypto/sha1"
	_ "embed"
	"encoding/hex"
	"fmt"
	"maps"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// What cannot be had on a lab node.
func init() {
	maps.Copy(fixtureOnly, map[string]string{
		"NeighborTableFull": "its counter of refused neighbours is the machine's, which runs other labs too",
		"ReversePathDrops":  "what it counts must go on for minutes; shown with a counter that rises, by the probe's own tests",
		"ConntrackDrops":    "two packets must race for one entry; shown with a counter that rises, by the probe's own tests",
		"PodIPv6Broken":     "the lab has no IPv6 pods; shown on dual-stack namespaces, by the probe's own tests",
		"PodGatewayLost":    "off unless asked for, as it needs SYS_ADMIN; shown in network namespaces, by the probe's own tests",
		"BridgeRulesLost":   "off unless asked for, as it needs NET_ADMIN; shown with ebtables, by the probe's own tests",
	})
}

//go:embed testdata/azure-vnet
var azurePlugin []byte

const (
	azureNode     = "node2"
	azureConflist = `{"cniVersion": "0.3.1", "name": "azure", "plugins": [{"type": "azure-vnet", "mode": "%s", "bridge": "azure0",
	  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.240.0.0/16", "rangeStart": "10.240.200.10", "rangeEnd": "10.240.200.250"}]]}}]}`
	azurePods = 5

	// DHCP's routes to the platform's addresses.
	platformRoutes = "for a in 168.63.129.16 169.254.169.254; do ip route replace $a via 10.240.0.1 dev eth0 proto dhcp metric 100 src $NODE; done"
	defaultRoute   = "ip route replace default via 10.240.0.1 dev $TOP proto dhcp metric 100 src $NODE"
	// The second way to the API server is a port of azure0 that is down while eth0 is one: as well it would make a loop.
	toBridge = "ip link add azure0 address $MAC type bridge; ip addr flush dev eth0 scope global; ip link set eth0 master azure0; " +
		"ip link set eth0 type bridge_slave hairpin on; ip link set azure0 up; ip link set second master azure0; ip addr add $NODE/16 dev azure0; " + defaultRoute
	fromBridge = "ip link del azure0; ip addr replace $NODE/16 dev eth0; ip link set eth0 up"
	neighbors  = "for i in 1 2 3 4 5; do eval ip=\\$IP$i; ip neigh replace $ip lladdr $(printf 02:00:%02x:%02x:%02x:%02x $(echo $ip | tr . ' ')) dev azure0 nud permanent; done"
)

// An azure is a lab node that is set up as Azure CNI does it.
type azure struct {
	*testing.T
	vars string // of shell lines: NODE, MAC, TOP, and of each pod IP1, V1...
}

// TestAzureCNI makes a node one of Azure CNI, with real pods behind it, in
// transparent and in bridge mode; breaks it; and puts the node back.
func TestAzureCNI(t *testing.T) {
	alone(t, azureNode)
	a := &azure{T: t}
	a.setUp()
	t.Run("transparent", func(t *testing.T) {
		a := a.mode(t, "transparent", "eth0", platformRoutes)
		a.described(fault{reason: "PodRouteMissing", text: "default/web-1 (", breaks: "ip route del $IP1/32", repairs: "ip route add $IP1/32 dev $V1 proto static scope global"})
		hasEvents(t, azureNode, "PodRouteMissing")
		a.together(transparentFaults)
		a.together(podFaults)
		for _, f := range nodeFaults {
			a.together([]fault{f})
		}
	})
	t.Run("bridge", func(t *testing.T) {
		a := a.mode(t, "bridge", "azure0", toBridge)
		a.described(fault{reason: "BridgeUplinkLost", text: "eth0: is no port of azure0", breaks: "ip link set eth0 nomaster; ip link set second up",
			repairs: "ip link set second down; ip link set eth0 master azure0; ip link set eth0 type bridge_slave hairpin on"})
		a.together(bridgeFaults)
		for _, f := range wholeBridgeFaults {
			a.together([]fault{f})
		}
	})
	a.putBack(t.Context())
	until(t, azureNode, "CNIRouteDrift", time.Minute, isGone)
	until(t, azureNode, "ContainerdDrift", time.Minute, isFalse)
}

// Faults that stand beside one another; each repair undoes its own.
var transparentFaults = []fault{
	{reason: "PodRouteWrongDevice", breaks: "ip route change $IP1/32 dev $V2 proto static scope global", repairs: "ip route change $IP1/32 dev $V1 proto static scope global"},
	{reason: "PodRouteDuplicate", breaks: "ip route add $IP2/32 dev $V1 proto static scope global metric 50", repairs: "ip route del $IP2/32 metric 50"},
	{reason: "PodRouteChanged", breaks: "ip route change $IP3/32 dev $V3 proto boot scope link", repairs: "ip route change $IP3/32 dev $V3 proto static scope global"},
	{reason: "PodRouteStale", breaks: "ip route add 10.240.201.9/32 dev $V3 proto static", repairs: "ip route del 10.240.201.9/32"},
	{reason: "PodVethChanged", breaks: "ip link set $V4 address 5e:00:00:00:00:01", repairs: "ip link set $V4 address aa:aa:aa:aa:aa:aa"},
	{reason: "PodVethOrphaned", breaks: "ip link add azvdeadbeef001 type veth peer name loose0", repairs: "ip link del azvdeadbeef001"},
	{reason: "PodNeighborWrong", breaks: "ip neigh replace $IP4 lladdr 02:ff:ff:ff:ff:ff dev $V4 nud permanent", repairs: "ip neigh del $IP4 dev $V4"},
	{reason: "PodRouteShadowed", breaks: "ip addr add 192.168.7.1/32 dev $V5", repairs: "ip addr del 192.168.7.1/32 dev $V5"},
	{reason: "ForwardingOff", breaks: "sysctl -qw net.ipv4.conf.$V5.forwarding=0", repairs: "sysctl -qw net.ipv4.conf.$V5.forwarding=1"},
	{reason: "CNIModeMixed", breaks: "ip link add azure0 type bridge", repairs: "ip link del azure0"},
	{reason: "PlatformRouteLost", breaks: "ip route del 168.63.129.16", repairs: platformRoutes},
}

var podFaults = []fault{
	{reason: "RoutingRuleForeign", breaks: "ip rule add priority 1000 lookup 200", repairs: "ip rule del priority 1000"},
	{reason: "RouteBlocked", breaks: "ip route del $IP1/32; ip route add blackhole $IP1/32", repairs: "ip route del blackhole $IP1/32; ip route add $IP1/32 dev $V1 proto static scope global"},
	{reason: "PodVethDown", breaks: "ip link set $V2 down", repairs: "ip link set $V2 up; ip route add $IP2/32 dev $V2 proto static scope global"},
	{reason: "PodVethMissing", breaks: "ip link set $V3 name azvffffffffff1", repairs: "ip link set azvffffffffff1 name $V3"},
	{reason: "DuplicatePodIP", breaks: "ip addr add $IP5/32 dev lo", repairs: "ip addr del $IP5/32 dev lo; ip route replace $IP5/32 dev $V5 proto static scope global"}, // the route goes with the address,
	{reason: "CNIStateInvalid", breaks: "cp /run/azure-vnet.json /root/; echo '{' >/run/azure-vnet.json", repairs: "cp /root/azure-vnet.json /run/"},
}

// Faults that cut the node off, or explain others: one after the other.
var nodeFaults = []fault{
	{reason: "DefaultRouteLost", breaks: "ip route del default", repairs: defaultRoute},
	{reason: "NodeAddressLost", breaks: "ip addr del $NODE/16 dev eth0", repairs: "ip addr add $NODE/16 dev eth0; " + defaultRoute + "; " + platformRoutes},
	{reason: "UplinkDown", breaks: "ip link set eth0 down", repairs: "ip link set eth0 up; " + defaultRoute + "; " + platformRoutes},
	{reason: "RoutingRulesLost", // the node itself goes on by two rules that look like those of nobody
		breaks:  "ip rule add priority 1 from 0.0.0.0/1 lookup local; ip rule add priority 2 from 128.0.0.0/1 lookup local; ip rule del priority 0",
		repairs: "ip rule add priority 0 lookup local; ip rule del priority 1; ip rule del priority 2"},
}

var bridgeFaults = []fault{
	{reason: "BridgePortChanged", breaks: "ip link set $V1 type bridge_slave hairpin off", repairs: "ip link set $V1 type bridge_slave hairpin on"},
	{reason: "BridgeNeighborMissing", breaks: "ip neigh del $IP2 dev azure0", repairs: neighbors},
	{reason: "BridgeNeighborStale", breaks: "ip neigh replace 10.240.201.9 lladdr 02:00:0a:f0:00:63 dev azure0 nud permanent", repairs: "ip neigh del 10.240.201.9 dev azure0"},
	{reason: "DNSServersTruncated", breaks: `sed -i 's/,"10.0.0.10"//' /run/azure-vnet.json`, repairs: `sed -i 's/"168.63.129.16"/&,"10.0.0.10"/' /run/azure-vnet.json`},
}

var wholeBridgeFaults = []fault{
	{reason: "BridgeMACChanged", breaks: "ip link set azure0 address 02:00:0a:f0:00:01", repairs: "ip link set azure0 address $MAC; " + neighbors},
	{reason: "BridgeAddressMisplaced", breaks: "ip addr add 10.240.77.7/32 dev eth0", repairs: "ip addr del 10.240.77.7/32 dev eth0"},
	{reason: "BridgeMissing", breaks: "ip link set azure0 down", repairs: "ip link set azure0 up; " + defaultRoute + "; " + neighbors},
}

// setUp brings the plugin and a second way to the API server onto the node.
func (a *azure) setUp() {
	a.Cleanup(func() { a.putBack(context.WithoutCancel(a.Context())) })
	out := sh(a.T, azureNode, "ip -o link show eth0 | sed 's/.*ether \\([^ ]*\\).*/\\1/'")
	a.vars = fmt.Sprintf("NODE=%s; MAC=%s; ", testLab.Node(azureNode).IP(), strings.TrimSpace(out))
	control, own := azureNetns()
	for _, line := range []string{"add v-second type veth peer name second netns " + own, "set v-second master br0 up"} {
		if out, err := exec.CommandContext(a.Context(), "ip", append([]string{"-n", control, "link"}, strings.Fields(line)...)...).CombinedOutput(); err != nil {
			a.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	put(a.T, azureNode, "/usr/lib/cni/azure-vnet", azurePlugin)
	sh(a.T, azureNode, "chmod 755 /usr/lib/cni/azure-vnet; sysctl -qw net.ipv4.ip_forward=1; mkdir -p /run/systemd/netif/leases; echo DNS=168.63.129.16 10.0.0.10 >/run/systemd/netif/leases/9")
}

// azureNetns are the network namespaces of the control plane and of the node.
func azureNetns() (control, node string) {
	for _, n := range testLab.Netns() {
		if strings.HasSuffix(n, "-"+azureNode) {
			node = n
		}
	}
	return testLab.Netns()[0], node
}

// putBack takes away all that the test has made, whatever is there of it.
func (a *azure) putBack(ctx context.Context) {
	a.deletePods(ctx)
	control, _ := azureNetns()
	_ = exec.CommandContext(ctx, "ip", "-n", control, "link", "del", "v-second").Run()
	if out, err := testLab.Node(azureNode).Exec(ctx, "sh", "-c", a.vars+"TOP=eth0; rm -rf /etc/cni/net.d/10-azure.conflist /usr/lib/cni/azure-vnet /run/azure-vnet.json /run/azure-e2e "+
		"/root/azure-vnet.json /run/systemd/netif/leases/9 /var/lib/cni/networks/azure; for a in 168.63.129.16 169.254.169.254; do ip route del $a; done; "+fromBridge+"; "+defaultRoute); err != nil {
		a.Errorf("put the node back: %v: %s", err, out)
	}
}

// mode sets the node up in a mode, with pods, and waits for the word that it is in order.
func (a *azure) mode(t *testing.T, mode, top, prepare string) *azure {
	a.deletePods(t.Context())
	m := &azure{t, a.vars + "TOP=" + top + "; "}
	m.shell("rm -f /etc/cni/net.d/10-azure.conflist /run/azure-vnet.json; " + prepare)
	until(t, azureNode, "CNIRouteDrift", time.Minute, isGone)
	m.shell("cat >/etc/cni/net.d/10-azure.conflist <<'EOF'\n" + fmt.Sprintf(azureConflist, mode) + "\nEOF\n")
	var pods strings.Builder
	for i := range azurePods {
		fmt.Fprintf(&pods, `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-%d", "namespace": "default", "labels": {"app": "azure"}}, "spec": {"nodeName": %q,
		  "containers": [{"name": "tool", "image": "localhost/toolbox:1", "imagePullPolicy": "Never", "args": ["sleep"]}]}}`+"\n", i+1, azureNode)
	}
	if out, err := testLab.Kubectl(t.Context(), strings.NewReader(pods.String()), "apply", "-f", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := testLab.Kubectl(t.Context(), nil, "wait", "--for=condition=Ready", "pod", "-l", "app=azure", "--timeout=60s"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i := range azurePods {
		var p struct{ Status struct{ PodIP string } }
		if err := testLab.Get(t.Context(), fmt.Sprintf("/api/v1/namespaces/default/pods/web-%d", i+1), &p); err != nil {
			t.Fatal(err)
		}
		sum := sha1.Sum(fmt.Appendf(nil, "default.web-%d", i+1))
		m.vars += fmt.Sprintf("IP%d=%s; V%[1]d=azv%[3]s; ", i+1, p.Status.PodIP, hex.EncodeToString(sum[:])[:11])
	}
	c, took := until(t, azureNode, "CNIRouteDrift", time.Minute, isFalse)
	t.Logf("in order after %.1f s: %s %q", took.Seconds(), c.Reason, c.Message)
	if c.Reason != "PodRoutesInPlace" {
		t.Errorf("in order, and the reason is %s", c.Reason)
	}
	return m
}

// isGone is that there is no such condition: the node has nothing to look at.
func isGone(c condition) bool { return c.Status == "" }

func (a *azure) deletePods(ctx context.Context) {
	if out, err := testLab.Kubectl(ctx, nil, "delete", "pod", "-l", "app=azure", "--grace-period=1", "--timeout=60s"); err != nil {
		a.Errorf("%v: %s", err, out)
	}
}

func (a *azure) shell(line string) string {
	a.Helper()
	return sh(a.T, azureNode, a.vars+line)
}

// described breaks something, and waits until "kubectl describe node" says it:
// within 2 s, the lab's hold of 1 s included.
func (a *azure) described(f fault) {
	refill(a.T, azureNode)
	until(a.T, azureNode, "CNIRouteDrift", time.Minute, isFalse)
	a.shell(f.breaks)
	began := time.Now()
	var row string
	for row == "" {
		out, err := testLab.Kubectl(a.Context(), nil, "describe", "node", azureNode)
		if err != nil || time.Since(began) > 15*time.Second {
			a.Errorf("%s is not described: %v\n%s\n%v", f.reason, err, out, a.standing())
			a.shell(f.repairs)
			return
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(strings.TrimSpace(line), "CNIRouteDrift ") && strings.Contains(line, " True ") && strings.Contains(line, f.reason) && strings.Contains(line, f.text) {
				row = strings.Join(strings.Fields(line), " ")
			}
		}
	}
	raised := time.Since(began)
	a.shell(f.repairs)
	_, cleared := until(a.T, azureNode, "CNIRouteDrift", 30*time.Second, isFalse)
	a.Logf("%s: described after %.2f s, cleared after %.2f s: %s", f.reason, raised.Seconds(), cleared.Seconds(), row)
	if limit := time.Second + soon; raised > limit || cleared > limit {
		a.Errorf("%s: described after %s, cleared after %s, want at most %s", f.reason, raised, cleared, limit)
	}
	record(f.reason, "condition", raised, cleared)
}

// together breaks many things at once, waits until the agent's document has each,
// repairs them, and waits until it has none.
func (a *azure) together(list []fault) {
	var breaks, repairs []string
	raised, cleared := map[string]time.Duration{}, map[string]time.Duration{}
	for _, f := range list {
		breaks, repairs = append(breaks, f.breaks), append(repairs, f.repairs)
	}
	a.shell(strings.Join(breaks, "\n"))
	a.watch(raised, list, true)
	a.shell(strings.Join(repairs, "\n"))
	a.watch(cleared, list, false)
	for _, f := range list {
		if _, ok := raised[f.reason]; !ok {
			a.Errorf("%s was not found", f.reason)
			continue
		}
		if _, ok := cleared[f.reason]; !ok {
			a.Errorf("%s does not clear", f.reason)
			continue
		}
		a.Logf("%s: found after %.2f s, cleared after %.2f s", f.reason, raised[f.reason].Seconds(), cleared[f.reason].Seconds())
		record(f.reason, "document", raised[f.reason], cleared[f.reason])
	}
	began, d := time.Now(), a.standing()
	for len(d) > 0 && time.Since(began) < soon { // repairs are many commands, and the agent looks after each
		d = a.standing()
	}
	if len(d) > 0 {
		a.Errorf("after the repairs: %v", d)
	}
}

// watch notes when each reason is first seen, or first not seen, for at most 15 s.
func (a *azure) watch(times map[string]time.Duration, list []fault, there bool) {
	for began := time.Now(); len(times) < len(list) && time.Since(began) < 15*time.Second; {
		standing := a.standing()
		for _, f := range list {
			if _, known := times[f.reason]; !known && (standing[f.reason] != "") == there {
				times[f.reason] = time.Since(began)
			}
		}
	}
	if len(times) < len(list) {
		a.Logf("%v", a.standing())
	}
}

// standing are the reasons that the agent has now, held ones apart, with what they are about.
func (a *azure) standing() map[string]string {
	found := map[string]string{}
	for _, c := range document(a.T, azureNode).Conditions {
		for _, f := range c.Findings {
			if c.Type == "CNIRouteDrift" && !f.Held {
				found[f.Reason] = f.Subject + ": " + f.Message
			}
		}
	}
	return found
}
