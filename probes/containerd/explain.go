package containerd

import (
	"slices"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

const (
	notRunning   = "Containerd" + unit.NotRunning
	crashLooping = "Containerd" + unit.CrashLooping
)

// What follows from what: a containerd that is down or hangs has no network, no
// sandboxes and no speed. Causes in the order in which they are believed.
var causes = []struct {
	reason  string
	effects []string
}{
	{notRunning, []string{crashLooping, Hung, RuntimeNotReady, NetworkPluginNotReady, StoreHung, Slow, OrphanShims}},
	{crashLooping, []string{Hung, RuntimeNotReady, NetworkPluginNotReady, StoreHung, Slow, OrphanShims}},
	{Hung, []string{RuntimeNotReady, NetworkPluginNotReady, StoreHung, Slow, OrphanShims}},
	{RuntimeNotReady, []string{NetworkPluginNotReady, StoreHung, Slow, OrphanShims}},
	{StoreHung, []string{Slow, OrphanShims}},
}

// Explain implements [probes.Explainer].
func (*Probe) Explain(confirmed []probes.Finding) []probes.Finding {
	out := unit.Explain("Containerd", slices.Clone(confirmed))
	for _, c := range causes {
		i := slices.IndexFunc(out, func(f probes.Finding) bool { return f.Reason == c.reason })
		if i < 0 {
			continue
		}
		cause := out[i]
		rest := make([]probes.Finding, 0, len(out))
		for j, f := range out {
			switch {
			case j == i:
			case slices.Contains(c.effects, f.Reason):
				cause.Consequences = append(slices.Clone(cause.Consequences), probes.Ref{ID: f.ID, Subject: f.Subject})
				if worse := severityOf(f); worse > severityOf(cause) {
					cause.Severity = worse
				}
			default:
				rest = append(rest, f)
			}
		}
		return manyShims(append([]probes.Finding{cause}, rest...))
	}
	return manyShims(out)
}

func severityOf(f probes.Finding) probes.Severity {
	if f.Severity != 0 {
		return f.Severity
	}
	i := slices.IndexFunc(all, func(r probes.Reason) bool { return r.Name == f.Reason })
	if i < 0 {
		return 0
	}
	return all[i].Severity
}

// manyShims folds many shims without a sandbox into one finding.
func manyShims(list []probes.Finding) []probes.Finding {
	first, n := -1, 0
	for i, f := range list {
		if f.Reason == OrphanShims {
			if n++; first < 0 {
				first = i
			}
		}
	}
	if n < 2 {
		return list
	}
	one := list[first]
	var out []probes.Finding
	for i, f := range list {
		switch {
		case i == first:
			out = append(out, one)
		case f.Reason == OrphanShims:
			one.Consequences = append(one.Consequences, probes.Ref{ID: f.ID, Subject: f.Subject})
		default:
			out = append(out, f)
		}
	}
	at := slices.IndexFunc(out, func(f probes.Finding) bool { return f.Reason == OrphanShims })
	one.Message = one.Subject + " and others run on, and containerd lists no such sandboxes"
	out[at] = one
	return out
}
