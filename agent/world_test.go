package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// catalogue is one reason of each sort.
var catalogue = []probes.Reason{
	{Name: "Bad", Severity: probes.Critical, Owner: probes.Customer},
	{Name: "Poor", Severity: probes.Warning, Owner: probes.AKS},
	{Name: "Note", Severity: probes.Info, Owner: probes.Both},
	{Name: "Chore", Severity: probes.Warning, Routine: true, Owner: probes.Customer},
	{Name: "Slow", Severity: probes.Warning, Owner: probes.Customer, Hold: 30 * time.Second, Clear: time.Minute},
	{Name: "Sticky", Severity: probes.Warning, Owner: probes.Customer, Clear: time.Minute},
	{Name: "Traced", Severity: probes.Critical, Owner: probes.Customer},
	{Name: "Boom", Severity: probes.Warning, Owner: probes.Customer, Happens: true},
}

func testSpec() probes.Spec {
	return probes.Spec{Name: "test", Condition: "TestDrift", Healthy: "OK", Every: 10 * time.Second, Timeout: time.Second, Reasons: catalogue}
}

// specced is a probe that is all Spec.
type specced struct{ spec probes.Spec }

func (p specced) Spec() probes.Spec                          { return p.spec }
func (p specced) Check(context.Context) (probes.Look, error) { return probes.Look{}, nil }
func testSubject() *subject                                  { return newSubject(specced{testSpec()}) }

func until(d time.Duration) time.Time        { return epoch.Add(d) }
func found(names ...string) []probes.Finding { return findingsOf(names) }
func see(names ...string) looked             { return looked{Look: probes.Look{Findings: findingsOf(names)}} }
func fail(err error, names ...string) looked { l := see(names...); l.err = err; return l }
func notApplicable() looked {
	return fail(fmt.Errorf("no such thing here: %w", probes.ErrNotApplicable))
}
func unableTo(judge string, names ...string) looked {
	l := see(names...)
	l.NotJudged = strings.Split(judge, ",")
	return l
}
func with(l looked, change func(f *probes.Finding)) looked { change(&l.Findings[0]); return l }
func actor(pod string) Actor                               { return Actor{PID: 7, Comm: "sh", Pod: pod} }

var (
	errBroken = errors.New("broken")
	errDenied = fmt.Errorf("read it: %w", fs.ErrPermission)
	epoch     = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
)

// findingsOf makes findings of "Reason", "Reason/subject" and
// "Reason/subject#id". Those of Traced can be asked about.
func findingsOf(names []string) (list []probes.Finding) {
	for _, n := range names {
		n, id, _ := strings.Cut(n, "#")
		reason, subject, _ := strings.Cut(n, "/")
		if subject == "" {
			subject = "it"
		}
		f := probes.Finding{Reason: reason, Subject: subject, ID: id, Observed: "0", Wanted: "1"}
		if reason == "Traced" {
			f.Trace = probes.Key{Domain: "test", Name: subject}
		}
		list = append(list, f)
	}
	return list
}

// A diary is a [Journal] of who did what when, on the monotonic clock.
type diary map[probes.Key][]entry

type entry struct {
	at    time.Duration
	actor Actor
}

func (d diary) Who(key probes.Key, since time.Duration) (Actor, bool) {
	for _, e := range slices.Backward(d[key]) {
		if e.at >= since {
			return e.actor, true
		}
	}
	return Actor{}, false
}

func (d diary) did(at time.Duration, subject, pod string) {
	key := probes.Key{Domain: "test", Name: subject}
	by := actor(pod)
	by.Time = time.Unix(0, int64(at))
	d[key] = append(d[key], entry{at, by})
}

// A world feeds looks to the fold, one after the other, and writes down what
// comes of them in one line each.
type world struct {
	t       testing.TB
	sub     *subject
	rules   *Rules
	journal diary
	nobody  bool // there is no journal
	state   state
	now     Instant
}

// newWorld is one in which an hour has passed since boot, and nothing was seen.
// Its probe looks each second: looks that fail a second apart fail for long.
func newWorld(t testing.TB) *world {
	w := &world{t: t, sub: testSubject(), rules: &Rules{}, journal: diary{}, now: Instant{Wall: epoch, Mono: time.Hour}}
	w.sub.spec.Every = time.Second
	return w
}

// sleep lets time pass.
func (w *world) sleep(d time.Duration) { w.now = Instant{w.now.Wall.Add(d), w.now.Mono + d} }

// fold takes in a look that began now, and checks that the old state is as it was.
func (w *world) fold(l looked) ([]Happening, time.Duration) {
	w.t.Helper()
	l.at = w.now
	return w.foldAsIs(l)
}

// foldAsIs takes in a look that began when it says.
func (w *world) foldAsIs(l looked) ([]Happening, time.Duration) {
	w.t.Helper()
	old, before := w.state, deepCopy(&w.state)
	var journal Journal
	if !w.nobody {
		journal = w.journal
	}
	s, happened, again := fold(w.sub, w.rules, w.state, &l, journal, w.now)
	if !reflect.DeepEqual(before, deepCopy(&old)) {
		w.t.Fatalf("the old state was changed:\n%+v\nwas\n%+v", old, before)
	}
	w.state = s
	return happened, again
}

// line folds and tells: status and reason, what happened, and when to look again.
func (w *world) line(l looked) string {
	w.t.Helper()
	happened, again := w.fold(l)
	return tellAll(&w.state, happened, again)
}

func tellAll(s *state, happened []Happening, again time.Duration) string {
	var b strings.Builder
	switch c := &s.Condition; {
	case s.NotApplicable != "":
		b.WriteString("withdrawn")
	case c.Reason == "":
		b.WriteString("nothing")
	default:
		fmt.Fprintf(&b, "%s %s", c.Status, c.Reason)
	}
	for _, h := range happened {
		b.WriteString(", " + happeningLine(&h))
	}
	if again != 0 {
		fmt.Fprintf(&b, ", again %s", again)
	}
	return b.String()
}

func happeningLine(h *Happening) string {
	s := fmt.Sprintf("%s %s", h.Kind, h.Reason)
	if h.From != h.To {
		s += fmt.Sprintf(" %s>%s", h.From, h.To)
	}
	if h.Actor != nil {
		s += " by " + h.Actor.name()
	}
	return s
}

// deepCopy shares nothing with s but functions, which it leaves out.
func deepCopy(s *state) *state {
	c := *s
	c.Standing = slices.Clone(s.Standing)
	for i := range c.Standing {
		t := &c.Standing[i]
		t.F.Consequences, t.Actor = slices.Clone(t.F.Consequences), copyActor(t.Actor)
	}
	c.Condition.NotJudged, c.Condition.Findings = slices.Clone(s.Condition.NotJudged), slices.Clone(s.Condition.Findings)
	for i := range c.Condition.Findings {
		f := &c.Condition.Findings[i]
		f.Consequences, f.Actor = slices.Clone(f.Consequences), copyActor(f.Actor)
	}
	c.owed = slices.Clone(s.owed)
	for i := range c.owed {
		o := &c.owed[i]
		o.text, o.f, o.h.Actor = nil, nil, copyActor(o.h.Actor)
	}
	return &c
}

func copyActor(a *Actor) *Actor {
	if a == nil {
		return nil
	}
	c := *a
	return &c
}
