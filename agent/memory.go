package agent

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// A Memory keeps a few kilobytes for as long as the node is up: on the host's
// /run, which dies with the boot.
type Memory interface {
	Load() ([]byte, error) // nil, nil when there is nothing yet
	Save([]byte) error
}

// maxMemory bounds what is kept.
const maxMemory = 64 << 10

// remembered is the memory's content.
type remembered struct {
	SchemaVersion string                 `json:"schemaVersion"`
	Boot          string                 `json:"boot"`
	NodeUID       string                 `json:"nodeUID"`
	Summary       turnedAt               `json:"summary"`
	Probes        map[string]probeMemory `json:"probes"`
}

type turnedAt struct {
	Status             Status    `json:"status"`
	Reason             string    `json:"reason"`
	Message            string    `json:"message"`
	LastTransitionTime time.Time `json:"lastTransitionTime"`
}

type probeMemory struct {
	turnedAt
	LastGood Instant `json:"lastGood"`
	Standing []kept  `json:"standing,omitempty"`
	// Keep is the probe's own, see probes.Rememberer.
	Keep map[string]string `json:"keep,omitempty"`
}

// maxKeep bounds what a probe may keep for itself.
const maxKeep = 8 << 10

// keeps tells whether a probe's own words are few enough.
func keeps(own map[string]string) bool {
	n := 0
	for k, v := range own {
		n += len(k) + len(v) + len(`"":"",`)
	}
	return n <= maxKeep
}

// kept is a standing finding without what is empty: a few hundred must fit.
type kept struct {
	Reason       string          `json:"reason"`
	ID           string          `json:"id,omitempty"`
	Subject      string          `json:"subject,omitempty"`
	Message      string          `json:"message,omitempty"`
	Observed     string          `json:"observed,omitempty"`
	Wanted       string          `json:"wanted,omitempty"`
	Source       string          `json:"source,omitempty"`
	Severity     probes.Severity `json:"severity,omitzero"`
	Hold         time.Duration   `json:"hold,omitzero"`
	Trace        probes.Key      `json:"trace,omitzero"`
	Consequences []probes.Ref    `json:"consequences,omitempty"`
	First        Instant         `json:"first"`
	Gone         time.Duration   `json:"gone,omitzero"`
	Confirmed    bool            `json:"confirmed,omitzero"`
	Raised       time.Duration   `json:"raised,omitzero"`
	CleanAt      time.Duration   `json:"cleanAt,omitzero"`
	Blind        time.Duration   `json:"blindSince,omitzero"`
	Dark         bool            `json:"dark,omitzero"`
	Actor        *Actor          `json:"actor,omitempty"`
}

func keep(s *standing) kept {
	f := &s.F
	return kept{f.Reason, f.ID, f.Subject, f.Message, f.Observed, f.Wanted, f.Source, f.Severity, f.Hold, f.Trace, f.Consequences,
		s.First, s.Gone, s.Confirmed, s.Raised, s.CleanAt, s.Blind, s.Dark, s.Actor}
}

// standing is what was kept, bounded anew: the file may have been damaged. It is
// nil when its times are not of this boot's past.
func (k *kept) standing(now Instant) *standing {
	for _, t := range []time.Duration{k.First.Mono, k.Gone, k.Raised, k.CleanAt, k.Blind} {
		if t < 0 || t > now.Mono {
			return nil
		}
	}
	f := bound(&probes.Finding{Reason: k.Reason, ID: k.ID, Subject: k.Subject, Message: k.Message, Observed: k.Observed, Wanted: k.Wanted,
		Source: k.Source, Severity: k.Severity, Hold: k.Hold, Trace: k.Trace, Consequences: k.Consequences})
	if f.Message+f.Observed+f.Wanted == "" {
		f.Message = f.Subject + " stood before the agent was restarted"
	}
	s := &standing{F: f, First: k.First, Gone: k.Gone, Confirmed: k.Confirmed, Raised: k.Raised, CleanAt: k.CleanAt, SeenAt: max(k.Raised, k.First.Mono), Blind: k.Blind, Dark: k.Dark}
	if k.Actor != nil {
		a := *k.Actor
		for _, t := range []*string{&a.Comm, &a.Unit, &a.Pod, &a.Container} {
			*t = clean(*t, maxField)
		}
		s.Actor = &a
	}
	return s
}

// recall takes over what an earlier process of this boot knew.
func (a *Agent) recall() {
	if a.cfg.Memory == nil {
		return
	}
	m, err := a.load()
	if err != nil {
		a.cfg.Log.Warn("cannot recall what was known before; starting afresh", "error", err)
		return
	}
	if m == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ready.UID = m.NodeUID
	if s := &m.Summary; s.Status == True || s.Status == False || s.Status == Unknown {
		a.summary.Status, a.summary.Reason, a.summary.Message = s.Status, clean(s.Reason, maxField), clean(s.Message, maxMessage)
		a.summary.LastTransitionTime, a.told = s.LastTransitionTime, s.Status
	}
	for _, l := range a.loops {
		if p, ok := m.Probes[l.sub.spec.Name]; ok {
			l.recall(p, a.rules, a.now())
		}
	}
}

// load reads the memory; nil when there is none of this boot.
func (a *Agent) load() (*remembered, error) {
	b, err := a.cfg.Memory.Load()
	if err != nil || len(b) == 0 {
		return nil, err
	}
	if len(b) > maxMemory {
		return nil, fmt.Errorf("the memory has %d bytes, more than is ever written", len(b))
	}
	var m remembered
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("parse the memory: %w", err)
	}
	if m.SchemaVersion != SchemaVersion || m.Boot != a.cfg.Boot {
		return nil, nil
	}
	return &m, nil
}

// recall takes over what is known of the loop's probe, as far as it can be true.
func (l *loop) recall(p probeMemory, rules *Rules, now Instant) {
	if p.Status != True && p.Status != False && p.Status != Unknown {
		return
	}
	if p.LastGood.Mono < 0 || p.LastGood.Mono > now.Mono {
		p.LastGood = Instant{}
	}
	l.state.LastGood, l.state.recalled = p.LastGood, true
	l.remind(p.Keep)
	for i := range p.Standing[:min(len(p.Standing), maxStanding)] {
		if s := p.Standing[i].standing(now); s != nil && l.sub.reasons[s.F.Reason] != nil {
			l.state.Standing = append(l.state.Standing, *s)
		}
	}
	slices.SortFunc(l.state.Standing, compareStanding)
	l.state.Standing = slices.CompactFunc(l.state.Standing, func(a, b standing) bool { return a.is(&b.F) })
	c := &l.state.Condition
	c.Status, c.Reason, c.Message = p.Status, clean(p.Reason, maxField), clean(p.Message, maxMessage)
	c.LastTransitionTime, c.LastCheckTime = p.LastTransitionTime, p.LastGood.Wall
	c.Findings, _ = l.state.findings(l.sub, rules, now)
	for i := range c.Findings {
		c.Findings[i].known = c.Status == True && c.Findings[i].drifts()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.view.condition, l.view.standing, l.view.lastGood, l.view.keep = l.state.Condition, l.state.Standing, l.state.LastGood, p.Keep
}

// remind gives the probe back what it kept.
func (l *loop) remind(own map[string]string) {
	r, ok := l.probe.(probes.Rememberer)
	if !ok || own == nil || !keeps(own) {
		return
	}
	if err := guard(func() error { r.Recall(maps.Clone(own)); return nil }); err != nil {
		l.log.Error("cannot recall", "error", clean(err.Error(), maxError))
	}
}

// remember writes down what the next process needs to go on as if nothing had
// happened.
func (a *Agent) remember() {
	if a.cfg.Memory == nil {
		return
	}
	b, err := a.memory()
	if err == nil {
		err = a.cfg.Memory.Save(b)
	}
	if err != nil {
		a.cfg.Log.Warn("cannot remember what is known", "error", err)
	}
}

// memory is what remember writes, at most maxMemory bytes: when there is more,
// texts go first, then what is held, then what sorts last of the longest lists.
func (a *Agent) memory() ([]byte, error) {
	m := a.collect()
	for cut := 0; ; cut++ {
		b, err := json.Marshal(m)
		if err != nil || len(b) <= maxMemory {
			return b, err
		}
		if maxStanding>>cut == 0 {
			return nil, fmt.Errorf("%d bytes are too many", len(b))
		}
		for name, p := range m.Probes {
			p.Standing = slimmer(p.Standing, cut)
			m.Probes[name] = p
		}
	}
}

// slimmer is one step towards a memory that fits.
func slimmer(list []kept, step int) []kept {
	switch step {
	case 0:
		for i := range list {
			f := &list[i]
			f.Message, f.Observed, f.Wanted, f.Source, f.Consequences = "", "", "", "", nil
		}
	case 1:
		list = slices.DeleteFunc(list, func(k kept) bool { return !k.Confirmed })
	default:
		list = list[:min(len(list), maxStanding>>(step-1))]
	}
	return list
}

func (a *Agent) collect() *remembered {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.since(a.summary)
	m := &remembered{SchemaVersion: SchemaVersion, Boot: a.cfg.Boot, NodeUID: a.ready.UID, Probes: map[string]probeMemory{},
		Summary: turnedAt{s.Status, s.Reason, s.Message, s.LastTransitionTime}}
	for _, l := range a.loops {
		v := l.seenView()
		if v.condition.Status == "" {
			continue
		}
		c := a.since(v.condition)
		p := probeMemory{turnedAt: turnedAt{c.Status, c.Reason, c.Message, c.LastTransitionTime}, LastGood: v.lastGood, Keep: v.keep}
		for i := range v.standing {
			p.Standing = append(p.Standing, keep(&v.standing[i]))
		}
		m.Probes[l.sub.spec.Name] = p
	}
	return m
}
