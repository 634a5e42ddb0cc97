package sysctl

import (
	"slices"

	"github.com/nodedrift/nodedrift/probes"
)

// effects are keys that the kernel changes along with another one, by subject
// (net/ipv4/devinet.c, inet_forward_change; net/ipv6/addrconf.c).
var effects = []struct {
	cause   string
	effects []string
}{
	{"net.ipv4.ip_forward", []string{"net.ipv4.conf.all.forwarding", "net.ipv4.conf.default.forwarding", "net.ipv4.conf.all.accept_redirects"}},
	{"net.ipv4.conf.all.forwarding", []string{"net.ipv4.conf.default.forwarding", "net.ipv4.conf.all.accept_redirects"}},
	{"net.ipv6.conf.all.forwarding", []string{"net.ipv6.conf.default.forwarding"}},
}

// Explain implements [probes.Explainer]: switching forwarding is one cause
// whatever it drags along, and a module that is not loaded is one cause for all
// of its keys.
func (*Probe) Explain(confirmed []probes.Finding) []probes.Finding {
	var causes []probes.Finding
	place := map[int]int{} // in causes, of a finding's index
	for i, f := range confirmed {
		if causeOf(i, confirmed) < 0 {
			place[i] = len(causes)
			f.Consequences = slices.Clone(f.Consequences)
			causes = append(causes, f)
		}
	}
	for i, f := range confirmed {
		if c := causeOf(i, confirmed); c >= 0 {
			cause := &causes[place[c]]
			cause.Consequences = append(cause.Consequences, probes.Ref{ID: f.ID, Subject: f.Subject})
		}
	}
	return causes
}

// causeOf is the index of the finding that explains another one, or -1.
func causeOf(i int, all []probes.Finding) int {
	switch f := all[i]; f.Reason {
	case Changed:
		for _, e := range effects {
			if slices.Contains(e.effects, f.Subject) {
				cause := slices.IndexFunc(all, func(g probes.Finding) bool { return g.Reason == Changed && g.Subject == e.cause })
				if cause >= 0 {
					return cause
				}
			}
		}
	case KeyMissing:
		return firstOfModule(i, all)
	}
	return -1
}

// firstOfModule is the first and gravest finding about the module that a missing
// key needs, or -1 for that finding itself.
func firstOfModule(i int, all []probes.Finding) int {
	module := moduleOf(normalize(all[i].Subject))
	if module == "" {
		return -1
	}
	first := i
	for j, f := range all {
		if f.Reason == KeyMissing && moduleOf(normalize(f.Subject)) == module &&
			(rank(f) > rank(all[first]) || rank(f) == rank(all[first]) && j < first) {
			first = j
		}
	}
	if first == i {
		return -1
	}
	return first
}
