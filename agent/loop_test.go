package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// TestStorm holds that the first event is answered at once, and a storm of them
// by at most one look per 20 ms, the last of which sees the end of it.
func TestStorm(t *testing.T) {
	t.Parallel()
	p := newListener("test")
	inBubble(t, func(r *rig) {
		r.start().wait(time.Second)
		h, before := <-p.hearer, len(p.looked())
		h.Changed()
		synctest.Wait()
		looks := p.looked()
		if len(looks) != before+1 || !looks[before].Equal(time.Now()) {
			t.Fatalf("the leading edge was not looked at at once: %v", looks[before:])
		}
		for range 1000 {
			h.Changed()
			time.Sleep(time.Millisecond)
		}
		p.set(see("Bad"))
		h.Changed()
		r.wait(minGap).says("TestDrift", "True Bad")
		looks = p.looked()[before:]
		for i := range looks[1:] {
			if gap := looks[i+1].Sub(looks[i]); gap < minGap {
				t.Errorf("two looks within %s", gap)
			}
		}
		if n := len(looks); n < 45 || n > 53 {
			t.Errorf("%d looks in a second of events", n)
		}
	}, p)
}

// TestFailingInAStorm holds that on a node that moves all the time looks that fail
// for a moment are not told, and those that go on failing are told in time.
func TestFailingInAStorm(t *testing.T) {
	t.Parallel()
	p := newListener("test")
	inBubble(t, func(r *rig) {
		r.start()
		h := <-p.hearer
		storm := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
				h.Changed()
			}
		}
		storm(time.Second)
		p.set(fail(errBroken))
		storm(3 * time.Second)
		p.set(see())
		storm(time.Second)
		r.told("restored OK >False")
		p.set(fail(errBroken))
		storm(p.spec.Every - time.Second)
		r.says("TestDrift", "False OK")
		storm(2 * time.Second)
		r.says("TestDrift", "Unknown ProbeFailed").told("restored OK >False", "blinded ProbeFailed False>Unknown")
	}, p)
}

// TestFailingAtRest holds that nobody waits longer than a period for Unknown on a
// node on which nothing wakes the probe.
func TestFailingAtRest(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	inBubble(t, func(r *rig) {
		r.start()
		p.set(fail(errBroken))
		failing := func() bool { return r.condition("TestDrift").Error != "" }
		for !failing() {
			r.wait(time.Millisecond)
		}
		r.wait(p.spec.Every-10*time.Millisecond).says("TestDrift", "False OK")
		r.wait(20*time.Millisecond).says("TestDrift", "Unknown ProbeFailed")
	}, p)
}

func TestSweep(t *testing.T) {
	t.Parallel()
	for _, b := range []func(context.Context) (<-chan struct{}, error){beats, nil} { // by the agent's beat, or by timers
		p, q := newFake("test"), newFake("other")
		inBubble(t, func(r *rig) {
			r.cfg.Beats = b
			r.cfg.Rules.Every = map[string]time.Duration{"other": time.Second}
			r.start().wait(200 * time.Second)
			for f, every := range map[*fake]time.Duration{p: 10 * time.Second, q: time.Second} {
				looks := f.looked()
				for i := range looks[1:] {
					if gap := looks[i+1].Sub(looks[i]); gap > every || gap < every*9/10 {
						t.Errorf("%s: %s between two looks", f.spec.Name, gap)
					}
				}
				if n := int(200 * time.Second / every); len(looks) < n || len(looks) > n+1 {
					t.Errorf("%s: %d looks in 200 s", f.spec.Name, len(looks))
				}
			}
		}, p, q)
	}
}

// TestNoPeriod holds that a Spec that forgot its numbers is harmless.
func TestNoPeriod(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	p.spec.Every, p.spec.Timeout = 0, 0
	inBubble(t, func(r *rig) {
		r.start().wait(10*time.Minute).says("TestDrift", "False OK")
		if n := len(p.looked()); n > 15 {
			t.Errorf("%d looks in 10 minutes", n)
		}
	}, p)
}

// TestStuckProbe holds that a probe that ignores its context is Unknown right
// after its deadline, delays nobody, and recovers.
func TestStuckProbe(t *testing.T) {
	t.Parallel()
	stuck, fine := newFake("stuck"), newFake("fine")
	inBubble(t, func(r *rig) {
		release := make(chan struct{})
		stuck.do(func(context.Context) (probes.Look, error) { <-release; return probes.Look{Findings: found("Bad")}, nil })
		r.start().wait(stuck.spec.Timeout+100*time.Millisecond).says("StuckDrift", "Unknown ProbeTimedOut").says("FineDrift", "False OK")
		r.wait(time.Minute).says("StuckDrift", "Unknown ProbeTimedOut")
		if n := len(fine.looked()); n < 6 {
			t.Errorf("the other probe looked %d times in a minute", n)
		}
		if n := len(stuck.looked()); n != 1 {
			t.Errorf("%d looks at a time", n)
		}
		if err := r.agent.Alive(); err != nil {
			t.Errorf("a stuck probe is not a dead loop: %v", err)
		}
		stuck.set(see())
		close(release)
		r.wait(stuck.spec.Every+stuck.spec.Timeout).says("StuckDrift", "False OK")
		if slices.Contains(r.heard.of("StuckDrift"), "raised Bad Unknown>True") {
			t.Error("the answer to a look long past was believed")
		}
	}, stuck, fine)
}

// TestStuckAtTheEnd holds that a probe that never answers keeps neither Run nor
// Reconfigure.
func TestStuckAtTheEnd(t *testing.T) {
	t.Parallel()
	p := newListener("test")
	inBubble(t, func(r *rig) {
		release := make(chan struct{})
		p.do(func(context.Context) (probes.Look, error) { <-release; return probes.Look{}, nil })
		p.watch = func(context.Context, probes.Hearer) error { <-release; return nil }
		r.start()
		q, began := newFake("test"), time.Now()
		r.agent.Reconfigure(r.ctx, Rules{}, []probes.Probe{q})
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("Reconfigure took %s", took)
		}
		r.wait(time.Second).says("TestDrift", "False OK")
		r.agent.Reconfigure(r.ctx, Rules{}, []probes.Probe{p})
		synctest.Wait()
		began = time.Now()
		r.stop()
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("Run took %s to end", took)
		}
		close(release)
	}, p)
}

// TestEndWhileWoken holds that Run ends although looks are asked for all the
// time.
func TestEndWhileWoken(t *testing.T) {
	t.Parallel()
	for range 200 {
		p := newListener("test")
		p.spec.Every = time.Nanosecond
		inBubble(t, func(r *rig) {
			r.start()
			h := <-p.hearer
			go func() {
				for r.ctx.Err() == nil {
					h.Changed()
					wait(r.ctx, minGap)
				}
			}()
			time.Sleep(minGap)
			h.Changed()
		}, p)
	}
}

// TestSlowButPolite holds that what a probe found by its deadline stands beside
// the timeout.
func TestSlowButPolite(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	p.do(func(ctx context.Context) (probes.Look, error) {
		<-ctx.Done()
		return probes.Look{Findings: found("Bad")}, ctx.Err()
	})
	inBubble(t, func(r *rig) {
		r.start().wait(p.spec.Timeout).says("TestDrift", "True Bad")
		if c := r.condition("TestDrift"); !strings.Contains(c.Error, errTimedOut.Error()) {
			t.Errorf("error %q", c.Error)
		}
		if n := r.agent.Snapshot().Probes[0].Runs["timeout"]; n != 1 {
			t.Errorf("%d looks counted as timed out", n)
		}
	}, p)
}

func TestPanic(t *testing.T) {
	t.Parallel()
	for name, oh := range map[string]func(){
		"value": func() { panic("oh no") },
		"index": func() { none := []int{}; _ = none[len(errBroken.Error())] },
		"error": func() { panic(fmt.Errorf("oh: %w", errBroken)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, q := newFake("test"), newFake("other")
			p.do(func(context.Context) (probes.Look, error) { oh(); return probes.Look{}, nil })
			inBubble(t, func(r *rig) {
				r.start().says("TestDrift", "Unknown ProbeFailed").says("OtherDrift", "False OK")
				if e := r.condition("TestDrift").Error; !strings.Contains(e, "loop_test.go:") {
					t.Errorf("the error does not name the place: %q", e)
				}
				p.set(see())
				r.wait(p.spec.Every).says("TestDrift", "False OK")
			}, p, q)
		})
	}
}

// TestPanicElsewhere holds that the rest of a probe's code cannot end the agent
// either.
func TestPanicElsewhere(t *testing.T) {
	t.Parallel()
	p := &explainer{listener: newListener("test")}
	p.watch = func(context.Context, probes.Hearer) error { panic("in Watch") }
	p.set(see("Bad"))
	inBubble(t, func(r *rig) {
		r.start().wait(time.Minute).says("TestDrift", "True Bad")
		if src := r.agent.Snapshot().Sources; len(src) != 1 || src[0].Hearing || !strings.Contains(src[0].Error, "in Watch at loop_test.go") {
			t.Errorf("sources %+v", src)
		}
		if e := r.condition("TestDrift").Error; !strings.Contains(e, "in Explain at loop_test.go") {
			t.Errorf("error %q", e)
		}
	}, p)
}

type explainer struct{ *listener }

func (*explainer) Explain([]probes.Finding) []probes.Finding { panic("in Explain") }

// TestWatchAgain holds that a probe that cannot listen is asked again, ever more
// rarely, looks meanwhile, and says so.
func TestWatchAgain(t *testing.T) {
	t.Parallel()
	p := newListener("test")
	p.watch = func(context.Context, probes.Hearer) error { return errors.New("no such bus") }
	inBubble(t, func(r *rig) {
		r.start()
		source := func() Source { return r.agent.Snapshot().Sources[0] }
		if got, want := source(), (Source{Probe: "test", Error: "no such bus"}); got != want {
			t.Errorf("source %+v, want %+v", got, want)
		}
		r.wait(30 * time.Minute)
		p.mu.Lock()
		began := slices.Clone(p.began)
		p.watch = nil
		p.mu.Unlock()
		pause := time.Second
		for i := range began[1:] {
			if gap := began[i+1].Sub(began[i]); gap < pause/2 || gap > pause*3/2 {
				t.Errorf("pause %d was %s, want about %s", i, gap, pause)
			}
			pause = min(2*pause, time.Minute)
		}
		if n := len(began); n < 20 || n > 60 {
			t.Errorf("%d attempts in half an hour", n)
		}
		if n := len(p.looked()); n < 180 {
			t.Errorf("%d looks in half an hour", n)
		}
		r.wait(2 * time.Minute)
		if got := source(); !got.Hearing || got.Error != "" {
			t.Errorf("source %+v though it hears", got)
		}
	}, p)
}

// What a probe without a condition cannot hear is told with its source.
func TestHearsInPart(t *testing.T) {
	t.Parallel()
	p, judging := newListener("ears"), newListener("test")
	p.spec.Condition = ""
	deaf := looked{Look: probes.Look{NotJudged: []string{"Boom: no such hook", "Bang: no\nhook"}}}
	p.set(deaf)
	judging.set(deaf)
	inBubble(t, func(r *rig) {
		r.start().wait(time.Second)
		sources := r.agent.Snapshot().Sources
		if want := (Source{Probe: "ears", Hearing: true, Error: `Boom: no such hook; Bang: no\nhook`}); sources[0] != want || sources[1].Error != "" {
			t.Errorf("sources %+v, want %+v", sources, want)
		}
		p.set(see())
		r.wait(time.Hour)
		if s := r.agent.Snapshot().Sources[0]; s.Error != "" {
			t.Errorf("source %+v though it hears all", s)
		}
	}, p, judging)
}

// TestLost holds that lost events are counted and answered by a look.
func TestLost(t *testing.T) {
	t.Parallel()
	p := newListener("test")
	inBubble(t, func(r *rig) {
		r.start().wait(time.Second)
		h := <-p.hearer
		p.set(see("Bad"))
		h.Lost("netlink", 7)
		synctest.Wait()
		r.says("TestDrift", "True Bad")
		h.Lost("netlink", 5)
		s := r.agent.Snapshot()
		if s.Sources[0].Lost != 12 || s.Probes[0].Lost != 12 {
			t.Errorf("lost %d and %d, want 12", s.Sources[0].Lost, s.Probes[0].Lost)
		}
	}, p)
}

func TestOccurrences(t *testing.T) {
	t.Parallel()
	p := newListener("test")
	boom := probes.Occurrence{Reason: "Boom", Subject: "kubelet", Message: "killed\nby OOM", Trace: probes.Key{Domain: "test", Name: "oom"}}
	inBubble(t, func(r *rig) {
		r.cfg.Journal = &r.journal
		r.start().wait(time.Second)
		r.heard.forget()
		h := <-p.hearer
		r.journal.did(r.cfg.Mono(), "oom", "ns/a")
		h.Saw(boom)
		h.Saw(probes.Occurrence{Reason: "Bad"})
		h.Saw(probes.Occurrence{Reason: "Bda"})
		synctest.Wait()
		r.told("occurred Boom by pod ns/a").says("TestDrift", "False OK")
		x := r.heard.all()[0]
		if x.Message != `kubelet: killed\nby OOM; by pod ns/a; acts: you` || x.Severity != probes.Warning || x.From != x.To {
			t.Errorf("%+v", x)
		}
		last := r.agent.Snapshot().Occurrences
		if o := last[len(last)-1]; o.Reason != "Boom" || o.Probe != "test" {
			t.Errorf("history ends with %+v", o)
		}
		boom.Trace = probes.Key{}
		for range 1000 {
			h.Saw(boom)
		}
		synctest.Wait()
		heard, lost := len(r.heard.lines())-1, int(r.agent.Snapshot().Sources[0].Lost)
		if heard+lost != 1000 || heard < 64 {
			t.Errorf("of 1000 occurrences %d were told and %d counted as lost", heard, lost)
		}
		if n := len(r.agent.Snapshot().Occurrences); n != maxHistory {
			t.Errorf("the history has %d entries", n)
		}
	}, p)
}

// What happened and who did it are heard in either order; nobody waits for long.
func TestOccurrenceWaitsForItsActor(t *testing.T) {
	t.Parallel()
	p := newListener("test")
	inBubble(t, func(r *rig) {
		r.cfg.Journal = &r.journal
		r.start().wait(time.Second)
		h := <-p.hearer
		see := func(what string, after time.Duration, o probes.Occurrence, want string) {
			t.Helper()
			r.heard.forget()
			seen := time.Now()
			h.Saw(o)
			r.wait(after).told(want)
			if all := r.heard.all(); len(all) == 1 && !all[0].Time.Equal(seen) {
				t.Errorf("%s: it happened at %s, want %s", what, all[0].Time, seen)
			}
		}
		boom := probes.Occurrence{Reason: "Boom", Subject: "clock", Trace: probes.Key{Domain: "test", Name: "clock"}}
		see("nobody", lateName, boom, "occurred Boom")
		time.AfterFunc(lateName/2, func() { r.journal.did(r.cfg.Mono(), "clock", "ns/late") })
		see("later", lateName/2+askAgain, boom, "occurred Boom by pod ns/late")
		see("once more, by nobody", lateName, boom, "occurred Boom")
		r.journal.did(r.cfg.Mono(), "clock", "ns/before")
		see("before", 0, boom, "occurred Boom by pod ns/before")
		r.journal.did(r.cfg.Mono(), "clock", "ns/early")
		r.wait(time.Millisecond)
		boom.Since = r.cfg.Mono()
		see("by somebody who did it before", lateName, boom, "occurred Boom")
		r.wait(2 * time.Second)
		r.journal.did(r.cfg.Mono()-1500*time.Millisecond, "clock", "ns/slow")
		see("after a long gap", 0, boom, "occurred Boom by pod ns/slow")
	}, p)
}

func TestOccurrencesUnderRules(t *testing.T) {
	t.Parallel()
	p := newListener("test")
	inBubble(t, func(r *rig) {
		r.cfg.Rules = Rules{Waivers: []Waiver{{Reason: "Boom", Subject: "mine"}}, Reasons: map[string]ReasonRule{"Boom": {Severity: probes.Critical}}}
		r.start().wait(time.Second)
		h := <-p.hearer
		r.heard.forget()
		h.Saw(probes.Occurrence{Reason: "Boom", Subject: "mine"})
		h.Saw(probes.Occurrence{Reason: "Boom", Subject: "yours"})
		synctest.Wait()
		if all := r.heard.all(); len(all) != 2 || all[0].Severity != probes.Info || all[1].Severity != probes.Critical {
			t.Errorf("%+v", all)
		}
		r.heard.forget()
		r.agent.Reconfigure(r.ctx, Rules{Reasons: map[string]ReasonRule{"Boom": {Off: true}}}, r.cfg.Probes)
		r.wait(time.Second)
		(<-p.hearer).Saw(probes.Occurrence{Reason: "Boom"})
		synctest.Wait()
		r.told()
	}, p)
}

// TestHoldInTime holds that the loop looks again exactly when the hold ends,
// long before its period would have it.
func TestHoldInTime(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	p.spec.Every = 10 * time.Minute
	p.set(see("Slow"))
	inBubble(t, func(r *rig) {
		r.start().says("TestDrift", "False OK")
		r.wait(30*time.Second-1).says("TestDrift", "False OK")
		r.wait(1).says("TestDrift", "True Slow").says(NodeDrift, "True TestDrift")
		p.set(see())
		r.wait(10 * time.Minute)
		r.wait(time.Minute).says("TestDrift", "False OK")
		r.told("restored OK >False", "raised Slow False>True", "cleared Slow True>False")
	}, p)
}

// TestWaiverInTime holds that a waiver's end is not missed.
func TestWaiverInTime(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	p.spec.Every = time.Hour
	p.set(see("Bad"))
	inBubble(t, func(r *rig) {
		r.cfg.Rules.Waivers = []Waiver{{Reason: "Bad", Until: time.Now().Add(5 * time.Minute)}}
		r.start().wait(5*time.Minute-1).says("TestDrift", "False OK")
		r.wait(1).says("TestDrift", "True Bad")
	}, p)
}

// TestLateActor holds that the Event waits for the actor, and the condition does
// not.
func TestLateActor(t *testing.T) {
	t.Parallel()
	p := newListener("test")
	p.spec.Every = time.Hour
	inBubble(t, func(r *rig) {
		r.cfg.Journal = &r.journal
		r.start().wait(time.Second)
		h := <-p.hearer
		r.heard.forget()
		p.set(see("Traced"))
		h.Changed()
		synctest.Wait()
		r.says("TestDrift", "True Traced").told()
		r.wait(350 * time.Millisecond)
		r.journal.did(r.cfg.Mono(), "it", "ns/a")
		r.wait(100 * time.Millisecond).told("raised Traced False>True by pod ns/a")
		if m := r.condition("TestDrift").Message; m != "it is 0, want 1; by pod ns/a; acts: you" {
			t.Error(m)
		}
		before := len(p.looked())
		r.wait(time.Minute)
		if n := len(p.looked()) - before; n > 1 {
			t.Errorf("%d looks after the actor was known", n)
		}
	}, p)
}

// TestVisible holds what a publisher is told of though nothing happened.
func TestVisible(t *testing.T) {
	t.Parallel()
	shown := func() state {
		return state{Condition: Condition{Status: False, Reason: "OK", Message: "m", Findings: []Finding{{Reason: "Note", Subject: "it", Observed: "0", Severity: probes.Info}}}}
	}
	change := map[string]func(s *state, f *Finding){
		"status":         func(s *state, f *Finding) { s.Condition.Status = Unknown },
		"reason":         func(s *state, f *Finding) { s.Condition.Reason = "Other" },
		"message":        func(s *state, f *Finding) { s.Condition.Message = "n" },
		"not applicable": func(s *state, f *Finding) { s.NotApplicable = "gone" },
		"one more":       func(s *state, f *Finding) { s.Condition.Findings = append(s.Condition.Findings, Finding{}) },
		"another":        func(s *state, f *Finding) { f.Subject = "that" },
		"severity":       func(s *state, f *Finding) { f.Severity = probes.Warning },
		"held":           func(s *state, f *Finding) { f.Held = true },
		"waived":         func(s *state, f *Finding) { f.Waived = true },
		"observed":       func(s *state, f *Finding) { f.Observed = "1" },
		"actor":          func(s *state, f *Finding) { f.Actor = &Actor{} },
	}
	for name, do := range change {
		a, b := shown(), shown()
		do(&b, &b.Condition.Findings[0])
		if !visible(&a, &b) || !visible(&b, &a) {
			t.Errorf("%s: not seen", name)
		}
	}
	a, b := shown(), shown()
	a.Condition.Findings[0].Actor, b.Condition.Findings[0].Actor = new(actor("ns/a")), new(actor("ns/a"))
	if visible(&a, &b) {
		t.Error("the same actor is news")
	}
	b.Condition.Findings[0].Actor.Pod = "ns/b"
	if !visible(&a, &b) {
		t.Error("another actor: not seen")
	}
	a, b = shown(), shown()
	b.LastGood, b.Condition.LastCheckTime = Instant{epoch, 1}, epoch
	if visible(&a, &b) {
		t.Error("the time of the last look alone is news")
	}
}

func TestStarved(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	inBubble(t, func(r *rig) {
		r.cfg.Strain = &r.strain
		r.start().says("TestDrift", "False OK")
		r.strain.each.Store(int64(p.spec.Timeout))
		r.wait(time.Minute).says("TestDrift", "False OK") // a clean look is fair however long it took
		if n := r.agent.Snapshot().Probes[0].Runs["starved"]; n != 0 {
			t.Errorf("%d clean looks were taken again", n)
		}
		p.set(fail(errBroken))
		r.wait(59*time.Second).says("TestDrift", "False OK")
		r.wait(13*time.Second).says("TestDrift", "Unknown AgentStarved")
		if err := r.agent.Alive(); err != nil {
			t.Errorf("a starved agent is not a dead one: %v", err)
		}
		p.set(see("Bad"))
		r.wait(30*time.Second).says("TestDrift", "Unknown AgentStarved")
		r.strain.each.Store(0)
		r.wait(2*time.Second).says("TestDrift", "True Bad")
		runs := r.agent.Snapshot().Probes[0].Runs
		sum := uint64(0)
		for _, n := range runs {
			sum += n
		}
		if n := uint64(len(p.looked())); sum != n || runs["starved"] < 30 {
			t.Errorf("%d looks counted as %v", n, runs)
		}
	}, p)
}

// TestFairLookInBetween holds that of many starved looks one fair one counts.
func TestFairLookInBetween(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	inBubble(t, func(r *rig) {
		r.cfg.Strain = &r.strain
		r.start()
		r.strain.each.Store(int64(p.spec.Timeout))
		p.set(see("Bad"))
		r.wait(40*time.Second).says("TestDrift", "False OK")
		r.strain.each.Store(int64(p.spec.Timeout / 2))
		r.wait(time.Second).says("TestDrift", "True Bad")
	}, p)
}

// TestMachineStoodStill holds that a look across a pause of the whole machine is
// taken again.
func TestMachineStoodStill(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	for name, c := range map[string]struct {
		paused time.Duration
		want   string
	}{"a second": {time.Second, "True Bad"}, "longer": {time.Second + 1, "False OK"}} {
		t.Run(name, func(t *testing.T) {
			p.looks, p.says, p.check = nil, looked{}, nil
			inBubble(t, func(r *rig) {
				r.cfg.Strain = &r.strain
				r.start()
				once := true
				p.do(func(context.Context) (probes.Look, error) {
					if once {
						once = false
						r.strain.paused.Add(int64(c.paused))
						return see("Bad").Look, nil
					}
					return probes.Look{}, nil
				})
				r.wait(p.spec.Every).says("TestDrift", c.want)
			}, p)
		})
	}
}

// TestStrainUnreadable holds that who cannot tell is not starved: not even when
// the next reading shows the delay of the whole uptime.
func TestStrainUnreadable(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	inBubble(t, func(r *rig) {
		r.cfg.Strain = &r.strain
		r.strain.broken.Store(true)
		r.start()
		p.do(func(context.Context) (probes.Look, error) {
			r.strain.broken.Store(false)
			r.strain.delayed.Store(int64(time.Hour))
			return see("Bad").Look, nil
		})
		r.wait(p.spec.Every).says("TestDrift", "True Bad")
	}, p)
}

// TestOnce holds what check shows.
func TestOnce(t *testing.T) {
	t.Parallel()
	held, broken, none, stuck := newFake("held"), newFake("broken"), newFake("none"), newFake("stuck")
	held.set(see("Slow"))
	broken.set(fail(errDenied))
	none.set(notApplicable())
	inBubble(t, func(r *rig) {
		release := make(chan struct{})
		stuck.do(func(context.Context) (probes.Look, error) { <-release; return probes.Look{}, nil })
		r.cfg.Memory = &r.memory
		began := time.Now()
		s := Once(r.t.Context(), r.cfg)
		close(release)
		if took := time.Since(began); took > 1100*time.Millisecond {
			t.Errorf("it took %s", took)
		}
		got := []string{}
		for _, c := range s.Conditions {
			got = append(got, fmt.Sprint(c.Type, " ", c.Status, " ", c.Reason))
		}
		want := []string{"NodeDrift True HeldDrift", "HeldDrift True Slow", "BrokenDrift Unknown PermissionDenied", "StuckDrift Unknown ProbeTimedOut"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if len(s.NotApplicable) != 1 || s.NotApplicable[0] != (NotApplicable{"none", "no such thing here"}) {
			t.Errorf("not applicable: %+v", s.NotApplicable)
		}
		if !s.Complete || r.memory.saved != 0 || r.heard.calls != 0 {
			t.Errorf("complete %t; saved %d times, published %d times", s.Complete, r.memory.saved, r.heard.calls)
		}
	}, held, broken, none, stuck)
}
