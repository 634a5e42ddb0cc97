package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

func TestProvisioning(t *testing.T) {
	t.Parallel()
	ready := func(since time.Duration) Readiness { return Readiness{UID: "u", ReadySince: epoch.Add(-since)} }
	aks := Provisioning{AKS: true, Complete: true, Age: 5 * time.Minute}
	with := func(change func(p *Provisioning)) Provisioning { p := aks; change(&p); return p }
	for _, c := range []struct {
		name  string
		setup Provisioning
		ready Readiness
		want  phase
	}{
		{"not AKS", Provisioning{}, Readiness{}, running},
		{"not AKS, young", Provisioning{Age: time.Second}, Readiness{}, running},
		{"AKS by label", Provisioning{Age: time.Second}, Readiness{Labels: map[string]string{"kubernetes.azure.com/cluster": "c"}}, settingUp},
		{"complete, never Ready", aks, Readiness{}, settingUp},
		{"complete, Ready just now", aks, ready(0), settingUp},
		{"complete, Ready for almost 2 minutes", aks, ready(2*time.Minute - 1), settingUp},
		{"complete, Ready for 2 minutes", aks, ready(2 * time.Minute), running},
		{"Ready for long, not complete", with(func(p *Provisioning) { p.Complete = false }), ready(time.Hour), settingUp},
		{"almost 15 minutes", with(func(p *Provisioning) { p.Age = 15*time.Minute - 1 }), Readiness{}, settingUp},
		{"15 minutes at most", Provisioning{AKS: true, Age: 15 * time.Minute}, Readiness{}, running},
	} {
		if got := phaseOf(c.setup, c.ready, epoch); got != c.want {
			t.Errorf("%s: phase %d, want %d", c.name, got, c.want)
		}
	}
}

func TestNodeIsSetUp(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	p.set(see("Bad"))
	inBubble(t, func(r *rig) {
		r.cfg.Lifecycle = &r.life
		r.life.setup = Provisioning{AKS: true}
		r.start().wait(time.Minute).says("TestDrift", "Unknown NodeProvisioning")
		if c := r.condition(NodeDrift); c.Status != Unknown {
			t.Errorf("the summary is %s", c.Status)
		}
		if !r.agent.Provisioning() || r.agent.Ready() != nil || r.agent.Alive() != nil || !r.agent.Snapshot().Complete {
			t.Error("an agent that waits is not ready, alive and complete")
		}
		if n := len(p.looked()); n != 0 {
			t.Errorf("%d looks at a node that is being set up", n)
		}
		r.told()
		r.life.set(func() { r.life.setup.Complete = true })
		r.agent.SetReadiness(Readiness{UID: "u", ReadySince: time.Now()})
		r.wait(2*time.Minute-time.Second).says("TestDrift", "Unknown NodeProvisioning")
		r.wait(time.Second+Beat).says("TestDrift", "True Bad").says(NodeDrift, "True TestDrift")
		if r.agent.Provisioning() {
			t.Error("still waits")
		}
		r.life.set(func() { r.life.setup = Provisioning{AKS: true} })
		r.agent.SetReadiness(Readiness{UID: "u"})
		r.wait(time.Minute).says("TestDrift", "True Bad") // a node is set up once
	}, p)
}

func TestSetUpTakesTooLong(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	inBubble(t, func(r *rig) {
		r.cfg.Lifecycle = &r.life
		r.life.setup = Provisioning{AKS: true}
		r.start().wait(time.Minute).says("TestDrift", "Unknown NodeProvisioning")
		r.life.set(func() { r.life.setup.Age = settleAtMost })
		r.wait(Beat).says("TestDrift", "False OK").says(NodeDrift, "False NoDrift")
	}, p)
}

func TestProvisioningFailed(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]Provisioning{"seen to fail": {AKS: true}, "failed before the agent came": {AKS: true, Age: time.Hour, ExitCode: "50\n"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newFake("test")
			inBubble(t, func(r *rig) {
				r.cfg.Lifecycle = &r.life
				r.life.setup = before
				r.start()
				r.life.set(func() { r.life.setup = Provisioning{AKS: true, Complete: true, Age: time.Hour, ExitCode: "50\n"} })
				r.wait(Beat).says(NodeDrift, "True ProvisioningFailed").says("TestDrift", "False OK")
				if m := r.condition(NodeDrift).Message; m != `provisioning ended with exit code 50\n; provision.json; acts: AKS or you` {
					t.Errorf("message %q", m)
				}
				told := 0
				for _, h := range r.heard.all() {
					if h.Reason == ProvisioningFailed && h.To == True && h.Kind == Raised {
						told++
					}
				}
				if told != 1 {
					t.Errorf("told %d times", told)
				}
				p.set(see("Bad"))
				r.wait(p.spec.Every)
				if m := r.condition(NodeDrift).Message; !strings.HasSuffix(m, "; also TestDrift") {
					t.Errorf("message %q", m)
				}
				p.set(see())
				r.life.set(func() { r.life.setup.ExitCode, r.life.setup.Age = "0", time.Minute })
				r.wait(p.spec.Every).says(NodeDrift, "False NoDrift").says("TestDrift", "False OK") // it is not set up a second time
			}, p)
		})
	}
	for _, code := range []string{"", "0"} {
		if got := provisioningFailure(Provisioning{AKS: true, ExitCode: code}); got != "" {
			t.Errorf("exit code %q: %s", code, got)
		}
	}
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	p, q, l := newFake("test"), newFake("other"), newListener("third")
	q.set(see("Bad"))
	inBubble(t, func(r *rig) {
		r.cfg.Lifecycle, r.cfg.Journal = &r.life, &r.journal
		r.start().wait(time.Second)
		r.heard.forget()
		r.life.set(func() { r.life.stopping = true })
		r.life.announce <- struct{}{}
		synctest.Wait()
		r.told("occurred NodeShuttingDown")

		p.set(see("Traced"))
		q.set(fail(errBroken))
		h := <-l.hearer
		l.set(see("Slow"))
		h.Changed()
		h.Saw(probes.Occurrence{Reason: "Boom"})
		r.wait(5 * time.Minute).told("occurred NodeShuttingDown")
		r.says("TestDrift", "False OK").says("OtherDrift", "True Bad").says("ThirdDrift", "False OK").says(NodeDrift, "True OtherDrift")

		r.life.set(func() { r.life.failing = true }) // who cannot be asked any more has stopped
		r.wait(time.Minute).says("TestDrift", "False OK").told("occurred NodeShuttingDown")

		r.life.set(func() { r.life.failing, r.life.stopping = false, false })
		r.wait(Beat+time.Second).says("TestDrift", "True Traced")
		r.wait(time.Minute).says("OtherDrift", "Unknown ProbeFailed").says("ThirdDrift", "True Slow")
		r.life.set(func() { r.life.stopping = true })
		r.life.announce <- struct{}{}
		synctest.Wait()
		if n := strings.Count(strings.Join(r.heard.lines(), ","), NodeShuttingDown); n != 2 {
			t.Errorf("two shutdowns were told %d times", n)
		}
	}, p, q, l)
}

// TestShutdownNotAnnounced holds that the node is asked before anything bad is
// told, also when the bad waits for its actor.
func TestShutdownNotAnnounced(t *testing.T) {
	t.Parallel()
	for _, bad := range []looked{see("Bad"), see("Traced"), see("Slow"), fail(errStarved)} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			p := newFake("test")
			inBubble(t, func(r *rig) {
				r.cfg.Lifecycle, r.cfg.Journal = &r.life, &r.journal
				r.start().wait(time.Second)
				r.heard.forget()
				r.life.set(func() { r.life.stopping = true })
				p.set(bad)
				r.wait(2*time.Minute).says("TestDrift", "False OK").told("occurred NodeShuttingDown")
			}, p)
		})
	}
}

func TestStoppingCannotBeAsked(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	p.set(see("Bad"))
	inBubble(t, func(r *rig) {
		r.cfg.Lifecycle = &r.life
		r.life.failing = true
		r.start().says("TestDrift", "True Bad")
	}, p)
}

func TestReconfigure(t *testing.T) {
	t.Parallel()
	p, q := newListener("test"), newFake("other")
	p.set(see("Bad", "Slow", "Sticky"))
	inBubble(t, func(r *rig) {
		r.start().wait(20*time.Second).says("TestDrift", "True Bad").says("OtherDrift", "False OK")
		before := r.condition("TestDrift")
		r.heard.forget()

		r.agent.Reconfigure(r.ctx, Rules{}, []probes.Probe{p})
		r.says("TestDrift", "True Bad").says("OtherDrift", "")
		if !r.agent.Snapshot().Complete {
			t.Error("a probe that stays is not yet complete")
		}
		r.wait(10*time.Second - 1).told()
		r.wait(1).told("raised Slow") // the hold went on
		if c := r.condition("TestDrift"); !c.LastTransitionTime.Equal(before.LastTransitionTime) {
			t.Error("LastTransitionTime moved")
		}
		r.heard.forget()

		r.agent.Reconfigure(r.ctx, Rules{Waivers: []Waiver{{Reason: "Bad"}}}, []probes.Probe{p, q})
		r.wait(time.Minute).says("TestDrift", "True Slow")
		if got := r.heard.of("TestDrift"); !slices.Equal(got, []string{"cleared Bad"}) {
			t.Errorf("told %q", got)
		}
		r.heard.forget()
		r.agent.Reconfigure(r.ctx, Rules{}, []probes.Probe{p, q})
		r.wait(time.Minute).told("raised Bad").says("TestDrift", "True Bad")

		if runs := r.agent.Snapshot().Probes[0].Runs["ok"]; runs != uint64(len(p.looked())) {
			t.Errorf("%d looks counted of %d", runs, len(p.looked()))
		}
		if n := strings.Count(fmt.Sprint(r.heard.of(NodeDrift)), "TestDrift"); n != 0 {
			t.Errorf("the summary flapped: %q", r.heard.of(NodeDrift))
		}
	}, p, q)
}

// TestReconfigureWhileTold holds that what waits for its actor survives.
func TestReconfigureWhileTold(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	inBubble(t, func(r *rig) {
		r.cfg.Journal = &r.journal
		p.set(see("Traced"))
		r.start().told()
		r.agent.Reconfigure(r.ctx, Rules{}, r.cfg.Probes)
		r.wait(2 * time.Second).told("raised Traced >True")
	}, p)
}

// TestReconfigureOften holds that exchanging loops under all kinds of load
// leaves exactly the last configuration running.
func TestReconfigureOften(t *testing.T) {
	t.Parallel()
	p := newListener("test")
	inBubble(t, func(r *rig) {
		r.cfg.Lifecycle = &r.life
		r.start()
		for i := range 50 {
			p.do(func(context.Context) (probes.Look, error) {
				time.Sleep(50 * time.Millisecond)
				return see("Bad").Look, nil
			})
			for range 5 {
				go r.agent.Reconfigure(r.ctx, Rules{}, []probes.Probe{p})
				r.agent.poke()
				time.Sleep(time.Duration(i) * time.Millisecond)
			}
			r.wait(2 * time.Second)
		}
		r.heard.forget()
		p.set(see())
		r.wait(p.spec.Every).told("cleared Bad True>False")
		before := len(p.looked())
		r.wait(time.Minute)
		if n := len(p.looked()) - before; n > 7 {
			t.Errorf("%d looks in a minute: more than one loop runs", n)
		}
		if err := r.agent.Alive(); err != nil {
			t.Error(err)
		}
	}, p)
}

// TestReconfigureInTheMiddle holds that the agent's own loop, woken while the
// old loops are still ending, does not start them again.
func TestReconfigureInTheMiddle(t *testing.T) {
	t.Parallel()
	p, q := newFake("test"), newFake("test")
	p.spec.Every = time.Millisecond
	inBubble(t, func(r *rig) {
		p.do(func(context.Context) (probes.Look, error) {
			time.Sleep(90 * time.Millisecond)
			return probes.Look{}, nil
		})
		r.start()
		go r.agent.Reconfigure(r.ctx, Rules{}, []probes.Probe{q})
		time.Sleep(10 * time.Millisecond)
		r.agent.poke()
		r.wait(time.Second)
		before := len(p.looked())
		r.wait(time.Minute)
		if old, now := len(p.looked())-before, len(q.looked()); old != 0 || now < 6 {
			t.Errorf("the old probe looked %d times, the new one %d times", old, now)
		}
	}, p)
}

// TestReconfigureBeforeRun and while the node is set up: the loops start later.
func TestReconfigureBeforeRun(t *testing.T) {
	t.Parallel()
	p, q := newFake("test"), newFake("other")
	inBubble(t, func(r *rig) {
		r.cfg.Lifecycle = &r.life
		r.life.setup = Provisioning{AKS: true}
		r.start()
		r.agent.Reconfigure(r.ctx, Rules{}, []probes.Probe{q})
		r.wait(time.Minute).says("OtherDrift", "Unknown NodeProvisioning").says("TestDrift", "")
		r.life.set(func() { r.life.setup.Age = time.Hour })
		r.wait(Beat).says("OtherDrift", "False OK")
	}, p)
}

func TestAliveAndReady(t *testing.T) {
	t.Parallel()
	p, q := newFake("test"), newFake("other")
	inBubble(t, func(r *rig) {
		release := make(chan struct{})
		q.do(func(context.Context) (probes.Look, error) { <-release; return probes.Look{}, nil })
		r.start()
		if err := r.agent.Ready(); err == nil || !strings.Contains(err.Error(), "other") {
			t.Errorf("ready before the first look: %v", err)
		}
		if r.agent.Snapshot().Complete {
			t.Error("complete before the first look")
		}
		r.says("OtherDrift", "NotCheckedYet").says(NodeDrift, "NotCheckedYet")
		p.set(see("Bad"))
		r.agent.loops[0].Changed()
		r.wait(minGap).says(NodeDrift, "True TestDrift") // what is known is told, whoever is still to come
		r.wait(2 * time.Second)
		if err := r.agent.Ready(); err != nil {
			t.Errorf("a look that failed is a look: %v", err)
		}
		close(release)
		for range 60 {
			if err := r.wait(10 * time.Second).agent.Alive(); err != nil {
				t.Fatalf("an idle agent is not dead: %v", err)
			}
		}
	}, p, q)
}

// TestHungLoop holds that a loop that hangs in the engine is found.
func TestHungLoop(t *testing.T) {
	t.Parallel()
	p, q := &hanging{fake: newFake("test")}, newFake("other")
	inBubble(t, func(r *rig) {
		p.release = make(chan struct{})
		r.start().wait(time.Minute)
		p.set(see("Bad"))
		r.wait(time.Minute)
		if err := r.agent.Alive(); err == nil || !strings.Contains(err.Error(), "test") || strings.Contains(err.Error(), "other") {
			t.Errorf("a loop that hangs: %v", err)
		}
		close(p.release)
		r.wait(time.Minute)
		if err := r.agent.Alive(); err != nil {
			t.Errorf("it goes on: %v", err)
		}
	}, p, q)
}

type hanging struct {
	*fake
	release chan struct{}
}

func (h *hanging) Explain(l []probes.Finding) []probes.Finding { <-h.release; return l }

// TestHungMemory holds that the agent's own loop is watched too.
func TestHungMemory(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	inBubble(t, func(r *rig) {
		r.cfg.Memory, r.memory.wait = &r.memory, make(chan struct{})
		r.start().wait(time.Minute)
		if err := r.agent.Alive(); err == nil {
			t.Error("alive though it hangs in Save")
		}
		close(r.memory.wait)
		r.wait(time.Minute)
		if err := r.agent.Alive(); err != nil {
			t.Error(err)
		}
	}, p)
}

func TestSummary(t *testing.T) {
	t.Parallel()
	finding := func(reason string, severity probes.Severity) Finding {
		return Finding{Reason: reason, Severity: severity, Routine: reason == "Chore"}
	}
	cond := func(name string, s Status, f ...Finding) Condition {
		return Condition{Type: name, Status: s, Findings: f}
	}
	warn, crit, chore := finding("Poor", probes.Warning), finding("Bad", probes.Critical), finding("Chore", probes.Warning)
	waived := crit
	waived.Waived = true
	for _, c := range []struct {
		name, failed string
		list         []Condition
		want         string
	}{
		{"nothing", "", nil, "False NoDrift: no drift"},
		{"clean", "", []Condition{cond("A", False), cond("B", False)}, "False NoDrift: no drift"},
		{"the worst one's type", "", []Condition{cond("A", True, warn), cond("B", True, crit)}, "True B: Bad (critical); also A"},
		{"the first of equals", "", []Condition{cond("A", True, warn), cond("B", True, warn)}, "True A: Poor (warning); also B"},
		{"True goes before Unknown", "", []Condition{cond("A", Unknown), cond("B", True, warn)}, "True B: Poor (warning)"},
		{"Unknown", "", []Condition{cond("A", False), cond("B", Unknown), cond("C", Unknown)}, "Unknown B: B is not known; also C"},
		{"routine alone", "", []Condition{cond("A", True, chore)}, "False NoDrift: no drift"},
		{"routine beside Unknown", "", []Condition{cond("A", True, chore), cond("B", Unknown)}, "Unknown B: B is not known"},
		{"routine beside a reason that is not", "", []Condition{cond("A", True, chore, warn)}, "True A: Poor (warning)"},
		{"waived", "", []Condition{cond("A", True, chore, waived)}, "False NoDrift: no drift"},
		{"provisioning failed", "exit code 1", []Condition{cond("A", Unknown), cond("B", True, crit)}, "True ProvisioningFailed: exit code 1; also B"},
	} {
		s := summary(c.list, c.failed, &Rules{})
		if got := fmt.Sprintf("%s %s: %s", s.Status, s.Reason, s.Message); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// TestSummaryTold holds that each change of NodeDrift is told once, also when
// somebody asks for a snapshot all the time.
func TestSummaryTold(t *testing.T) {
	t.Parallel()
	p, q := newFake("test"), newFake("other")
	inBubble(t, func(r *rig) {
		r.start()
		turn := func(f *fake, l looked) { f.set(l); r.wait(f.spec.Every) }
		turn(p, see("Bad"))
		r.agent.Snapshot()
		turn(q, see("Poor"))
		turn(p, see())
		turn(q, fail(errBroken))
		turn(q, fail(errBroken))
		turn(q, see("Chore"))
		if got, want := r.heard.of(NodeDrift), []string{"restored NoDrift >False", "raised TestDrift False>True", "blinded OtherDrift True>Unknown",
			"restored NoDrift Unknown>False"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	}, p, q)
	inBubble(t, func(r *rig) {
		r.start()
		p.set(see("Bad"))
		l := r.agent.loops[0]
		r.wait(p.spec.Every)
		r.heard.forget()
		s := l.state // what Snapshot may see between a look and its telling
		s.Condition.Status, s.Condition.Findings = False, nil
		l.mu.Lock()
		l.view.condition = s.Condition
		l.mu.Unlock()
		r.says(NodeDrift, "False NoDrift")
		r.agent.tell(nil)
		if got := r.heard.of(NodeDrift); !slices.Equal(got, []string{"restored NoDrift True>False"}) {
			t.Errorf("told %q", got)
		}
	}, p)
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	p, q := newFake("test"), newFake("other")
	p.set(see("Bad"))
	inBubble(t, func(r *rig) {
		r.start()
		long := time.Now().Add(-24 * time.Hour)
		for _, c := range []string{"TestDrift", "OtherDrift", NodeDrift} {
			r.agent.Adopt(c, True, "Bad", long)
		}
		since := func(name string, want time.Time) {
			t.Helper()
			if got := r.condition(name).LastTransitionTime; !got.Equal(want) {
				t.Errorf("%s: LastTransitionTime %s, want %s", name, got, want)
			}
		}
		since("TestDrift", long)
		since(NodeDrift, long)
		since("OtherDrift", time.Now())
		p.set(see())
		r.wait(p.spec.Every)
		turned := p.looked()[1]
		since("TestDrift", turned)
		since(NodeDrift, turned)
		r.agent.Adopt("TestDrift", False, "OK", long) // too late
		since("TestDrift", turned)
		p.set(see("Bad"))
		r.wait(p.spec.Every)
		since("TestDrift", p.looked()[2])
		r.agent.Adopt("OtherDrift", False, "OK", time.Now().Add(time.Hour)) // ours is older
		since("OtherDrift", r.agent.start)

		r.agent.SetReadiness(Readiness{UID: "one"})
		r.agent.Adopt("OtherDrift", False, "OK", long)
		since("OtherDrift", long)
		r.agent.SetReadiness(Readiness{UID: "two"}) // another Node object: what its predecessor said is void
		if got := r.condition("OtherDrift").LastTransitionTime; got.Equal(long) {
			t.Error("a new Node object kept the old one's times")
		}
	}, p, q)
}

// TestSnapshotIsACopy holds that readers and the agent do not share what
// changes; the race detector watches.
func TestSnapshotIsACopy(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	p.do(func(context.Context) (probes.Look, error) {
		l := see("Bad", "Slow").Look
		l.Samples = []probes.Sample{{Name: "n", Value: 1}}
		l.Fingerprints = map[string]string{"test": "abc"}
		return l, nil
	})
	p.spec.Every = 100 * time.Millisecond
	inBubble(t, func(r *rig) {
		r.start()
		for range 4 {
			go func() {
				for r.ctx.Err() == nil {
					s := r.agent.Snapshot()
					_ = fmt.Sprint(s)
					wait(r.ctx, time.Millisecond)
				}
			}()
		}
		r.wait(time.Second)
		s := r.agent.Snapshot()
		if st := s.Probes[0]; len(st.Samples) != 1 || st.Fingerprints["test"] != "abc" || st.LastSuccess.IsZero() {
			t.Errorf("%+v", st)
		}
		p.set(notApplicable())
		r.wait(time.Second)
		if st := r.agent.Snapshot().Probes[0]; len(st.Samples) != 0 || len(st.Fingerprints) != 0 {
			t.Errorf("numbers of what is not there: %+v", st)
		}
	}, p)
}
