package azurecni

import "github.com/nodedrift/nodedrift/probes"

// The reasons of this probe.
const (
	PodRouteMissing        = "PodRouteMissing"
	PodRouteWrongDevice    = "PodRouteWrongDevice"
	PodRouteDuplicate      = "PodRouteDuplicate"
	PodRouteChanged        = "PodRouteChanged"
	PodRouteStale          = "PodRouteStale"
	PodRouteShadowed       = "PodRouteShadowed"
	RouteBlocked           = "RouteBlocked"
	PodVethMissing         = "PodVethMissing"
	PodVethDown            = "PodVethDown"
	PodVethChanged         = "PodVethChanged"
	PodVethOrphaned        = "PodVethOrphaned"
	PodNeighborWrong       = "PodNeighborWrong"
	PodGatewayLost         = "PodGatewayLost"
	PodIPv6Broken          = "PodIPv6Broken"
	DuplicatePodIP         = "DuplicatePodIP"
	BridgeMissing          = "BridgeMissing"
	BridgeUplinkLost       = "BridgeUplinkLost"
	BridgeAddressMisplaced = "BridgeAddressMisplaced"
	BridgeMACChanged       = "BridgeMACChanged"
	BridgePortChanged      = "BridgePortChanged"
	BridgeNeighborMissing  = "BridgeNeighborMissing"
	BridgeNeighborStale    = "BridgeNeighborStale"
	BridgeRulesLost        = "BridgeRulesLost"
	UplinkDown             = "UplinkDown"
	NodeAddressLost        = "NodeAddressLost"
	DefaultRouteLost       = "DefaultRouteLost"
	PlatformRouteLost      = "PlatformRouteLost"
	ForwardingOff          = "ForwardingOff"
	RoutingRulesLost       = "RoutingRulesLost"
	RoutingRuleForeign     = "RoutingRuleForeign"
	NeighborTableFull      = "NeighborTableFull"
	ReversePathDrops       = "ReversePathDrops"
	CNIModeMixed           = "CNIModeMixed"
	CNIStateInvalid        = "CNIStateInvalid"
	ConntrackDrops         = "ConntrackDrops"
	DNSServersTruncated    = "DNSServersTruncated"
)

const (
	aboutCNI      = "https://github.com/Azure/azure-container-networking"
	aboutNetworkd = "https://github.com/Azure/AKS/issues/2458"
)

// Holds are the windows of the invariants, which each finding carries: those
// here are the shortest of a reason's. A route that flaps stays one finding.
const clearAfter = 10 * s

var reasons = []probes.Reason{
	{
		Name: PodRouteMissing, Severity: warning, Owner: probes.Both, Hold: 15 * s, Clear: clearAfter,
		Meaning:        "A running pod's address has no /32 (IPv6: /128) route to its host veth in table main. Critical when more than three pods, or a fifth of them, are without.",
		Breaks:         "Nothing reaches the pod: not kubelet's probes, not other pods, not Services. Its own packets leave, and the answers are lost.",
		Confirm:        "ip route show proto static; ip route get POD_IP",
		Mend:           "Delete the pod: the CNI makes the route with the next sandbox. By hand: ip route add POD_IP/32 dev AZV proto static scope global. When many went at once, see who restarted systemd-networkd or flushed routes.",
		FalsePositives: "A pod that is being deleted: its sandbox is gone within the hold.",
		Links:          []string{aboutCNI, "https://github.com/systemd/systemd/issues/25451"},
	},
	{
		Name: PodRouteWrongDevice, Severity: critical, Owner: probes.Both, Hold: 15 * s, Clear: clearAfter,
		Meaning: "The route of a pod's address that wins leads to another pod's veth, or out of the node.",
		Breaks:  "The pod's packets reach another pod or loop at the gateway. The CNI keeps an old route silently when an address is used again.",
		Confirm: "ip route get POD_IP; ip -d link show AZV",
		Mend:    "ip route replace POD_IP/32 dev AZV proto static scope global, or delete the pod.",
		Links:   []string{aboutCNI + "/issues/2672"},
	},
	{
		Name: PodRouteDuplicate, Severity: warning, Owner: probes.Both, Hold: 120 * s, Clear: clearAfter,
		Meaning: "A pod's address has more than one route, in any metric.",
		Breaks:  "Nothing yet: the other one bites when the first one goes.",
		Confirm: "ip route show table all POD_IP",
		Mend:    "ip route del the one that is not proto static to the pod's veth, with its metric.",
		Links:   []string{aboutCNI + "/pull/2158"},
	},
	{
		Name: PodRouteChanged, Severity: info, Owner: probes.Customer, Hold: 300 * s, Clear: clearAfter,
		Meaning: "A pod's route works, but is not the CNI's own (proto static, scope global, no metric): mostly somebody mended it by hand.",
		Breaks:  "Nothing yet. The CNI may fail to delete it with the pod, and leave it behind.",
		Confirm: "ip -d route show POD_IP",
		Mend:    "Nothing is urgent; it goes with the pod, or becomes PodRouteStale.",
		Links:   []string{aboutCNI},
	},
	{
		Name: PodRouteStale, Severity: warning, Owner: probes.Both, Hold: 300 * s, Clear: clearAfter,
		Meaning:        "A /32 route leads to a pod's veth although no pod has the address.",
		Breaks:         "The next pod that gets the address on this node is unreachable: the CNI keeps the old route silently.",
		Confirm:        "ip route show proto static | grep azv; crictl pods",
		Mend:           "ip route del ADDRESS/32. CNI before 1.4.39.1 on kernels from 5.19 leaves them: upgrade the node image.",
		FalsePositives: "Endpoints that only the CNI's state file knows count as owners.",
		Links:          []string{aboutCNI + "/pull/2158", aboutCNI + "/pull/2156"},
	},
	{
		Name: PodRouteShadowed, Severity: critical, Owner: probes.Customer, Hold: 30 * s, Clear: clearAfter,
		Meaning:        "Another link's address or prefix takes packets that are for pods or for the node's subnet: an address on a pod's veth, a pod's address in table local, a prefix of docker0 or a VPN within the VNet.",
		Breaks:         "The pods, or the hosts in the prefix, are unreachable from this node.",
		Confirm:        "ip route get ADDRESS; ip -4 addr; ip route show table local",
		Mend:           "Take the address away, or give the other network a prefix outside of the VNet (dockerd: bip).",
		FalsePositives: "A prefix whose link is down (docker0 without containers) does not count.",
		Links:          []string{"https://github.com/Azure/AKSFlexNode/issues/151"},
	},
	{
		Name: RouteBlocked, Severity: critical, Owner: probes.Customer, Hold: 30 * s, Clear: clearAfter,
		Meaning:        "A blackhole, unreachable, prohibit or throw route wins for a pod, the gateway, the node or a platform address.",
		Breaks:         "Packets to that address end on this node.",
		Confirm:        "ip route show table all type blackhole; ip route get ADDRESS",
		Mend:           "ip route del the blocking route; find who set it.",
		FalsePositives: "Blackholes of a CNI's own address blocks, which pods' routes beat, do not count.",
		Links:          []string{aboutCNI},
	},
	{
		Name: PodVethMissing, Severity: critical, Owner: probes.Both, Hold: 60 * s, Clear: clearAfter,
		Meaning: "A running pod has no host veth of the name that the CNI gave it: it was deleted or renamed, or an old sandbox's deletion took it.",
		Breaks:  "The pod has no network.",
		Confirm: "ip link show AZV; crictl pods",
		Mend:    "Delete the pod: its next sandbox gets a new veth.",
		Links:   []string{aboutCNI + "/pull/775"},
	},
	{
		Name: PodVethDown, Severity: critical, Owner: probes.Both, Hold: 30 * s, Clear: clearAfter,
		Meaning: "A pod's host veth is down, or has no carrier because the pod's end is down.",
		Breaks:  "The pod has no network; its route goes with the veth.",
		Confirm: "ip link show AZV",
		Mend:    "ip link set AZV up and delete the pod, or delete the pod alone. A pod with NET_ADMIN may have set its end down itself.",
		Links:   []string{aboutCNI},
	},
	{
		Name: PodVethChanged, Severity: warning, Owner: probes.Customer, Hold: 60 * s, Clear: clearAfter,
		Meaning:        "A pod's host veth has another MAC, MTU or proxy_arp setting than the CNI gave it. Without proxy_arp the pod cannot find its gateway: critical.",
		Breaks:         "The pod loses its gateway once its ARP entry expires (MAC, proxy_arp), or large packets vanish (an MTU above the uplink's).",
		Confirm:        "ip -d link show AZV; sysctl net.ipv4.conf.AZV.proxy_arp; cat /usr/lib/systemd/network/99-default.link",
		Mend:           "ip link set AZV address aa:aa:aa:aa:aa:aa, or sysctl -w net.ipv4.conf.AZV.proxy_arp=1. If udev changes MACs: a .link file with MACAddressPolicy=none for azv*.",
		FalsePositives: "A lower MTU is what pods keep that are older than a raise of the uplink's: info.",
		Links:          []string{aboutCNI + "/pull/1524"},
	},
	{
		Name: PodVethOrphaned, Severity: warning, Owner: probes.AKS, Hold: 120 * s, Clear: clearAfter,
		Meaning:        "A veth named as the CNI names them belongs to no sandbox, or has both its ends on the host.",
		Breaks:         "Nothing by itself; what leaked it leaks addresses, too.",
		Confirm:        "ip -d link show type veth; crictl pods",
		Mend:           "ip link del AZV, after a look at /var/log/azure-vnet.log for failed ADDs.",
		FalsePositives: "Sandboxes of completed pods keep their veth until they are removed.",
		Links:          []string{aboutCNI + "/issues/4497", aboutCNI + "/pull/3940"},
	},
	{
		Name: PodNeighborWrong, Severity: warning, Owner: probes.Customer, Hold: 15 * s, Clear: clearAfter,
		Meaning: "The node's neighbour entry of a pod has another MAC than the pod, is permanent where it should not be, or fails again and again.",
		Breaks:  "The node cannot reach the pod.",
		Confirm: "ip neigh show POD_IP",
		Mend:    "ip neigh del POD_IP dev AZV (transparent), or ip neigh replace POD_IP lladdr POD_MAC dev azure0 nud permanent (bridge).",
		Links:   []string{aboutCNI},
	},
	{
		Name: PodGatewayLost, Severity: warning, Owner: probes.Customer, Hold: 120 * s, Clear: clearAfter,
		Meaning:        "In its own namespace a pod has no default route by 169.254.1.1, or another MAC for it than its host veth's. Only with probes.azurecni.podGateway.",
		Breaks:         "The pod reaches nothing.",
		Confirm:        "ip netns exec NETNS ip route; ip netns exec NETNS ip neigh",
		Mend:           "Delete the pod.",
		FalsePositives: "Pods of Swift v2 and with SkipDefaultRoutes have other routes.",
		Links:          []string{aboutCNI + "/pull/1524"},
	},
	{
		Name: PodIPv6Broken, Severity: warning, Owner: probes.Customer, Hold: 15 * s, Clear: clearAfter,
		Meaning: "On a dual-stack node IPv6 forwarding is off, or a pod's host veth accepts router advertisements. A missing /128 route is PodRouteMissing.",
		Breaks:  "Pods have no IPv6, or one pod can give the node a default route.",
		Confirm: "sysctl net.ipv6.conf.all.forwarding net.ipv6.conf.AZV.accept_ra",
		Mend:    "sysctl -w net.ipv6.conf.all.forwarding=1; sysctl -w net.ipv6.conf.AZV.accept_ra=0",
		Links:   []string{aboutCNI},
	},
	{
		Name: DuplicatePodIP, Severity: critical, Owner: probes.AKS, Hold: 60 * s, Clear: clearAfter,
		Meaning:        "Two running pods have one address, or a pod's address is on the host, too.",
		Breaks:         "One of the two is unreachable, at random.",
		Confirm:        "kubectl get pods -A -o wide | grep POD_IP; ip addr | grep POD_IP",
		Mend:           "Delete both pods. If it comes back, the address management lost its state: see /var/log/azure-vnet-ipam.log and azure-cns.",
		FalsePositives: "A sandbox that is made again shows twice for a moment.",
		Links:          []string{aboutCNI + "/issues/1259"},
	},
	{
		Name: BridgeMissing, Severity: critical, Owner: probes.Both, Hold: 30 * s, Clear: clearAfter,
		Meaning: "The bridge azure0 is missing or down although there are pods.",
		Breaks:  "The node and all its pods are cut off: azure0 has the node's address and default route.",
		Confirm: "ip -d link show azure0",
		Mend:    "Reboot the node; the first pod makes the bridge again.",
		Links:   []string{aboutCNI},
	},
	{
		Name: BridgeUplinkLost, Severity: critical, Owner: probes.Both, Hold: 15 * s, Clear: clearAfter,
		Meaning: "The node's NIC is no forwarding port of azure0.",
		Breaks:  "Pods reach nothing outside of the node, and mostly neither does the node.",
		Confirm: "ip -d link show eth0",
		Mend:    "ip link set eth0 master azure0; or reboot the node.",
		Links:   []string{aboutNetworkd, "https://github.com/Azure/aks-engine/issues/4595"},
	},
	{
		Name: BridgeAddressMisplaced, Severity: critical, Owner: probes.Both, Hold: 30 * s, Clear: clearAfter,
		Meaning: "The NIC has an address or a default route of its own although it is a port of azure0: systemd-networkd ran DHCP on it again.",
		Breaks:  "The node is cut off.",
		Confirm: "ip addr show eth0; ip route show default; journalctl -u systemd-networkd",
		Mend:    "Reboot the node. Unattended upgrades of systemd do this; move the node pool to transparent mode.",
		Links:   []string{aboutNetworkd},
	},
	{
		Name: BridgeMACChanged, Severity: critical, Owner: probes.AKS, Hold: 30 * s, Clear: clearAfter,
		Meaning: "azure0 has another MAC than the NIC: the kernel gave it the lowest of its ports'.",
		Breaks:  "Frames from the fabric are dropped, and each change flushes the pods' permanent neighbours.",
		Confirm: "ip link show azure0; ip link show eth0",
		Mend:    "ip link set azure0 address NIC_MAC",
		Links:   []string{aboutCNI + "/issues/751"},
	},
	{
		Name: BridgePortChanged, Severity: critical, Owner: probes.Customer, Hold: 60 * s, Clear: clearAfter,
		Meaning: "A running pod's veth is no forwarding port of azure0; or a port's flags (learning, flood, isolated, guard, hairpin) are not the CNI's: warning.",
		Breaks:  "The pod has no network, or not to itself by a Service, or not to some others.",
		Confirm: "bridge -d link show dev AZV",
		Mend:    "ip link set AZV master azure0 up; bridge link set dev AZV hairpin on learning on flood on isolated off",
		Links:   []string{aboutCNI},
	},
	{
		Name: BridgeNeighborMissing, Severity: warning, Owner: probes.AKS, Hold: 60 * s, Clear: clearAfter,
		Meaning: "A running pod's permanent neighbour on azure0 is gone.",
		Breaks:  "Little: the node asks by ARP instead, as long as that is answered.",
		Confirm: "ip neigh show dev azure0 nud permanent",
		Mend:    "ip neigh replace POD_IP lladdr POD_MAC dev azure0 nud permanent, or delete the pod.",
		Links:   []string{aboutCNI + "/issues/751"},
	},
	{
		Name: BridgeNeighborStale, Severity: warning, Owner: probes.AKS, Hold: 300 * s, Clear: clearAfter,
		Meaning: "azure0 has a permanent neighbour for an address that no pod has.",
		Breaks:  "The next pod that gets the address is unreachable from the node.",
		Confirm: "ip neigh show dev azure0 nud permanent",
		Mend:    "ip neigh del ADDRESS dev azure0",
		Links:   []string{aboutCNI + "/issues/214"},
	},
	{
		Name: BridgeRulesLost, Severity: warning, Owner: probes.Customer, Hold: 300 * s, Clear: clearAfter,
		Meaning:        "Bridge mode's ebtables rules of a pod (arpreply, dnat) or of the NIC (snat) are missing. Only with probes.azurecni.ebtables.",
		Breaks:         "The fabric drops or misdirects the pod's frames.",
		Confirm:        "ebtables -t nat -L",
		Mend:           "Delete the pod; for the NIC's rule reboot the node.",
		FalsePositives: "A CNI that uses the legacy backend has its rules elsewhere: leave the check off.",
		Links:          []string{"https://github.com/cilium/cilium/issues/12113"},
	},
	{
		Name: UplinkDown, Severity: critical, Owner: probes.AKS, Hold: 30 * s, Clear: clearAfter,
		Meaning:        "The node's NIC is missing, down or without carrier.",
		Breaks:         "The node is cut off; this is published once it is back.",
		Confirm:        "ip link; networkctl; journalctl -k | grep -i -e hv_netvsc -e mlx",
		Mend:           "ip link set eth0 up; or restart the VM.",
		FalsePositives: "Virtual functions come and go under their master; they are not looked at.",
		Links:          []string{"https://learn.microsoft.com/azure/virtual-network/accelerated-networking-how-it-works"},
	},
	{
		Name: NodeAddressLost, Severity: critical, Owner: probes.AKS, Hold: 30 * s, Clear: clearAfter,
		Meaning:        "The node's address is not on its uplink (bridge mode: on azure0), or is on another link, too.",
		Breaks:         "The node and its pods are cut off; routes go with the address.",
		Confirm:        "ip -4 addr; networkctl status eth0; journalctl -u systemd-networkd",
		Mend:           "networkctl renew eth0; or restart the VM.",
		FalsePositives: "Addresses of secondary NICs are others; a renewed lease keeps the address.",
		Links:          []string{"https://github.com/Azure/AKS/issues/3162"},
	},
	{
		Name: DefaultRouteLost, Severity: critical, Owner: probes.AKS, Hold: 30 * s, Clear: clearAfter,
		Meaning:        "The default route is missing, or another one wins that is not the uplink's by its gateway from DHCP. A second one on the uplink is a warning.",
		Breaks:         "Nothing leaves the node; without it proxy ARP does not answer either, so that pods of this node lose each other.",
		Confirm:        "ip route show default; ip route get 168.63.129.16",
		Mend:           "networkctl renew eth0, and delete the foreign route.",
		FalsePositives: "A default route of a secondary NIC with a higher metric is in order; so is one of another protocol on images without DHCP.",
		Links:          []string{aboutNetworkd},
	},
	{
		Name: PlatformRouteLost, Severity: warning, Owner: probes.AKS, Hold: 30 * s, Clear: clearAfter,
		Meaning:        "Packets to 168.63.129.16 (wire server, DNS) or 169.254.169.254 (instance metadata) do not leave by the uplink: critical. Or DHCP's own route to one is gone, and only the default route covers it.",
		Breaks:         "DNS, extensions, identity of the VM.",
		Confirm:        "ip route get 168.63.129.16; ip route get 169.254.169.254",
		Mend:           "networkctl renew eth0, and delete the foreign route.",
		FalsePositives: "Images that do not ask DHCP for these routes, and bridge mode, are not held to them.",
		Links:          []string{"https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16"},
	},
	{
		Name: ForwardingOff, Severity: critical, Owner: probes.Customer, Hold: 30 * s, Clear: clearAfter,
		Meaning: "IP forwarding is off, on the node or on one of the links that carry pods' packets.",
		Breaks:  "Pods lose the network, also within the node: proxy ARP stops with forwarding.",
		Confirm: "sysctl net.ipv4.ip_forward; sysctl -a -r 'conf.*forwarding'",
		Mend:    "sysctl -w net.ipv4.ip_forward=1, and find who switches it off (hardening scripts, sysctl --system).",
		Links:   []string{aboutCNI},
	},
	{
		Name: RoutingRulesLost, Severity: critical, Owner: probes.Both, Hold: 30 * s, Clear: clearAfter,
		Meaning: "No routing rule looks up table local, or none table main.",
		Breaks:  "The node does not know its own addresses, or no route at all: it is cut off.",
		Confirm: "ip rule; ip -6 rule",
		Mend:    "ip rule add priority 0 lookup local; ip rule add priority 32766 lookup main. systemd-networkd: ManageForeignRoutingPolicyRules=no.",
		Links:   []string{"https://github.com/Azure/AKS/issues/3531"},
	},
	{
		Name: RoutingRuleForeign, Severity: warning, Owner: probes.Customer, Hold: 120 * s, Clear: clearAfter,
		Meaning:        "A routing rule is there that neither the kernel nor the CNI made.",
		Breaks:         "Depends on the rule: it may send pods' packets elsewhere, or nowhere.",
		Confirm:        "ip rule; ip route show table TABLE",
		Mend:           "ip rule del priority PRIORITY; or waive it by its subject when it is wanted.",
		FalsePositives: "Cilium's are known. VPN agents and egress gateways have rules of their own: waive them.",
		Links:          []string{"https://github.com/Azure/AKS/issues/3531"},
	},
	{
		Name: NeighborTableFull, Severity: warning, Owner: probes.Customer, Hold: 120 * s, Clear: clearAfter,
		Meaning: "More than 80 % of the IPv4 neighbour table is in use, or the kernel refuses new entries.",
		Breaks:  "Connections to new addresses fail now and then.",
		Confirm: "ip -4 neigh show nud all | wc -l; sysctl net.ipv4.neigh.default.gc_thresh3; cat /proc/net/stat/arp_cache",
		Mend:    "Raise net.ipv4.neigh.default.gc_thresh1 to 3 (linuxOSConfig; AKS sets 4096, 8192, 16384).",
		Links:   []string{"https://github.com/Azure/aks-engine/issues/2732"},
	},
	{
		Name: ReversePathDrops, Severity: info, Owner: probes.Customer, Hold: 120 * s, Clear: clearAfter,
		Meaning: "Strict reverse path filtering (rp_filter 1) is on for a link that carries pods' packets, and drops some.",
		Breaks:  "Packets of pods whose route is missing or wrong are dropped on their way out, too.",
		Confirm: "sysctl -a -r rp_filter; nstat -az TcpExtIPReversePathFilter",
		Mend:    "Mend the routes first. net.ipv4.conf.all.rp_filter=2 is loose.",
		Links:   []string{"https://docs.kernel.org/networking/ip-sysctl.html"},
	},
	{
		Name: CNIModeMixed, Severity: warning, Owner: probes.Both, Hold: 120 * s, Clear: clearAfter,
		Meaning:        "Configuration, state file and kernel disagree on the CNI's mode, or remains of another mode are there: a bridge azure0 or an enslaved link on a transparent node, /32 routes on a bridge node.",
		Breaks:         "Depends on what remains; mostly some pods work and others do not.",
		Confirm:        "ls /etc/cni/net.d; grep -o '\"Mode\":\"[a-z-]*\"' /var/run/azure-vnet.json; ip -d link",
		Mend:           "Drain and reboot the node: both modes build everything anew.",
		FalsePositives: "A node in bridge mode before its first pod; a node whose CNI is being upgraded.",
		Links:          []string{"https://github.com/antrea-io/antrea/issues/998", "https://github.com/cilium/cilium/issues/14233"},
	},
	{
		Name: CNIStateInvalid, Severity: warning, Owner: probes.AKS, Hold: 300 * s, Clear: clearAfter,
		Meaning:        "The CNI's configuration or state file is empty, does not parse, or knows other pods than the runtime.",
		Breaks:         "New pods fail (ContainerCreating), or deleted ones leak their addresses.",
		Confirm:        "jq . /var/run/azure-vnet.json; jq . /var/run/azure-cns/azure-endpoints.json; tail /var/log/azure-vnet.log",
		Mend:           "Drain the node and reboot it: the file is made anew.",
		FalsePositives: "Pods come and go within the hold; releases that wait for azure-cns stand in /var/run/azure-vnet/deleteIDs.",
		Links:          []string{aboutCNI + "/issues/763", aboutCNI + "/issues/4829"},
	},
	{
		Name: ConntrackDrops, Severity: warning, Owner: probes.Customer, Hold: 120 * s, Clear: clearAfter,
		Meaning: "On a bridge node connection tracking keeps failing to insert connections.",
		Breaks:  "DNS lookups of pods take 5 s now and then: two queries from one socket race for one entry.",
		Confirm: "conntrack -S | grep -o 'insert_failed=[0-9]*'",
		Mend:    "Use node-local DNS, or single-request-reopen in the pods' resolv.conf; move the node pool to transparent mode.",
		Links:   []string{"https://github.com/Azure/AKS/issues/1326"},
	},
	{
		Name: DNSServersTruncated, Severity: warning, Owner: probes.AKS, Hold: 300 * s, Clear: clearAfter,
		Meaning: "The CNI copied only the first of the uplink's DNS servers to azure0.",
		Breaks:  "When that server is away, the node and its pods resolve nothing.",
		Confirm: "resolvectl status azure0; cat /run/systemd/netif/leases/*",
		Mend:    "resolvectl dns azure0 SERVER SERVER; upgrade the node image.",
		Links:   []string{aboutCNI + "/pull/713"},
	},
}
