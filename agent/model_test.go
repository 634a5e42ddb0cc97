package agent

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// A record is one look as the model sees it: the whole past is a list of them.
type record struct {
	at        time.Duration
	restarted bool // a new process took over before this look
	withdrawn bool
	failed    bool
	starved   bool
	seen      []string // reasons
	unjudged  []string
	rules     *Rules
	now       time.Time

	status Status // what the model makes of it
}

// A past is all looks since boot, the youngest last. Whatever it is asked, it
// answers by going through all of them again: slow, and with nothing to forget.
type past struct {
	looks  []record
	period time.Duration // the probe's own
	fates  []fate        // of the catalogue's reasons, after the last look
}

// lasts tells whether it has been going on for a period from one look to another,
// which need be no time at all when the agent is starved.
func (p *past) lasts(from, to int) bool {
	last := &p.looks[to]
	return last.starved || last.at-p.looks[from].at >= cmp.Or(last.rules.Every["test"], p.period)
}

// waits is how long after the last look it will have been going on for a period.
func (p *past) waits(from int) time.Duration {
	last := &p.looks[len(p.looks)-1]
	return max(p.looks[from].at+cmp.Or(last.rules.Every["test"], p.period)-last.at, 1)
}

// add appends a look and says what the status is then.
func (p *past) add(r record) Status {
	p.looks, p.fates = append(p.looks, r), p.fates[:0]
	for i := range catalogue {
		p.fates = append(p.fates, p.fate(&catalogue[i]))
	}
	status := p.status()
	p.looks[len(p.looks)-1].status = status
	return status
}

// A fate is what has become of one reason by the end of the past.
type fate struct {
	here, confirmed bool
	since, goneAt   time.Duration // goneAt: -1 while it is seen
	blind           []int         // looks in a row that could not judge it
	dark            bool
}

func (p *past) fate(reason *probes.Reason) (f fate) {
	for i := range p.looks {
		look := &p.looks[i]
		wasUnknown := i > 0 && p.looks[i-1].status == Unknown
		seen := slices.Contains(look.seen, reason.Name)
		switch rule := look.rules.Reasons[reason.Name]; {
		case look.withdrawn || rule.Off:
			f = fate{}
		case seen && !f.here:
			f = fate{here: true, since: look.at, goneAt: -1}
		case seen:
			f.goneAt, f.blind, f.dark = -1, nil, false
		case !f.here:
		case look.failed || slices.Contains(look.unjudged, reason.Name):
			f.blind = append(f.blind, i)
			f.dark = f.dark || p.lasts(f.blind[0], i)
		case !f.confirmed || wasUnknown:
			f = fate{}
		default:
			if f.blind, f.dark = nil, false; f.goneAt < 0 {
				f.goneAt = look.at
			}
			if look.at-f.goneAt >= look.rules.clear(reason) {
				f = fate{}
			}
		}
		if f.here && seen && look.at-f.since >= look.rules.hold(reason, 0) {
			f.confirmed = true
		}
	}
	return f
}

// status is the status after the last look.
func (p *past) status() Status {
	last := &p.looks[len(p.looks)-1]
	if last.withdrawn {
		return ""
	}
	before, succeeded, recalled := Status(""), false, false
	for i := range p.looks {
		look := &p.looks[i]
		recalled = look.failed && (recalled || look.restarted)
		succeeded = succeeded || !look.failed
		if look != last {
			before = look.status
		}
	}
	stands, unseen := false, false
	for i := range catalogue {
		f, severity := p.fates[i], catalogue[i].Severity
		if s := last.rules.Reasons[catalogue[i].Name].Severity; s != 0 {
			severity = s
		}
		if !f.confirmed || severity < probes.Warning || last.rules.waived(catalogue[i].Name, "it", nil, last.now) {
			continue
		}
		stands, unseen = stands || !f.dark, unseen || f.dark
	}
	switch {
	case stands:
		return True
	case last.failed && (p.lasts(p.failing(), len(p.looks)-1) || !succeeded || before == ""):
		return Unknown
	case last.failed && (before != True || recalled):
		return before
	case unseen:
		return Unknown
	}
	return False
}

// failing is the first of the looks of this process that failed in a row; -1 when
// the last one did not.
func (p *past) failing() (first int) {
	for first = len(p.looks) - 1; first > 0 && p.looks[first].failed && p.looks[first-1].failed && !p.looks[first].restarted; first-- {
	}
	if !p.looks[first].failed {
		return -1
	}
	return first
}

// due is how long after the last look the next hold, clear time, waiver or
// patience ends; 0 when none does.
func (p *past) due() (due time.Duration) {
	end := len(p.looks) - 1
	last := &p.looks[end]
	if first := p.failing(); first >= 0 && last.status != Unknown && !p.lasts(first, end) {
		due = p.waits(first)
	}
	for i := range catalogue {
		r := &catalogue[i]
		f := p.fates[i]
		if f.here && len(f.blind) > 0 && !f.dark && last.status != Unknown {
			due = sooner(due, p.waits(f.blind[0]))
		}
		if f.here && len(f.blind) == 0 {
			if !f.confirmed {
				due = sooner(due, f.since+last.rules.hold(r, 0)-last.at)
			} else if f.goneAt >= 0 {
				due = sooner(due, f.goneAt+last.rules.clear(r)-last.at)
			}
		}
	}
	if last.withdrawn {
		return 0
	}
	for _, w := range last.rules.Waivers {
		if d := w.Until.Sub(last.now); !w.Until.IsZero() && d > 0 {
			due = sooner(due, d)
		}
	}
	return due
}

// A chance makes up one node's life.
type chance struct {
	*rand.Rand
	present map[string]bool
}

func (c *chance) rules() *Rules {
	r := &Rules{Reasons: map[string]ReasonRule{}}
	pick := func() string { return catalogue[c.IntN(7)].Name }
	switch c.IntN(7) {
	case 0:
		r.Reasons[pick()] = ReasonRule{Off: true}
	case 1:
		r.Reasons[pick()] = ReasonRule{Severity: probes.Severity(1 + c.IntN(3))}
	case 2:
		r.Reasons[pick()] = ReasonRule{Hold: new(time.Duration(c.IntN(3)) * 20 * time.Second), Clear: new(time.Duration(c.IntN(3)) * 20 * time.Second)}
	case 3:
		r.Waivers = []Waiver{{Reason: pick()}}
	case 4:
		r.Waivers = []Waiver{{Reason: pick(), Until: until(time.Duration(c.IntN(600)) * time.Second)}, {Reason: pick(), Subject: "other"}}
	case 5:
		r.Every = map[string]time.Duration{"test": 30 * time.Second}
	}
	return r
}

// record makes up the next look.
func (c *chance) record(w *world) (record, looked) {
	name := catalogue[c.IntN(7)].Name
	c.present[name] = c.IntN(2) == 0
	r := record{at: w.now.Mono, now: w.now.Wall, rules: w.rules}
	for _, reason := range catalogue {
		if c.present[reason.Name] {
			r.seen = append(r.seen, reason.Name)
		}
	}
	var l looked
	switch n := c.IntN(100); {
	case n < 60:
		l = see(r.seen...)
	case n < 72:
		r.unjudged = []string{catalogue[c.IntN(7)].Name, catalogue[c.IntN(7)].Name}
		r.seen = slices.DeleteFunc(r.seen, func(s string) bool { return slices.Contains(r.unjudged, s) })
		l = unableTo(strings.Join(r.unjudged, ","), r.seen...)
	case n < 85:
		r.failed, r.seen = true, nil
		l = fail([]error{errBroken, errDenied, errTimedOut}[c.IntN(3)])
	case n < 93:
		r.failed, r.seen = true, r.seen[:c.IntN(len(r.seen)+1)]
		l = fail(errBroken, r.seen...)
	case n < 95:
		r.failed = true
		l = see(append([]string{"Bda"}, r.seen...)...)
	case n < 97:
		r.failed, r.starved, r.seen = true, true, nil
		l = fail(errStarved)
	default:
		r.withdrawn, r.seen = true, nil
		l = notApplicable()
	}
	return r, l
}

var pauses = []time.Duration{0, 1, 100 * time.Millisecond, time.Second, 5 * time.Second, 19 * time.Second, 30 * time.Second, time.Minute}

// TestFoldAgainstModel leads made-up nodes through a few thousand lives of
// findings that come and go, looks that fail, time, rules and restarts, and
// compares each verdict with the model's.
func TestFoldAgainstModel(t *testing.T) {
	t.Parallel()
	const looks, shards = 25, 4
	lives := uint64(8000)
	if testing.Short() {
		lives = 800
	}
	for shard := range uint64(shards) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			for seed := shard; seed < lives; seed += shards {
				newLife(t, seed).live(looks)
			}
		})
	}
}

// A life is one made-up node, what it was said to be, and what should have been
// said of it.
type life struct {
	t      *testing.T
	seed   uint64
	chance *chance
	world  *world
	past   past

	somebody bool            // there is a journal, and so happenings may come late
	raised   map[string]bool // reasons that were told and not taken back
	told     []string        // changes of status as they were told
	want     []string        // and as they were
	script   []func() string // told only when something fails
}

func newLife(t *testing.T, seed uint64) *life {
	l := &life{t: t, seed: seed, chance: &chance{rand.New(rand.NewPCG(seed, 1)), map[string]bool{}}, world: newWorld(t), raised: map[string]bool{}}
	l.past.period = []time.Duration{time.Second, 5 * time.Second, time.Minute}[seed%3]
	l.world.sub.spec.Every = l.past.period
	l.somebody = seed/8%2 == 1
	l.world.nobody = !l.somebody
	return l
}

func (l *life) live(looks int) {
	for range looks {
		l.step()
	}
	l.end()
}

func (l *life) step() {
	w, c := l.world, l.chance
	w.sleep(pauses[c.IntN(len(pauses))])
	if c.IntN(20) == 0 {
		w.rules = c.rules()
	}
	if l.somebody && c.IntN(3) == 0 {
		w.journal.did(w.now.Mono, "it", fmt.Sprintf("ns/%d", c.IntN(3)))
	}
	restarted := !l.somebody && c.IntN(20) == 0
	if restarted {
		l.restart()
	}
	r, look := c.record(w)
	r.restarted = restarted
	l.look(r, look)
}

// end lets what is owed be told.
func (l *life) end() {
	for range 3 {
		l.world.sleep(2 * time.Second)
		l.look(record{at: l.world.now.Mono, now: l.world.now.Wall, rules: l.world.rules}, see())
	}
	if !slices.Equal(l.told, l.want) {
		l.fail("changes of status were told as %q, want %q", l.told, l.want)
	}
}

func (l *life) look(r record, look looked) {
	w := l.world
	before := w.state.Condition
	happened, again := w.fold(look)
	now := w.state
	after := now.Condition
	status := l.past.add(r)
	l.script = append(l.script, func() string {
		return fmt.Sprintf("%s restarted=%t withdrawn=%t failed=%t starved=%t seen=%v unjudged=%v rules=%+v -> %s (%s)", r.at, r.restarted,
			r.withdrawn, r.failed, r.starved, r.seen, r.unjudged, *r.rules, tellAll(&now, happened, again), status)
	})
	if after.Status != status {
		l.fail("status %q, want %q", after.Status, status)
	}
	if due := l.past.due(); !l.somebody && again != due {
		l.fail("look again in %s, want %s", again, due)
	}
	if before.Status != after.Status {
		if after.Status != "" || before.Status == True {
			l.want = append(l.want, fmt.Sprintf("%s>%s", before.Status, after.Status))
		}
		if after.Status != "" && !after.LastTransitionTime.Equal(w.now.Wall) {
			l.fail("the status changed, LastTransitionTime is %s", after.LastTransitionTime)
		}
	} else if !after.LastTransitionTime.Equal(before.LastTransitionTime) {
		l.fail("LastTransitionTime moved without the status")
	}
	l.invariants(&after, r)
	for _, h := range happened {
		l.hear(&h)
	}
}

// invariants hold whatever the model says.
func (l *life) invariants(c *Condition, r record) {
	standing := slices.ContainsFunc(c.Findings, func(f Finding) bool { return f.Stands() })
	if c.Status == True && !standing && !r.failed {
		l.fail("True without a finding")
	}
	if c.Status != True && standing {
		l.fail("%s though a finding stands", c.Status)
	}
	if c.Status == False && r.failed && c.LastCheckTime.IsZero() {
		l.fail("False though no look ever succeeded")
	}
	if !r.failed && !r.withdrawn && !c.LastCheckTime.Equal(r.now) || r.failed && c.LastCheckTime.Equal(r.now) && len(l.past.looks) > 1 && l.past.looks[len(l.past.looks)-2].at < r.at {
		l.fail("LastCheckTime is %s", c.LastCheckTime)
	}
	if c.Status == True && c.Reason == "" || c.Status == False && c.Reason != "OK" {
		l.fail("%s with reason %q", c.Status, c.Reason)
	}
	if (c.Error != "") != r.failed {
		l.fail("error %q", c.Error)
	}
}

// hear holds that nothing is raised twice nor cleared that was not raised.
func (l *life) hear(h *Happening) {
	if h.From != h.To {
		l.told = append(l.told, fmt.Sprintf("%s>%s", h.From, h.To))
	}
	switch {
	case h.Kind == Blinded || h.To == "":
		clear(l.raised)
	case h.Kind == Raised && l.raised[h.Reason]:
		l.fail("%s was raised twice", h.Reason)
	case h.Kind == Cleared && !l.raised[h.Reason]:
		l.fail("%s was cleared without having been raised", h.Reason)
	case h.Kind == Raised || h.Kind == Cleared:
		l.raised[h.Reason] = h.Kind == Raised
	}
}

// restart puts the state through the memory and a new loop.
func (l *life) restart() {
	w := l.world
	if w.state.Condition.Status == "" {
		w.state = state{}
		return
	}
	w.state = reborn(l.t, w)
	clear(l.raised)
	for _, f := range w.state.Condition.Findings {
		l.raised[f.Reason] = f.known
	}
}

// reborn is the state as the next process recalls it.
func reborn(t testing.TB, w *world) state {
	c := &w.state.Condition
	m := probeMemory{turnedAt: turnedAt{c.Status, c.Reason, c.Message, c.LastTransitionTime}, LastGood: w.state.LastGood}
	for i := range w.state.Standing {
		m.Standing = append(m.Standing, keep(&w.state.Standing[i]))
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	m = probeMemory{}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	next := newLoop(New(Config{Log: silent}), specced{w.sub.spec})
	next.recall(m, w.rules, w.now)
	return next.state
}

var silent = slog.New(slog.NewTextHandler(io.Discard, nil))

func (l *life) fail(format string, args ...any) {
	l.t.Helper()
	for _, line := range l.script {
		l.t.Log(line())
	}
	l.t.Fatalf("seed %d: %s", l.seed, fmt.Sprintf(format, args...))
}
