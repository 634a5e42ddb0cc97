// Package probes is the vocabulary of looking: what a probe is, what one look
// at a node yields, and what a reason means to the person who reads it.
//
// A probe looks once and tells what it saw. Whether that is drift, for how long
// it must last, who did it and who hears of it is decided elsewhere, in one
// place, for every probe alike: see package agent. So a probe has no word for
// "healthy" and cannot say it wrongly.
//
// The package imports the standard library only.
package probes

import (
	"context"
	"errors"
	"time"
)

// A Probe looks at one subject of a node.
type Probe interface {
	// Spec describes the probe. It is the same on every call.
	Spec() Spec

	// Check takes one level-triggered look: it reports what is, not what
	// changed. Findings returned beside an error stand; what the error kept it
	// from seeing is not clean. An error that wraps [ErrNotApplicable] withdraws
	// the condition. Check honours ctx, whose deadline is Spec.Timeout; the agent
	// keeps that deadline even when Check does not.
	Check(ctx context.Context) (Look, error)
}

// A Watcher is a [Probe] that can also hear (netlink, D-Bus, inotify, BPF).
// Hearing only wakes the look: a lost event costs time, never truth.
type Watcher interface {
	// Watch listens until ctx ends, and then returns nil. It calls
	// Hearer.Changed once it is subscribed, so that nothing falls between the
	// last look and the first event. Any error makes the agent back off and
	// watch again.
	Watch(ctx context.Context, h Hearer) error
}

// A Hearer takes what a [Watcher] hears. Its methods do not block and may be
// called from any goroutine.
type Hearer interface {
	// Changed says that something moved: look again.
	Changed()
	// Saw reports something that leaves no state to look at, such as an OOM kill.
	Saw(Occurrence)
	// Lost says that n events of a source were lost. They are counted, and a full
	// look answers them.
	Lost(source string, n uint64)
}

// An Explainer is a [Probe] whose findings cause one another.
type Explainer interface {
	// Explain puts the cause first and names the rest as its Consequences, and
	// folds many alike findings into one. It is pure, and sees only findings
	// whose hold is over.
	Explain(confirmed []Finding) []Finding
}

// A Rememberer is a [Probe] that keeps a few words for as long as the node is up,
// such as what a file held when it was first seen: see Look.Keep.
type Rememberer interface {
	// Recall hands over what the last look of an earlier process of this boot kept.
	// It is called before the first look, or not at all.
	Recall(kept map[string]string)
}

// ErrNotApplicable says that this node has nothing for the probe to look at.
// Wrap it with the reason: fmt.Errorf("no Azure CNI configuration: %w", ErrNotApplicable).
var ErrNotApplicable = errors.New("not applicable")

// A Look is what one Check saw.
type Look struct {
	Findings []Finding
	// Samples are numbers for metrics; names and labels are closed by Spec.Metrics.
	Samples []Sample
	// Fingerprints are hashes by domain ("sysctl", "kubelet-config"), by which a
	// fleet finds its odd one out.
	Fingerprints map[string]string
	// NotJudged lists reasons that this look could not judge, each as
	// "Reason: why". They never count as clean: a standing finding of such a
	// reason is not cleared by its absence.
	NotJudged []string
	// Keep is what a [Rememberer] wants to know in its next life, a few kilobytes at
	// most; nil is what it was. It is not changed once it is returned.
	Keep map[string]string
}

// A Spec describes a probe.
type Spec struct {
	Name      string // lower case, as in the configuration: "sysctl"
	Condition string // NodeCondition type, True = drift; "" when the probe reports occurrences only
	Healthy   string // the condition's reason while False

	// Every is the longest time between two looks, and how long looks must have
	// failed before the condition is Unknown; the first look of all counts at once.
	Every   time.Duration
	Timeout time.Duration // deadline of one look

	Reasons []Reason
	Metrics []Metric
}

// A Finding is one difference between what the node is and what it should be.
// Its text may come from outside: the agent bounds and escapes it.
type Finding struct {
	Reason  string // a name from Spec.Reasons
	ID      string // tells findings of one reason and subject apart; often ""
	Subject string // what it is about: a key, a file, a unit, a pod

	Message  string // one clause without the actor, the source and who acts; "" means "<Subject> is <Observed>, want <Wanted>"
	Observed string
	Wanted   string
	Source   string // the authority for Wanted: a file, a flag, a table

	Severity Severity      // 0: the catalogue's
	Hold     time.Duration // 0: the catalogue's
	Trace    Key           // whom to ask who did it; the zero Key asks nobody

	// Consequences are findings that this one explains.
	Consequences []Ref
}

// A Ref names a finding of the same probe.
type Ref struct {
	ID      string `json:"id"`
	Subject string `json:"subject"`
}

// A Key is a question to the journal of who did what: {"sysctl",
// "net.ipv4.ip_forward"}, {"unit", "kubelet.service"}, {"clock", ""}, {"peer",
// "10.0.0.1:443"}.
type Key struct{ Domain, Name string }

// An Occurrence is something that happened and left no state: an OOM kill, a
// clock step, a frozen node.
type Occurrence struct {
	Reason  string // a name from Spec.Reasons
	Subject string
	Message string
	Trace   Key
	// Since, on CLOCK_MONOTONIC, is when it had not happened yet: whoever did it did
	// it later. 0: within the last second.
	Since time.Duration
}

// Severity ranks findings; the zero value means "as the catalogue says".
type Severity uint8

// Critical and Warning turn a condition True. Info stands in the table, the
// JSON document and the metrics only.
const (
	Info Severity = iota + 1
	Warning
	Critical
)

// String returns "info", "warning" or "critical", and "" for the zero value.
func (s Severity) String() string {
	switch s {
	case Info:
		return "info"
	case Warning:
		return "warning"
	case Critical:
		return "critical"
	}
	return ""
}

// MarshalText implements [encoding.TextMarshaler].
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. It accepts the words of [Severity.String].
func (s *Severity) UnmarshalText(b []byte) error {
	for _, v := range []Severity{0, Info, Warning, Critical} {
		if v.String() == string(b) {
			*s = v
			return nil
		}
	}
	return errors.New("severity is not critical, warning or info")
}

// Owner says who has to act on a finding.
type Owner string

// AKS repairs kubelet, containerd, kube-proxy and the tunnel; reboots, image
// upgrades and every custom change are the customer's.
const (
	AKS      Owner = "aks"
	Customer Owner = "customer"
	Both     Owner = "both"
)

// A Reason is one entry of a probe's catalogue: what a machine keys on and what
// a person needs to know at 3 a.m. It feeds explain, the runbooks, the alerts
// and the closed metric labels.
type Reason struct {
	Name     string // CamelCase, never formatted: it is a metric label
	Severity Severity
	// Routine reasons turn their own condition True but not NodeDrift.
	Routine bool
	// Happens marks an occurrence: it is told as an Event and a counter, and
	// never stands.
	Happens bool
	Owner   Owner

	Hold  time.Duration // how long it must be seen before it is raised
	Clear time.Duration // how long it must be gone before it is cleared

	Meaning        string // what it says, in a sentence
	Breaks         string // what stops working
	Confirm        string // how to see it by hand, a command
	Mend           string // what to do
	FalsePositives string // when it is lawful after all; "" if never known
	Links          []string
}

// A Metric is one family of numbers that a probe reports beside its findings.
type Metric struct {
	Name    string // without the "nodedrift_" prefix; base units: "_seconds", "_total"
	Help    string
	Counter bool // a total that only grows; otherwise a gauge
	Labels  []Label
}

// A Label is a metric label with all the values it may ever have.
type Label struct {
	Name   string
	Values []string
}

// A Sample is one number of a [Metric]. Labels are the values in the order of
// Metric.Labels.
type Sample struct {
	Name   string
	Labels []string
	Value  float64
}
