package azurecni

import (
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// An invariant is something that holds on every node in some modes. Its function
// says each violation; what it leaves empty is filled in from the entry.
type invariant struct {
	id       string
	modes    mode
	reason   string
	severity probes.Severity
	hold     time.Duration
	needs    need
	check    func(v *view, say func(probes.Finding))
}

// A need is what an invariant cannot be judged without.
type need uint8

const (
	nothing  need = iota
	thePods       // which pods should work
	theState      // and what the CNI made for them, by its own state
	podNetNS      // probes.azurecni.podGateway
	aLease        // the uplink's, of DHCP
	ebtables      // probes.azurecni.ebtables
)

const (
	critical = probes.Critical
	warning  = probes.Warning
	info     = probes.Info

	s = time.Second
	m = time.Minute
)

// invariants are those of facts "Azure CNI on an AKS Linux node", section 5, in
// its order. To add one, add its entry and its test.
var invariants = []invariant{
	// 5.1 node
	{"N-MODE", azure, CNIModeMixed, warning, 10 * m, nothing, (*view).modesAgree},
	{"N-UPLINK", anyMode, UplinkDown, critical, 30 * s, nothing, (*view).uplinkUp},
	{"N-NODE-IP", anyMode, NodeAddressLost, critical, 30 * s, nothing, (*view).nodeAddress},
	{"N-DEFAULT", anyMode, DefaultRouteLost, critical, 30 * s, nothing, (*view).defaultRoute},
	{"N-PLATFORM", anyMode, PlatformRouteLost, warning, 2 * m, nothing, (*view).platformRoutes},
	{"N-FORWARDING", anyMode, ForwardingOff, critical, 30 * s, nothing, (*view).forwards},
	{"N-RULE-BASE", anyMode, RoutingRulesLost, critical, 30 * s, nothing, (*view).baseRules},
	{"N-RULE", anyMode, RoutingRuleForeign, warning, 2 * m, nothing, (*view).foreignRules},
	{"N-ROUTE-TYPE", anyMode, RouteBlocked, critical, 30 * s, nothing, (*view).blockingRoutes},
	{"N-OVERLAP", anyMode, PodRouteShadowed, warning, 2 * m, nothing, (*view).overlaps},
	{"N-DUP-IP", anyMode &^ cilium, DuplicatePodIP, critical, 60 * s, thePods, (*view).duplicateIPs},
	{"N-NEIGH-CAP", anyMode, NeighborTableFull, warning, 2 * m, nothing, (*view).neighborRoom},
	{"N-RPF", anyMode, ReversePathDrops, info, 2 * m, nothing, (*view).reversePath},
	{"N-STATE", azure, CNIStateInvalid, warning, 5 * m, nothing, (*view).stateFits},

	// 5.2 transparent
	{"T-ROUTE-MISSING", transparent, PodRouteMissing, warning, 15 * s, thePods, (*view).routeMissing},
	{"T-ROUTE-WRONG-DEV", transparent, PodRouteWrongDevice, critical, 15 * s, thePods, (*view).routeWrongDevice},
	{"T-ROUTE-DUP", transparent, PodRouteDuplicate, warning, 2 * m, thePods, (*view).routeTwice},
	{"T-ROUTE-ATTR", transparent, PodRouteChanged, info, 5 * m, thePods, (*view).routeAttributes},
	{"T-ROUTE-STALE", transparent, PodRouteStale, warning, 5 * m, thePods, (*view).routeStale},
	{"T-VETH-MISSING", transparent, PodVethMissing, critical, 60 * s, thePods, (*view).vethMissing},
	{"T-VETH-STATE", transparent, PodVethDown, critical, 30 * s, thePods, (*view).vethDown},
	{"T-VETH-ORPHAN", transparent, PodVethOrphaned, warning, 10 * m, thePods, (*view).vethOrphan},
	{"T-VETH-MAC", transparent, PodVethChanged, warning, 2 * m, thePods, (*view).vethMAC},
	{"T-VETH-MTU", transparent, PodVethChanged, warning, 10 * m, thePods, (*view).vethMTU},
	{"T-PROXY-ARP", transparent, PodVethChanged, critical, 60 * s, thePods, (*view).vethProxyARP},
	{"T-VETH-ADDR", transparent, PodRouteShadowed, critical, 30 * s, thePods, (*view).vethAddress},
	{"T-NEIGH", transparent, PodNeighborWrong, warning, 2 * m, thePods, (*view).vethNeighbor},
	{"T-MODE-MIX", transparent, CNIModeMixed, warning, 2 * m, nothing, (*view).bridgeRemains},
	{"T-POD-GW", transparent, PodGatewayLost, warning, 2 * m, podNetNS, (*view).gatewayInPod},
	{"T-V6", transparent, PodIPv6Broken, warning, 15 * s, thePods, (*view).dualStack},

	// 5.3 bridge; tunnel has no permanent neighbours
	{"B-BRIDGE", anyBridge, BridgeMissing, critical, 30 * s, thePods, (*view).bridgeUp},
	{"B-UPLINK-MASTER", anyBridge, BridgeUplinkLost, critical, 15 * s, nothing, (*view).uplinkEnslaved},
	{"B-L3-PLACE", anyBridge, BridgeAddressMisplaced, critical, 30 * s, nothing, (*view).addressPlace},
	{"B-BRIDGE-MAC", anyBridge, BridgeMACChanged, critical, 30 * s, nothing, (*view).bridgeMAC},
	{"B-PORT", anyBridge, BridgePortChanged, critical, 60 * s, thePods, (*view).portUp},
	{"B-PORT-FLAGS", anyBridge, BridgePortChanged, warning, 2 * m, nothing, (*view).portFlags},
	{"B-HAIRPIN", anyBridge, BridgePortChanged, warning, 2 * m, nothing, (*view).portHairpin},
	{"B-PORT-ORPHAN", anyBridge, PodVethOrphaned, warning, 10 * m, theState, (*view).portOrphan},
	{"B-NEIGH-MISSING", bridged, BridgeNeighborMissing, warning, 60 * s, thePods, (*view).neighborMissing},
	{"B-NEIGH-MAC", bridged, PodNeighborWrong, critical, 15 * s, thePods, (*view).neighborMAC},
	{"B-NEIGH-STALE", anyBridge, BridgeNeighborStale, warning, 5 * m, theState, (*view).neighborStale},
	{"B-MODE-MIX", anyBridge, CNIModeMixed, warning, 2 * m, nothing, (*view).routeRemains},
	{"B-EBT", anyBridge, BridgeRulesLost, warning, 5 * m, ebtables, (*view).ebtablesRules},

	// Beyond the invariants: what bridge mode is known to suffer from.
	{"B-CONNTRACK", anyBridge, ConntrackDrops, warning, 2 * m, nothing, (*view).conntrack},
	{"B-DNS", anyBridge, DNSServersTruncated, warning, 5 * m, aLease, (*view).dnsServers},
}

// routed are the invariants that a restart of systemd-networkd breaks for a
// while: it takes addresses and routes away before it sets them again.
var routed = map[string]bool{
	"N-NODE-IP": true, "N-DEFAULT": true, "N-PLATFORM": true, "N-RULE-BASE": true, "N-RULE": true, "N-OVERLAP": true, "N-ROUTE-TYPE": true,
	"T-ROUTE-MISSING": true, "T-ROUTE-WRONG-DEV": true, "T-ROUTE-DUP": true, "T-ROUTE-ATTR": true, "T-V6": true, "B-L3-PLACE": true, "B-NEIGH-MISSING": true,
	"N-UPLINK": true,
}

// judge says every violation, with the reasons that could not be judged.
func (v *view) judge() (found []probes.Finding, notJudged []string) {
	unjudged := map[string]bool{}
	not := func(reason, why string) {
		if !unjudged[reason] {
			unjudged[reason] = true
			notJudged = append(notJudged, reason+": "+why)
		}
	}
	if v.mode == observed {
		not(PodRouteMissing, "the CNI's mode is not known")
	}
	for i := range invariants {
		inv := &invariants[i]
		if inv.modes&v.mode == 0 {
			continue
		}
		if why := v.lacks(inv.needs); why != "" {
			if why != off {
				not(inv.reason, why)
			}
			continue
		}
		v.doubt = ""
		inv.check(v, func(f probes.Finding) {
			f.ID = inv.id
			if f.Reason == "" {
				f.Reason = inv.reason
			}
			if f.Severity == 0 {
				f.Severity = inv.severity
			}
			if f.Hold == 0 {
				f.Hold = inv.hold
			}
			found = append(found, f)
		})
		if v.doubt != "" {
			not(inv.reason, v.doubt)
		}
	}
	return fit(found), notJudged
}

// unsure says why the invariant under judgement may be broken and not be seen;
// "" says nothing. What is seen of it stands.
func (v *view) unsure(why string) {
	if v.doubt == "" {
		v.doubt = why
	}
}

const off = "off"

// lacks says why something that an invariant needs is not there; "" when it is,
// off when the configuration leaves it out.
func (v *view) lacks(n need) string {
	switch n {
	case thePods:
		return v.unknown
	case theState:
		switch {
		case v.unknown != "":
			return v.unknown
		case v.state.broken:
			return v.state.path + " cannot be used"
		case v.state.path == "" && len(v.pods) > 0:
			return "there is no state file"
		}
	case podNetNS:
		if !v.config.PodGateway {
			return off
		}
		return v.unknown
	case aLease:
		switch {
		case v.counters.leaseErr != nil:
			return v.counters.leaseErr.Error()
		case v.state.broken:
			return v.state.path + " cannot be used"
		}
	case ebtables:
		if !v.config.Ebtables {
			return off
		}
		if v.rules != nil && v.rules.err != nil {
			return v.rules.err.Error()
		}
		return v.unknown
	}
	return ""
}
