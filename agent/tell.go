package agent

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// tell compares two states of a probe and says what happened in between: each
// reason raised or cleared once, however many findings it has. What has a trace
// but no actor yet waits up to a second for it.
func (s *state) tell(sub *subject, old *state, journal Journal, now Instant) []Happening {
	before, after := &old.Condition, &s.Condition
	raised, cleared := s.news(before)
	var waiting []owed
	for len(raised) > 0 {
		var group []*Finding
		group, raised = takeGroup(raised)
		first, more := group[0], len(group)-1
		waiting = append(waiting, owed{h: s.happening(sub, Raised, first, now), f: first, since: first.clean,
			text: func(a *Actor) string { f := *first; f.Actor = a; return f.line(more) }})
	}
	if after.Status != Unknown {
		for len(cleared) > 0 {
			var group []*Finding
			group, cleared = takeGroup(cleared)
			first, more := group[0], len(group)-1
			w := owed{h: s.happening(sub, Cleared, first, now), f: first, since: first.seen,
				text: func(a *Actor) string { return goneLine(first, a, more, s.waives(first), now) }}
			w.h.Actor = nil
			waiting = append(waiting, w)
		}
	}
	return s.deliver(sub, old, waiting, journal, now)
}

// news lists the findings that a reader does not know of yet, and those that are
// no longer there. What was out of sight for a while is neither, as long as the
// condition stayed True for another one; what turns Unknown is forgotten.
func (s *state) news(before *Condition) (raised, cleared []*Finding) {
	after := &s.Condition
	for i := range after.Findings {
		f := &after.Findings[i]
		was := before.known(f, i)
		f.known = after.Status == True && f.drifts() && (was || f.Stands())
		if f.known && !was {
			raised = append(raised, f)
		}
	}
	for i := range before.Findings {
		if f := &before.Findings[i]; f.known && !after.known(f, i) {
			cleared = append(cleared, f)
		}
	}
	return raised, cleared
}

// known tells whether a reader knows of a finding, which is likely to be at index at.
func (c *Condition) known(f *Finding, at int) bool {
	if at < len(c.Findings) && c.Findings[at].same(f) {
		return c.Findings[at].known
	}
	for i := range c.Findings {
		if g := &c.Findings[i]; g.same(f) {
			return g.known
		}
	}
	return false
}

// takeGroup takes the first finding and all others of its reason done by the
// same actor.
func takeGroup(list []*Finding) (group, rest []*Finding) {
	name := func(a *Actor) string {
		if a == nil {
			return ""
		}
		return a.name()
	}
	for _, f := range list {
		if f.Reason == list[0].Reason && name(f.Actor) == name(list[0].Actor) {
			group = append(group, f)
		} else {
			rest = append(rest, f)
		}
	}
	return group, rest
}

func (s *state) happening(sub *subject, k Kind, f *Finding, now Instant) Happening {
	return Happening{Time: now.Wall, Kind: k, Probe: sub.spec.Name, Condition: sub.spec.Condition, From: s.Condition.Status, To: s.Condition.Status,
		Reason: f.Reason, Severity: f.Severity, Subject: f.Subject, Actor: f.Actor}
}

// waives tells whether a finding is still there, but allowed by now.
func (s *state) waives(f *Finding) bool {
	return slices.ContainsFunc(s.Condition.Findings, func(g Finding) bool { return g.Waived && g.same(f) })
}

// goneLine is the message of a cleared finding. It may say how long it stood:
// an Event does not change.
func goneLine(f *Finding, by *Actor, more int, waived bool, now Instant) string {
	end := ""
	if by != nil {
		end = "; by " + shorten(by.name(), 64)
	}
	if more > 0 {
		end = fmt.Sprintf("; +%d more", more) + end
	}
	verb := "gone"
	if waived {
		verb = "waived"
	}
	end = fmt.Sprintf(": %s after %s", verb, age(now.Mono-f.first)) + end
	return shorten(cmp.Or(f.Subject, f.Reason), maxMessage-len(end)) + end
}

// age rounds a duration for people.
func age(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return d.Round(time.Minute).String()
}

// deliver turns what is due into happenings, keeps the rest owed, and makes
// sure that a change of status is told exactly once, first.
func (s *state) deliver(sub *subject, old *state, waiting []owed, journal Journal, now Instant) (out []Happening) {
	from, to := old.Condition.Status, s.Condition.Status
	s.owed = nil
	for _, w := range old.owed {
		switch {
		case !s.still(&w):
			out = append(out, w.told())
		case from != to: // in order: not after what is told now
			w.until = now.Mono
			fallthrough
		default:
			out = s.settleOwed(out, w, journal, now)
		}
	}
	if from != to && sub.spec.Condition != "" {
		if to == True && len(waiting) > 0 && waiting[0].h.Kind == Raised || to == False && len(waiting) > 0 {
			waiting[0].h.From = from
		} else {
			out = append(out, s.turned(sub, from, now))
		}
	}
	for _, w := range waiting {
		w.until = now.Mono + lateActor
		out = s.settleOwed(out, w, journal, now)
	}
	return out
}

// settleOwed tells a happening when its actor is known, need not be, or is late.
func (s *state) settleOwed(out []Happening, w owed, journal Journal, now Instant) []Happening {
	if w.h.Actor == nil && journal != nil && w.f.trace != (probes.Key{}) {
		if a, ok := journal.Who(w.f.trace, w.since); ok {
			w.h.Actor = &a
		} else if now.Mono < w.until {
			s.owed = append(s.owed, w)
			return out
		}
	}
	return append(out, w.told())
}

// still tells whether what is owed is still so. Whoever acts on it afterwards is
// somebody else: who mends a thing did not break it.
func (s *state) still(w *owed) bool {
	i := slices.IndexFunc(s.Condition.Findings, func(g Finding) bool { return g.same(w.f) })
	known := i >= 0 && s.Condition.Findings[i].known
	if w.h.Kind == Cleared {
		return !known
	}
	return known && !s.Condition.Findings[i].gone
}

// told is the happening as it is told at last.
func (w *owed) told() Happening {
	w.h.Message = w.text(w.h.Actor)
	return w.h
}

// turned is the happening of a status that changed without a finding's doing.
func (s *state) turned(sub *subject, from Status, now Instant) Happening {
	h := Happening{Time: now.Wall, Probe: sub.spec.Name, Condition: sub.spec.Condition, From: from, To: s.Condition.Status,
		Reason: s.Condition.Reason, Message: s.Condition.Message}
	h.Kind, h.Severity = turnedTo(h.To)
	return h
}

// turnedTo is the kind and weight of a change to a status.
func turnedTo(s Status) (Kind, probes.Severity) {
	switch s {
	case Unknown:
		return Blinded, probes.Warning
	case True:
		return Raised, probes.Warning
	}
	return Restored, probes.Info
}
