package azurecni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/nodedrift/nodedrift/probes"
)

// A mode is how a CNI lays pods' networks onto the host; a set of them is
// several ORed.
type mode uint8

const (
	transparent     mode = 1 << iota // a veth and a /32 route per pod; eth0 untouched
	bridged                          // eth0 and the pods' veths are ports of azure0
	tunnel                           // a bridge whose pods reach each other through the fabric
	transparentVLAN                  // per-VLAN namespaces; little of it on the host
	cilium                           // Cilium's own data path
	observed                         // a mode nobody here knows: node-wide invariants only

	unknown   mode = 0
	anyBridge      = bridged | tunnel
	azure          = transparent | bridged | tunnel | transparentVLAN | observed
	anyMode        = azure | cilium
)

var modeNames = map[mode]string{transparent: "transparent", bridged: "bridge", tunnel: "tunnel", transparentVLAN: "transparent-vlan", cilium: "cilium", observed: "another"}

func (m mode) String() string { return modeNames[m] }

// modeOf reads the word of a conflist or a state file. Without one Azure CNI is
// in tunnel mode (ACN network/network_linux.go).
func modeOf(word string) mode {
	switch word {
	case "transparent", "transparent-tunnel": // the latter: ACN PR #4319
		return transparent
	case "bridge":
		return bridged
	case "tunnel", "":
		return tunnel
	case "transparent-vlan":
		return transparentVLAN
	}
	return observed
}

// like tells whether two modes leave the same on the host: bridge and tunnel do,
// as far as the kernel alone can tell.
func (m mode) like(o mode) bool { return m == o || m&anyBridge != 0 && o&anyBridge != 0 }

const confFolder = "etc/cni/net.d"

// A conflist is the CNI configuration that the node's runtime uses: the first by
// name (go-cni, loadFromConfDir).
type conflist struct {
	path      string
	mode      mode
	bridge    string
	cilium    bool // Cilium is there, as the data path or chained
	stateless bool // endpoints are kept by azure-cns
	noHairpin bool // disableHairpinOnHostInterface
	broken    error
}

type conflistFile struct {
	Plugins []pluginFile `json:"plugins"`
	pluginFile
}

type pluginFile struct {
	Type      string `json:"type"`
	Mode      string `json:"mode"`
	Bridge    string `json:"bridge"`
	NoHairpin bool   `json:"disableHairpinOnHostInterface"`
	IPAM      struct {
		Type string `json:"type"`
	} `json:"ipam"`
}

// readConflist finds the configuration in force. A node of another CNI, or of
// none, is [probes.ErrNotApplicable]; a folder that cannot be read is an error.
func readConflist(root tree) (conflist, error) {
	entries, err := root.ReadDir(confFolder)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := root.Stat("etc"); err != nil {
			return conflist{}, fmt.Errorf("see the node's /etc: %w", err)
		}
		return conflist{}, notApplicable("no " + confFolder)
	}
	if err != nil {
		return conflist{}, err
	}
	i := slices.IndexFunc(entries, func(e fs.DirEntry) bool {
		return slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(e.Name())) && !e.IsDir()
	})
	if i < 0 {
		return conflist{}, notApplicable("/" + confFolder + " is empty")
	}
	name := path.Join(confFolder, entries[i].Name())
	content, err := root.ReadFile(name)
	if err != nil {
		return conflist{}, err
	}
	c, err := parseConflist(content)
	c.path = "/" + name
	if err != nil {
		if !strings.Contains(path.Base(name), "azure") {
			return conflist{}, fmt.Errorf("read /%s: %w", name, err)
		}
		c.broken = err
		return c, nil
	}
	if c.mode == unknown {
		return conflist{}, notApplicable("/" + name + " is another CNI's")
	}
	return c, nil
}

func notApplicable(why string) error {
	return fmt.Errorf("no Azure CNI configuration: %s: %w", why, probes.ErrNotApplicable)
}

// parseConflist reads a conflist or the older form of a single plugin. Its mode
// stays unknown when no plugin of it is Azure's.
func parseConflist(content []byte) (c conflist, err error) {
	var f conflistFile
	if err := json.Unmarshal(content, &f); err != nil {
		return c, plainJSON(err)
	}
	if len(f.Plugins) == 0 && f.Type != "" {
		f.Plugins = []pluginFile{f.pluginFile}
	}
	if len(f.Plugins) == 0 {
		return c, errors.New("it has no plugins")
	}
	c.bridge = "azure0"
	for _, p := range f.Plugins {
		switch p.Type {
		case "azure-vnet":
			if c.mode == unknown {
				c.mode = modeOf(p.Mode)
			}
			if isInterface(p.Bridge) {
				c.bridge = p.Bridge
			}
			c.noHairpin = p.NoHairpin
		case "azure-vnet-stateless", "azure-cns-stateless":
			if c.mode == unknown {
				c.mode = modeOf(p.Mode)
			}
			c.stateless = true
		case "cilium-cni":
			c.cilium = true
			if c.mode == unknown && p.IPAM.Type == "azure-ipam" {
				c.mode = cilium
			}
		}
	}
	return c, nil
}

// kernelMode is what the links and routes look like; unknown where they say nothing.
func (v *view) kernelMode() mode {
	routed, ports := 0, 0
	bridge := v.linkNamed(v.bridgeName())
	for i := range v.now.links {
		l := &v.now.links[i]
		switch {
		case !podLink(l.name):
		case l.master != 0 && bridge != nil && l.master == bridge.index:
			ports++
		case l.master == 0 && v.routedTo[l.index] > 0:
			routed++
		}
	}
	uplinked := bridge != nil && v.uplink != nil && v.uplink.master == bridge.index
	switch {
	case routed > ports:
		return transparent
	case ports > 0 || uplinked:
		return bridged
	}
	if v.linkNamed("cilium_host") != nil {
		return cilium
	}
	return unknown
}

// settleMode decides what the node is held to: what conflist and state file
// agree on; where they do not, what the kernel looks like.
func (v *view) settleMode() {
	v.kernelIs = v.kernelMode()
	conf, state := v.conf.mode, v.state.mode
	switch {
	case v.conf.broken != nil:
		v.mode = state
	case state == unknown || conf == state:
		v.mode = conf
	case v.kernelIs.like(conf):
		v.mode = conf
	default:
		v.mode = state
	}
	if v.mode == unknown {
		v.mode = v.kernelIs
	}
	if v.mode == unknown {
		v.mode = observed
	}
}

// podLink tells whether a link has the name of a pod's host veth.
func podLink(name string) bool {
	return strings.HasPrefix(name, "azv") && !strings.HasPrefix(name, "azvint")
}

// isInterface tells whether a word can be a link's name (dev_valid_name, net/core/dev.c).
func isInterface(s string) bool {
	return s != "" && len(s) < 16 && s != "." && s != ".." && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r > '~' })
}
