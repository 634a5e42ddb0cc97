package agent

import (
	"fmt"
	"strings"
)

// summarize brings NodeDrift up to date: True if any other condition is True
// for a reason that is not routine, else Unknown if any is Unknown, else False.
// Its reason is the worst one's condition type. The caller holds the lock.
func (a *Agent) summarize(now Instant) {
	list := make([]Condition, 0, len(a.loops))
	waiting := false
	for _, l := range a.loops {
		v := l.seenView()
		if v.notApplicable != "" || l.sub.spec.Condition == "" {
			continue
		}
		c := a.condition(l, &v)
		waiting = waiting || c.Status == ""
		list = append(list, c)
	}
	old := a.summary
	s := summary(list, a.failed, a.rules)
	if waiting && s.Status != True {
		s.Status, s.Reason, s.Message = old.Status, NotCheckedYet, "not looked yet"
		if old.Status != "" {
			s.Reason, s.Message = old.Reason, old.Message
		}
	}
	s.LastTransitionTime = old.LastTransitionTime
	if s.Status != old.Status {
		s.LastTransitionTime = now.Wall
	}
	a.summary = s
}

// summary is the pure half of summarize. failed says why provisioning failed.
func summary(list []Condition, failed string, rules *Rules) Condition {
	s := Condition{Type: NodeDrift, Status: False, Reason: NoDrift, Message: "no drift", NotJudged: []string{}, Findings: []Finding{}}
	var worst *Finding
	var drifting, unknown []string
	for i := range list {
		c := &list[i]
		if s.LastCheckTime.IsZero() || !c.LastCheckTime.IsZero() && c.LastCheckTime.Before(s.LastCheckTime) {
			s.LastCheckTime = c.LastCheckTime
		}
		if c.Status == Unknown {
			unknown = append(unknown, c.Type)
		}
		f := worstOf(c, rules)
		if c.Status != True || f == nil {
			continue
		}
		if worst == nil || f.Severity > worst.Severity {
			worst, s.Reason = f, c.Type
		}
		drifting = append(drifting, c.Type)
	}
	switch {
	case failed != "":
		s.Status, s.Reason, s.Message = True, ProvisioningFailed, shorten(failed+also(drifting, ""), maxMessage)
	case worst != nil:
		s.Status = True
		s.Message = shorten(fmt.Sprintf("%s (%s)", worst.Reason, worst.Severity)+also(drifting, s.Reason), maxMessage)
	case len(unknown) > 0 && list[0].Reason == NodeProvisioning:
		s.Status, s.Reason, s.Message = Unknown, NodeProvisioning, list[0].Message
	case len(unknown) > 0:
		s.Status, s.Reason = Unknown, unknown[0]
		s.Message = shorten(unknown[0]+" is not known"+also(unknown, unknown[0]), maxMessage)
	}
	return s
}

// worstOf is the worst finding of a condition that is not routine; nil for none.
func worstOf(c *Condition, rules *Rules) (worst *Finding) {
	for i := range c.Findings {
		if f := &c.Findings[i]; rules.counts(f) && !f.Routine && (worst == nil || f.Severity > worst.Severity) {
			worst = f
		}
	}
	return worst
}

// also lists the other conditions.
func also(types []string, but string) string {
	var rest []string
	for _, t := range types {
		if t != but {
			rest = append(rest, t)
		}
	}
	if len(rest) == 0 {
		return ""
	}
	return "; also " + strings.Join(rest, ", ")
}
