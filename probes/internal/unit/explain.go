package unit

import (
	"slices"
	"strings"

	"github.com/nodedrift/nodedrift/probes"
)

// Explain names what follows from what: a unit that is down explains its dying, and
// a changed file of a unit explains that it is not loaded.
func Explain(prefix string, list []probes.Finding) []probes.Finding {
	has := func(reason string) int {
		return slices.IndexFunc(list, func(f probes.Finding) bool { return f.Reason == prefix+reason })
	}
	if down := has(NotRunning); down >= 0 {
		list = Fold(list, down, func(f probes.Finding) bool { return f.Reason == prefix+CrashLooping })
	}
	for {
		at := slices.IndexFunc(list, func(f probes.Finding) bool {
			return f.Reason == prefix+UnitChanged && len(f.Consequences) == 0 && strings.HasPrefix(f.Subject, "/") &&
				slices.ContainsFunc(list, func(g probes.Finding) bool { return follows(prefix, f, g) })
		})
		if at < 0 {
			return list
		}
		f := list[at]
		list = Fold(list, at, func(g probes.Finding) bool { return follows(prefix, f, g) })
	}
}

// follows tells whether a changed unit file explains another finding.
func follows(prefix string, changed, f probes.Finding) bool {
	return f.Reason == prefix+DaemonReloadNeeded || f.Reason == prefix+ConfigNotLoaded && f.Subject == changed.Subject
}

// Fold makes findings the consequences of another one of the list.
func Fold(list []probes.Finding, cause int, follows func(probes.Finding) bool) (out []probes.Finding) {
	c := list[cause]
	c.Consequences = slices.Clone(c.Consequences)
	for i, f := range list {
		if i != cause && follows(f) {
			c.Consequences = append(append(c.Consequences, probes.Ref{ID: f.ID, Subject: f.Subject}), f.Consequences...)
		}
	}
	for i, f := range list {
		switch {
		case i == cause:
			out = append(out, c)
		case !follows(f):
			out = append(out, f)
		}
	}
	return out
}
