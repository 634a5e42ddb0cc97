package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// minGap is the shortest time between two looks: after the leading edge, a
// burst of events is answered once per gap.
const minGap = 20 * time.Millisecond

// starvedFor is how long a starved agent takes looks again before it says so.
const starvedFor = time.Minute

// A loop runs one probe: it alone owns the probe's state.
type loop struct {
	agent *Agent
	probe probes.Probe
	sub   *subject
	log   *slog.Logger

	wake  chan struct{}
	rules chan *Rules
	saw   chan *heard
	late  chan *heard // whose actor is waited for

	state  state
	named  Actor  // of the last occurrence that had one
	strain Strain // as last read
	stat   stat
	turn   atomic.Int64 // monotonic, ns: when the loop last turned

	due  atomic.Int64  // monotonic, ns: the beat at which it is to be woken; 0: none
	beat chan struct{} // by which it is

	mu   sync.Mutex // guards what other goroutines read
	view view
}

// view is what others may see of a loop; its parts are never changed in place.
type view struct {
	condition     Condition
	notApplicable string
	source        *Source // nil: the probe does not listen
	looked        bool
	samples       []probes.Sample
	fingerprints  map[string]string
	standing      []standing
	lastGood      Instant
	keep          map[string]string // the probe's own memory
}

// stat counts looks by result.
type stat struct {
	runs     [6]atomic.Uint64
	duration atomic.Int64
	lastGood atomic.Int64 // wall, Unix ns; 0 before the first
	lost     atomic.Uint64
}

// results are the values of the result label, in the order of stat.runs.
var results = [6]string{"ok", "failed", "timeout", "denied", "starved", "notapplicable"}

func newLoop(a *Agent, p probes.Probe) *loop {
	l := &loop{agent: a, probe: p, sub: newSubject(p), wake: make(chan struct{}, 1), beat: make(chan struct{}, 1), rules: make(chan *Rules, 1), saw: make(chan *heard, 64), late: make(chan *heard, 64)}
	l.log = a.cfg.Log.With("probe", l.sub.spec.Name)
	l.state.Condition = Condition{Type: l.sub.spec.Condition, Probe: l.sub.spec.Name}
	if _, ok := p.(probes.Watcher); ok {
		l.view.source = &Source{Probe: l.sub.spec.Name}
	}
	return l
}

// Changed implements [probes.Hearer].
func (l *loop) Changed() {
	l.hearing(true, "")
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Saw implements [probes.Hearer].
func (l *loop) Saw(o probes.Occurrence) {
	l.pass(l.saw, &heard{o, l.agent.now()})
}

func (l *loop) pass(on chan<- *heard, o *heard) {
	select {
	case on <- o:
	default:
		l.Lost(l.sub.spec.Name, 1)
	}
}

// Lost implements [probes.Hearer].
func (l *loop) Lost(_ string, n uint64) {
	l.stat.lost.Add(n)
	l.Changed()
}

func (l *loop) hearing(on bool, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.view.source; old != nil && (old.Hearing != on || old.Error != why) {
		l.view.source = &Source{Probe: old.Probe, Hearing: on, Error: why}
	}
}

// watch listens for as long as the probe does, and listens again after a pause
// that grows from a second to a minute.
func (l *loop) watch(ctx context.Context, w probes.Watcher) {
	pause := time.Second
	for ctx.Err() == nil {
		began := l.agent.now().Mono
		err := guard(func() error { return w.Watch(ctx, l) })
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("stopped listening")
		}
		if l.agent.now().Mono-began > time.Minute {
			pause = time.Second
		}
		l.log.Warn("cannot listen; the sweep alone looks", "error", clean(err.Error(), maxError), "again", pause)
		l.hearing(false, clean(err.Error(), maxError))
		wait(ctx, pause/2+rand.N(pause))
		pause = min(2*pause, time.Minute)
	}
}

// wait sleeps for d or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// guard turns a panic into an error with the place it came from.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v at %s", p, firstFrame(debug.Stack()))
		}
	}()
	return f()
}

// run looks until ctx ends: at once, when woken, when a hold ends and at the
// latest after the probe's period.
func (l *loop) run(ctx context.Context) {
	rules := <-l.rules
	l.starved() // the first reading: what was before does not count
	eye := newEye(ctx, l.probe)
	next := time.NewTimer(0)
	defer next.Stop()
	var last time.Duration // monotonic: start of the last look
	for {
		l.turn.Store(int64(l.agent.now().Mono))
		select {
		case <-ctx.Done():
			return
		case rules = <-l.rules:
		case o := <-l.saw:
			l.occurred(rules, o)
			continue
		case o := <-l.late:
			l.occurred(rules, o)
			continue
		case <-l.wake:
			if gap := last + minGap - l.agent.now().Mono; last != 0 && gap > 0 {
				next.Reset(gap)
				continue
			}
		case <-l.beat:
		case <-next.C:
		}
		last = l.agent.now().Mono
		l.rest(next, l.look(ctx, eye, rules))
	}
}

// rest has the loop woken after a while: by the agent's beat where there is one at
// that time, which costs the runtime less than a timer that fires.
func (l *loop) rest(next *time.Timer, d time.Duration) {
	at := l.agent.now().Mono + d
	if beat := at.Round(Beat); l.agent.beating.Load() && (at-beat).Abs() <= offBeat {
		next.Stop()
		l.due.Store(int64(beat))
		return
	}
	l.due.Store(0)
	next.Reset(d)
}

// wakeDue wakes the loops whose time has come with this beat.
func (a *Agent) wakeDue() {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now().Mono + offBeat
	for _, l := range a.loops {
		if due := l.due.Load(); due == 0 || time.Duration(due) > now {
			continue
		}
		l.due.Store(0)
		select {
		case l.beat <- struct{}{}:
		default:
		}
	}
}

// offBeat is how far from a beat is still on it: clocks are read one after the other.
const offBeat = 5 * time.Millisecond

// look takes one look and folds it. It returns when the next one is due.
func (l *loop) look(ctx context.Context, eye *eye, rules *Rules) time.Duration {
	seen := l.see(ctx, eye)
	every := rules.every(&l.sub.spec)
	if ctx.Err() != nil {
		return every
	}
	s, happened, again := fold(l.sub, rules, l.state, &seen, l.agent.cfg.Journal, l.agent.now())
	changed := visible(&l.state, &s) || len(happened) > 0
	if changed && l.agent.frozen(ctx) {
		return time.Second // a node that is stopping breaks in every way: nothing of it is news
	}
	l.state = s
	l.show(&seen)
	if changed {
		l.agent.tell(happened)
	}
	return sooner(max(again, 0), toBeat(l.agent.now().Mono, every))
}

// toBeat is how long it is until the next whole multiple of a period on the
// monotonic clock: the agent then wakes once for all its probes. Nodes do not beat
// together, as each counts from its own boot.
func toBeat(now, every time.Duration) time.Duration { return every - now%every }

// see looks, and looks again while the agent itself is starved and the look
// would say something bad: its own lack of CPU is not the node's fault. Strain is
// read only when a look is bad, and then against the reading before: where that
// one is older than the look, the look is first taken again, measured.
func (l *loop) see(ctx context.Context, eye *eye) looked {
	began := l.agent.now()
	for measured := false; ; measured = true {
		at := l.agent.now()
		look, err := eye.look(ctx, l.sub.spec.Timeout)
		took := l.agent.now().Mono - at.Mono
		if err == nil && len(look.Findings) == 0 || ctx.Err() != nil || errors.Is(err, probes.ErrNotApplicable) || !l.starved() {
			l.count(err, took)
			return looked{Look: look, err: err, at: at}
		}
		l.count(errStarved, took)
		if l.agent.now().Mono-began.Mono >= starvedFor {
			return looked{err: errStarved, at: at}
		}
		l.turn.Store(int64(l.agent.now().Mono))
		if measured {
			wait(ctx, l.sub.spec.Timeout)
			l.starved() // what the wait took is not the next look's
		}
	}
}

// starved tells whether the agent was held up since it was last asked so much
// that a look in between could not be fair. It is not when nobody can say.
func (l *loop) starved() bool {
	before := l.strain
	after, known := l.agent.strain()
	if !known {
		return false
	}
	l.strain = after
	return after.Delayed-before.Delayed > l.sub.spec.Timeout/2 || after.Paused-before.Paused > time.Second
}

func (l *loop) count(err error, took time.Duration) {
	i := 1
	switch {
	case err == nil:
		i = 0
		l.stat.lastGood.Store(l.agent.now().Wall.UnixNano())
	case errors.Is(err, probes.ErrNotApplicable):
		i = 5
	case errors.Is(err, errStarved):
		i = 4
	case errorReason(err) == ProbeTimedOut:
		i = 2
	case errorReason(err) == PermissionDenied:
		i = 3
	}
	l.stat.runs[i].Add(1)
	l.stat.duration.Add(int64(took))
}

// show makes the new state visible to others.
func (l *loop) show(seen *looked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := &l.view
	v.condition, v.notApplicable, v.looked = l.state.Condition, l.state.NotApplicable, true
	v.standing, v.lastGood = l.state.Standing, l.state.LastGood
	if seen.err == nil || len(seen.Samples) > 0 {
		v.samples = seen.Samples
	}
	if seen.err == nil {
		v.fingerprints = seen.Fingerprints
	}
	if l.state.NotApplicable != "" {
		v.samples, v.fingerprints = seen.Samples, nil // how much of it does not apply
	}
	if seen.Keep == nil || maps.Equal(seen.Keep, v.keep) {
		return
	}
	if !keeps(seen.Keep) {
		l.log.Error("the probe wants to keep more than is kept", "bytes", maxKeep)
		return
	}
	v.keep = seen.Keep
	l.agent.poke()
}

func (l *loop) seenView() view {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.view
}

// visible tells whether a reader would notice the difference of two states,
// beyond the time of the last look.
func visible(a, b *state) bool {
	x, y := &a.Condition, &b.Condition
	if x.Status != y.Status || x.Reason != y.Reason || x.Message != y.Message || a.NotApplicable != b.NotApplicable ||
		len(x.Findings) != len(y.Findings) || len(a.Standing) != len(b.Standing) {
		return true
	}
	for i := range x.Findings {
		f, g := &x.Findings[i], &y.Findings[i]
		if !f.same(g) || f.Severity != g.Severity || f.Held != g.Held || f.Waived != g.Waived || f.Observed != g.Observed || !sameActor(f.Actor, g.Actor) {
			return true
		}
	}
	return false
}

// heard is an occurrence and when it was heard.
type heard struct {
	probes.Occurrence
	at Instant
}

// An occurrence waits for its actor, who is asked for again and again: the two are
// heard in different ways, and either may come first.
const (
	lateName = 100 * time.Millisecond
	askAgain = 10 * time.Millisecond
)

func sameActor(a, b *Actor) bool { return a == b || a != nil && b != nil && *a == *b }

// occurred tells of something that left no state.
func (l *loop) occurred(rules *Rules, o *heard) {
	reason := l.sub.reasons[o.Reason]
	if reason == nil || !reason.Happens {
		l.log.Error("the probe has no such occurrence", "reason", clean(o.Reason, maxField))
		return
	}
	severity, off := rules.severity(reason, 0)
	if off || l.agent.frozen(context.Background()) {
		return
	}
	f := Finding{Reason: reason.Name, Severity: severity, Owner: reason.Owner, Subject: clean(o.Subject, maxField), Message: clean(o.Message, maxField)}
	if j := l.agent.cfg.Journal; j != nil && o.Trace != (probes.Key{}) {
		since := o.Since
		if since == 0 {
			since = o.at.Mono - lateActor
		}
		switch a, ok := j.Who(o.Trace, since); {
		case ok && !(a.PID == l.named.PID && a.Time.Equal(l.named.Time)): // what somebody did once happened once
			f.Actor, l.named = &a, a
		case l.agent.now().Mono-o.at.Mono < lateName:
			time.AfterFunc(askAgain, func() { l.pass(l.late, o) })
			return
		}
	}
	if rules.waived(f.Reason, f.Subject, f.Actor, o.at.Wall) {
		severity = probes.Info
	}
	l.agent.tell([]Happening{{Time: o.at.Wall, Kind: Occurred, Probe: l.sub.spec.Name, Condition: l.sub.spec.Condition, Reason: f.Reason,
		Severity: severity, Subject: f.Subject, Message: f.line(0), Actor: f.Actor}})
}

// An eye takes the looks of one probe in a goroutine of its own, so that a look
// that never ends costs one goroutine and delays nobody.
type eye struct {
	ask    chan context.Context
	answer chan looked
	stuck  bool
}

func newEye(ctx context.Context, p probes.Probe) *eye {
	e := &eye{ask: make(chan context.Context), answer: make(chan looked, 1)}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case c := <-e.ask:
				var out looked
				out.err = guard(func() (err error) {
					out.Look, err = p.Check(c)
					return err
				})
				e.answer <- out
			}
		}
	}()
	return e
}

// look asks for one look and waits for it no longer than timeout. While an
// earlier look is still stuck, none is asked for: its answer is thrown away when
// it comes at last.
func (e *eye) look(ctx context.Context, timeout time.Duration) (probes.Look, error) {
	c, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if e.stuck {
		select {
		case <-e.answer:
			e.stuck = false
		case <-c.Done():
			return probes.Look{}, fmt.Errorf("%w: an earlier look is still stuck", errTimedOut)
		}
	}
	select {
	case e.ask <- c:
	case <-c.Done(): // the eye closes when the loop ends
		return probes.Look{}, fmt.Errorf("%w: %w", errTimedOut, c.Err())
	}
	select {
	case out := <-e.answer:
		if errors.Is(out.err, context.DeadlineExceeded) {
			out.err = fmt.Errorf("%w: %w", errTimedOut, out.err)
		}
		return out.Look, out.err
	case <-c.Done():
	}
	// A probe that heeds its context answers right after the deadline: what it
	// found by then stands.
	select {
	case out := <-e.answer:
		return out.Look, fmt.Errorf("%w: %w", errTimedOut, errors.Join(out.err, c.Err()))
	case <-time.After(min(timeout/4, 100*time.Millisecond)):
		e.stuck = true
		return probes.Look{}, fmt.Errorf("%w of %s", errTimedOut, timeout)
	}
}
