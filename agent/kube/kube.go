// Package kube publishes what the agent knows on the node's own Node object, as
// NodeConditions by server-side apply, and as Events. It is the quietest writer
// it can be: a change is told at once, a healthy node costs a request in 40 min.
package kube

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

// Mode says what is published.
type Mode string

// The modes in which this package has work; in mode observe it is not started.
const (
	Events     Mode = "events"     // Events only
	Conditions Mode = "conditions" // Events and NodeConditions
)

// When things are told.
const (
	heartbeat      = 40 * time.Minute
	heartbeatShare = heartbeat / 5   // it varies by this much to both sides
	messageEvery   = 5 * time.Minute // a message that changed alone waits so long
	refreshEvery   = 30 * time.Second
	rereadEvery    = 5 * time.Minute  // of the own Node, at most, when a probe asks what it says now
	settleFor      = 10 * time.Second // at start: for the first look of every probe
	startSpread    = 2 * time.Second  // of the first read, of a fleet that starts at once
	applySpread    = 5 * time.Second  // of the first apply, when nothing is critical
	leaveFor       = 2 * time.Second  // at the end: for Events that wait
	refusedLimit   = 5 * time.Minute  // between tries of what rights or policies refuse
	outageLimit    = time.Minute
	idle           = time.Hour // nothing to do: look around all the same
)

// Config is what a [Publisher] is made of. Node, Source and API are needed.
type Config struct {
	Node string // our Node object's name
	Pod  string // our pod's name; Events carry it
	Mode Mode   // "": Conditions

	// Types are all condition types that this agent may ever own: what is found
	// of them on the Node was written by us.
	Types []string
	Boot  time.Time // when this node booted; conditions written before it are void

	API *API // the API server

	Source  func() agent.Snapshot
	Adopter agent.Adopter         // nil: nothing is adopted
	Ready   func(agent.Readiness) // called after each read of the own Node; nil: nobody asks
	Log     *slog.Logger          // nil: silence
}

// A Publisher keeps the API server informed. Publish and the counters may be
// used from any goroutine; one goroutine, Run's, makes all requests, one at a
// time.
type Publisher struct {
	cfg    Config
	api    *client
	stats  *stats
	events *events
	wake   chan struct{}
	follow atomic.Bool
	again  atomic.Bool  // somebody wants to know what the Node says now
	busy   atomic.Int64 // since when, after begun, a request is on its way; 0: none
	begun  time.Time

	// What follows belongs to Run.

	outage    backoff // nothing is sent before notBefore
	notBefore time.Time
	refused   backoff // conditions alone are not sent before applyFrom
	applyFrom time.Time
	barred    backoff // nor Events before sendFrom
	sendFrom  time.Time

	failure, refusal, lost string // the kind last logged: of all, of applies, of Events

	uid      string               // of our Node; "": not read yet
	fresh    bool                 // the next read must not come from a cache
	wantRead bool                 // read again: the Node is another one
	readAt   time.Time            // when to read again, while following
	lastRead time.Time            // when the Node was read last
	kept     map[string]condition // ours on the Node, from this boot

	applied   []condition // what the Node shows, as far as we know
	adopting  bool        // applied was read, not written by this run
	settled   bool
	settleBy  time.Time
	applyRate bucket
	eventRate bucket
	beat      time.Time // when the next heartbeat is due
	textSince time.Time // since when only a message differs
}

// New returns a publisher that has not talked to anybody yet.
func New(cfg Config) (*Publisher, error) {
	switch {
	case cfg.Node == "" || cfg.Source == nil || cfg.API == nil:
		return nil, errors.New("publish: Node, Source and API are needed")
	case cfg.Mode != "" && cfg.Mode != Events && cfg.Mode != Conditions:
		return nil, errors.New("publish: no such mode: " + string(cfg.Mode))
	}
	cfg.Mode = cmp.Or(cfg.Mode, Conditions)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	st := newStats()
	api, err := newClient(cfg.API, cfg.Node, st)
	if err != nil {
		return nil, err
	}
	st.pending.Store(cfg.Mode == Conditions)
	return &Publisher{cfg: cfg, api: api, stats: st, events: newEvents(st), wake: make(chan struct{}, 1), begun: time.Now(),
		outage: backoff{limit: outageLimit}, refused: backoff{limit: refusedLimit}, barred: backoff{limit: refusedLimit},
		applyRate: bucket{every: 10 * time.Second, burst: 3}, eventRate: bucket{every: 2 * time.Second, burst: 10}}, nil
}

// Publish implements [agent.Publisher].
func (p *Publisher) Publish(happened []agent.Happening) {
	p.events.add(happened)
	p.nudge()
}

// Follow makes the publisher read the own Node every 30 s, for as long as
// somebody waits for it to become Ready.
func (p *Publisher) Follow(on bool) {
	if p.follow.Swap(on) != on {
		p.nudge()
	}
}

// Reread makes the publisher read the own Node again, at most each five minutes.
func (p *Publisher) Reread() {
	if !p.again.Swap(true) {
		p.nudge()
	}
}

// Alive fails when a request has been on its way for three times its deadline.
// What the API server answers never counts.
func (p *Publisher) Alive() error {
	if since := p.busy.Load(); since != 0 && time.Since(p.begun)-time.Duration(since) > 3*deadline {
		return errors.New("the publisher's loop is stuck in a request")
	}
	return nil
}

func (p *Publisher) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run publishes until ctx ends. Then it leaves the conditions as they are, sends
// what Events it can within 2 s, and returns nil.
func (p *Publisher) Run(ctx context.Context) error {
	start := time.Now()
	p.notBefore, p.settleBy = start.Add(upTo(startSpread)), start.Add(settleFor)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		step, at := p.next(time.Now())
		if step != nil {
			p.take(ctx, step)
			continue
		}
		timer.Reset(time.Until(at))
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-timer.C:
		}
	}
	p.leave(context.WithoutCancel(ctx))
	return nil
}

// errRefused is an answer that concerns only the kind of request it was given to.
var errRefused = errors.New("refused")

// A step is one request.
type step func(context.Context) error

// next is the one thing to do now, or when to ask again. The Node is read before
// anything is written, and conditions go before Events.
func (p *Publisher) next(now time.Time) (step, time.Time) {
	if now.Before(p.notBefore) {
		return nil, p.notBefore
	}
	at := now.Add(idle)
	if p.follow.Load() {
		at = p.readAt
	}
	if p.again.Load() {
		at = earlier(at, p.lastRead.Add(rereadEvery))
	}
	if p.uid == "" || p.wantRead || !now.Before(at) {
		return p.read, now
	}
	if p.cfg.Mode == Conditions {
		list, due := p.due(now)
		if !now.Before(due) {
			return func(ctx context.Context) error { return p.apply(ctx, list) }, now
		}
		at = earlier(at, due)
	}
	due := p.events.next(now, at)
	if due.Equal(now) {
		due = later(p.eventRate.at(now), p.sendFrom)
	}
	if !now.Before(due) {
		return p.send, now
	}
	return nil, earlier(at, due)
}

// due is the newest list of conditions, and when to apply it.
func (p *Publisher) due(now time.Time) ([]condition, time.Time) {
	snapshot := p.cfg.Source()
	p.forget(&snapshot)
	list := conditionsOf(&snapshot, p.kept)
	if !p.settled {
		if due := p.settle(now, &snapshot); now.Before(due) {
			return nil, due
		}
	}
	if p.adopting && sameTexts(list, p.applied) {
		p.applied, p.adopting = list, false // a restart that changes nothing writes nothing
	}
	due := p.beat
	switch verdict, text := p.compare(list); {
	case !verdict:
		p.stats.pending.Store(true)
		due = now
	case !text:
		if p.textSince.IsZero() {
			p.textSince = now
		}
		p.stats.pending.Store(true)
		due = earlier(p.beat, p.textSince.Add(messageEvery))
	default:
		p.stats.pending.Store(false)
		p.textSince = time.Time{}
		if len(list) == 0 {
			return list, now.Add(idle)
		}
	}
	return list, later(due, later(p.applyRate.at(now), p.applyFrom))
}

// forget drops what was kept of types that have been withdrawn.
func (p *Publisher) forget(s *agent.Snapshot) {
	maps.DeleteFunc(p.kept, func(t string, _ condition) bool {
		return !slices.ContainsFunc(s.Conditions, func(c agent.Condition) bool { return c.Type == t })
	})
}

// compare tells whether verdicts and texts are those that the Node shows.
func (p *Publisher) compare(list []condition) (verdict, text bool) {
	if len(list) != len(p.applied) {
		return false, false
	}
	verdict, text = !p.adopting, true
	for i := range list {
		verdict = verdict && list[i].sameVerdict(&p.applied[i])
		text = text && list[i].sameText(&p.applied[i])
	}
	return verdict, text
}

// settle waits at start for every probe's first look, and then, unless
// something is critical, a moment that differs from node to node.
func (p *Publisher) settle(now time.Time, s *agent.Snapshot) time.Time {
	undecided := slices.ContainsFunc(s.Conditions, func(c agent.Condition) bool { return c.Status == "" })
	if undecided && now.Before(p.settleBy) {
		return p.settleBy
	}
	p.settled = true
	critical := slices.ContainsFunc(s.Conditions, func(c agent.Condition) bool {
		return slices.ContainsFunc(c.Findings, func(f agent.Finding) bool { return f.Stands() && f.Severity == probes.Critical })
	})
	if !critical {
		p.applyFrom = now.Add(upTo(applySpread))
	}
	return now
}

// take makes one request and draws the conclusions that do not depend on which.
func (p *Publisher) take(ctx context.Context, do step) {
	p.busy.Store(max(1, int64(time.Since(p.begun))))
	err := do(ctx)
	p.busy.Store(0)
	if ctx.Err() != nil {
		return
	}
	if errors.Is(err, errRefused) { // the way to the API server is open
		p.outage.reset()
		return
	}
	if err == nil {
		if p.failure != "" {
			p.cfg.Log.Info("the API server takes what we publish again")
		}
		p.failure = ""
		p.outage.reset()
		return
	}
	var retryAfter time.Duration
	if e, ok := errors.AsType[*apiError](err); ok {
		retryAfter = e.retryAfter
	}
	p.notBefore = time.Now().Add(p.outage.next(retryAfter))
	p.logOnce(&p.failure, err)
}

// logOnce logs each new kind of failure.
func (p *Publisher) logOnce(last *string, err error) {
	kind := "no answer"
	if code := codeOf(err); code != 0 {
		kind = http.StatusText(code)
	}
	if *last == kind {
		return
	}
	*last = kind
	if codeOf(err) == http.StatusNotFound {
		p.cfg.Log.Error("the API server knows no Node of this name: is the node's name right?", "node", p.cfg.Node, "error", err)
		return
	}
	p.cfg.Log.Warn("the API server does not take what we publish", "error", err)
}

// read reads the own Node.
func (p *Publisher) read(ctx context.Context) error {
	n, err := p.api.read(ctx, p.fresh)
	if err != nil {
		return err
	}
	now := time.Now()
	p.wantRead, p.fresh, p.lastRead = false, false, now
	p.again.Store(false)
	p.readAt = now.Add(refreshEvery - refreshEvery/10 + upTo(refreshEvery/5))
	switch {
	case p.kept == nil:
		p.adopt(n, now)
	case p.uid != n.Metadata.UID:
		p.cfg.Log.Warn("the Node was deleted and made anew", "uid", n.Metadata.UID)
		p.kept, p.applied, p.adopting = map[string]condition{}, nil, false
	}
	p.uid = n.Metadata.UID
	if p.cfg.Ready != nil {
		p.cfg.Ready(n.readiness(now))
	}
	return nil
}

// adopt takes over what an earlier run of this boot has published.
func (p *Publisher) adopt(n *node, now time.Time) {
	p.kept, p.adopting = map[string]condition{}, true
	for _, c := range n.ours(p.cfg.Types) {
		if c.writtenSince(p.cfg.Boot) {
			p.kept[c.Type] = c
		}
	}
	age := 2 * heartbeat // of our last apply, as far as the heartbeats tell
	for _, c := range n.Status.Conditions {
		if slices.Contains(p.cfg.Types, c.Type) {
			p.applied = append(p.applied, c)
			age = min(age, max(now.Sub(c.LastHeartbeatTime), 0))
		}
	}
	p.beat = later(now, now.Add(nextBeat()-age))
	p.events.found(p.kept)
	if p.cfg.Adopter == nil || p.cfg.Mode != Conditions {
		return
	}
	for _, c := range p.kept {
		p.cfg.Adopter.Adopt(c.Type, c.Status, c.Reason, c.LastTransitionTime)
	}
}

// apply puts our conditions on the Node.
func (p *Publisher) apply(ctx context.Context, list []condition) error {
	uid, err := p.api.apply(ctx, list)
	switch {
	case err != nil && final(err):
		p.applyFrom = time.Now().Add(p.refused.next(0))
		p.logOnce(&p.refusal, err)
		return errRefused // Events may still go
	case err != nil:
		if codeOf(err) == http.StatusNotFound {
			p.wantRead, p.fresh = true, true
		}
		return err
	}
	now := time.Now()
	p.refused.reset()
	p.refusal = ""
	p.applyRate.take(now)
	p.applied, p.adopting, p.textSince = list, false, time.Time{}
	for _, c := range list {
		p.kept[c.Type] = c
	}
	p.beat = now.Add(nextBeat())
	p.stats.pending.Store(false)
	if uid != p.uid {
		p.wantRead, p.fresh = true, true
	}
	return nil
}

// send sends the Event that has waited longest. One that nobody could send is
// dropped; without the right to send any, they wait: an API server that has just
// started refuses everybody for a moment.
func (p *Publisher) send(ctx context.Context) error {
	q, ok := p.events.first()
	if !ok {
		return nil
	}
	now := time.Now()
	p.eventRate.take(now)
	err := p.api.create(ctx, q.event(&p.cfg, p.uid, now))
	switch {
	case err == nil:
		p.barred.reset()
		p.lost = ""
	case codeOf(err) == http.StatusForbidden:
		p.sendFrom = time.Now().Add(p.barred.next(0))
		p.logOnce(&p.lost, err)
		return errRefused
	case final(err) || codeOf(err) == http.StatusNotFound:
		p.stats.dropped.Add(1)
		p.logOnce(&p.lost, err)
	default:
		return err
	}
	p.events.remove(q.stamp)
	return nil
}

// leave sends what Events it can.
func (p *Publisher) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveFor)
	defer cancel()
	for p.uid != "" && p.events.waiting() {
		if err := p.send(ctx); err != nil {
			p.cfg.Log.Warn("Events stay unsent", "error", err)
			return
		}
	}
}

func nextBeat() time.Duration { return heartbeat - heartbeatShare + upTo(2*heartbeatShare) }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

var _ agent.Publisher = (*Publisher)(nil)
