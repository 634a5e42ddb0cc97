package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// Errors that the agent itself puts in place of a look's.
var (
	errTimedOut = errors.New("no answer within the deadline")
	errStarved  = errors.New("the agent got too little CPU to look")
)

// maxStanding bounds what one probe may hold; more is counted, not kept.
const maxStanding = 512

// lateActor is how long after a raise or a clear the journal is asked again:
// an event may take longer than the look that it woke.
const (
	lateActor    = time.Second
	askActorEach = 100 * time.Millisecond
)

// looked is the outcome of one look.
type looked struct {
	probes.Look
	err error
	at  Instant // when the look began
}

// A subject is what the fold knows of a probe.
type subject struct {
	spec    probes.Spec
	reasons map[string]*probes.Reason
	explain func([]probes.Finding) []probes.Finding // nil: as they are
}

func newSubject(p probes.Probe) *subject {
	s := &subject{spec: p.Spec(), reasons: map[string]*probes.Reason{}}
	for i := range s.spec.Reasons {
		s.reasons[s.spec.Reasons[i].Name] = &s.spec.Reasons[i]
	}
	if e, ok := p.(probes.Explainer); ok {
		s.explain = e.Explain
	}
	s.spec.Every, s.spec.Timeout = cmp.Or(s.spec.Every, time.Minute), cmp.Or(s.spec.Timeout, time.Second)
	return s
}

// state is all that is kept of one probe from look to look. The fold never
// changes an old state: slices are made anew.
type state struct {
	Condition     Condition
	NotApplicable string // why; "" while the probe applies

	Standing []standing    // by reason, id, subject
	Failing  time.Duration // monotonic: start of the first of the failed looks in a row; 0: the last one succeeded
	LastGood Instant       // start of the last look that succeeded
	Dropped  int           // findings beyond maxStanding

	owed     []owed // happenings that wait for their actor
	recalled bool   // taken over from an earlier process; no look of this one has succeeded
}

// standing is one finding with its times.
type standing struct {
	F         probes.Finding
	First     Instant       // first seen
	Gone      time.Duration // monotonic: first missed by a look that could see it; 0 while seen
	Confirmed bool          // its hold is over
	Raised    time.Duration // monotonic: when it was confirmed, or came back within its clear time
	CleanAt   time.Duration // monotonic: start of the last look without it; whoever did it did it later
	SeenAt    time.Duration // monotonic: start of the last look with it; whoever mended it did it later
	Blind     time.Duration // monotonic: start of the first of the looks in a row that could not judge it; 0: the last one could
	Dark      bool          // it has been blind for too long to be said to stand
	Actor     *Actor
	severity  probes.Severity // under the rules; only while the look is taken in
	moved     bool            // this look observed something else than the last one, or anew: somebody acted again
}

// owed is a happening that waits until its actor is known, or until it is late.
type owed struct {
	h            Happening
	f            *Finding
	text         func(*Actor) string
	since, until time.Duration
}

func (s *standing) is(f *probes.Finding) bool {
	return s.F.Reason == f.Reason && s.F.ID == f.ID && s.F.Subject == f.Subject
}

func compareStanding(a, b standing) int {
	return cmp.Or(cmp.Compare(a.F.Reason, b.F.Reason), cmp.Compare(a.F.ID, b.F.ID), cmp.Compare(a.F.Subject, b.F.Subject))
}

// fold decides what one look means. It is pure: the same arguments give the
// same state, happenings and time to look again (0: when the probe's period
// says).
//
//   - No standing finding and no error: False.
//   - A standing critical or warning finding: True, with the worst one's reason.
//   - Another error: Unknown, at once before the first success, otherwise when
//     looks have failed for as long as the probe's period; what stood keeps
//     standing until then.
//   - ErrNotApplicable: withdrawn.
//   - A reason that the look could not judge is not cleared by its absence; when
//     it stood and stays unjudged for as long, the condition is Unknown.
func fold(sub *subject, rules *Rules, old state, look *looked, journal Journal, now Instant) (state, []Happening, time.Duration) {
	if old.untouchedBy(look) {
		old.LastGood, old.Condition.LastCheckTime = look.at, look.at.Wall
		return old, nil, rules.nextExpiry(now.Wall)
	}
	if errors.Is(look.err, probes.ErrNotApplicable) && len(look.Findings) == 0 {
		return withdraw(sub, &old, look, now)
	}
	s := old
	err := s.take(sub, rules, look, now)
	again := s.settle(sub, rules, now)
	s.attribute(journal, now)
	s.decide(sub, rules, look, err, now)
	again = sooner(again, s.untilDark(rules.patience(sub, err), look, now))
	happened := s.tell(sub, &old, journal, now)
	if s.wantsActor(journal, now) {
		again = sooner(again, askActorEach)
	}
	return s, happened, sooner(again, rules.nextExpiry(now.Wall))
}

// untouchedBy tells whether a clean look at a clean node changes nothing: by far
// the most common case.
func (s *state) untouchedBy(look *looked) bool {
	return look.err == nil && len(look.Findings) == 0 && len(s.Standing) == 0 && len(s.owed) == 0 && s.Failing == 0 && !s.recalled &&
		s.Condition.Status == False && slices.Equal(look.NotJudged, s.Condition.NotJudged)
}

// sooner is the shorter of two waits, of which 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// withdraw ends a condition: the node has nothing for the probe to look at.
func withdraw(sub *subject, old *state, look *looked, now Instant) (state, []Happening, time.Duration) {
	why := strings.TrimSuffix(clean(look.err.Error(), maxError), ": "+probes.ErrNotApplicable.Error())
	s := state{NotApplicable: why, LastGood: look.at}
	var happened []Happening
	for _, w := range old.owed {
		happened = append(happened, w.told())
	}
	if old.Condition.Status != True {
		return s, happened, 0
	}
	return s, append(happened, Happening{Time: now.Wall, Kind: Cleared, Probe: sub.spec.Name, Condition: sub.spec.Condition, From: True,
		Reason: old.Condition.Reason, Message: "not applicable: " + why}), 0
}

// take merges the look's findings into what stands, and returns why the look
// is not whole, if it is not.
func (s *state) take(sub *subject, rules *Rules, look *looked, now Instant) error {
	merged, err := s.seen(sub, rules, look, now)
	seen, patience := len(merged), rules.patience(sub, err)
	stale := s.Condition.Status == Unknown // what stood was unseen: nothing is left to be cleared slowly
	for _, o := range s.Standing {
		if at, found := slices.BinarySearchFunc(merged[:seen], o, compareStanding); found {
			n := &merged[at]
			n.First, n.Confirmed, n.Raised = o.First, o.Confirmed, o.Raised
			if o.Gone != 0 { // somebody did it again since
				n.CleanAt, n.Raised, n.moved = min(o.Gone, n.CleanAt), now.Mono, true
			} else {
				n.CleanAt, n.Actor, n.moved = o.CleanAt, o.Actor, n.F.Observed != o.F.Observed
			}
			continue
		}
		if sub.reasons[o.F.Reason] == nil || rules.Reasons[o.F.Reason].Off {
			continue
		}
		o.moved = false
		switch judged := err == nil && !unjudged(look.NotJudged, o.F.Reason); {
		case !judged:
			o.Blind = cmp.Or(o.Blind, look.at.Mono)
			o.Dark = o.Dark || look.unable(o.Blind, now) >= patience
		case !o.Confirmed || stale:
			continue
		default:
			if o.Blind, o.Dark = 0, false; o.Gone == 0 {
				o.Gone = now.Mono
			}
		}
		if len(merged) == maxStanding {
			s.Dropped++
			continue
		}
		merged = append(merged, o)
	}
	slices.SortFunc(merged, compareStanding)
	s.Standing = merged
	if err != nil {
		s.Failing = cmp.Or(s.Failing, look.at.Mono)
		return err
	}
	s.Failing, s.LastGood = 0, look.at
	return nil
}

// unable is how long nobody has been able to look: from the start of the first
// look that could not to the end of this one. One look alone does not tell,
// however long it took.
func (l *looked) unable(since time.Duration, now Instant) time.Duration {
	if since == l.at.Mono {
		return 0
	}
	return now.Mono - since
}

// untilDark is when the next look can tell that nobody has been able to look for
// too long; 0 when nothing waits for that.
func (s *state) untilDark(patience time.Duration, look *looked, now Instant) (again time.Duration) {
	if s.Condition.Status == Unknown {
		return 0
	}
	if s.Failing != 0 && look.unable(s.Failing, now) < patience {
		again = max(s.Failing+patience-now.Mono, 1)
	}
	for i := range s.Standing {
		if f := &s.Standing[i]; f.Blind != 0 && !f.Dark {
			again = sooner(again, max(f.Blind+patience-now.Mono, 1))
		}
	}
	return again
}

// seen is what this look found, in order, each once; when it is too much, the
// worst.
func (s *state) seen(sub *subject, rules *Rules, look *looked, now Instant) ([]standing, error) {
	err := look.err
	seen := make([]standing, 0, max(len(s.Standing), len(look.Findings)))
	for i := range look.Findings {
		f := &look.Findings[i]
		reason := sub.reasons[f.Reason]
		if reason == nil || reason.Happens {
			err = errors.Join(err, fmt.Errorf("the probe has no reason %q that stands", f.Reason))
			continue
		}
		severity, off := rules.severity(reason, f.Severity)
		if off {
			continue
		}
		seen = append(seen, standing{F: bound(f), First: now, CleanAt: s.LastGood.Mono, SeenAt: look.at.Mono, severity: severity})
	}
	slices.SortFunc(seen, func(a, b standing) int { return cmp.Or(compareStanding(a, b), cmp.Compare(b.severity, a.severity)) })
	seen = slices.CompactFunc(seen, func(a, b standing) bool { return a.is(&b.F) })
	if s.Dropped = max(len(seen)-maxStanding, 0); s.Dropped > 0 {
		slices.SortStableFunc(seen, func(a, b standing) int { return cmp.Compare(b.severity, a.severity) })
		seen = seen[:maxStanding]
		slices.SortFunc(seen, compareStanding)
	}
	return seen, err
}

// bound makes a finding's text fit to be kept and shown.
func bound(f *probes.Finding) probes.Finding {
	b := *f
	for _, t := range []*string{&b.ID, &b.Subject, &b.Message, &b.Observed, &b.Wanted, &b.Source} {
		*t = clean(*t, maxField)
	}
	if len(f.Consequences) > 0 {
		b.Consequences = make([]probes.Ref, min(len(f.Consequences), maxStanding))
		for i := range b.Consequences {
			r := &f.Consequences[i]
			b.Consequences[i] = probes.Ref{ID: clean(r.ID, maxField), Subject: clean(r.Subject, maxField)}
		}
	}
	return b
}

// unjudged tells whether "Reason: why" is listed for the reason.
func unjudged(list []string, reason string) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		return strings.HasPrefix(s, reason) && (len(s) == len(reason) || s[len(reason)] == ':')
	})
}

// settle drops what has been gone for long enough, confirms what has been seen
// for long enough, and says when the next of either is due.
func (s *state) settle(sub *subject, rules *Rules, now Instant) (again time.Duration) {
	s.Standing = slices.DeleteFunc(s.Standing, func(f standing) bool {
		if f.Gone == 0 || f.Blind != 0 { // who cannot look cannot clear
			return false
		}
		left := f.Gone + rules.clear(sub.reasons[f.F.Reason]) - now.Mono
		if left > 0 {
			again = sooner(again, left)
		}
		return left <= 0
	})
	for i := range s.Standing {
		f := &s.Standing[i]
		reason := sub.reasons[f.F.Reason]
		if f.Confirmed || f.Blind != 0 {
			continue
		}
		if left := f.First.Mono + rules.hold(reason, f.F.Hold) - now.Mono; left > 0 {
			again = sooner(again, left)
			continue
		}
		f.Confirmed, f.Raised = true, now.Mono
	}
	return again
}

// attribute asks the journal who did what is held or was raised just now, and
// again who did what looks otherwise than before.
func (s *state) attribute(journal Journal, now Instant) {
	if journal == nil {
		return
	}
	for i := range s.Standing {
		f := &s.Standing[i]
		if f.F.Trace == (probes.Key{}) || f.Gone != 0 || !f.moved && (f.Actor != nil || f.Confirmed && now.Mono-f.Raised > lateActor) {
			continue
		}
		if a, ok := journal.Who(f.F.Trace, f.CleanAt); ok {
			f.Actor = &a
		}
	}
}

// wantsActor tells whether something raised or cleared within the last second
// still lacks its actor.
func (s *state) wantsActor(journal Journal, now Instant) bool {
	return len(s.owed) > 0 || journal != nil && slices.ContainsFunc(s.Standing, func(f standing) bool {
		return f.Confirmed && f.Gone == 0 && f.Actor == nil && f.F.Trace != (probes.Key{}) && now.Mono-f.Raised < lateActor
	})
}

// decide makes the condition from what stands.
func (s *state) decide(sub *subject, rules *Rules, look *looked, err error, now Instant) {
	old := s.Condition
	blind := err != nil && (look.unable(s.Failing, now) >= rules.patience(sub, err) || s.LastGood == (Instant{}) || old.Status == "" ||
		old.Status == Unknown && s.Failing < look.at.Mono)
	c := Condition{Type: sub.spec.Condition, Probe: sub.spec.Name, LastCheckTime: s.LastGood.Wall, LastTransitionTime: old.LastTransitionTime,
		NotJudged: notJudged(look.NotJudged, s.Dropped)}
	var unexplained error
	c.Findings, unexplained = s.findings(sub, rules, now)
	counts, first := 0, -1
	for i := range c.Findings {
		if rules.counts(&c.Findings[i]) {
			if counts++; first < 0 {
				first = i
			}
		}
	}
	unseen := slices.IndexFunc(c.Findings, func(f Finding) bool { return f.Unseen && f.drifts() })
	switch {
	case first >= 0:
		c.Status, c.Reason, c.Message = True, c.Findings[first].Reason, c.Findings[first].line(counts-1)
	case blind:
		c.Status, c.Reason, c.Message = Unknown, errorReason(err), clean("could not look: "+err.Error(), maxMessage)
	case err != nil && (old.Status != True || s.recalled): // looks that fail for a moment change nothing; what made it True may have been waived
		c.Status, c.Reason, c.Message = old.Status, old.Reason, old.Message
	case unseen >= 0:
		c.Status, c.Reason, c.Message = Unknown, ProbeFailed, shorten(c.Findings[unseen].Reason+" stood and can no longer be judged", maxMessage)
	default:
		c.Status, c.Reason, c.Message = False, sub.spec.Healthy, healthy(c.NotJudged)
	}
	if e := cmp.Or(err, unexplained); e != nil {
		c.Error = clean(e.Error(), maxError)
	}
	if c.Status != old.Status {
		c.LastTransitionTime = now.Wall
	}
	s.Condition, s.NotApplicable, s.recalled = c, "", s.recalled && err != nil
}

// healthy is the message of a condition that is False.
func healthy(notJudged []string) string {
	if len(notJudged) == 0 {
		return "no drift"
	}
	first, _, _ := strings.Cut(notJudged[0], ":")
	if len(notJudged) == 1 {
		return shorten("no drift; not judged: "+first, maxMessage)
	}
	return shorten(fmt.Sprintf("no drift; not judged: %s and %d more", first, len(notJudged)-1), maxMessage)
}

// notJudged is the look's own list, cleaned, and what was too much to keep.
func notJudged(list []string, dropped int) []string {
	out := make([]string, 0, len(list)+1)
	for _, s := range list {
		out = append(out, clean(s, maxField))
	}
	if dropped > 0 {
		out = append(out, fmt.Sprintf("%d findings beyond the first %d", dropped, maxStanding))
	}
	return out
}

// findings is what stands as it is shown: explained, waived ones apart, those
// that count first and the worst of them at the head.
func (s *state) findings(sub *subject, rules *Rules, now Instant) (_ []Finding, err error) {
	var shown, rest []Finding
	var explain []probes.Finding
	for i := range s.Standing {
		switch f := &s.Standing[i]; {
		case rules.waived(f.F.Reason, f.F.Subject, f.Actor, now.Wall):
			w := s.show(sub, rules, &f.F)
			w.Waived = true
			rest = append(rest, w)
		case f.Confirmed || rules.CountHeld:
			explain = append(explain, f.F)
		default:
			rest = append(rest, s.show(sub, rules, &f.F))
		}
	}
	explain, err = sub.explained(explain)
	for i := range explain {
		f := s.show(sub, rules, &explain[i])
		if f.Waived = rules.waived(f.Reason, f.Subject, f.Actor, now.Wall); f.Waived {
			rest = append(rest, f)
			continue
		}
		shown = append(shown, f)
	}
	slices.SortStableFunc(shown, func(a, b Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return append(shown, rest...), err
}

// explained lets the probe explain what is confirmed. That is the probe's code:
// when it panics, or has nothing left to show, findings stand as they are.
func (sub *subject) explained(list []probes.Finding) (out []probes.Finding, err error) {
	if sub.explain == nil || len(list) == 0 {
		return list, nil
	}
	err = guard(func() error {
		out = sub.explain(slices.Clone(list))
		return nil
	})
	if err != nil {
		return list, fmt.Errorf("explain: %w", err)
	}
	if len(out) == 0 {
		return list, errors.New("explain: nothing is left of what stands")
	}
	out = out[:min(len(out), maxStanding)]
	for i := range out {
		out[i] = bound(&out[i])
	}
	return out, nil
}

// show joins a finding with its times and its actor. A finding that Explain made
// of several takes those of the first one among its consequences.
func (s *state) show(sub *subject, rules *Rules, f *probes.Finding) Finding {
	out := Finding{Reason: f.Reason, ID: f.ID, Subject: f.Subject, Observed: f.Observed, Wanted: f.Wanted, Source: f.Source,
		Message: f.Message, Consequences: f.Consequences, Severity: f.Severity, trace: f.Trace}
	if out.Consequences == nil {
		out.Consequences = []probes.Ref{}
	}
	if r := sub.reasons[f.Reason]; r != nil {
		out.Owner, out.Routine = r.Owner, r.Routine
		var off bool
		if out.Severity, off = rules.severity(r, f.Severity); off { // only Explain names what is off
			out.Severity = probes.Info
		}
	}
	if t := s.behind(f); t != nil {
		out.Since, out.Actor = t.First.Wall, t.Actor
		out.Held, out.Unseen, out.gone = !t.Confirmed, t.Dark, t.Gone != 0
		out.first, out.clean, out.seen = t.First.Mono, t.CleanAt, t.SeenAt
	}
	return out
}

// behind finds what an explained finding was made of.
func (s *state) behind(f *probes.Finding) *standing {
	if i, found := slices.BinarySearchFunc(s.Standing, standing{F: *f}, compareStanding); found {
		return &s.Standing[i]
	}
	for i := range s.Standing {
		t := &s.Standing[i].F
		if slices.Contains(f.Consequences, probes.Ref{ID: t.ID, Subject: t.Subject}) {
			return &s.Standing[i]
		}
	}
	return nil
}

// errorReason is the reason of an Unknown condition.
func errorReason(err error) string {
	switch {
	case errors.Is(err, errStarved):
		return AgentStarved
	case errors.Is(err, errTimedOut):
		return ProbeTimedOut
	case errors.Is(err, fs.ErrPermission):
		return PermissionDenied
	}
	return ProbeFailed
}
