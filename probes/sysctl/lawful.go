package sysctl

import (
	"path"
	"strconv"
	"strings"
)

// Some keys have a second lawful writer, which starts after systemd-sysctl and
// sets its own value. Such a value is not drift (facts: AKS node, section 1.4).

// podLinks are the host's ends of pod networks. Their CNI sets their keys, so a
// glob that happens to cover them declares nothing about them.
var podLinks = []string{"azv*", "veth*", "lxc*", "cilium_*", "cali*", "docker*", "cbr*", "cni*", "azure*", "br-*", "eni*", "nodelocaldns*", "kube-*"}

// podLink is true for the key of such a link.
func podLink(key string) bool {
	name := interfaceOf(key)
	for _, pattern := range podLinks {
		if ok, _ := path.Match(pattern, name); ok {
			return true
		}
	}
	return false
}

// A writer is who may have set a value that no file declares.
type writer uint8

const (
	anybody writer = iota // every Kubernetes node has it: kube-proxy, a CNI plugin
	cilium                // the Cilium agent
	vlan                  // azure-vnet in transparent-vlan mode
	ipvs                  // kube-proxy in IPVS mode
	kubelet               // kubelet without protect-kernel-defaults
)

// lawful are the values that somebody may set whatever the files declare.
var lawful = []struct {
	who   writer
	key   string // may be a glob
	value string // ">" is the declared number or a larger one
}{
	// kubelet and every CNI need forwarding; azure-vnet sets it (ACN network/networkutils/networkutils_linux.go).
	{anybody, "net/ipv4/ip_forward", "1"},
	{anybody, "net/ipv4/conf/*/forwarding", "1"},
	{anybody, "net/ipv6/conf/*/forwarding", "1"},
	{anybody, "net/ipv6/conf/*/accept_ra", "0"},

	// kube-proxy: kubernetes pkg/proxy/conntrack/sysctls.go and its defaults, pkg/proxy/iptables.
	{anybody, "net/netfilter/nf_conntrack_max", ">"},
	{anybody, "net/nf_conntrack_max", ">"},
	{anybody, "net/netfilter/nf_conntrack_buckets", ">"},
	{anybody, "net/netfilter/nf_conntrack_tcp_timeout_established", "86400"},
	{anybody, "net/netfilter/nf_conntrack_tcp_timeout_close_wait", "3600"},
	{anybody, "net/ipv4/conf/all/route_localnet", "1"},
	{ipvs, "net/ipv4/vs/conntrack", "1"},
	{ipvs, "net/ipv4/vs/conn_reuse_mode", "0"},
	{ipvs, "net/ipv4/vs/expire_nodest_conn", "1"},
	{ipvs, "net/ipv4/vs/expire_quiescent_template", "1"},
	{ipvs, "net/ipv4/conf/all/arp_ignore", "1"},
	{ipvs, "net/ipv4/conf/all/arp_announce", "2"},

	// Cilium: pkg/datapath/loader/base.go; azure-vnet: network/transparent_vlan_endpointclient_linux.go.
	{cilium, "net/ipv4/conf/*/rp_filter", "0"},
	{cilium, "kernel/unprivileged_bpf_disabled", "1"},
	{cilium, "kernel/timer_migration", "0"},
	{cilium, "net/core/bpf_jit_enable", "1"},
	{cilium, "net/ipv4/fib_multipath_use_neigh", "1"},
	{vlan, "net/ipv4/conf/all/rp_filter", "0"},

	// kubelet: kubernetes pkg/kubelet/cm/container_manager_linux.go, setupKernelTunables.
	{kubelet, "vm/overcommit_memory", "1"},
	{kubelet, "vm/panic_on_oom", "0"},
	{kubelet, "kernel/panic", "10"},
	{kubelet, "kernel/panic_on_oops", "1"},
	{kubelet, "kernel/keys/root_maxkeys", "1000000"},
	{kubelet, "kernel/keys/root_maxbytes", "25000000"},
}

// allowed says whether a live value is somebody's lawful one.
func allowed(s setting, live string, present func(writer) bool) bool {
	if s.source == sourceConfig {
		return false
	}
	for _, l := range lawful {
		if ok, _ := path.Match(l.key, s.key); !ok || !present(l.who) {
			continue
		}
		if l.value == ">" && atLeast(live, s.value) || same(live, l.value) {
			return true
		}
	}
	return false
}

func atLeast(live, want string) bool {
	l, errL := strconv.ParseInt(strings.TrimSpace(live), 10, 64)
	w, errW := strconv.ParseInt(strings.TrimSpace(want), 0, 64)
	return errL == nil && errW == nil && l >= w
}

// writersOf finds who is at work on a node, from its CNI configurations and the
// kernel's IPVS keys.
func writersOf(root tree, sysctls keys) map[writer]bool {
	found := map[writer]bool{anybody: true}
	const folder = "etc/cni/net.d"
	entries, _ := root.ReadDir(folder) // none: then nobody is excused
	for _, e := range entries {
		if strings.Contains(e.Name(), "cilium") {
			found[cilium] = true
		}
		if content, err := root.ReadFile(path.Join(folder, e.Name())); err == nil && strings.Contains(string(content), `"transparent-vlan"`) {
			found[vlan] = true
		}
	}
	if vs, err := sysctls.Glob("net/ipv4/vs/conntrack"); err == nil && len(vs) > 0 {
		found[ipvs] = true
	}
	return found
}
