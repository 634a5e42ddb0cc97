package azurecni

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// bridgeRules are the rules of ebtables as ebtables-nft keeps them: in nftables,
// family bridge, table nat. The legacy backend's are others and not read.
type bridgeRules struct {
	rules []bridgeRule
	err   error // why they could not be read
}

// A bridgeRule is one rule; what it matches and does is searched for in its
// expressions, which hold addresses and the target's name as they are.
type bridgeRule struct {
	chain string
	body  []byte
}

const (
	nftGetRule                           = 10<<8 | 7 // NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE
	protoBridge                          = 7         // NFPROTO_BRIDGE
	ruleTable, ruleChain, ruleExpression = 1, 2, 4   // NFTA_RULE_*
)

// ebtables implements [netstack]. It needs NET_ADMIN.
func (*kernel) ebtables() *bridgeRules {
	c := newConn()
	c.proto = unix.NETLINK_NETFILTER
	defer c.close()
	found := &bridgeRules{}
	c.body(4)[0] = protoBridge
	found.err = c.dump("ebtables rules", nftGetRule, 4, func() { found.rules = nil }, func(_ uint16, b []byte) {
		if len(b) < 4 || b[0] != protoBridge {
			return
		}
		var r bridgeRule
		nat := false
		for kind, v := range attrs(b[4:]) {
			switch kind {
			case ruleTable:
				nat = string(bytes.TrimRight(v, "\x00")) == "nat"
			case ruleChain:
				r.chain = string(bytes.TrimRight(v, "\x00"))
			case ruleExpression:
				r.body = slices.Clone(v)
			}
		}
		if nat {
			found.rules = append(found.rules, r)
		}
	})
	return found
}

// has tells whether a rule of a chain has a target and holds all of the words.
func (b *bridgeRules) has(chain, targetName string, words ...[]byte) bool {
	return slices.ContainsFunc(b.rules, func(r bridgeRule) bool {
		if r.chain != chain || !bytes.Contains(r.body, append([]byte(targetName), 0)) {
			return false
		}
		for _, w := range words {
			if !bytes.Contains(r.body, w) {
				return false
			}
		}
		return true
	})
}

// ebtablesRules is B-EBT.
func (v *view) ebtablesRules(say func(probes.Finding)) {
	if v.rules == nil {
		return
	}
	if v.uplink != nil && len(v.pods) > 0 && !v.rules.has("POSTROUTING", "snat", v.uplink.mac[:]) {
		say(probes.Finding{Subject: v.uplink.name, Message: "ebtables does not rewrite pods' frames to the NIC's MAC (POSTROUTING snat)", Observed: "missing", Wanted: v.uplink.mac.String()})
	}
	v.eachIP(func(p *pod, ip netip.Addr) {
		if !ip.Is4() {
			return
		}
		raw := ip.As4()
		reply := [][]byte{raw[:]}
		if v.mode == bridged && p.mac != (mac{}) { // in tunnel mode the fabric's is told
			reply = append(reply, p.mac[:])
		}
		missing := ""
		switch {
		case !v.rules.has("PREROUTING", "arpreply", reply...):
			missing = "arpreply"
		case !v.rules.has("PREROUTING", "dnat", raw[:]):
			missing = "dnat"
		default:
			return
		}
		say(probes.Finding{Subject: p.subject(ip), Message: fmt.Sprintf("its ebtables rule is missing (PREROUTING %s)", missing), Observed: "missing", Wanted: missing})
	})
}
