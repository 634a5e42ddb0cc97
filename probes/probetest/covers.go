package probetest

import (
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/nodedrift/nodedrift/probes"
)

// Covers fails unless testdata has, for each reason that can stand, a case that
// raises it and one that shows it cleared, and, for the probe, one that could not
// look. A case shows a reason cleared when it is named "<reason>-clear….txtar"
// (kernel-outdated-clear.txtar) or lists it under "-- clears --", and judges it
// and does not raise it. Reasons elsewhere are those that no single look can
// raise: the probe's own tests show them, and no case may.
func Covers(t *testing.T, spec probes.Spec, elsewhere ...string) {
	t.Helper()
	all := load(t)
	known := map[string]bool{}
	blind := false
	for _, reason := range spec.Reasons {
		known[reason.Name] = true
		if reason.Happens {
			continue
		}
		if slices.Contains(elsewhere, reason.Name) {
			if slices.ContainsFunc(all, func(r *recorded) bool { return r.raises(reason.Name) }) {
				t.Errorf("a case raises %s, which is shown elsewhere", reason.Name)
			}
			continue
		}
		if !slices.ContainsFunc(all, func(r *recorded) bool { return r.raises(reason.Name) }) {
			t.Errorf("no case raises %s", reason.Name)
		}
		if !slices.ContainsFunc(all, func(r *recorded) bool { return r.clear(reason.Name) }) {
			t.Errorf("no case shows %s cleared: name one %s-clear.txtar, or list the reason under -- clears --", reason.Name, kebab(reason.Name))
		}
	}
	for _, r := range all {
		blind = blind || r.blind()
		for _, name := range r.clears {
			if !known[name] {
				t.Errorf("%s clears %s, which is no reason of the probe", r.name, name)
			} else if !r.clear(name) {
				t.Errorf("%s clears %s, but raises or does not judge it", r.name, name)
			}
		}
	}
	if !blind {
		t.Error("no case could not look: none wants Error or NotJudged")
	}
}

// raises tells whether a finding of a reason is wanted.
func (r *recorded) raises(reason string) bool {
	return slices.ContainsFunc(r.want, func(line string) bool { return strings.HasPrefix(line, reason+" ") })
}

// blind tells whether the case could not look, in part or at all.
func (r *recorded) blind() bool {
	return slices.ContainsFunc(r.want, func(line string) bool {
		return strings.HasPrefix(line+" ", "Error ") || strings.HasPrefix(line, "NotJudged ")
	})
}

// clear tells whether the case shows a reason cleared.
func (r *recorded) clear(reason string) bool {
	if !slices.Contains(r.clears, reason) && !strings.HasPrefix(r.name, kebab(reason)+"-clear") {
		return false
	}
	unjudged := slices.ContainsFunc(r.want, func(line string) bool {
		return strings.HasPrefix(line+" ", "Error ") || strings.HasPrefix(line+" ", "NotApplicable ") || strings.HasPrefix(line, "NotJudged "+reason+":")
	})
	return !unjudged && !r.raises(reason)
}

// kebab writes KernelOutdated as kernel-outdated, and CNIRouteMissing as cni-route-missing.
func kebab(name string) string {
	var b strings.Builder
	letters := []rune(name)
	for i, c := range letters {
		begins := unicode.IsUpper(c) && i > 0 && (!unicode.IsUpper(letters[i-1]) || i+1 < len(letters) && unicode.IsLower(letters[i+1]))
		if begins {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}
