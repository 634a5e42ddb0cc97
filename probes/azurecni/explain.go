package azurecni

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nodedrift/nodedrift/probes"
)

// A cause is a violation that brings others about.
type cause struct {
	id      string
	scope   scope
	effects []string
}

// A scope says which findings of an effect belong to a cause.
type scope uint8

const (
	everywhere scope = iota
	samePod          // of the same pod
	sameIP           // of the same address
	sameLink         // the effect was observed on the link that is the cause's subject
	renamed          // as many ports are missing as there are without a pod
)

// causes have the deepest first: a finding is explained by the first one that
// fits, and that one's own cause explains both.
var causes = []cause{
	{"N-UPLINK", everywhere, []string{"N-NODE-IP", "N-DEFAULT", "N-PLATFORM", "N-OVERLAP", "N-MODE", "B-UPLINK-MASTER", "B-BRIDGE-MAC", "B-L3-PLACE", "B-NEIGH-MISSING", "B-HAIRPIN", "B-PORT-FLAGS"}},
	{"B-BRIDGE", everywhere, []string{"N-NODE-IP", "N-DEFAULT", "N-PLATFORM", "N-MODE", "N-OVERLAP", "B-UPLINK-MASTER", "B-BRIDGE-MAC", "B-PORT", "B-PORT-FLAGS", "B-HAIRPIN", "B-NEIGH-MISSING", "B-L3-PLACE"}},
	{"B-UPLINK-MASTER", everywhere, []string{"B-BRIDGE-MAC", "B-NEIGH-MISSING", "B-HAIRPIN", "B-PORT-FLAGS", "N-MODE"}},
	{"N-STATE", everywhere, []string{"N-MODE"}},
	{"T-MODE-MIX", everywhere, []string{"N-MODE"}},
	{"B-MODE-MIX", everywhere, []string{"N-MODE"}},
	{"N-RULE-BASE", everywhere, []string{"N-PLATFORM", "N-RULE"}},
	{"N-RULE", everywhere, []string{"N-PLATFORM"}},
	{"B-L3-PLACE", everywhere, []string{"N-NODE-IP", "N-DEFAULT", "N-PLATFORM", "N-OVERLAP", "B-NEIGH-MISSING"}},
	{"N-NODE-IP", everywhere, []string{"N-DEFAULT", "N-PLATFORM", "N-OVERLAP", "B-NEIGH-MISSING"}},
	{"N-ROUTE-TYPE", everywhere, []string{"N-DEFAULT", "N-PLATFORM"}},
	{"N-OVERLAP", everywhere, []string{"N-DEFAULT", "N-PLATFORM"}},
	{"N-DEFAULT", everywhere, []string{"N-PLATFORM"}},
	{"B-BRIDGE-MAC", everywhere, []string{"B-NEIGH-MISSING"}},
	{"T-VETH-ADDR", sameIP, []string{"N-DUP-IP", "T-VETH-ADDR", "T-NEIGH"}},
	{"N-DUP-IP", sameIP, []string{"T-VETH-ADDR", "T-ROUTE-WRONG-DEV", "T-ROUTE-DUP", "T-NEIGH", "B-NEIGH-MAC"}},
	{"N-ROUTE-TYPE", sameIP, []string{"T-ROUTE-MISSING", "T-V6", "T-ROUTE-ATTR"}},
	{"T-VETH-MISSING", samePod, []string{"T-ROUTE-MISSING", "T-ROUTE-WRONG-DEV", "T-ROUTE-DUP", "T-V6", "T-VETH-ORPHAN", "T-POD-GW"}},
	{"T-VETH-STATE", samePod, []string{"T-ROUTE-MISSING", "T-ROUTE-WRONG-DEV", "T-V6", "T-NEIGH", "T-POD-GW"}},
	{"T-VETH-MAC", samePod, []string{"T-POD-GW"}},
	{"T-ROUTE-WRONG-DEV", samePod, []string{"T-ROUTE-ATTR", "T-ROUTE-DUP"}},
	{"T-VETH-ORPHAN", sameLink, []string{"T-ROUTE-STALE"}},
	{"T-MODE-MIX", sameLink, []string{"T-VETH-STATE"}},
	{"N-FORWARDING", samePod, []string{"T-V6"}}, // conf.all.forwarding of IPv6 is both
	{"N-PLATFORM", sameIP, []string{"T-ROUTE-STALE"}},
	{"B-PORT", renamed, []string{"B-PORT-ORPHAN"}},
	{"B-PORT-ORPHAN", samePod, []string{"B-PORT-FLAGS", "B-HAIRPIN"}},
	{"B-PORT", samePod, []string{"B-PORT-FLAGS", "B-HAIRPIN", "B-NEIGH-MISSING", "B-NEIGH-MAC"}},
}

// plural is how findings of many subjects read as one.
var plural = map[string]string{
	"N-RULE":     "foreign routing rules",
	"N-PLATFORM": "platform addresses are not routed as they should be", "N-FORWARDING": "links do not forward", "N-ROUTE-TYPE": "addresses are blocked by a route",
	"N-DUP-IP": "pod addresses are not unique", "N-OVERLAP": "prefixes take addresses of the node's subnet",
	"T-ROUTE-MISSING": "routes missing", "T-ROUTE-WRONG-DEV": "routes go to a wrong device", "T-ROUTE-DUP": "pods have more than one route",
	"T-ROUTE-ATTR": "routes were not made by the CNI", "T-ROUTE-STALE": "routes to addresses that no pod has", "T-VETH-MISSING": "host veths are missing",
	"T-VETH-STATE": "host veths are down", "T-VETH-ORPHAN": "veths without a pod", "T-VETH-MAC": "host veths have another MAC", "T-VETH-MTU": "host veths have another MTU",
	"T-PROXY-ARP": "host veths have proxy_arp off", "T-VETH-ADDR": "pods' addresses or links are the host's", "T-NEIGH": "neighbours are wrong",
	"T-POD-GW": "pods have lost their gateway", "T-V6": "pods' IPv6 is broken", "T-MODE-MIX": "links are set up as in bridge mode",
	"B-PORT": "pods' ports are not in order", "B-PORT-FLAGS": "ports have wrong flags", "B-HAIRPIN": "ports have hairpin off", "B-PORT-ORPHAN": "ports without a pod",
	"B-NEIGH-MISSING": "permanent neighbours are missing", "B-NEIGH-MAC": "permanent neighbours are wrong", "B-NEIGH-STALE": "permanent neighbours that no pod has",
	"B-MODE-MIX": "routes of transparent mode", "B-L3-PLACE": "addresses and routes are on the wrong link", "B-EBT": "pods lack their ebtables rules",
}

// Explain implements [probes.Explainer]: the cause first with all that follows
// from it, and many alike as one with three names.
func (*Probe) Explain(confirmed []probes.Finding) []probes.Finding {
	by := causesOf(confirmed)
	var roots []probes.Finding
	place := make(map[int]int, len(confirmed))
	for i, f := range confirmed {
		if by[i] < 0 {
			place[i] = len(roots)
			f.Consequences = slices.Clone(f.Consequences)
			roots = append(roots, f)
		}
	}
	for i, f := range confirmed {
		if by[i] >= 0 {
			root := &roots[place[by[i]]]
			root.Consequences = append(root.Consequences, probes.Ref{ID: f.ID, Subject: f.Subject})
		}
	}
	roots = fold(roots)
	slices.SortStableFunc(roots, func(a, b probes.Finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), depth(a.ID)-depth(b.ID))
	})
	return roots
}

// maxFindings is how many findings the agent keeps of one look.
const maxFindings = 512

// others is the subject of a finding that stands for many alike.
const others = "others"

// fit makes findings that are too many to keep into fewer: of each kind the first
// ones, and one that counts the others.
func fit(found []probes.Finding) []probes.Finding {
	if len(found) <= maxFindings {
		return found
	}
	counts := map[kind]int{}
	for i := range found {
		counts[kindOf(&found[i])]++
	}
	each := maxFindings/len(counts) - 1
	taken, rest := map[kind]int{}, map[kind]int{} // how many, and where those beyond are counted
	var out []probes.Finding
	for i := range found {
		f, k := found[i], kindOf(&found[i])
		taken[k]++
		switch at, ok := rest[k]; {
		case taken[k] <= each || counts[k] == each+1:
			out = append(out, f)
		case ok:
			out[at].Hold = max(out[at].Hold, f.Hold)
		default:
			more := strconv.Itoa(counts[k] - each)
			rest[k] = len(out)
			out = append(out, probes.Finding{ID: f.ID, Reason: f.Reason, Severity: f.Severity, Hold: f.Hold, Subject: others, Message: more + " more " + cmp.Or(plural[f.ID], f.ID), Observed: more})
		}
	}
	return out
}

// stands is how many findings one stands for.
func stands(f *probes.Finding) int {
	if f.Subject != others {
		return 1
	}
	n, _ := strconv.Atoi(f.Observed)
	return n
}

// A kind is what findings that read as one have in common.
type kind struct {
	id       string
	severity probes.Severity
}

func kindOf(f *probes.Finding) kind { return kind{f.ID, f.Severity} }

// depth is the place of an invariant among the causes.
func depth(id string) int {
	if i := slices.IndexFunc(causes, func(c cause) bool { return c.id == id }); i >= 0 {
		return i
	}
	return len(causes)
}

// fold makes one finding of many that are alike.
func fold(list []probes.Finding) (out []probes.Finding) {
	groups := map[kind][]probes.Finding{}
	for _, f := range list {
		if plural[f.ID] != "" {
			groups[kindOf(&f)] = append(groups[kindOf(&f)], f)
		}
	}
	done := map[kind]bool{}
	for _, f := range list {
		k := kindOf(&f)
		switch group := groups[k]; {
		case len(group) < 2:
			out = append(out, f)
		case !done[k]:
			done[k] = true
			out = append(out, together(group))
		}
	}
	return out
}

// together is one finding for several.
func together(group []probes.Finding) probes.Finding {
	slices.SortStableFunc(group, func(a, b probes.Finding) int { return stands(&a) - stands(&b) }) // named ones first
	f := group[0]
	subjects := make([]string, 0, len(group))
	refs := make([]probes.Ref, 0, len(group))
	var effects []probes.Ref
	after, n := false, 0
	for _, g := range group {
		n += stands(&g)
		if g.Subject != others {
			subjects = append(subjects, g.Subject)
		}
		refs = append(refs, probes.Ref{ID: g.ID, Subject: g.Subject})
		effects = append(effects, g.Consequences...)
		after = after || strings.HasSuffix(g.Message, afterNetworkd)
	}
	f.Subject, f.Observed, f.Wanted = fmt.Sprintf("%d %s", n, plural[f.ID]), strconv.Itoa(n), "0"
	f.Message = f.Subject
	if after {
		f.Message += afterNetworkd
	}
	f.Message += ": " + some(subjects, n, 3)
	f.Consequences = append(refs, effects...)
	return f
}

// causesOf finds the root cause of each finding: its index, or -1 for a root.
func causesOf(list []probes.Finding) []int {
	at := newPlaces(list)
	direct := make([]int, len(list))
	for i := range list {
		direct[i] = at.causeOf(i)
	}
	roots := make([]int, len(list))
	for i := range list {
		root := direct[i]
		for steps := 0; root >= 0 && direct[root] >= 0 && steps < len(causes); steps++ {
			root = direct[root]
		}
		if root == i {
			root = -1
		}
		roots[i] = root
	}
	for i := range list {
		if list[i].Subject == others && roots[i] < 0 {
			roots[i] = causeOfOthers(list, roots, i)
		}
	}
	return roots
}

// causeOfOthers is the cause of findings that are only counted: one that the
// named ones of their kind have, if all of those have one.
func causeOfOthers(list []probes.Finding, roots []int, i int) int {
	cause := -1
	for j := range list {
		if j == i || kindOf(&list[j]) != kindOf(&list[i]) {
			continue
		}
		if cause = roots[j]; cause < 0 {
			break
		}
	}
	return cause
}

// places finds findings by invariant and by what they are about.
type places struct {
	list   []probes.Finding
	ids    map[string]int
	about  map[[2]string]int // by id and pod, address or link
	effect map[string][]int  // of causes, by effect
	moved  map[string]string // pods by the link that their route goes to
	gone   int               // ports that are missing
	extra  int               // ports without a pod
}

func newPlaces(list []probes.Finding) *places {
	p := &places{list: list, ids: map[string]int{}, about: map[[2]string]int{}, moved: map[string]string{}, effect: effects}
	add := func(id, key string, i int) {
		if _, ok := p.about[[2]string{id, key}]; !ok {
			p.about[[2]string{id, key}] = i
		}
	}
	for i := range list {
		f := &list[i]
		if _, ok := p.ids[f.ID]; !ok {
			p.ids[f.ID] = i
		}
		add(f.ID, "pod "+podOf(f.Subject), i)
		add(f.ID, "link "+f.Subject, i)
		if f.ID == "T-VETH-ADDR" && podLink(f.Subject) {
			add(f.ID, "ip "+f.Observed, i) // the address on the link is the cause, the route in table local its effect
		} else if f.ID != "T-VETH-ADDR" {
			add(f.ID, "ip "+ipOf(f.Subject), i)
		}
		if f.ID == "B-PORT" && f.Observed == isMissing {
			if p.gone++; p.gone == 1 {
				p.about[[2]string{f.ID, isMissing}] = i
			}
		}
		if f.ID == "B-PORT-ORPHAN" {
			p.extra++
		}
		if f.ID == "T-ROUTE-WRONG-DEV" {
			p.moved[strings.TrimPrefix(f.Observed, "dev ")] = podOf(f.Subject)
		}
	}
	return p
}

// effects are the causes of each invariant, the deepest first.
var effects = func() map[string][]int {
	m := map[string][]int{}
	for i, c := range causes {
		for _, e := range c.effects {
			m[e] = append(m[e], i)
		}
	}
	return m
}()

// causeOf is the index of the finding that brings another one about, or -1.
func (p *places) causeOf(i int) int {
	f := &p.list[i]
	for _, c := range p.effect[f.ID] {
		j, ok := p.find(&causes[c], f)
		if ok && j != i {
			return j
		}
	}
	return -1
}

func (p *places) find(c *cause, f *probes.Finding) (int, bool) {
	var j int
	var ok bool
	switch c.scope {
	case everywhere:
		j, ok = p.ids[c.id]
	case samePod:
		pod := podOf(f.Subject)
		if f.ID == "T-VETH-ORPHAN" { // a veth that was renamed took its route along
			if pod = p.moved[f.Subject]; pod == "" {
				return 0, false
			}
		}
		j, ok = p.about[[2]string{c.id, "pod " + pod}]
	case sameIP:
		j, ok = p.about[[2]string{c.id, "ip " + ipOf(f.Subject)}]
	case renamed:
		j, ok = p.about[[2]string{c.id, isMissing}]
		ok = ok && p.gone == p.extra
	case sameLink:
		j, ok = p.about[[2]string{c.id, "link " + strings.TrimPrefix(f.Observed, "dev ")}]
	}
	return j, ok
}

// podOf is the pod's name in a subject, "kube-system/coredns-x (10.240.0.11)".
func podOf(subject string) string {
	if i := strings.LastIndex(subject, " ("); i > 0 {
		return subject[:i]
	}
	return subject
}

// ipOf is the address in a subject.
func ipOf(subject string) string {
	if i := strings.LastIndex(subject, " ("); i > 0 {
		return strings.TrimSuffix(subject[i+2:], ")")
	}
	if i := strings.LastIndexByte(subject, ' '); i > 0 { // "gateway 10.240.0.1"
		return subject[i+1:]
	}
	return subject
}
