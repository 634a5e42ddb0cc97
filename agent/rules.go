package agent

import (
	"errors"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// Rules are what the configuration says of reasons: the compiled form of its
// reasons and waivers sections. The zero value changes nothing.
type Rules struct {
	Reasons map[string]ReasonRule
	Waivers []Waiver
	Every   map[string]time.Duration // by probe: the time between two looks, in place of the probe's own
	// CountHeld lets findings that are still within their hold count, marked as
	// held: a single look (check) cannot wait for them.
	CountHeld bool
}

// A ReasonRule overrides the catalogue for one reason. Zero fields keep it.
type ReasonRule struct {
	Off      bool
	Severity probes.Severity
	Hold     *time.Duration
	Clear    *time.Duration
}

// A Waiver allows a finding: it stands in the table and the metrics, and never
// in a condition or an Event.
type Waiver struct {
	Reason  string
	Subject string    // "" for every subject; a trailing * for a prefix
	Actor   string    // as messages name it, "pod namespace/name" or "tuned.service", same forms; "" for anybody
	Until   time.Time // zero: for ever
	Why     string
}

// allows tells whether w covers a finding done by actor (nil: nobody is known).
func (w *Waiver) allows(reason, subject string, actor *Actor, now time.Time) bool {
	if w.Reason != reason || (!w.Until.IsZero() && !now.Before(w.Until)) {
		return false
	}
	if w.Subject != "" && !matches(w.Subject, subject) {
		return false
	}
	return w.Actor == "" || actor != nil && matches(w.Actor, actor.name())
}

// every is the longest time between two looks of a probe.
func (r *Rules) every(spec *probes.Spec) time.Duration {
	if d := r.Every[spec.Name]; d > 0 {
		return d
	}
	return spec.Every
}

// patience is how long nobody may be able to look before it is said: the probe's
// period, so that a node at rest is looked at twice. On a node that moves looks
// follow each other within milliseconds, and what fails in several of them may be
// a daemon that restarts.
func (r *Rules) patience(sub *subject, err error) time.Duration {
	if errors.Is(err, errStarved) || r.CountHeld {
		return 0
	}
	return r.every(&sub.spec)
}

// counts tells whether a finding turns its condition True under these rules.
func (r *Rules) counts(f *Finding) bool {
	return f.Stands() || r.CountHeld && f.Held && !f.Waived && f.Severity >= probes.Warning
}

// matches compares text with a pattern whose last * stands for any ending.
func matches(pattern, text string) bool {
	if n := len(pattern) - 1; n >= 0 && pattern[n] == '*' {
		return len(text) >= n && text[:n] == pattern[:n]
	}
	return pattern == text
}

// waived tells whether any waiver covers the finding.
func (r *Rules) waived(reason, subject string, actor *Actor, now time.Time) bool {
	for i := range r.Waivers {
		if r.Waivers[i].allows(reason, subject, actor, now) {
			return true
		}
	}
	return false
}

// nextExpiry is how long until the next waiver ends; 0 when none does.
func (r *Rules) nextExpiry(now time.Time) time.Duration {
	var next time.Duration
	for _, w := range r.Waivers {
		if d := w.Until.Sub(now); !w.Until.IsZero() && d > 0 && (next == 0 || d < next) {
			next = d
		}
	}
	return next
}

// severity is the rule's, else the finding's, else the catalogue's.
func (r *Rules) severity(reason *probes.Reason, finding probes.Severity) (s probes.Severity, off bool) {
	rule := r.Reasons[reason.Name]
	switch {
	case rule.Off:
		return 0, true
	case rule.Severity != 0:
		return rule.Severity, false
	case finding != 0:
		return finding, false
	}
	return reason.Severity, false
}

// hold is how long the finding must be seen before it is raised.
func (r *Rules) hold(reason *probes.Reason, finding time.Duration) time.Duration {
	if rule := r.Reasons[reason.Name]; rule.Hold != nil {
		return *rule.Hold
	}
	if finding != 0 {
		return finding
	}
	return reason.Hold
}

// clear is how long the finding must be gone before it is cleared.
func (r *Rules) clear(reason *probes.Reason) time.Duration {
	if rule := r.Reasons[reason.Name]; rule.Clear != nil {
		return *rule.Clear
	}
	return reason.Clear
}

// A Journal knows who did what. Its answers never decide whether something is
// drift, nor how bad; a nil Journal knows nothing.
type Journal interface {
	// Who returns who last did something to key, not earlier than since on the
	// agent's monotonic clock.
	Who(key probes.Key, since time.Duration) (Actor, bool)
}

// An Instant is one moment on two clocks. Everything is decided on Mono; Wall
// is for people.
type Instant struct {
	Wall time.Time     `json:"wall"`
	Mono time.Duration `json:"mono"` // CLOCK_MONOTONIC: it starts at boot, and so outlives the process
}
