package agent

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nodedrift/nodedrift/probes"
)

// A step is one look and what comes of it: the condition, what is told, and when
// it wants to look again.
type step struct {
	after time.Duration // since the step before
	look  looked
	want  string
}

// A story is a row of the table of rules: looks in order, each with its outcome.
// Unless it is fresh, the node was in order a second before.
type story struct {
	name  string
	fresh bool
	rules Rules
	did   func(diary) // who did what; the first step is at 1h on the monotonic clock
	steps []step
}

func (st *story) run(t *testing.T) {
	w := newWorld(t)
	w.rules = &st.rules
	if st.did != nil {
		st.did(w.journal)
	}
	if !st.fresh {
		w.sleep(-time.Second)
		w.fold(see())
		w.sleep(time.Second)
	}
	for i, s := range st.steps {
		w.sleep(s.after)
		if got := w.line(s.look); got != s.want {
			t.Fatalf("step %d, %s after the one before:\ngot  %s\nwant %s", i+1, s.after, got, s.want)
		}
	}
}

func tellStories(t *testing.T, table []story) {
	t.Parallel()
	for _, st := range table {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			st.run(t)
		})
	}
}

const s, m = time.Second, time.Minute

func TestWhatALookMeans(t *testing.T) {
	tellStories(t, []story{
		{name: "clean is False with the healthy reason", fresh: true, steps: []step{
			{0, see(), "False OK, restored OK >False"},
			{s, see(), "False OK"},
		}},
		{name: "critical is True", steps: []step{{s, see("Bad"), "True Bad, raised Bad False>True"}, {s, see("Bad"), "True Bad"}}},
		{name: "warning is True", steps: []step{{s, see("Poor"), "True Poor, raised Poor False>True"}}},
		{name: "at the first look of all too", fresh: true, steps: []step{{0, see("Bad"), "True Bad, raised Bad >True"}}},
		{name: "the worst one gives the reason, in whatever order they come", steps: []step{
			{s, see("Poor", "Note", "Bad"), "True Bad, raised Bad False>True, raised Poor"},
			{s, see("Bad", "Poor"), "True Bad"},
			{s, see("Poor"), "True Poor, cleared Bad"},
			{s, see("Chore", "Poor"), "True Chore, raised Chore"},
		}},
		{name: "info is never True and never told", steps: []step{{s, see("Note"), "False OK"}, {s, see(), "False OK"}}},
		{name: "gone is False, by itself", steps: []step{
			{s, see("Bad"), "True Bad, raised Bad False>True"},
			{s, see(), "False OK, cleared Bad True>False"},
			{s, see(), "False OK"},
			{s, see("Bad"), "True Bad, raised Bad False>True"},
		}},
		{name: "routine turns its own condition True", steps: []step{{s, see("Chore"), "True Chore, raised Chore False>True"}}},
		{name: "a reason is told once, however many findings it has", steps: []step{
			{s, see("Bad/a", "Bad/b", "Bad/c"), "True Bad, raised Bad False>True"},
			{s, see("Bad/a", "Bad/b", "Bad/c", "Bad/d"), "True Bad, raised Bad"},
			{s, see("Bad/d"), "True Bad, cleared Bad"},
		}},
		{name: "findings differ by reason, subject and id", steps: []step{
			{s, see("Bad/a"), "True Bad, raised Bad False>True"},
			{s, see("Bad/a#1"), "True Bad, raised Bad, cleared Bad"},
			{s, see("Poor/a#1"), "True Poor, raised Poor, cleared Bad"},
		}},
		{name: "the same finding twice is one", steps: []step{
			{s, see("Bad", "Bad"), "True Bad, raised Bad False>True"},
			{s, see("Bad"), "True Bad"},
		}},
		{name: "the worse of two that are the same counts", steps: []step{
			{s, with(see("Bad", "Bad"), func(f *probes.Finding) { f.Severity = probes.Info }), "True Bad, raised Bad False>True"},
		}},
		{name: "a finding may rank itself", steps: []step{
			{s, with(see("Bad"), func(f *probes.Finding) { f.Severity = probes.Info }), "False OK"},
			{s, with(see("Note"), func(f *probes.Finding) { f.Severity = probes.Warning }), "True Note, raised Note False>True"},
		}},
		{name: "a reason that is not in the catalogue is a failed look; the rest stands", steps: []step{
			{s, see("Bda", "Poor"), "True Poor, raised Poor False>True, again 1s"},
			{s, see("Bda"), "True Poor, again 1s"},
			{s, see("Bda"), "Unknown ProbeFailed, blinded ProbeFailed True>Unknown"},
		}},
		{name: "an occurrence cannot stand", steps: []step{
			{s, see("Boom"), "False OK, again 1s"}, {s, see("Boom"), "Unknown ProbeFailed, blinded ProbeFailed False>Unknown"},
		}},
	})
}

func TestNotApplicable(t *testing.T) {
	tellStories(t, []story{
		{name: "withdraws, and comes back", steps: []step{
			{s, notApplicable(), "withdrawn"},
			{s, notApplicable(), "withdrawn"},
			{s, see(), "False OK, restored OK >False"},
			{s, see("Bad"), "True Bad, raised Bad False>True"},
			{s, notApplicable(), "withdrawn, cleared Bad True>"},
			{s, see("Bad"), "True Bad, raised Bad >True"},
		}},
		{name: "from Unknown", fresh: true, steps: []step{
			{0, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed >Unknown"}, {s, notApplicable(), "withdrawn"},
		}},
		{name: "a failed look after it is Unknown at once: nothing is left to stand on", steps: []step{
			{s, notApplicable(), "withdrawn"}, {s, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed >Unknown"},
		}},
		{name: "beside findings it is a contradiction, and so a failed look", steps: []step{
			{s, fail(probes.ErrNotApplicable, "Bad"), "True Bad, raised Bad False>True, again 1s"},
		}},
		{name: "starts a hold anew", steps: []step{
			{0, see("Slow"), "False OK, again 30s"}, {20 * s, notApplicable(), "withdrawn"},
			{20 * s, see("Slow"), "False OK, restored OK >False, again 30s"},
		}},
		{name: "tells first what was still owed", steps: []step{
			{0, see("Traced"), "True Traced, again 100ms"},
			{s / 2, notApplicable(), "withdrawn, raised Traced False>True, cleared Traced True>"},
		}},
	})
}

func TestCouldNotLook(t *testing.T) {
	timedOut := fail(fmt.Errorf("%w of 1s", errTimedOut))
	tellStories(t, []story{
		{name: "before the first success at once", fresh: true, steps: []step{
			{0, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed >Unknown"},
			{s, fail(errBroken), "Unknown ProbeFailed"},
			{s, see(), "False OK, restored OK Unknown>False"},
		}},
		{name: "later only when it happens twice in a row, a period apart", steps: []step{
			{s, fail(errBroken), "False OK, again 1s"}, {s, see(), "False OK"}, {s, fail(errBroken), "False OK, again 1s"},
			{s, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed False>Unknown"},
			{s, fail(errBroken), "Unknown ProbeFailed"},
			{s, see(), "False OK, restored OK Unknown>False"},
			{s, fail(errBroken), "False OK, again 1s"},
		}},
		{name: "reasons: timeout", fresh: true, steps: []step{{0, timedOut, "Unknown ProbeTimedOut, blinded ProbeTimedOut >Unknown"}}},
		{name: "reasons: permission", fresh: true, steps: []step{{0, fail(errDenied), "Unknown PermissionDenied, blinded PermissionDenied >Unknown"}}},
		{name: "reasons: starved, at once", steps: []step{{s, fail(errStarved), "Unknown AgentStarved, blinded AgentStarved False>Unknown"}}},
		{name: "reasons: the present one", fresh: true, steps: []step{
			{0, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed >Unknown"}, {s, fail(errDenied), "Unknown PermissionDenied"},
		}},
		{name: "findings beside an error stand", steps: []step{
			{s, fail(errBroken, "Bad"), "True Bad, raised Bad False>True, again 1s"},
			{s, fail(errBroken, "Bad"), "True Bad"}, {s, fail(errBroken, "Bad"), "True Bad"},
		}},
		{name: "even before the first success", fresh: true, steps: []step{
			{0, fail(errBroken, "Bad"), "True Bad, raised Bad >True, again 1s"},
			{s, fail(errBroken), "True Bad, again 1s"},
			{s, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed True>Unknown"},
		}},
		{name: "what stood keeps standing, then is Unknown, then True again without a hold", steps: []step{
			{0, see("Slow"), "False OK, again 30s"},
			{30 * s, see("Slow"), "True Slow, raised Slow False>True"},
			{s, fail(errBroken), "True Slow, again 1s"},
			{s, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed True>Unknown"},
			{s, see("Slow"), "True Slow, raised Slow Unknown>True"},
		}},
		{name: "what is gone after blindness needs no clear time", steps: []step{
			{0, see("Sticky"), "True Sticky, raised Sticky False>True"},
			{s, fail(errBroken), "True Sticky, again 1s"},
			{s, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed True>Unknown"},
			{s, see(), "False OK, restored OK Unknown>False"},
		}},
		{name: "nor after starvation", steps: []step{
			{0, see("Sticky"), "True Sticky, raised Sticky False>True"},
			{s, fail(errStarved), "Unknown AgentStarved, blinded AgentStarved True>Unknown"},
			{s, see(), "False OK, restored OK Unknown>False"},
		}},
		{name: "a failed look clears nothing", steps: []step{
			{0, see("Sticky"), "True Sticky, raised Sticky False>True"},
			{s, see(), "True Sticky, again 1m0s"},
			{m, fail(errBroken), "True Sticky, again 1s"},
			{s, see(), "False OK, cleared Sticky True>False"},
		}},
		{name: "out of sight beside another is neither cleared nor raised again", steps: []step{
			{0, see("Bad", "Poor"), "True Bad, raised Bad False>True, raised Poor"},
			{s, fail(errBroken, "Bad"), "True Bad, again 1s"}, {s, fail(errBroken, "Bad"), "True Bad"},
			{s, see("Bad", "Poor"), "True Bad"},
			{s, fail(errBroken, "Bad"), "True Bad, again 1s"}, {s, fail(errBroken, "Bad"), "True Bad"},
			{s, see("Bad"), "True Bad, cleared Poor"},
		}},
		{name: "a held finding is no reason to be Unknown", steps: []step{
			{0, see("Slow"), "False OK, again 30s"},
			{s, unableTo("Slow: no right"), "False OK, again 1s"}, {s, unableTo("Slow: no right"), "False OK"}, {s, unableTo("Slow: no right"), "False OK"},
		}},
	})
}

// TestFailingForAWhile holds that on a node on which something moves all the time,
// and looks follow each other within milliseconds, Unknown comes neither sooner
// nor later than on a node at rest: after a period without a look that succeeds.
func TestFailingForAWhile(t *testing.T) {
	const ms = time.Millisecond
	slow := Rules{Every: map[string]time.Duration{"test": 5 * s}}
	tellStories(t, []story{
		{name: "a daemon that restarts within it is not news", rules: slow, steps: []step{
			{s, fail(errBroken), "False OK, again 5s"},
			{20 * ms, fail(errBroken), "False OK, again 4.98s"},
			{20 * ms, fail(errDenied), "False OK, again 4.96s"},
			{4 * s, fail(errBroken), "False OK, again 960ms"},
			{20 * ms, see(), "False OK"},
			{s, fail(errBroken), "False OK, again 5s"},
		}},
		{name: "Unknown exactly at its end, and until a look succeeds", rules: slow, steps: []step{
			{s, fail(errBroken), "False OK, again 5s"},
			{5*s - 1, fail(errBroken), "False OK, again 1ns"},
			{1, fail(errDenied), "Unknown PermissionDenied, blinded PermissionDenied False>Unknown"},
			{20 * ms, fail(errBroken), "Unknown ProbeFailed"},
			{20 * ms, see(), "False OK, restored OK Unknown>False"},
			{20 * ms, fail(errBroken), "False OK, again 5s"},
		}},
		{name: "what stood stands", rules: slow, steps: []step{
			{0, see("Bad"), "True Bad, raised Bad False>True"},
			{20 * ms, unableTo("Bad"), "True Bad, again 5s"},
			{20 * ms, fail(errBroken), "True Bad, again 4.98s"},
			{20 * ms, unableTo("Bad"), "True Bad, again 4.96s"},
			{20 * ms, see("Bad"), "True Bad"},
			{20 * ms, unableTo("Bad"), "True Bad, again 5s"},
			{5 * s, unableTo("Bad"), "Unknown ProbeFailed, blinded ProbeFailed True>Unknown"},
			{20 * ms, unableTo("Bad"), "Unknown ProbeFailed"},
			{20 * ms, see("Bad"), "True Bad, raised Bad Unknown>True"},
		}},
		{name: "one failure does not change the reason of Unknown", rules: slow, steps: []step{
			{0, see("Bad"), "True Bad, raised Bad False>True"},
			{s, unableTo("Bad"), "True Bad, again 5s"},
			{5 * s, unableTo("Bad"), "Unknown ProbeFailed, blinded ProbeFailed True>Unknown"},
			{20 * ms, fail(errDenied), "Unknown ProbeFailed"},
			{20 * ms, unableTo("Bad"), "Unknown ProbeFailed"},
			{20 * ms, fail(errDenied), "Unknown ProbeFailed"},
			{20 * ms, fail(errDenied), "Unknown PermissionDenied"},
		}},
		{name: "a verdict is not delayed", rules: slow, steps: []step{
			{s, fail(errBroken), "False OK, again 5s"},
			{20 * ms, see("Bad"), "True Bad, raised Bad False>True"},
			{20 * ms, fail(errBroken), "True Bad, again 5s"},
			{20 * ms, see(), "False OK, cleared Bad True>False"},
		}},
		{name: "the first look of all does not wait", rules: slow, fresh: true, steps: []step{
			{0, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed >Unknown"},
			{20 * ms, fail(errDenied), "Unknown PermissionDenied"},
			{20 * ms, see(), "False OK, restored OK Unknown>False"},
		}},
		{name: "nor does who is starved, and it stays Unknown", rules: slow, steps: []step{
			{0, see("Bad"), "True Bad, raised Bad False>True"},
			{s, fail(errStarved), "Unknown AgentStarved, blinded AgentStarved True>Unknown"},
			{20 * ms, fail(errBroken), "Unknown ProbeFailed"},
			{20 * ms, unableTo("Bad"), "Unknown ProbeFailed"},
		}},
	})

	t.Run("a deadline that is waited for is part of it", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.rules = &slow
		timedOut := func(took time.Duration, want string) {
			t.Helper()
			began := w.now
			w.sleep(took)
			l := fail(errTimedOut)
			l.at = began
			happened, again := w.foldAsIs(l)
			if got := tellAll(&w.state, happened, again); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		}
		w.fold(see())
		w.sleep(s)
		timedOut(4*s, "False OK, again 1s")
		timedOut(4*s, "Unknown ProbeTimedOut, blinded ProbeTimedOut False>Unknown")
		w.fold(see())
		w.sleep(s)
		timedOut(6*s, "False OK, again 1ns") // one look is one look: the next decides, at once
		timedOut(4*s, "Unknown ProbeTimedOut, blinded ProbeTimedOut False>Unknown")
	})
}

func TestNotJudged(t *testing.T) {
	tellStories(t, []story{
		{name: "is not clean: what stood stands, then is Unknown", steps: []step{
			{0, see("Bad"), "True Bad, raised Bad False>True"},
			{s, unableTo("Bad: no right"), "True Bad, again 1s"},
			{s, unableTo("Bad: no right"), "Unknown ProbeFailed, blinded ProbeFailed True>Unknown"},
			{s, unableTo("Bad: no right"), "Unknown ProbeFailed"},
			{s, see(), "False OK, restored OK Unknown>False"},
		}},
		{name: "of another reason does not keep this one", steps: []step{
			{0, see("Bad"), "True Bad, raised Bad False>True"},
			{s, unableTo("Poor: no right"), "False OK, cleared Bad True>False"},
		}},
		{name: "of a reason that only begins the same neither", steps: []step{
			{0, see("Bad"), "True Bad, raised Bad False>True"},
			{s, unableTo("Badly: no right"), "False OK, cleared Bad True>False"},
		}},
		{name: "starts anew once it is seen", steps: []step{
			{0, see("Bad"), "True Bad, raised Bad False>True"},
			{s, unableTo("Bad"), "True Bad, again 1s"}, {s, see("Bad"), "True Bad"}, {s, unableTo("Bad"), "True Bad, again 1s"},
		}},
		{name: "stays True for another that is seen", steps: []step{
			{0, see("Bad", "Poor"), "True Bad, raised Bad False>True, raised Poor"},
			{s, unableTo("Bad", "Poor"), "True Bad, again 1s"},
			{s, unableTo("Bad", "Poor"), "True Poor"},
			{s, unableTo("Bad"), "Unknown ProbeFailed, blinded ProbeFailed True>Unknown"},
			{s, see("Bad"), "True Bad, raised Bad Unknown>True"},
		}},
		{name: "is not raised when another ends the blindness", steps: []step{
			{0, see("Bad", "Poor"), "True Bad, raised Bad False>True, raised Poor"},
			{s, fail(errBroken), "True Bad, again 1s"}, {s, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed True>Unknown"},
			{s, unableTo("Bad", "Poor"), "True Poor, raised Poor Unknown>True"},
			{s, see("Bad", "Poor"), "True Bad, raised Bad"},
		}},
		{name: "info that cannot be judged is nobody's worry", steps: []step{
			{0, see("Note"), "False OK"}, {s, unableTo("Note"), "False OK, again 1s"}, {s, unableTo("Note"), "False OK"}, {s, unableTo("Note"), "False OK"},
		}},
	})
}

func TestHoldAndClear(t *testing.T) {
	hour := ReasonRule{Hold: new(time.Hour)}
	tellStories(t, []story{
		{name: "raised exactly at the end of the hold", steps: []step{
			{0, see("Slow"), "False OK, again 30s"},
			{29 * s, see("Slow"), "False OK, again 1s"},
			{s - 1, see("Slow"), "False OK, again 1ns"},
			{1, see("Slow"), "True Slow, raised Slow False>True"},
		}},
		{name: "gone before its end, the hold starts anew", steps: []step{
			{0, see("Slow"), "False OK, again 30s"}, {29 * s, see(), "False OK"}, {s, see("Slow"), "False OK, again 30s"},
		}},
		{name: "failed and blind looks do not extend it, and do not end it", steps: []step{
			{0, see("Slow"), "False OK, again 30s"},
			{20 * s, fail(errBroken), "False OK, again 1s"},
			{5 * s, see("Slow"), "False OK, again 5s"},
			{2 * s, unableTo("Slow"), "False OK, again 1s"},
			{4 * s, fail(errBroken), "False OK, again 1s"},
			{s, see("Slow"), "True Slow, raised Slow False>True"},
		}},
		{name: "seen beside an error goes on", steps: []step{
			{0, see("Slow"), "False OK, again 30s"}, {30 * s, fail(errBroken, "Slow"), "True Slow, raised Slow False>True, again 1s"},
		}},
		{name: "each subject and id has its own", steps: []step{
			{0, see("Slow/a"), "False OK, again 30s"},
			{10 * s, see("Slow/a", "Slow/b"), "False OK, again 20s"},
			{10 * s, see("Slow/a", "Slow/b", "Slow/b#1"), "False OK, again 10s"},
			{10 * s, see("Slow/a", "Slow/b", "Slow/b#1"), "True Slow, raised Slow False>True, again 10s"},
			{10 * s, see("Slow/b", "Slow/b#1"), "True Slow, raised Slow, again 10s"},
		}},
		{name: "250 routes each late by 2 s raise nothing", steps: []step{
			{0, see(many("Slow", 0, 250)...), "False OK, again 30s"}, {2 * s, see(), "False OK"},
			{s, see(many("Slow", 250, 500)...), "False OK, again 30s"}, {2 * s, see(), "False OK"},
		}},
		{name: "a finding's own hold goes before the catalogue's", steps: []step{
			{0, with(see("Slow"), func(f *probes.Finding) { f.Hold = 5 * s }), "False OK, again 5s"},
			{5 * s, with(see("Slow"), func(f *probes.Finding) { f.Hold = 5 * s }), "True Slow, raised Slow False>True"},
		}},
		{name: "the configuration's goes before both", rules: Rules{Reasons: map[string]ReasonRule{"Slow": hour}}, steps: []step{
			{0, with(see("Slow"), func(f *probes.Finding) { f.Hold = 5 * s }), "False OK, again 1h0m0s"},
		}},
		{name: "the configuration may say none at all", rules: Rules{Reasons: map[string]ReasonRule{"Slow": {Hold: new(time.Duration(0)), Clear: new(time.Duration(0))}}}, steps: []step{
			{0, see("Slow"), "True Slow, raised Slow False>True"}, {s, see(), "False OK, cleared Slow True>False"},
		}},
		{name: "cleared exactly at the end of the clear time", steps: []step{
			{0, see("Sticky"), "True Sticky, raised Sticky False>True"},
			{s, see(), "True Sticky, again 1m0s"},
			{m - 1, see(), "True Sticky, again 1ns"},
			{1, see(), "False OK, cleared Sticky True>False"},
		}},
		{name: "seen again before, the clear time starts anew and nothing is told", steps: []step{
			{0, see("Sticky"), "True Sticky, raised Sticky False>True"},
			{s, see(), "True Sticky, again 1m0s"}, {59 * s, see("Sticky"), "True Sticky"}, {s, see(), "True Sticky, again 1m0s"},
		}},
		{name: "the sooner of two ends is asked for", steps: []step{
			{0, see("Sticky", "Slow/a"), "True Sticky, raised Sticky False>True, again 30s"},
			{10 * s, see("Slow/a"), "True Sticky, again 20s"},
			{20 * s, see("Slow/a"), "True Slow, raised Slow, again 40s"},
		}},
		{name: "a look by hand does not wait for the hold", rules: Rules{CountHeld: true}, fresh: true, steps: []step{
			{0, see("Slow"), "True Slow, raised Slow >True, again 30s"},
		}},
	})
}

func TestRules(t *testing.T) {
	severity := func(v probes.Severity) Rules {
		return Rules{Reasons: map[string]ReasonRule{"Bad": {Severity: v}, "Note": {Severity: v}}}
	}
	waive := func(w ...Waiver) Rules { return Rules{Waivers: w} }
	no := []step{{0, see("Bad/vm.max_map_count"), "False OK"}, {s, see(), "False OK"}}
	yes := []step{{0, see("Bad/vm.max_map_count"), "True Bad, raised Bad False>True"}}
	tellStories(t, []story{
		{name: "severity: lower", rules: severity(probes.Info), steps: no},
		{name: "severity: higher", rules: severity(probes.Warning), steps: []step{{0, see("Note"), "True Note, raised Note False>True"}}},
		{name: "severity: goes before the finding's own", rules: severity(probes.Info), steps: []step{
			{0, with(see("Bad"), func(f *probes.Finding) { f.Severity = probes.Critical }), "False OK"},
		}},
		{name: "off", rules: Rules{Reasons: map[string]ReasonRule{"Bad": {Off: true}}}, steps: no},
		{name: "off: of an unknown reason changes nothing", rules: Rules{Reasons: map[string]ReasonRule{"Bda": {Off: true}}}, steps: yes},

		{name: "waiver", rules: waive(Waiver{Reason: "Bad"}), steps: no},
		{name: "waiver: of another reason", rules: waive(Waiver{Reason: "Poor"}), steps: yes},
		{name: "waiver: subject", rules: waive(Waiver{Reason: "Bad", Subject: "vm.max_map_count"}), steps: no},
		{name: "waiver: another subject", rules: waive(Waiver{Reason: "Bad", Subject: "vm.max_map"}), steps: yes},
		{name: "waiver: prefix", rules: waive(Waiver{Reason: "Bad", Subject: "vm.*"}), steps: no},
		{name: "waiver: another prefix", rules: waive(Waiver{Reason: "Bad", Subject: "net.*"}), steps: yes},
		{name: "waiver: a star alone", rules: waive(Waiver{Reason: "Bad", Subject: "*"}), steps: no},
		{name: "waiver: a star elsewhere is a letter", rules: waive(Waiver{Reason: "Bad", Subject: "*_count"}), steps: yes},
		{name: "waiver: any of several", rules: waive(Waiver{Reason: "Bad", Subject: "net.*"}, Waiver{Reason: "Bad", Subject: "vm.*"}), steps: no},
		{name: "waiver: before its end", rules: waive(Waiver{Reason: "Bad", Until: until(time.Hour)}), steps: []step{{0, see("Bad"), "False OK, again 1h0m0s"}}},
		{name: "waiver: after its end", rules: waive(Waiver{Reason: "Bad", Until: until(0)}), steps: yes},
		{name: "waiver: at its end the finding is raised", rules: waive(Waiver{Reason: "Bad", Until: until(time.Hour)}), steps: []step{
			{0, see("Bad"), "False OK, again 1h0m0s"},
			{time.Hour - 1, see("Bad"), "False OK, again 1ns"},
			{1, see("Bad"), "True Bad, raised Bad False>True"},
		}},
		{name: "waiver: the next end of several is asked for, clean or not",
			rules: waive(Waiver{Reason: "Bad", Until: until(time.Hour)}, Waiver{Reason: "Poor", Until: until(m)}, Waiver{Reason: "Note"}),
			steps: []step{{0, see(), "False OK, again 1m0s"}, {m, see("Note"), "False OK, again 59m0s"}}},
		{name: "waiver: the worst that is not waived counts", rules: waive(Waiver{Reason: "Bad"}), steps: []step{
			{0, see("Bad", "Poor"), "True Poor, raised Poor False>True"},
		}},
		{name: "waiver: actor", rules: waive(Waiver{Reason: "Traced", Actor: "pod ns/friend*"}),
			did:   func(d diary) { d.did(time.Hour, "mine", "ns/friend-1"); d.did(time.Hour, "yours", "ns/foe") },
			steps: []step{{0, see("Traced/mine"), "False OK"}, {0, see("Traced/mine", "Traced/yours"), "True Traced, raised Traced False>True by pod ns/foe"}}},
		{name: "waiver: actor who is not known", rules: waive(Waiver{Reason: "Bad", Actor: "*"}), steps: yes},
	})
}

// TestRulesChange holds that other rules for a standing finding are told once,
// and take effect also in a look that fails.
func TestRulesChange(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		rules        Rules
		then, failed string
	}{
		{"waived", Rules{Waivers: []Waiver{{Reason: "Bad"}}}, "False OK, cleared Bad True>False", "False OK, cleared Bad True>False, again 1s"},
		{"off", Rules{Reasons: map[string]ReasonRule{"Bad": {Off: true}}}, "False OK, cleared Bad True>False", "False OK, cleared Bad True>False, again 1s"},
		{"info", Rules{Reasons: map[string]ReasonRule{"Bad": {Severity: probes.Info}}}, "False OK, cleared Bad True>False", "False OK, cleared Bad True>False, again 1s"},
		{"a longer hold keeps what stands", Rules{Reasons: map[string]ReasonRule{"Bad": {Hold: new(time.Hour)}}}, "True Bad", "True Bad, again 1s"},
		{"another severity", Rules{Reasons: map[string]ReasonRule{"Bad": {Severity: probes.Warning}}}, "True Bad", "True Bad, again 1s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for look, want := range map[string]string{"good": c.then, "failed": c.failed} {
				w := newWorld(t)
				w.fold(see())
				w.fold(see("Bad"))
				w.rules = &c.rules
				w.sleep(s)
				next := see("Bad")
				if look == "failed" {
					next = fail(errBroken)
				}
				if got := w.line(next); got != want {
					t.Errorf("%s look: got %s, want %s", look, got, want)
				}
				if strings.Contains(want, "cleared") {
					w.sleep(s)
					if got := w.line(see("Bad")); got != "False OK" {
						t.Errorf("the look after it: %s", got)
					}
				}
			}
		})
	}
}

func TestAttribution(t *testing.T) {
	did := func(at time.Duration, who string) func(diary) {
		return func(d diary) { d.did(time.Hour+at, "it", who) }
	}
	tellStories(t, []story{
		{name: "on raise", did: did(0, "ns/a"), steps: []step{{0, see("Traced"), "True Traced, raised Traced False>True by pod ns/a"}}},
		{name: "between the last clean look and this one", did: did(-s, "ns/a"), steps: []step{{0, see("Traced"), "True Traced, raised Traced False>True by pod ns/a"}}},
		{name: "older than the last clean look is not blamed", did: did(-s-1, "ns/a"), steps: []step{
			{0, see("Traced"), "True Traced, again 100ms"},
			{s, see("Traced"), "True Traced, raised Traced False>True"},
		}},
		{name: "a failed look is no clean look", did: did(s, "ns/a"), steps: []step{
			{2 * s, fail(errBroken), "False OK, again 1s"}, {s, see("Traced"), "True Traced, raised Traced False>True by pod ns/a"},
		}},
		{name: "somebody before the first look of all", fresh: true, did: did(-30*m, "ns/a"), steps: []step{{0, see("Traced"), "True Traced, raised Traced >True by pod ns/a"}}},
		{name: "whoever did it keeps it through the hold", did: did(0, "ns/a"),
			rules: Rules{Reasons: map[string]ReasonRule{"Traced": {Hold: new(time.Hour)}}}, steps: []step{
				{0, see("Traced"), "False OK, again 1h0m0s"}, {time.Hour, see("Traced"), "True Traced, raised Traced False>True by pod ns/a"},
			}},
		{name: "one Event for each actor", did: func(d diary) {
			d.did(time.Hour, "x", "ns/a")
			d.did(time.Hour, "y", "ns/b")
			d.did(time.Hour, "z", "ns/a")
		},
			steps: []step{{0, see("Traced/x", "Traced/y", "Traced/z"), "True Traced, raised Traced False>True by pod ns/a, raised Traced by pod ns/b"}}},
		{name: "without a trace nobody is asked", did: func(d diary) { d[probes.Key{}] = []entry{{2 * time.Hour, actor("ns/a")}} },
			steps: []step{{0, see("Bad"), "True Bad, raised Bad False>True"}}},
	})

	t.Run("late, within a second", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.fold(see())
		w.expect(s, see("Traced"), "True Traced, again 100ms")
		w.expect(s/2, see("Traced"), "True Traced, again 100ms")
		w.journal.did(w.now.Mono, "it", "ns/a")
		w.expect(s/2, see("Traced"), "True Traced, raised Traced False>True by pod ns/a")
		if got := w.state.Condition.Message; got != "it is 0, want 1; by pod ns/a; acts: you" {
			t.Error(got)
		}
	})
	t.Run("too late, after a second", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.fold(see())
		w.expect(s, see("Traced"), "True Traced, again 100ms")
		w.expect(s, see("Traced"), "True Traced, raised Traced False>True")
		w.sleep(1)
		w.journal.did(w.now.Mono, "it", "ns/a")
		w.expect(0, see("Traced"), "True Traced")
		w.expect(s, see("Traced"), "True Traced")
		if w.state.Condition.Findings[0].Actor != nil {
			t.Error("an actor long after the fact")
		}
	})
	t.Run("on clear", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.fold(see())
		w.sleep(s)
		w.journal.did(w.now.Mono, "it", "ns/a")
		w.expect(0, see("Traced"), "True Traced, raised Traced False>True by pod ns/a")
		w.sleep(m)
		w.journal.did(w.now.Mono, "it", "ns/b")
		happened, _ := w.fold(see())
		if got := tellAll(&w.state, happened, 0); got != "False OK, cleared Traced True>False by pod ns/b" {
			t.Error(got)
		}
		if got := happened[0].Message; got != "it: gone after 1m0s; by pod ns/b" {
			t.Error(got)
		}
	})
	t.Run("who changes it again is named instead, and is not who mended it", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.fold(see())
		w.sleep(s)
		w.journal.did(w.now.Mono, "it", "ns/a")
		w.expect(0, see("Traced"), "True Traced, raised Traced False>True by pod ns/a")
		w.sleep(m)
		w.journal.did(w.now.Mono, "it", "ns/b")
		w.expect(1, with(see("Traced"), func(f *probes.Finding) { f.Observed = "2" }), "True Traced")
		if got := w.state.Condition.Message; got != "it is 2, want 1; by pod ns/b; acts: you" {
			t.Error(got)
		}
		w.expect(s, see(), "False OK, again 100ms")
		w.expect(s, see(), "False OK, cleared Traced True>False")
	})
	t.Run("who acts while nobody can look is not named for it", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.fold(see())
		w.sleep(s)
		w.journal.did(w.now.Mono, "it", "ns/a")
		w.fold(see("Traced"))
		w.expect(m, with(see("Traced"), func(f *probes.Finding) { f.Observed = "2" }), "True Traced")
		w.journal.did(w.now.Mono, "it", "ns/b")
		w.expect(s, unableTo("Traced"), "True Traced, again 1s")
		if got := w.state.Condition.Message; got != "it is 2, want 1; by pod ns/a; acts: you" {
			t.Error(got)
		}
	})
	t.Run("late on clear", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.fold(see())
		w.sleep(s)
		w.journal.did(w.now.Mono, "it", "ns/a")
		w.sleep(1)
		w.fold(see("Traced"))
		w.expect(s, see(), "False OK, again 100ms")
		w.journal.did(w.now.Mono, "it", "ns/b")
		w.expect(100*time.Millisecond, see(), "False OK, cleared Traced True>False by pod ns/b")
		w.expect(s, see(), "False OK")
	})
	t.Run("who mends it did not break it", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.fold(see())
		w.expect(s, see("Traced"), "True Traced, again 100ms")
		w.sleep(s / 2)
		w.journal.did(w.now.Mono, "it", "ns/mender")
		w.expect(0, see(), "False OK, raised Traced False>True, cleared Traced True>False by pod ns/mender")
	})
	t.Run("nor while its clear time runs", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.rules = &Rules{Reasons: map[string]ReasonRule{"Traced": {Clear: new(time.Minute)}}}
		w.fold(see())
		w.expect(s, see("Traced"), "True Traced, again 100ms")
		w.sleep(s / 2)
		w.journal.did(w.now.Mono, "it", "ns/mender")
		w.expect(0, see(), "True Traced, raised Traced False>True, again 1m0s")
		if a := w.state.Condition.Findings[0].Actor; a != nil {
			t.Errorf("%s is blamed", a.name())
		}
		w.expect(m, see(), "False OK, cleared Traced True>False by pod ns/mender")
	})
	const b, nobody = "it is 0, want 1; by pod ns/b; acts: you", "it is 0, want 1; acts: you"
	for _, c := range []struct {
		name       string
		at         time.Duration // when the journal hears who did it again; 0: never
		first, end string        // what is said at once, and after a while
	}{
		{"who does it again within its clear time is named", 1, b, b},
		{"also when the journal hears it late", s / 2, nobody, b},
		{"and nobody when it never does", 0, nobody, nobody},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.rules = &Rules{Reasons: map[string]ReasonRule{"Traced": {Clear: new(time.Minute)}}}
			w.fold(see())
			w.sleep(s)
			w.journal.did(w.now.Mono, "it", "ns/a")
			w.expect(0, see("Traced"), "True Traced, raised Traced False>True by pod ns/a")
			w.sleep(s)
			w.journal.did(w.now.Mono, "it", "ns/mender")
			w.expect(1, see(), "True Traced, again 1m0s")
			w.expect(s, see(), "True Traced, again 59s")
			w.sleep(s)
			said := func(want string) {
				t.Helper()
				if got := w.state.Condition.Message; got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
			if c.at == 1 {
				w.journal.did(w.now.Mono, "it", "ns/b")
			}
			w.sleep(1)
			w.fold(see("Traced"))
			said(c.first)
			if w.sleep(s / 2); c.at == s/2 {
				w.journal.did(w.now.Mono, "it", "ns/b")
			}
			w.fold(see("Traced"))
			w.expect(s/2, see("Traced"), "True Traced")
			said(c.end)
		})
	}
	t.Run("what is owed is told before the status moves on", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.fold(see())
		w.expect(s, see("Traced"), "True Traced, again 100ms")
		w.expect(s/10, fail(errStarved), "Unknown AgentStarved, raised Traced False>True, blinded AgentStarved True>Unknown, again 100ms")
	})
	t.Run("nobody knows anything", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		l := see("Traced")
		var happened []Happening
		var again time.Duration
		w.state, happened, again = fold(w.sub, w.rules, w.state, &l, nil, w.now)
		if got := tellAll(&w.state, happened, again); got != "True Traced, raised Traced >True" {
			t.Error(got)
		}
	})
}

// expect takes one look after a while and compares what comes of it.
func (w *world) expect(after time.Duration, l looked, want string) {
	w.t.Helper()
	w.sleep(after)
	if got := w.line(l); got != want {
		w.t.Fatalf("got  %s\nwant %s", got, want)
	}
}

// TestActorNeverDecides holds that with and without an actor reason, severity
// and status are the same.
func TestActorNeverDecides(t *testing.T) {
	t.Parallel()
	verdict := func(did bool) string {
		w := newWorld(t)
		if did {
			w.journal.did(w.now.Mono, "it", "kube-system/anything")
		}
		w.fold(see())
		w.fold(see("Traced", "Poor"))
		c := w.state.Condition
		return fmt.Sprint(c.Status, c.Reason, c.Findings[0].Severity, len(c.Findings))
	}
	if a, b := verdict(true), verdict(false); a != b {
		t.Errorf("with an actor %s, without %s", a, b)
	}
}

func TestTimesOfACondition(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	check := func(what string, changed, looked time.Duration) {
		t.Helper()
		c := &w.state.Condition
		if got := c.LastTransitionTime.Sub(epoch); got != changed {
			t.Errorf("%s: LastTransitionTime at %s, want %s", what, got, changed)
		}
		if got := c.LastCheckTime; looked < 0 && !got.IsZero() || looked >= 0 && got.Sub(epoch) != looked {
			t.Errorf("%s: LastCheckTime %s, want %s", what, got, looked)
		}
	}
	next := func(l looked) { w.sleep(s); w.fold(l) }
	w.fold(fail(errBroken))
	check("first look failed", 0, -1)
	next(fail(errDenied))
	check("another reason", 0, -1)
	next(see())
	check("first success", 2*s, 2*s)
	next(see())
	check("success", 2*s, 3*s)
	next(see("Bad"))
	check("drift", 4*s, 4*s)
	next(see("Poor"))
	check("another reason of the same status", 4*s, 5*s)
	next(fail(errBroken))
	check("one failure", 4*s, 5*s)
	next(fail(errBroken, "Bad"))
	check("partly failed", 4*s, 5*s)
	next(fail(errBroken))
	next(fail(errBroken))
	check("blind", 9*s, 5*s)
	next(see())
	check("clean", 10*s, 10*s)
}

// TestVerdictsAreMonotonic holds that stepping the wall clock by years, in either
// direction, moves no hold, clear time or attribution.
func TestVerdictsAreMonotonic(t *testing.T) {
	t.Parallel()
	script := []step{
		{0, see("Slow", "Traced"), ""}, {100 * time.Millisecond, see("Slow", "Traced"), ""}, {s, see("Slow", "Traced"), ""},
		{28 * s, see("Slow"), ""}, {900 * time.Millisecond, see("Slow"), ""}, {s, fail(errBroken), ""}, {s, see(), ""}, {59 * s, see(), ""}, {s, see(), ""},
	}
	run := func(wall func(step int) time.Duration) (lines []string) {
		w := newWorld(t)
		for i, st := range script {
			w.sleep(st.after)
			w.now.Wall = epoch.Add(wall(i))
			lines = append(lines, w.line(st.look))
		}
		return lines
	}
	const years = 10 * 365 * 24 * time.Hour
	want := run(func(int) time.Duration { return 0 })
	for name, wall := range map[string]func(int) time.Duration{
		"back and forth": func(i int) time.Duration { return years * time.Duration(i%3-1) },
		"ever back":      func(i int) time.Duration { return -years * time.Duration(i) },
		"ever forth":     func(i int) time.Duration { return years * time.Duration(i) },
	} {
		if got := run(wall); !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %s\nwant %s", name, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
		}
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		look looked
		want string
	}{
		{"observed and wanted", see("Bad/net.ipv4.ip_forward"), "net.ipv4.ip_forward is 0, want 1; acts: you"},
		{"empty values", with(see("Bad"), func(f *probes.Finding) { f.Observed = "" }), "it is empty, want 1; acts: you"},
		{"its own clause", with(see("Poor"), func(f *probes.Finding) { f.Message = "killed by SIGKILL" }), "it: killed by SIGKILL; acts: AKS"},
		{"a clause that names the subject", with(see("Poor"), func(f *probes.Finding) { f.Message = "it was killed" }), "it was killed; acts: AKS"},
		{"a subject that is the source", with(see("Bad//etc/x.conf"), func(f *probes.Finding) { f.Message, f.Source = "not a number", f.Subject }), "not a number; x.conf; acts: you"},
		{"source", with(see("Bad"), func(f *probes.Finding) { f.Source = "/etc/sysctl.d/99-a.conf" }), "it is 0, want 1; 99-a.conf; acts: you"},
		{"several", see("Bad/a", "Bad/b", "Poor/c", "Note/d"), "a is 0, want 1; +2 more; acts: you"},
		{"one waived", see("Bad/a", "Bad/waived"), "a is 0, want 1; acts: you"},
		{"clean", see(), "no drift"},
		{"clean but for info", see("Note"), "no drift"},
		{"one not judged", unableTo("Bad: no right to look"), "no drift; not judged: Bad"},
		{"some not judged", unableTo("Bad: no right,Poor: no right,Slow"), "no drift; not judged: Bad and 2 more"},
		{"error", fail(errDenied), "could not look: read it: permission denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.rules.Waivers = []Waiver{{Reason: "Bad", Subject: "waived"}}
			w.fold(c.look)
			if got := w.state.Condition.Message; got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestClearedMessages(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, want    string
		before, after []string
		rules         Rules
	}{
		{"gone", "a: gone after 1m30s", []string{"Bad/a"}, nil, Rules{}},
		{"several", "a: gone after 1m30s; +2 more", []string{"Bad/a", "Bad/b", "Bad/c"}, nil, Rules{}},
		{"waived", "a: waived after 1m30s", []string{"Bad/a"}, []string{"Bad/a"}, Rules{Waivers: []Waiver{{Reason: "Bad"}}}},
	} {
		w := newWorld(t)
		w.fold(see(c.before...))
		w.sleep(90 * s)
		w.rules = &c.rules
		if happened, _ := w.fold(see(c.after...)); len(happened) != 1 || happened[0].Message != c.want {
			t.Errorf("%s: %+v, want %q", c.name, happened, c.want)
		}
	}
	w := newWorld(t)
	nameless := with(see("Bad"), func(f *probes.Finding) { f.Subject = "" })
	w.fold(nameless)
	if happened, _ := w.fold(see()); happened[0].Message != "Bad: gone after 0s" {
		t.Errorf("without a subject: %q", happened[0].Message)
	}
}

// TestExplain holds that Explain sees what is confirmed and nothing else, and
// what its answer may and may not do.
func TestExplain(t *testing.T) {
	t.Parallel()
	var asked []string
	all := func(list []probes.Finding) []probes.Finding {
		f := probes.Finding{Reason: "Bad", Subject: "all", Message: fmt.Sprintf("%d routes are missing", len(list))}
		for _, p := range list {
			asked = append(asked, p.Subject)
			f.Consequences = append(f.Consequences, probes.Ref{ID: p.ID, Subject: p.Subject})
		}
		return []probes.Finding{f}
	}
	w := newWorld(t)
	w.sub.explain = all
	w.rules.Waivers = []Waiver{{Reason: "Slow", Subject: "waived"}}
	w.fold(see())
	w.expect(s, see("Slow/a", "Slow/b", "Slow/waived"), "False OK, again 30s")
	if len(asked) != 0 {
		t.Errorf("asked to explain %q while held", asked)
	}
	w.expect(30*s, see("Slow/a", "Slow/b", "Slow/late", "Slow/waived"), "True Bad, raised Bad False>True, again 30s")
	if !slices.Equal(asked, []string{"a", "b"}) {
		t.Errorf("asked to explain %q", asked)
	}
	c := w.state.Condition
	if c.Message != "all: 2 routes are missing; acts: you" {
		t.Errorf("message %q", c.Message)
	}
	top := c.Findings[0]
	if top.Severity != probes.Critical {
		t.Errorf("severity %s: that of a part, not of the whole", top.Severity)
	}
	if want := epoch.Add(s); !top.Since.Equal(want) {
		t.Errorf("since %s, want that of its first part, %s", top.Since, want)
	}
	shown := []string{}
	for _, f := range c.Findings {
		shown = append(shown, fmt.Sprint(f.Subject, " ", f.Held, f.Waived))
	}
	if want := []string{"all false false", "late true false", "waived false true"}; !slices.Equal(shown, want) {
		t.Errorf("shown %q, want %q", shown, want)
	}
	w.expect(30*s, see("Slow/a", "Slow/b", "Slow/late", "Slow/waived"), "True Bad")

	w.rules = &Rules{Reasons: map[string]ReasonRule{"Bad": {Severity: probes.Info}}}
	w.expect(s, see("Slow/a", "Slow/b"), "False OK, cleared Bad True>False, again 1m0s")
	w.rules = &Rules{Waivers: []Waiver{{Reason: "Bad", Subject: "all"}}}
	w.expect(s, see("Slow/a", "Slow/b"), "False OK, again 59s")
}

func TestExplainMisbehaves(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("x\u202e\n", 5000)
	for name, explain := range map[string]func([]probes.Finding) []probes.Finding{
		"panics":    func([]probes.Finding) []probes.Finding { panic("oh") },
		"overruns":  func(l []probes.Finding) []probes.Finding { return l[:cap(l)+1] },
		"forgets":   func([]probes.Finding) []probes.Finding { return nil },
		"scribbles": func(l []probes.Finding) []probes.Finding { l[0] = probes.Finding{}; panic("oh") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.sub.explain = explain
			w.fold(see())
			w.expect(s, see("Bad", "Poor"), "True Bad, raised Bad False>True, raised Poor")
			w.expect(s, see("Bad", "Poor"), "True Bad")
			if e := w.state.Condition.Error; !strings.HasPrefix(e, "explain: ") {
				t.Errorf("the error does not say so: %q", e)
			}
		})
	}
	t.Run("talks too much", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.sub.explain = func(l []probes.Finding) []probes.Finding {
			return []probes.Finding{{Reason: "Bad", Subject: huge, Message: huge, Consequences: slices.Repeat([]probes.Ref{{Subject: huge}}, 5000)}}
		}
		w.fold(see("Bad"))
		checkBounds(t, &w.state)
	})
}

func TestBounds(t *testing.T) {
	t.Parallel()
	hostile := []string{strings.Repeat("long ", 2048), "two\nlines\r\x1b[2J", "bidi \u202e\u2066 evil", "bad \xff\xfe utf-8", "nul \x00", "sep \u2028\u2029\u0085", "\ufeff", strings.Repeat("é", 5000)}
	for _, h := range hostile {
		w := newWorld(t)
		f := probes.Finding{Reason: "Bad", ID: h, Subject: h, Message: h, Observed: h, Wanted: h, Source: h, Consequences: []probes.Ref{{ID: h, Subject: h}}}
		w.fold(looked{Look: probes.Look{Findings: []probes.Finding{f}, NotJudged: []string{h}}})
		checkBounds(t, &w.state)
		w.fold(looked{Look: probes.Look{NotJudged: []string{h}}, err: fmt.Errorf("read %s", h)})
		checkBounds(t, &w.state)
		f.Message = ""
		happened, _ := w.fold(looked{Look: probes.Look{Findings: []probes.Finding{f}}})
		checkBounds(t, &w.state)
		more, _ := w.fold(see())
		for _, h := range append(happened, more...) {
			checkText(t, "happening", h.Message, maxMessage)
		}
		w.fold(fail(fmt.Errorf("%s: %w", h, probes.ErrNotApplicable)))
		checkText(t, "why not applicable", w.state.NotApplicable, maxError)
	}
}

func checkBounds(t *testing.T, st *state) {
	t.Helper()
	c := &st.Condition
	checkText(t, "message", c.Message, maxMessage)
	checkText(t, "error", c.Error, maxError)
	for _, n := range c.NotJudged {
		checkText(t, "not judged", n, maxField)
	}
	if len(c.Findings) > 2*maxStanding {
		t.Errorf("%d findings shown", len(c.Findings))
	}
	if len(st.Standing) > maxStanding {
		t.Errorf("%d findings kept", len(st.Standing))
	}
	for _, f := range c.Findings {
		for _, text := range []string{f.ID, f.Subject, f.Message, f.Observed, f.Wanted, f.Source} {
			checkText(t, "field", text, maxField)
		}
		if len(f.Consequences) > maxStanding {
			t.Errorf("%d consequences", len(f.Consequences))
		}
		for _, r := range f.Consequences {
			checkText(t, "consequence", r.ID+r.Subject, 2*maxField)
		}
	}
}

func checkText(t *testing.T, what, text string, limit int) {
	t.Helper()
	if len(text) > limit {
		t.Errorf("%s has %d bytes: %.40q...", what, len(text), text)
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !printable(r) }) {
		t.Errorf("%s is not one clean line: %q", what, text)
	}
}

// TestTooManyFindings holds that of more than 512 the worst are kept, the rest
// counted, and that neither the probe's order nor churn makes anything flap.
func TestTooManyFindings(t *testing.T) {
	t.Parallel()
	names := append(many("Note", 0, 600), "Bad/zzz")
	w := newWorld(t)
	w.fold(see())
	w.expect(s, see(names...), "True Bad, raised Bad False>True")
	slices.Reverse(names)
	w.expect(s, see(names...), "True Bad")
	checkBounds(t, &w.state)
	if n := w.state.Condition.NotJudged; len(n) != 1 || n[0] != "89 findings beyond the first 512" {
		t.Errorf("not judged: %q", n)
	}
	w.expect(s, see(), "False OK, cleared Bad True>False")
	w.expect(s, see(), "False OK")

	bad := many("Bad", 0, 600)
	w.expect(s, see(bad...), "True Bad, raised Bad False>True")
	slices.Reverse(bad)
	w.expect(s, see(bad...), "True Bad")

	w = newWorld(t)
	for i := range 20 {
		w.sleep(s)
		w.fold(see(many("Sticky", 400*i, 400*i+400)...))
		if len(w.state.Standing) > maxStanding {
			t.Fatalf("%d findings are kept", len(w.state.Standing))
		}
	}
}

// many names findings of one reason with subjects from to until.
func many(reason string, from, until int) (names []string) {
	for i := from; i < until; i++ {
		names = append(names, fmt.Sprintf("%s/10.244.%d.%d", reason, i/256, i%256))
	}
	return names
}

// TestCheckByHand holds what one look says that has an agent's memory: what is
// held counts and is marked; what could not be looked at is not taken from memory.
func TestCheckByHand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rules.CountHeld = true
	w.expect(0, see("Slow", "Note"), "True Slow, raised Slow >True, again 30s")
	if f := w.state.Condition.Findings[0]; !f.Held || f.Stands() {
		t.Errorf("%+v is not marked as held", f)
	}
	w = newWorld(t)
	w.fold(see())
	w.rules = &Rules{CountHeld: true}
	w.expect(s, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed False>Unknown")
	w = newWorld(t)
	w.fold(see("Bad"))
	w.rules = &Rules{CountHeld: true}
	w.expect(s, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed True>Unknown")
}

// TestFoldIsPure holds that the same arguments give the same answers, whatever
// was folded in between.
func TestFoldIsPure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fold(see("Bad", "Traced", "Slow"))
	w.sleep(s / 2)
	looks := []looked{see(), see("Bad", "Slow"), fail(errBroken), fail(errBroken, "Poor"), notApplicable(), unableTo("Bad")}
	fate := func() map[int]*state {
		out := map[int]*state{}
		for i, l := range looks {
			st, _, _ := fold(w.sub, w.rules, w.state, &l, w.journal, w.now)
			out[i] = deepCopy(&st)
		}
		return out
	}
	first := fate()
	for i, st := range maps.All(fate()) {
		if !reflect.DeepEqual(first[i], st) {
			t.Errorf("look %d gave another state the second time", i)
		}
	}
}
