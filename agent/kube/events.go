package kube

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

const (
	eventNamespace = "default" // where Events about cluster-scoped objects live

	maxQueue   = 64  // Events waiting; the oldest is dropped
	maxReasons = 256 // reasons with a limiter of their own
	lateAfter  = time.Minute

	perReasonBurst = 6
	perReasonEvery = 5 * time.Minute
)

// An event is a core/v1 Event of the old style (no eventTime): the API server
// takes it without action and reportingInstance, and kubectl describe node finds
// it by the involved object's name and real UID.
type event struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Metadata   eventMetadata `json:"metadata"`
	Involved   involved      `json:"involvedObject"`
	Reason     string        `json:"reason"`
	Message    string        `json:"message"`
	Type       string        `json:"type"`
	Source     eventSource   `json:"source"`
	First      time.Time     `json:"firstTimestamp"`
	Last       time.Time     `json:"lastTimestamp"`
	Count      int           `json:"count"`
	Component  string        `json:"reportingComponent"`
	Instance   string        `json:"reportingInstance,omitempty"`
}

type eventMetadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type involved struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
}

type eventSource struct {
	Component string `json:"component"`
	Host      string `json:"host"`
}

// queued is a happening on its way to become an Event. Its stamp makes the name,
// the same on every try.
type queued struct {
	agent.Happening
	kind  string // Normal or Warning
	stamp int64
}

// event gives a queued happening the shape of the API.
func (q *queued) event(cfg *Config, uid string, now time.Time) *event {
	message, at := q.Message, q.Time.UTC().Truncate(time.Second)
	if now.Sub(q.Time) > lateAfter {
		seen := " (seen " + at.Format(time.RFC3339) + ")"
		message = oneLine(message, maxEventMessage-len(seen)) + seen
	}
	// A name has at most 253 bytes; the stamp takes 17 of them.
	name := fmt.Sprintf("%s.%x", strings.TrimRight(cfg.Node[:min(len(cfg.Node), 236)], ".-"), q.stamp)
	return &event{APIVersion: "v1", Kind: "Event", Metadata: eventMetadata{name, eventNamespace},
		Involved: involved{"v1", "Node", cfg.Node, uid}, Reason: q.Reason, Message: oneLine(message, maxEventMessage), Type: q.kind,
		Source: eventSource{fieldManager, cfg.Node}, First: at, Last: at, Count: 1, Component: fieldManager, Instance: cfg.Pod}
}

// events holds what is to become Events. Its methods may be called from any
// goroutine.
type events struct {
	stats *stats

	mu      sync.Mutex
	queue   []queued
	reasons map[reasonOf]*limiter
	blind   map[string]bool // conditions whose blindness was told
	stamp   int64
}

// A reasonOf is a reason of one condition: the engine's own, such as ProbeFailed,
// are many conditions'.
type reasonOf struct{ condition, reason string }

// A limiter lets a few Events of one reason through and folds the rest.
type limiter struct {
	bucket
	more  int // suppressed
	since time.Time
	last  queued
}

func newEvents(st *stats) *events {
	return &events{stats: st, reasons: map[reasonOf]*limiter{}, blind: map[string]bool{}}
}

// add takes in what happened.
func (e *events) add(happened []agent.Happening) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	e.summarize(now)
	for i := range happened {
		if kind := e.kindOf(&happened[i]); kind != "" {
			e.limit(queued{Happening: happened[i], kind: kind}, now)
		}
	}
}

// kindOf says whether a happening becomes an Event, and of which type. What is
// lawful, informative, only the summary's, or merely the agent's start, is for
// the log.
func (e *events) kindOf(h *agent.Happening) string {
	switch {
	case h.Reason == agent.NodeShuttingDown:
		return "Normal"
	case h.Reason == agent.ProvisioningFailed && h.To == agent.True:
		return "Warning"
	case h.Reason == "" || h.Condition == agent.NodeDrift:
		return ""
	case h.Kind == agent.Restored:
		told := e.blind[h.Condition]
		delete(e.blind, h.Condition)
		if !told || h.From == "" {
			return ""
		}
		return "Normal"
	case h.Severity == probes.Info || h.Reason == agent.NodeProvisioning:
		return ""
	case h.Kind == agent.Cleared:
		return "Normal"
	case h.Kind == agent.Blinded:
		e.blind[h.Condition] = true
	}
	return "Warning"
}

// limit queues a happening if its reason has an Event left, or folds it.
func (e *events) limit(q queued, now time.Time) {
	key := reasonOf{q.Condition, q.Reason}
	l := e.reasons[key]
	if l == nil {
		if len(e.reasons) >= maxReasons { // reasons are a closed set far below this
			e.stats.dropped.Add(1)
			return
		}
		l = &limiter{bucket: bucket{every: perReasonEvery, burst: perReasonBurst}}
		e.reasons[key] = l
	}
	if l.at(now).After(now) {
		if l.more == 0 {
			l.since = now
		}
		l.more++
		l.last = q
		return
	}
	l.take(now)
	e.push(q, now)
}

// summarize tells what was folded, for each reason that has an Event left again.
func (e *events) summarize(now time.Time) {
	for _, l := range e.reasons {
		if l.more == 0 || l.at(now).After(now) {
			continue
		}
		q := l.last
		if l.more > 1 {
			q.Message = fmt.Sprintf("%s; and %d more in %s", q.Message, l.more-1, now.Sub(l.since).Round(time.Second))
		}
		l.more = 0
		l.take(now)
		e.push(q, now)
	}
}

// push queues an Event and gives it its stamp.
func (e *events) push(q queued, now time.Time) {
	e.stamp = max(e.stamp+1, now.UnixNano())
	q.stamp = e.stamp
	if len(e.queue) == maxQueue {
		e.queue = slices.Delete(e.queue, 0, 1)
		e.stats.dropped.Add(1)
	}
	e.queue = append(e.queue, q)
}

// first is the oldest Event waiting. The news that the node goes down has no
// time to wait behind others.
func (e *events) first() (queued, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := slices.IndexFunc(e.queue, func(q queued) bool { return q.Reason == agent.NodeShuttingDown }); i >= 0 {
		return e.queue[i], true
	}
	if len(e.queue) == 0 {
		return queued{}, false
	}
	return e.queue[0], true
}

// remove takes an Event out of the queue.
func (e *events) remove(stamp int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue = slices.DeleteFunc(e.queue, func(q queued) bool { return q.stamp == stamp })
}

func (e *events) waiting() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.queue) > 0
}

// next says when something folded may be told; far is when nothing is.
func (e *events) next(now, far time.Time) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.summarize(now)
	if len(e.queue) > 0 {
		return now
	}
	for _, l := range e.reasons {
		if t := l.at(now); l.more > 0 && t.Before(far) {
			far = t
		}
	}
	return far
}

// found compares what waits with what an earlier run of this boot has told: it
// is not told again.
func (e *events) found(server map[string]condition) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue = slices.DeleteFunc(e.queue, func(q queued) bool {
		c, ok := server[q.Condition]
		return ok && c.Reason == q.Reason && (q.Kind == agent.Raised && c.Status == agent.True || q.Kind == agent.Blinded && c.Status == agent.Unknown)
	})
	for t, c := range server {
		if c.Status == agent.Unknown && c.Reason != agent.NodeProvisioning {
			e.blind[t] = true
		}
	}
}
