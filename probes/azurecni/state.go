package azurecni

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"
)

// The CNI's own state, read without its lock: both files are replaced by rename.
const (
	vnetState = "run/azure-vnet.json"                                   // the plugin's
	cnsState  = "run/azure-cns/azure-endpoints.json"                    // azure-cns's, where that manages endpoints
	queued    = "run/azure-vnet/deleteIDs"                              // releases that wait for azure-cns
	invoked   = "run/systemd/units/invocation:systemd-networkd.service" // made when the unit starts
)

// maxEndpoints bounds what is taken of a state file; a node has at most 250 pods.
const maxEndpoints = 4096

// An endpoint is what the CNI made for one sandbox.
type endpoint struct {
	container string // sandbox id
	pod       string // namespace/name
	veth      string // on the host; "" where another data path has it
	mac       mac    // of the pod's end; zero is unknown
	ips       []netip.Addr
	netns     string
}

// A state is what the CNI's files say.
type state struct {
	path      string // of the file that is in force; "" for none
	changed   time.Time
	mode      mode
	bridge    string
	uplink    string // the interface's name
	uplinkMAC mac
	nodeIPs   []netip.Addr // of the uplink, as bridge mode saved them
	gateways  []netip.Addr
	dhcp      bool // the saved default route was DHCP's
	dns       []string
	endpoints []endpoint
	flaws     []flaw // what is wrong in it
	broken    bool   // nothing of it can be used
}

// A flaw is something wrong in a file of the CNI.
type flaw struct{ path, why string }

type ipNet struct {
	IP   string `json:"IP"`
	Mask string `json:"Mask"` // base64 of the bytes
}

type vnetFile struct {
	Network *struct {
		ExternalInterfaces map[string]struct {
			Name        string
			MacAddress  string // base64 of the bytes
			BridgeName  string
			Subnets     []string
			IPAddresses []ipNet
			IPv4Gateway string
			Routes      []struct {
				Dst      *ipNet
				Gw       string
				Protocol int
			}
			DNSInfo  struct{ Servers []string }
			Networks map[string]struct {
				Mode      string
				Subnets   []struct{ Gateway string }
				Endpoints map[string]struct {
					IfName, HostIfName, MacAddress, NetworkNameSpace string
					ContainerID, PODName, PODNameSpace, NICType      string
					IPAddresses                                      []ipNet
				}
			}
		}
	}
}

type cnsFile struct {
	Endpoints map[string]struct {
		PodName, PodNamespace string
		IfnameToIPMap         map[string]struct {
			IPv4, IPv6                        []ipNet
			HostVethName, MacAddress, NICType string
		}
	}
}

// readState reads the CNI's files. When both are there, the one written last is
// in force. None is lawful: there has been no pod since the boot.
func readState(root tree) (state, error) {
	var found []state
	for _, f := range []struct {
		path  string
		parse func([]byte) state
	}{{vnetState, parseVnet}, {cnsState, parseCNS}} {
		content, err := root.ReadFile(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return state{}, err
		}
		s := f.parse(content)
		s.path = "/" + f.path
		if i, err := root.Stat(f.path); err == nil {
			s.changed = i.ModTime()
		}
		for i := range s.flaws {
			s.flaws[i].path = s.path
		}
		found = append(found, s)
	}
	switch len(found) {
	case 0:
		if _, err := root.Stat("run"); err != nil {
			return state{}, fmt.Errorf("see the node's /run: %w", err)
		}
		return state{}, nil
	case 1:
		return found[0], nil
	}
	return merge(found[0], found[1]), nil
}

// merge joins both files: the later one tells the pods, the plugin's the uplink
// and the pods' network namespaces. Where the later one is broken nobody tells.
func merge(vnet, cns state) state {
	s := vnet
	if cns.changed.After(vnet.changed) && (cns.broken || len(cns.endpoints) > 0) {
		s.path, s.changed, s.broken, s.endpoints = cns.path, cns.changed, cns.broken, cns.endpoints
		netns := make(map[string]string, len(vnet.endpoints))
		for i := range vnet.endpoints {
			netns[vnet.endpoints[i].container] = vnet.endpoints[i].netns
		}
		for i := range s.endpoints {
			s.endpoints[i].netns = netns[s.endpoints[i].container]
		}
	}
	s.flaws = slices.Concat(vnet.flaws, cns.flaws)
	return s
}

func (s *state) flawed(format string, args ...any) {
	if len(s.flaws) < 16 {
		s.flaws = append(s.flaws, flaw{why: fmt.Sprintf(format, args...)})
	}
}

// parseVnet reads azure-vnet.json.
func parseVnet(content []byte) (s state) {
	var f vnetFile
	if s.unmarshal(content, &f); s.broken {
		return s
	}
	if f.Network == nil {
		s.broken = true
		s.flawed("it has no Network")
		return s
	}
	for _, name := range slices.Sorted(maps.Keys(f.Network.ExternalInterfaces)) {
		e := f.Network.ExternalInterfaces[name]
		for _, id := range slices.Sorted(maps.Keys(e.Networks)) {
			n := e.Networks[id]
			if s.mode == unknown {
				s.mode = modeOf(n.Mode)
				s.uplink, s.bridge = cmp.Or(e.Name, name), e.BridgeName
				s.uplinkMAC = parseMAC(e.MacAddress)
				s.dns = e.DNSInfo.Servers
				for _, a := range e.IPAddresses {
					if ip, err := netip.ParseAddr(a.IP); err == nil {
						s.nodeIPs = append(s.nodeIPs, ip)
					}
				}
				s.addGateway(e.IPv4Gateway)
				for _, r := range e.Routes {
					s.dhcp = s.dhcp || r.Dst == nil && r.Protocol == protoDHCP
				}
			}
			for _, net := range n.Subnets {
				s.addGateway(net.Gateway)
			}
			for _, id := range slices.Sorted(maps.Keys(n.Endpoints)) {
				p := n.Endpoints[id]
				if !infra(p.NICType) {
					continue
				}
				s.add(id, endpoint{container: cmp.Or(p.ContainerID, id), pod: podName(p.PODNameSpace, p.PODName), veth: p.HostIfName,
					mac: parseMAC(p.MacAddress), netns: p.NetworkNameSpace}, p.IPAddresses)
			}
		}
	}
	return s
}

// parseCNS reads azure-endpoints.json.
func parseCNS(content []byte) (s state) {
	var f cnsFile
	if s.unmarshal(content, &f); s.broken {
		return s
	}
	if f.Endpoints == nil {
		s.broken = true
		s.flawed("it has no Endpoints")
		return s
	}
	for _, id := range slices.Sorted(maps.Keys(f.Endpoints)) {
		e := f.Endpoints[id]
		if len(e.IfnameToIPMap) == 0 {
			s.flawed("endpoint %s has no interface", id)
		}
		for _, name := range slices.Sorted(maps.Keys(e.IfnameToIPMap)) {
			i := e.IfnameToIPMap[name]
			if !infra(i.NICType) {
				continue
			}
			s.add(id, endpoint{container: id, pod: podName(e.PodNamespace, e.PodName), veth: i.HostVethName, mac: parseMAC(i.MacAddress)},
				slices.Concat(i.IPv4, i.IPv6))
		}
	}
	return s
}

// unmarshal decodes a file whole, or calls it broken.
func (s *state) unmarshal(content []byte, into any) {
	switch err := json.Unmarshal(content, into); {
	case len(bytes.TrimSpace(content)) == 0:
		s.broken = true
		s.flawed("it is empty")
	case err != nil:
		s.broken = true
		s.flawed("it does not parse: %v", plainJSON(err))
	}
}

// plainJSON drops from a JSON error what changes with every byte of the file.
func plainJSON(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s holds a %s", e.Field, e.Value)
	}
	return err
}

// infra tells whether an interface is a pod's first one; others are not routed
// by the host (Swift v2).
func infra(nic string) bool { return nic == "" || nic == "InfraNIC" }

// add takes an endpoint, or says what is wrong with it.
func (s *state) add(id string, e endpoint, nets []ipNet) {
	if len(s.endpoints) == maxEndpoints {
		s.flawed("it has more than %d endpoints", maxEndpoints)
		return
	}
	for _, n := range nets {
		ip, err := netip.ParseAddr(n.IP)
		if err != nil || ip.IsUnspecified() || ip.IsLoopback() || ip.Zone() != "" {
			s.flawed("endpoint %s has the address %q", id, n.IP)
			continue
		}
		e.ips = append(e.ips, ip.Unmap())
	}
	if len(e.ips) == 0 {
		s.flawed("endpoint %s has no address", id)
	}
	if e.veth != "" && !isInterface(e.veth) {
		s.flawed("endpoint %s has the host interface %q", id, e.veth)
		e.veth = ""
	}
	s.endpoints = append(s.endpoints, e)
}

func (s *state) addGateway(word string) {
	if ip, err := netip.ParseAddr(word); err == nil && !ip.IsUnspecified() && !slices.Contains(s.gateways, ip) {
		s.gateways = append(s.gateways, ip)
	}
}

// podName is a pod as people name it.
func podName(namespace, name string) string {
	if namespace == "" && name == "" {
		return ""
	}
	return namespace + "/" + name
}

// parseMAC reads a hardware address as Go encodes its bytes (base64), or as people write it.
func parseMAC(word string) (m mac) {
	b, err := net.ParseMAC(word)
	if err != nil {
		if b, err = base64.StdEncoding.DecodeString(word); err != nil {
			return mac{}
		}
	}
	if len(b) == len(m) {
		copy(m[:], b)
	}
	return m
}

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }
