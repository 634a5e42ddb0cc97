// Package agent runs probes, decides what their looks mean and remembers it.
//
// Data flows one way: node -> probe -> look -> agent -> conditions ->
// publishers. Each probe has a loop that owns its state; a pure function, fold,
// turns a look into a new state; publishers are told that something changed and
// pull a [Snapshot].
package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// Config is what an [Agent] is made of. Node, Log and Boot are needed; the rest
// may be left out.
type Config struct {
	Node       string // the Node object's name
	Log        *slog.Logger
	Boot       string               // identity of this boot: memory of another one is void
	Mono       func() time.Duration // monotonic time since boot; nil: since the agent's start
	Probes     []probes.Probe
	Rules      Rules
	Publishers []Publisher
	Journal    Journal      // nil: nobody knows who did what
	Memory     Memory       // nil: nothing outlives the process
	Lifecycle  Lifecycle    // nil: the node is neither set up nor shut down
	Strain     StrainReader // nil: the agent is never starved
	// Beats sends at each whole multiple of [Beat] on Mono; nil: each loop has a timer of its own.
	Beats func(context.Context) (<-chan struct{}, error)
}

// Agent holds what is known of one node.
type Agent struct {
	cfg   Config
	start time.Time
	mono  time.Duration // at start

	change chan struct{} // full while loops are started or exchanged: to wait for it may take as long as a look

	mu      sync.Mutex // guards the fields below: many loops and readers use them
	loops   []*loop
	rules   *Rules
	stop    func() // ends the loops of the present configuration
	phase   phase
	summary Condition
	told    Status               // the summary's, as last told
	history []Occurrence         // a ring in order, oldest first
	adopted map[string]Condition // by type: what the Node object said at start
	turned  map[string]bool      // types whose status changed in this process
	ready   Readiness
	failed  string // why provisioning failed; "" if it did not

	stopping  atomic.Bool
	beating   atomic.Bool // loops whose time is a beat are woken by wakeDue
	dirty     chan struct{}
	heartbeat atomic.Int64 // monotonic, ns: when the agent's own loop last turned
}

// New returns an agent that has not looked yet.
func New(cfg Config) *Agent {
	a := &Agent{cfg: cfg, start: time.Now(), adopted: map[string]Condition{}, turned: map[string]bool{}, change: make(chan struct{}, 1), dirty: make(chan struct{}, 1)}
	if cfg.Mono != nil {
		a.mono = cfg.Mono()
	}
	rules := cfg.Rules
	a.rules = &rules
	a.summary = Condition{Type: NodeDrift, Findings: []Finding{}, NotJudged: []string{}}
	a.heartbeat.Store(int64(a.now().Mono))
	for _, p := range cfg.Probes {
		a.loops = append(a.loops, newLoop(a, p))
	}
	return a
}

// now is the present on both clocks. Go's own monotonic clock is Linux's
// CLOCK_MONOTONIC, so one reading at start is enough to count from boot.
func (a *Agent) now() Instant {
	n := time.Now()
	return Instant{Wall: n, Mono: a.mono + n.Sub(a.start)}
}

// Run looks, decides and tells until ctx ends. It returns nil.
func (a *Agent) Run(ctx context.Context) error {
	a.recall()
	a.live(ctx)
	a.mu.Lock()
	stop := a.stop
	a.mu.Unlock()
	if stop != nil {
		stop()
	}
	a.remember()
	return nil
}

// launch starts the loops of all probes, unless they run.
func (a *Agent) launch(ctx context.Context) {
	a.change <- struct{}{}
	defer func() { <-a.change }()
	a.begin(ctx)
}

// stopListening is how long a Watcher that does not heed its context holds up
// the end of its loop.
const stopListening = time.Second

func (a *Agent) begin(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var looking, listening sync.WaitGroup
	for _, l := range a.loops {
		l.turn.Store(int64(a.now().Mono))
		l.rules <- a.rules
		looking.Go(func() { l.run(ctx) })
		if w, ok := l.probe.(probes.Watcher); ok {
			listening.Go(func() { l.watch(ctx, w) })
		}
	}
	a.stop = func() {
		cancel()
		looking.Wait()
		deaf := make(chan struct{})
		go func() {
			listening.Wait()
			close(deaf)
		}()
		select {
		case <-deaf:
		case <-time.After(stopListening):
			a.cfg.Log.Error("a probe still listens after its end")
		}
	}
}

// Reconfigure puts other rules and probes in place. What stands, is held or was
// seen of a probe that stays is kept.
func (a *Agent) Reconfigure(ctx context.Context, rules Rules, list []probes.Probe) {
	a.change <- struct{}{}
	defer func() { <-a.change }()
	a.mu.Lock()
	stop := a.stop
	a.stop = nil
	a.mu.Unlock()
	if stop != nil {
		stop()
	}
	a.mu.Lock()
	old := a.loops
	a.loops, a.rules = nil, &rules
	for _, p := range list {
		l := newLoop(a, p)
		if i := slices.IndexFunc(old, func(o *loop) bool { return o.sub.spec.Name == l.sub.spec.Name }); i >= 0 {
			l.inherit(old[i])
		}
		a.loops = append(a.loops, l)
	}
	launch := stop != nil
	a.mu.Unlock()
	if launch {
		a.begin(ctx)
	}
	a.tell(nil)
}

// inherit takes over what another configuration's loop knew.
func (l *loop) inherit(old *loop) {
	v := old.seenView()
	l.state = old.state
	l.view.condition, l.view.notApplicable, l.view.looked = v.condition, v.notApplicable, v.looked
	l.view.standing, l.view.lastGood, l.view.samples, l.view.fingerprints = v.standing, v.lastGood, v.samples, v.fingerprints
	l.view.keep = v.keep
	l.remind(v.keep)
	for i := range l.stat.runs {
		l.stat.runs[i].Store(old.stat.runs[i].Load())
	}
	l.stat.duration.Store(old.stat.duration.Load())
	l.stat.lastGood.Store(old.stat.lastGood.Load())
	l.stat.lost.Store(old.stat.lost.Load())
}

// tell takes in what happened, brings the summary up to date, and passes both
// on. It logs one line per happening.
func (a *Agent) tell(happened []Happening) {
	a.mu.Lock()
	now := a.now()
	a.summarize(now)
	if s := &a.summary; s.Status != a.told { // told apart: a Snapshot in between brings the summary up to date too
		h := Happening{Time: now.Wall, Condition: NodeDrift, From: a.told, To: s.Status, Reason: s.Reason, Message: s.Message}
		h.Kind, h.Severity = turnedTo(s.Status)
		happened = append(slices.Clone(happened), h)
		a.told = s.Status
	}
	for i := range happened {
		a.record(&happened[i])
	}
	a.mu.Unlock()
	for i := range happened {
		a.logHappening(&happened[i])
	}
	for _, p := range a.cfg.Publishers {
		p.Publish(happened)
	}
	select {
	case a.dirty <- struct{}{}:
	default:
	}
}

// maxHistory bounds the ring of occurrences.
const maxHistory = 64

// record keeps a happening in the history.
func (a *Agent) record(h *Happening) {
	if h.From != h.To && h.From != "" {
		a.turned[h.Condition] = true
		delete(a.adopted, h.Condition)
	}
	if h.Condition == NodeDrift {
		return
	}
	if len(a.history) == maxHistory {
		a.history = slices.Delete(a.history, 0, 1)
	}
	a.history = append(a.history, Occurrence{Time: h.Time, Probe: h.Probe, Reason: h.Reason, Severity: h.Severity, Subject: h.Subject,
		Message: h.Kind.String() + ": " + h.Message, Actor: h.Actor})
}

func (a *Agent) logHappening(h *Happening) {
	level := slog.LevelInfo
	if h.Kind == Raised || h.Kind == Blinded || h.Kind == Occurred && h.Severity >= probes.Warning {
		level = slog.LevelWarn
	}
	a.cfg.Log.Log(context.Background(), level, h.Kind.String(), "condition", h.Condition, "reason", h.Reason,
		"from", h.From, "to", h.To, "subject", h.Subject, "message", h.Message)
}

// Snapshot is what is known now. Its slices are shared and must not be changed.
func (a *Agent) Snapshot() Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	s := Snapshot{Complete: true, Document: Document{SchemaVersion: SchemaVersion, Node: a.cfg.Node, Time: now.Wall,
		Conditions: []Condition{}, NotApplicable: []NotApplicable{}, Sources: []Source{}, Occurrences: append([]Occurrence{}, a.history...)}}
	a.summarize(now)
	s.Conditions = append(s.Conditions, a.since(a.summary))
	for _, l := range a.loops {
		v := l.seenView()
		s.Complete = s.Complete && (v.looked || a.phase == settingUp)
		s.Probes = append(s.Probes, l.account(&v))
		if v.source != nil {
			src := *v.source
			src.Lost = l.stat.lost.Load()
			if l.sub.spec.Condition == "" {
				src.Error = cmp.Or(src.Error, strings.Join(v.condition.NotJudged, "; "))
			}
			s.Sources = append(s.Sources, src)
		}
		if v.notApplicable != "" {
			s.NotApplicable = append(s.NotApplicable, NotApplicable{Probe: l.sub.spec.Name, Why: v.notApplicable})
		} else if l.sub.spec.Condition != "" {
			s.Conditions = append(s.Conditions, a.since(a.condition(l, &v)))
		}
	}
	return s
}

// since puts back the transition time of an earlier run whose status still holds.
func (a *Agent) since(c Condition) Condition {
	if o, ok := a.adopted[c.Type]; ok && o.Status == c.Status && o.LastTransitionTime.Before(c.LastTransitionTime) {
		c.LastTransitionTime = o.LastTransitionTime
	}
	return c
}

// condition is a probe's condition as it is to be shown: Unknown while the node
// is being set up, and NotCheckedYet, with no status, before the first look.
func (a *Agent) condition(l *loop, v *view) Condition {
	c := v.condition
	switch {
	case a.phase == settingUp:
		c = Condition{Type: l.sub.spec.Condition, Probe: l.sub.spec.Name, Status: Unknown, Reason: NodeProvisioning,
			Message: "the node is still being set up", LastTransitionTime: a.start}
	case c.Status == "":
		c = Condition{Type: l.sub.spec.Condition, Probe: l.sub.spec.Name, Reason: NotCheckedYet, Message: "not looked yet"}
	}
	if c.Findings == nil {
		c.Findings = []Finding{}
	}
	if c.NotJudged == nil {
		c.NotJudged = []string{}
	}
	return c
}

func (l *loop) account(v *view) ProbeStat {
	p := ProbeStat{Spec: l.sub.spec, Runs: make(map[string]uint64, len(results)), Duration: time.Duration(l.stat.duration.Load()),
		Samples: v.samples, Fingerprints: v.fingerprints, Lost: l.stat.lost.Load()}
	for i, name := range results {
		p.Runs[name] = l.stat.runs[i].Load()
	}
	if t := l.stat.lastGood.Load(); t != 0 {
		p.LastSuccess = time.Unix(0, t)
	}
	return p
}

// Ready tells whether every probe has looked at least once.
func (a *Agent) Ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase == settingUp {
		return nil
	}
	for _, l := range a.loops {
		if v := l.seenView(); !v.looked {
			return fmt.Errorf("probe %s has not looked yet", l.sub.spec.Name)
		}
	}
	return nil
}

// Alive tells whether every loop has turned within three times its longest
// deadline. API errors never count.
func (a *Agent) Alive() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now().Mono
	if idle := now - time.Duration(a.heartbeat.Load()); idle > 3*Beat {
		return fmt.Errorf("the agent's own loop has not turned for %s", age(idle))
	}
	if a.stop == nil {
		return nil
	}
	var late []error
	for _, l := range a.loops {
		longest := max(a.rules.every(&l.sub.spec), l.sub.spec.Timeout)
		if idle := now - time.Duration(l.turn.Load()); idle > 3*longest {
			late = append(late, fmt.Errorf("the loop of probe %s has not turned for %s", l.sub.spec.Name, age(idle)))
		}
	}
	return errors.Join(late...)
}

// Adopt implements [Adopter].
func (a *Agent) Adopt(condition string, status Status, reason string, transition time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.turned[condition] {
		a.adopted[condition] = Condition{Status: status, Reason: reason, LastTransitionTime: transition}
	}
}

// firstFrame names the place of a panic: the first line below the panic's own
// frames that lies in this project.
func firstFrame(stack []byte) string {
	_, after, found := bytes.Cut(stack, []byte("panic("))
	if !found {
		after = stack
	}
	for line := range bytes.Lines(after) {
		if line = bytes.TrimSpace(line); bytes.Contains(line, []byte(".go:")) && !bytes.Contains(line, []byte("runtime/")) {
			name, _, _ := bytes.Cut(line, []byte(" +"))
			return string(name[bytes.LastIndexByte(name, '/')+1:])
		}
	}
	return "unknown place"
}
