package azurecni

import (
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

// A recorded node's kernel is the file sys/netlink: a line for each link,
// address, route, neighbour and rule, in words like those of ip(8). It begins
// with "base transparent" or "base bridge", a node in order with two pods, and
// goes on with what is otherwise there: "- ROUTE…" takes away the lines that
// begin so, any other line is added.
const recordedKernel = "sys/netlink"

var bases = map[string]string{
	"transparent": `link lo index 1 up loopback
link eth0 index 2 up mac 00:0d:3a:11:22:33
link azva19a9b20ac0 index 3 up kind veth elsewhere proxy_arp mac aa:aa:aa:aa:aa:aa
link azv7eb4fb7fbd9 index 4 up kind veth elsewhere proxy_arp mac aa:aa:aa:aa:aa:aa
addr 127.0.0.1/8 dev lo
addr 10.240.0.4/12 dev eth0
route default via 10.240.0.1 dev eth0 proto 16 metric 100 src 10.240.0.4
route 10.240.0.0/12 dev eth0 proto 2 metric 100 scope 253
route 10.240.0.1/32 dev eth0 proto 16 metric 100 scope 253 src 10.240.0.4
route 168.63.129.16/32 via 10.240.0.1 dev eth0 proto 16 metric 100 src 10.240.0.4
route 169.254.169.254/32 via 10.240.0.1 dev eth0 proto 16 metric 100 src 10.240.0.4
route 10.240.0.11/32 dev azva19a9b20ac0 proto 4
route 10.240.0.12/32 dev azv7eb4fb7fbd9 proto 4
route 10.240.0.4/32 dev eth0 table 255 type 2 proto 2
route fd00::11/128 dev azva19a9b20ac0 proto 4 metric 1024
podgw /run/netns/a via 169.254.1.1 mac aa:aa:aa:aa:aa:aa
podgw /run/netns/b via 169.254.1.1 mac aa:aa:aa:aa:aa:aa
`,
	"bridge": `link lo index 1 up loopback
link eth0 index 2 up master azure0 port hairpin learning flood mac 00:0d:3a:11:22:33
link azure0 index 5 up kind bridge mac 00:0d:3a:11:22:33
link azva19a9b20ac0 index 3 up kind veth elsewhere master azure0 port hairpin learning flood mac 06:00:0a:f0:00:01
link azv7eb4fb7fbd9 index 4 up kind veth elsewhere master azure0 port hairpin learning flood mac 06:00:0a:f0:00:02
addr 10.240.0.4/12 dev azure0
route default via 10.240.0.1 dev azure0 proto 16 metric 100 src 10.240.0.4
route 10.240.0.0/12 dev azure0 proto 2 scope 253
neigh 10.240.0.11 dev azure0 lladdr 02:00:0a:f0:00:01 permanent
neigh 10.240.0.12 dev azure0 lladdr 02:00:0a:f0:00:02 permanent
ebt POSTROUTING snat 0.0.0.0 00:0d:3a:11:22:33
ebt PREROUTING arpreply 10.240.0.11 02:00:0a:f0:00:01
ebt PREROUTING dnat 10.240.0.11 02:00:0a:f0:00:01
ebt PREROUTING arpreply 10.240.0.12 02:00:0a:f0:00:02
ebt PREROUTING dnat 10.240.0.12 02:00:0a:f0:00:02
`,
}

const baseRules = "rule 0 table 255\nrule 32766 table 254\nrule 32767 table 253\nset ip_forward 1\nset ip6_forward 1\nset thresh3 1024\n"

// recorded is a kernel of text.
type recorded struct {
	root host.Files
	s    snapshot
	set  map[string]int
	gws  map[string]podGateway
	ebt  bridgeRules
}

func (r *recorded) read() error {
	b, err := r.root.ReadFile(recordedKernel)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if base, ok := strings.CutPrefix(line, "base "); ok {
			lines = strings.Split(strings.TrimSpace(bases[base]+baseRules), "\n")
		} else if gone, ok := strings.CutPrefix(line, "- "); ok {
			lines = slices.DeleteFunc(lines, func(s string) bool { return strings.HasPrefix(s+" ", gone+" ") })
		} else if line != "" {
			lines = append(lines, line)
		}
	}
	r.s, r.set, r.gws, r.ebt = snapshot{}, map[string]int{}, map[string]podGateway{}, bridgeRules{}
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(order(a), order(b)) }) // links first
	for _, line := range lines {
		if err := r.take(strings.Fields(line)); err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
	}
	r.s.forward4, r.s.forward6, r.s.rpFilterAll = int32(r.set["ip_forward"]), int32(r.set["ip6_forward"]), int32(r.set["rp_filter"])
	return nil
}

func order(line string) string {
	switch {
	case strings.HasPrefix(line, "link ") && !strings.Contains(line, " master "):
		return "0"
	case strings.HasPrefix(line, "link "):
		return "1"
	}
	return "2"
}

func (r *recorded) index(name string) int32 {
	for _, l := range r.s.links {
		if l.name == name {
			return l.index
		}
	}
	return 0
}

// words reads "key value" pairs and flags.
func (r *recorded) words(f []string) (values map[string]string, flags []string) {
	values = map[string]string{}
	pairs := []string{"index", "mac", "mtu", "kind", "master", "dev", "via", "proto", "scope", "metric", "src", "table", "type", "lladdr", "state", "forwarding", "mark", "accept_ra"}
	for i := 0; i < len(f); i++ {
		if slices.Contains(pairs, f[i]) && i+1 < len(f) {
			values[f[i]] = f[i+1]
			i++
			continue
		}
		flags = append(flags, f[i])
	}
	return values, flags
}

func number(s string, otherwise int) int {
	if n, err := strconv.Atoi(s); err == nil {
		return n
	}
	return otherwise
}

func (r *recorded) take(f []string) error {
	if len(f) < 3 {
		return fmt.Errorf("too short")
	}
	v, flags := r.words(f[2:])
	is := func(flag string) bool { return slices.Contains(flags, flag) }
	ip, _ := netip.ParseAddr(f[1])
	gw, _ := netip.ParseAddr(v["via"])
	src, _ := netip.ParseAddr(v["src"])
	dev := r.index(v["dev"])
	switch f[0] {
	case "link":
		l := link{name: f[1], kind: v["kind"], index: int32(number(v["index"], 0)), mtu: uint32(number(v["mtu"], 1500)), mac: parseMAC(v["mac"]), master: r.index(v["master"]),
			elsewhere: is("elsewhere"), conf: true, conf6: true, forwarding: int32(number(v["forwarding"], 1)), acceptRA: int32(number(v["accept_ra"], 0)),
			isPort: is("port"), state: uint8(number(v["state"], forwardingPort)), hairpin: is("hairpin"), learning: is("learning"), flood: is("flood"), isolated: is("isolated")}
		if is("up") {
			l.flags |= unix.IFF_UP | ifLowerUp
		}
		if is("loopback") {
			l.flags |= unix.IFF_LOOPBACK
		}
		if is("proxy_arp") {
			l.proxyARP = 1
		}
		r.s.links = append(r.s.links, l)
	case "addr":
		p, err := netip.ParsePrefix(f[1])
		r.s.addrs = append(r.s.addrs, addr{index: dev, prefix: p})
		return err
	case "route":
		dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if f[1] != "default" {
			var err error
			if dst, err = netip.ParsePrefix(f[1]); err != nil {
				return err
			}
		}
		r.s.routes = append(r.s.routes, route{dst: dst, gw: gw, src: src, oif: dev, table: uint32(number(v["table"], tableMain)), metric: uint32(number(v["metric"], 0)),
			proto: uint8(number(v["proto"], protoBoot)), scope: uint8(number(v["scope"], 0)), kind: uint8(number(v["type"], unix.RTN_UNICAST))})
	case "neigh":
		state := neighValid
		if is("permanent") {
			state = neighPermanent
		}
		r.s.neighs = append(r.s.neighs, neigh{index: dev, ip: ip, mac: parseMAC(v["lladdr"]), state: state})
	case "rule":
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			r.s.rules = append(r.s.rules, rule{family: family, priority: uint32(number(f[1], 0)), table: uint32(number(v["table"], 0)), action: 1, mark: uint32(number(v["mark"], 0)), plain: v["mark"] == ""})
		}
	case "set":
		r.set[f[1]] = number(f[2], 0)
	case "podgw":
		r.gws[f[1]] = podGateway{netns: f[1], via: gw, gateway: parseMAC(v["mac"])}
	case "ebt":
		at, _ := netip.ParseAddr(f[3])
		m := parseMAC(f[4])
		r.ebt.rules = append(r.ebt.rules, bridgeRule{f[1], slices.Concat([]byte(f[2]), []byte{0}, at.AsSlice(), m[:])})
	default:
		return fmt.Errorf("what is a %s?", f[0])
	}
	return nil
}

func (r *recorded) observe(s *snapshot, _ bool) error {
	if err := r.read(); err != nil {
		return err
	}
	*s = r.s
	return nil
}

func (r *recorded) lookup(ip netip.Addr) (route, error) {
	v := &view{now: &r.s, expectation: &expectation{}, state: &state{}, conf: &conflist{}, memory: &memory{}}
	v.index()
	switch best := v.wins(ip); {
	case best == nil:
		return route{}, unix.ENETUNREACH
	case blocks(best.kind):
		return route{}, unix.EHOSTUNREACH
	default:
		return *best, nil
	}
}

func (r *recorded) neighLimits() neighLimits {
	return neighLimits{thresh3: uint32(r.set["thresh3"]), fulls: uint64(r.set["table_fulls"])}
}

func (r *recorded) counters() counters {
	return counters{rpf: uint64(r.set["rpf_drops"]), insertFailed: uint64(r.set["insert_failed"]), tracks: true}
}

func (r *recorded) podGateways(_ tree, pods []netnsPlace) []podGateway {
	found := make([]podGateway, len(pods))
	for i, p := range pods {
		g, ok := r.gws[p.path]
		if !ok {
			g.err = fs.ErrNotExist
		}
		found[i] = g
	}
	return found
}

func (r *recorded) ebtables() *bridgeRules { return &r.ebt }

// newRecorded returns a probe of a recorded node, which has looked before: its
// counters were zero then.
func newRecorded(n *host.Node) probes.Probe {
	p := newProbe(n.Root, nil, &recorded{root: n.Root}, Config{Expect: expectStateFile, PodGateway: true, Ebtables: true})
	p.memory.fulls.known, p.memory.rpf.known, p.memory.conntrack.known = true, true, true
	return p
}

func TestNodes(t *testing.T) { probetest.Run(t, newRecorded) }

func TestCovered(t *testing.T) { probetest.Covers(t, (&Probe{}).Spec()) }

func TestHostile(t *testing.T) {
	const (
		started = "run/systemd/units/invocation:*" // only when it was made is asked
		folder  = "run/systemd/netif/leases"       // without networkd there is no lease
		lease   = folder + "/2"
		cns     = "run/azure-cns/azure-endpoints.json" // the plugin's own file is there
	)
	probetest.Hostile(t, newRecorded, probetest.Lawful{
		probetest.Absent:     {folder, lease},
		probetest.Empty:      {started, folder, lease},
		probetest.Folder:     {started},
		probetest.FIFO:       {started},
		probetest.Sparse:     {started},
		probetest.Noise:      {started, lease},
		probetest.Unreadable: {started},
		probetest.Broken:     {started},
		probetest.Hanging:    {started},
		probetest.LinkUp:     {started, folder, cns},
		probetest.LinkOut:    {started, folder, cns},
		probetest.Loop:       {started},
	})
}
