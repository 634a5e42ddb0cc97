package agent

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
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
	LastGood Instant    `json:"lastGood"`
	Standing []standing `json:"standing,omitempty"`
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
	a.summary.Status, a.summary.Reason, a.summary.Message = m.Summary.Status, m.Summary.Reason, m.Summary.Message
	a.summary.LastTransitionTime, a.told = m.Summary.LastTransitionTime, m.Summary.Status
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
	var m remembered
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("parse the memory: %w", err)
	}
	if m.SchemaVersion != SchemaVersion || m.Boot != a.cfg.Boot {
		return nil, nil
	}
	return &m, nil
}

func (l *loop) recall(p probeMemory, rules *Rules, now Instant) {
	l.state.LastGood, l.state.recalled = p.LastGood, true
	for _, s := range p.Standing {
		if l.sub.reasons[s.F.Reason] != nil && s.First.Mono <= now.Mono {
			l.state.Standing = append(l.state.Standing, s)
		}
	}
	slices.SortFunc(l.state.Standing, compareStanding)
	c := &l.state.Condition
	c.Status, c.Reason, c.Message, c.LastTransitionTime, c.LastCheckTime = p.Status, p.Reason, p.Message, p.LastTransitionTime, p.LastGood.Wall
	c.Findings, _ = l.state.findings(l.sub, rules, l.sub.spec.UnknownAfter, now)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.view.condition, l.view.standing, l.view.lastGood = l.state.Condition, l.state.Standing, l.state.LastGood
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
// texts go first, then what is held, then what sorts last.
func (a *Agent) memory() ([]byte, error) {
	m := a.collect()
	for cut := 0; ; cut++ {
		b, err := json.Marshal(m)
		if err != nil || len(b) <= maxMemory {
			return b, err
		}
		for name, p := range m.Probes {
			p.Standing = slimmer(p.Standing, cut)
			m.Probes[name] = p
		}
	}
}

// slimmer is one step towards a memory that fits.
func slimmer(list []standing, step int) []standing {
	list = slices.Clone(list)
	switch step {
	case 0:
		for i := range list {
			f := &list[i].F
			f.Message, f.Observed, f.Wanted, f.Source, f.Consequences = "", "", "", "", nil
		}
	case 1:
		list = slices.DeleteFunc(list, func(s standing) bool { return !s.Confirmed })
	default:
		list = list[:len(list)/2]
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
		m.Probes[l.sub.spec.Name] = probeMemory{turnedAt{c.Status, c.Reason, c.Message, c.LastTransitionTime}, v.lastGood, v.standing}
	}
	return m
}
