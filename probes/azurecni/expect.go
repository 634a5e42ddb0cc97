package azurecni

import (
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes/host"
)

// A pod is one that should work, with what the CNI should have made for it.
type pod struct {
	name    string // namespace/name
	ips     []netip.Addr
	veth    string // "" where nobody tells
	mac     mac    // of the pod's end; zero is unknown
	netns   string
	created time.Time // of its sandbox; zero is unknown
}

// subject is how messages name the pod: "kube-system/coredns-x (10.240.0.11)".
func (p *pod) subject(ip netip.Addr) string {
	if p.name == "" {
		return ip.String()
	}
	return p.name + " (" + ip.String() + ")"
}

// first is the pod's own address.
func (p *pod) first() netip.Addr {
	if len(p.ips) == 0 {
		return netip.Addr{}
	}
	return p.ips[0]
}

// An expectation is what the node should hold: pods that should work, and what
// else has an owner.
type expectation struct {
	pods     []pod
	unknown  string               // why the pods are not known; "" when they are
	owned    map[string]bool      // veths that belong to somebody
	ownedIP  map[netip.Addr]bool  // addresses that do
	extra    []string             // endpoints without a sandbox
	lacking  []string             // sandboxes without an endpoint
	queueErr error                // why the releases that wait could not be seen
	joined   bool                 // the runtime was asked
	owners   map[netip.Addr][]int // pods by address
	shared   bool                 // an address is there twice
	dual     bool
}

// vethOf is the name that transparent mode gives a pod's host veth
// (ACN network/endpoint_linux.go).
func vethOf(podName string) string {
	namespace, name, _ := strings.Cut(podName, "/")
	sum := sha1.Sum([]byte(namespace + "." + name))
	return "azv" + hex.EncodeToString(sum[:])[:11]
}

// expectState takes the CNI's state as the truth about pods.
func expectState(s *state) *expectation {
	e := &expectation{}
	if s.broken {
		e.unknown = s.path + " cannot be used"
		return e.index()
	}
	for i := range s.endpoints {
		p := &s.endpoints[i]
		if len(p.ips) > 0 {
			e.pods = append(e.pods, pod{name: p.pod, ips: p.ips, veth: p.veth, mac: p.mac, netns: p.netns})
		}
	}
	e.own(s.endpoints)
	return e.index()
}

// expectSandboxes takes the runtime's word for which pods should work, and the
// state files' for what was made for them.
func expectSandboxes(sandboxes []host.Sandbox, s *state) *expectation {
	e := &expectation{joined: true}
	byID := make(map[string]*endpoint, len(s.endpoints))
	for i := range s.endpoints {
		byID[s.endpoints[i].container] = &s.endpoints[i]
	}
	ours := map[string]bool{}
	for i := range sandboxes {
		b := &sandboxes[i]
		p := byID[b.ID]
		ours[b.ID] = true
		if !b.Ready || !b.Known || b.HostNetwork || len(b.IPs) == 0 {
			continue
		}
		made := pod{name: podName(b.Namespace, b.Name), ips: slices.Clone(b.IPs), netns: b.NetNS, created: b.Created}
		for i := range made.ips {
			made.ips[i] = made.ips[i].Unmap()
		}
		switch {
		case p != nil:
			made.veth, made.mac = p.veth, p.mac
			made.netns = cmp.Or(made.netns, p.netns)
		case !s.broken && s.path != "":
			e.lacking = append(e.lacking, made.name)
		}
		e.pods = append(e.pods, made)
	}
	for i := range s.endpoints {
		if p := &s.endpoints[i]; !ours[p.container] {
			e.extra = append(e.extra, cmp.Or(p.pod, p.container))
		}
	}
	e.own(s.endpoints)
	for i := range sandboxes { // a sandbox that has ended keeps its veth until it is removed
		if b := &sandboxes[i]; !b.HostNetwork {
			e.owned[vethOf(podName(b.Namespace, b.Name))] = true
			for _, ip := range b.IPs {
				e.ownedIP[ip.Unmap()] = true
			}
		}
	}
	return e.index()
}

func (e *expectation) own(endpoints []endpoint) {
	e.owned, e.ownedIP = map[string]bool{}, map[netip.Addr]bool{}
	for i := range endpoints {
		p := &endpoints[i]
		if p.veth != "" {
			e.owned[p.veth] = true
		}
		for _, ip := range p.ips {
			e.ownedIP[ip] = true
		}
	}
}

// index sorts the pods by name, and finds who has which address.
func (e *expectation) index() *expectation {
	slices.SortFunc(e.pods, func(a, b pod) int {
		return cmp.Or(cmp.Compare(a.name, b.name), a.first().Compare(b.first()))
	})
	if e.owned == nil {
		e.owned, e.ownedIP = map[string]bool{}, map[netip.Addr]bool{}
	}
	e.owners = make(map[netip.Addr][]int, len(e.pods))
	for i := range e.pods {
		for _, ip := range e.pods[i].ips {
			e.owners[ip] = append(e.owners[ip], i)
			e.shared = e.shared || len(e.owners[ip]) > 1
			e.dual = e.dual || ip.Is6()
		}
	}
	return e
}

// nameVeths gives pods without a known veth the name that transparent mode makes.
func (e *expectation) nameVeths() {
	for i := range e.pods {
		p := &e.pods[i]
		if p.veth == "" && p.name != "" {
			p.veth = vethOf(p.name)
		}
		e.owned[p.veth] = true
	}
}
