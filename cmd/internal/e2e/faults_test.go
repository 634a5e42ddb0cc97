package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// How long a condition may take to follow the node: soon, the lab's holds of at
// most a second included; and a daemon that needs seconds to start, seen by a light
// look each five seconds.
const (
	soon    = 2 * time.Second
	soonish = 10 * time.Second
)

// A fault is something broken and repaired on a node, and what is to be said.
type fault struct {
	name, reason, condition, text string
	breaks, repairs               string                          // shell lines in the node
	breakBy                       func(t *testing.T, node string) // instead of breaks
	within                        time.Duration                   // from the break to the word; 0: soon
	clear                         time.Duration                   // from the repair to the all-clear; 0: soon
	info                          bool                            // seen in the agent's document only: info never turns a condition True
	beside                        bool                            // worse findings stand beside it
}

// tryAll tries faults of one condition, one after the other.
func tryAll(t *testing.T, node, condition string, clear time.Duration, list []fault) {
	for _, f := range list {
		f.condition, f.clear = condition, max(f.clear, clear)
		t.Run(f.name, func(t *testing.T) { f.try(t, node) })
	}
}

// try breaks the node, waits for the right word, repairs it, and waits for the
// all-clear.
func (f fault) try(t *testing.T, node string) {
	if f.info {
		f.tryInfo(t, node)
		return
	}
	within, clear := max(f.within, soon), max(f.clear, soon)
	until(t, node, f.condition, time.Minute, isFalse)
	refill(t, node)
	repaired := false // once is enough: twice would put back what was put back
	t.Cleanup(func() {
		if !repaired {
			_, _ = testLab.Node(node).Exec(context.WithoutCancel(t.Context()), "sh", "-c", f.repairs)
		}
	})
	f.doBreak(t, node)
	said := isTrue(f.reason, f.text)
	if f.beside {
		said = func(c condition) bool { return c.Status == "True" && finds(t, node, f.reason) }
	}
	c, raised := until(t, node, f.condition, within+10*time.Second, said)
	if raised > within {
		t.Errorf("raised after %s, want at most %s", raised, within)
	}
	if !strings.Contains(c.Message, "; acts: ") || len(c.Message) > 160 {
		t.Errorf("the message does not say who acts, or is longer than 160 bytes: %q", c.Message)
	}
	if !f.beside && strings.Contains(c.Message, " more;") {
		t.Errorf("one thing is broken, and the message says more: %q", c.Message)
	}
	summary := "True"
	if f.reason == "RebootRequired" {
		summary = "False" // routine
	}
	until(t, node, "NodeDrift", soon, func(c condition) bool { return c.Status == summary })
	repaired = true
	sh(t, node, f.repairs)
	_, cleared := until(t, node, f.condition, clear+10*time.Second, isFalse)
	if cleared > clear {
		t.Errorf("cleared after %s, want at most %s", cleared, clear)
	}
	summed := clear
	if clear > soon {
		summed += 10 * time.Second // other probes may be blind while a daemon is down: one more apply
	}
	until(t, node, "NodeDrift", summed, isFalse)
	t.Logf("%s: raised %.1f s, cleared %.1f s: %s %s %q", node, raised.Seconds(), cleared.Seconds(), c.Type, c.Reason, c.Message)
	record(f.reason, "condition", raised, cleared)
	if !f.beside {
		hasEvents(t, node, f.reason)
	}
}

func (f fault) doBreak(t *testing.T, node string) {
	t.Helper()
	if f.breakBy != nil {
		f.breakBy(t, node)
		return
	}
	sh(t, node, f.breaks)
}

// tryInfo does the same for a reason that stands in the agent's document only.
func (f fault) tryInfo(t *testing.T, node string) {
	f.doBreak(t, node)
	began := time.Now()
	for !finds(t, node, f.reason) {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%s is not found: %+v", f.reason, document(t, node))
		}
	}
	raised := time.Since(began)
	sh(t, node, f.repairs)
	began = time.Now()
	for finds(t, node, f.reason) {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%s does not clear", f.reason)
		}
	}
	record(f.reason, "document (info)", raised, time.Since(began))
}

// died kills a daemon that systemd starts again after at most pause: no state, but
// an Event of the probe of that prefix.
func died(t *testing.T, node, prefix, unit string, pause time.Duration) {
	kind := prefix + "Drift"
	before, _ := until(t, node, kind, time.Minute, isFalse)
	calm(t, node)
	told := newEvents(t, node)
	began := time.Now()
	sh(t, node, "systemctl kill -s KILL --kill-who=main "+unit)
	for heard := false; !heard; time.Sleep(20 * time.Millisecond) {
		for _, e := range told() {
			if e.Reason == prefix+"Died" {
				heard = true
				t.Logf("%s: %.1f s: %q", node, time.Since(began).Seconds(), e.Message)
				if !strings.Contains(e.Message, "SIGKILL") {
					t.Errorf("the Event does not say how: %q", e.Message)
				}
			}
		}
		if !heard && time.Since(began) > 5*time.Second {
			t.Fatalf("no Event after 5 s: %v", told())
		}
	}
	record(prefix+"Died", "Event", time.Since(began), 0)
	time.Sleep(pause)
	if now, _ := until(t, node, kind, soonish, isFalse); !now.LastTransitionTime.Equal(before.LastTransitionTime) {
		t.Errorf("one death that systemd mends is a transition at %s: %v", now.LastTransitionTime, told())
	}
}

// calm waits until what happened just before is told: Events go out one in two
// seconds after the first ten.
func calm(t *testing.T, node string) {
	t.Helper()
	var last int
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(5 * time.Second) {
		all, err := events(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == last {
			return
		}
		last = len(all)
	}
}

// newEvents returns what tells our Events about a node of what happened since now,
// give or take a second: some are told minutes later, one for many.
func newEvents(t *testing.T, node string) func() []event {
	t.Helper()
	before, err := events(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now().Truncate(time.Second)
	return func() []event {
		now, err := events(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(now, func(e event) bool { return e.FirstTimestamp.Before(began) || slices.Contains(before, e) })
	}
}

// hasEvents checks that both edges were told, and that describe shows them.
func hasEvents(t *testing.T, node, reason string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		list, err := events(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		types := map[string]bool{}
		for _, e := range list {
			if e.Reason == reason {
				types[e.Type] = true
			}
		}
		if types["Warning"] && types["Normal"] {
			break
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("Events of %s on %s: %v, want Warning and Normal", reason, node, types)
		}
	}
	out, err := testLab.Kubectl(t.Context(), nil, "describe", "node", node)
	if err != nil || !strings.Contains(out[strings.LastIndex(out, "\nEvents:"):], reason) {
		t.Errorf("kubectl describe node %s does not show the Event %s (%v)", node, reason, err)
	}
}

// refill waits until the agent may write three times at once: it applies at most once
// in ten seconds, with a burst of three, and each fault takes two or three. A process
// starts with a full bucket, so that this waits too long rather than too short.
func refill(t *testing.T, node string) {
	t.Helper()
	const every, burst = 10 * time.Second, 3
	for began := time.Now(); time.Since(began) < 40*time.Second; time.Sleep(time.Second) {
		list, err := testLab.Audit(t.Context(), time.Now().Add(-3*time.Minute), "system:serviceaccount:nodedrift-system:nodedrift")
		if err != nil {
			t.Fatal(err)
		}
		var full time.Time // when the bucket is full again
		for _, r := range list {
			if r.Verb == "patch" && r.Path == fmt.Sprintf("/api/v1/nodes/%s/status", node) {
				if full.Before(r.Time) {
					full = r.Time
				}
				if full = full.Add(every); full.After(r.Time.Add(burst * every)) { // another process's bucket
					full = r.Time.Add(burst * every)
				}
			}
		}
		if full.Before(time.Now()) {
			return
		}
	}
}
