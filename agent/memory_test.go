package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// TestKilled holds that a restart changes nothing, wherever in a drift's life it
// comes: the agent is killed twenty times, each time at another moment.
func TestKilled(t *testing.T) {
	t.Parallel()
	p, q := newFake("test"), newFake("other")
	inBubble(t, func(r *rig) {
		r.cfg.Memory, r.cfg.Journal = &r.memory, &r.journal
		r.journal.did(r.cfg.Mono(), "it", "ns/a")
		p.set(see("Traced", "Slow"))
		q.set(fail(errBroken))
		r.start().wait(time.Second)
		began := time.Now().Add(-time.Second)
		r.says("TestDrift", "True Traced").says("OtherDrift", "Unknown ProbeFailed").says(NodeDrift, "True TestDrift")
		if got := r.heard.of("TestDrift"); !slices.Equal(got, []string{"raised Traced >True by pod ns/a"}) {
			t.Fatalf("told %q", got)
		}
		r.journal.diary = diary{} // a new process knows of nobody
		r.heard.forget()
		for i := range 20 {
			before := r.memory.content()
			r.stop()
			r.memory.bytes = before // as after a kill: nothing was written on the way down
			r.wait(time.Duration(i*97) * time.Millisecond)
			r.start()
			slow := time.Since(began) >= 30*time.Second
			for _, x := range r.heard.lines() {
				if x != "raised Slow" || !slow {
					t.Fatalf("after restart %d, %s after the drift, told %q", i, time.Since(began), r.heard.lines())
				}
			}
			for _, c := range []string{"TestDrift", "OtherDrift", NodeDrift} {
				if at := r.condition(c).LastTransitionTime; !at.Equal(began) {
					t.Errorf("restart %d: %s turned at %s, not %s", i, c, at, began)
				}
			}
			c := r.condition("TestDrift")
			at := slices.IndexFunc(c.Findings, func(f Finding) bool { return f.Reason == "Traced" })
			if c.Status != True || c.Findings[at].Actor == nil || c.Findings[at].Actor.Pod != "ns/a" || !c.Findings[at].Since.Equal(began) {
				t.Errorf("restart %d: %+v", i, c)
			}
			r.wait(time.Duration(i*173) * time.Millisecond)
		}
		if !slices.Equal(r.heard.lines(), []string{"raised Slow"}) {
			t.Errorf("told %q in all", r.heard.lines())
		}
	}, p, q)
}

// TestHoldGoesOn holds that a hold that began before a restart ends when it
// would have.
func TestHoldGoesOn(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	p.set(see("Slow"))
	inBubble(t, func(r *rig) {
		r.cfg.Memory = &r.memory
		r.start().wait(12 * time.Second).stop()
		r.wait(5 * time.Second)
		r.start().wait(13*time.Second-1).says("TestDrift", "False OK")
		r.wait(1).says("TestDrift", "True Slow")
	}, p)
}

// TestTextIsRenewed holds that a clean node's message is this process's, not the
// one remembered.
func TestTextIsRenewed(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	p.set(unableTo("Bad: no right"))
	inBubble(t, func(r *rig) {
		r.cfg.Memory = &r.memory
		r.start().stop()
		p.set(see())
		p.spec.Healthy = "AllIsWell"
		r.start().says("TestDrift", "False AllIsWell")
		if c := r.condition("TestDrift"); c.Message != "no drift" || len(c.NotJudged) != 0 {
			t.Errorf("%+v", c)
		}
	}, p)
}

// TestFirstLookFailsAfterRestart holds that what was known stands until the
// probe has failed often enough.
func TestFirstLookFailsAfterRestart(t *testing.T) {
	t.Parallel()
	p, q := newFake("test"), newFake("other")
	p.set(see("Bad"))
	inBubble(t, func(r *rig) {
		r.cfg.Memory = &r.memory
		r.start().stop()
		r.heard.forget()
		p.set(fail(errBroken))
		q.set(fail(errBroken))
		r.start().says("TestDrift", "True Bad").says("OtherDrift", "False OK").told()
		if m := r.condition("TestDrift").Message; m != "it is 0, want 1; acts: you" {
			t.Error(m)
		}
		r.wait(p.spec.Every).says("TestDrift", "Unknown ProbeFailed").says("OtherDrift", "Unknown ProbeFailed")
	}, p, q)
}

// TestMendedAfterRestart holds that who broke it is not named as who mended it,
// though this process never saw it broken.
func TestMendedAfterRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fold(see())
	w.journal.did(w.now.Mono, "it", "ns/a")
	w.sleep(s)
	w.fold(see("Traced"))
	w.state = reborn(t, w)
	w.expect(s, see(), "False OK, again 100ms")
	w.expect(s, see(), "False OK, cleared Traced True>False")
}

// TestSuccessInTheFuture holds that a look that cannot have been is none.
func TestSuccessInTheFuture(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fold(see())
	w.sleep(-s)
	w.state = reborn(t, w)
	w.expect(0, fail(errBroken), "Unknown ProbeFailed, blinded ProbeFailed False>Unknown")
}

// TestRestartWhileGone holds that what was mended while the agent was away is
// told as cleared, once.
func TestRestartWhileGone(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	p.set(see("Bad"))
	inBubble(t, func(r *rig) {
		r.cfg.Memory = &r.memory
		r.start().stop()
		r.heard.forget()
		p.set(see())
		r.start().wait(time.Minute).says("TestDrift", "False OK").told("cleared Bad True>False")
	}, p)
}

func TestMemoryIsVoid(t *testing.T) {
	t.Parallel()
	good := func(r *rig) string { return string(r.memory.content()) }
	for _, c := range []struct {
		name   string
		damage func(r *rig)
		log    string
	}{
		{"another boot", func(r *rig) { r.cfg.Boot = "boot-2" }, ""},
		{"another schema", func(r *rig) { r.memory.bytes = []byte(strings.Replace(good(r), SchemaVersion, "nodedrift/v2", 1)) }, ""},
		{"empty", func(r *rig) { r.memory.bytes = nil }, ""},
		{"cut off", func(r *rig) { r.memory.bytes = r.memory.bytes[:len(r.memory.bytes)/2] }, "cannot recall what was known before; starting afresh"},
		{"not ours", func(r *rig) { r.memory.bytes = []byte("\x00\x01\x02") }, "starting afresh"},
		{"too large", func(r *rig) { r.memory.bytes = append(r.memory.bytes, bytes.Repeat([]byte(" "), maxMemory)...) }, "more than is ever written"},
		{"unreadable", func(r *rig) { r.memory.err = errDenied }, "permission denied"},
		{"bad status", func(r *rig) {
			r.memory.bytes = []byte(strings.ReplaceAll(good(r), `"status":"True"`, `"status":"Maybe"`))
		}, ""},
		{"from the future", func(r *rig) { r.memory.bytes = []byte(strings.ReplaceAll(good(r), `"mono":`, `"mono":9`)) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newFake("test")
			p.set(see("Slow"))
			inBubble(t, func(r *rig) {
				r.cfg.Memory = &r.memory
				r.start().wait(35 * time.Second).stop()
				c.damage(r)
				r.heard.forget()
				r.start()
				if c.log != "" && r.logged(c.log) != 1 {
					t.Errorf("the log does not say %q once: %s", c.log, r.log.String())
				}
				if c.name != "from the future" {
					r.says("TestDrift", "False OK") // afresh: held
				}
				r.wait(30*time.Second).says("TestDrift", "True Slow")
			}, p)
		})
	}
}

// TestNothingRemembered holds that no memory at all is fine too.
func TestNothingRemembered(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	inBubble(t, func(r *rig) {
		r.start().wait(time.Minute).says("TestDrift", "False OK")
	}, p)
}

// TestQuietNodeWritesNothing holds that a node in order does not write its
// memory again and again.
func TestQuietNodeWritesNothing(t *testing.T) {
	t.Parallel()
	p := newFake("test")
	inBubble(t, func(r *rig) {
		r.cfg.Memory = &r.memory
		r.start()
		saved, calls := r.memory.saved, r.heard.calls
		r.wait(time.Hour)
		if r.memory.saved != saved || r.heard.calls != calls {
			t.Errorf("saved %d times and published %d times in a quiet hour", r.memory.saved-saved, r.heard.calls-calls)
		}
	}, p)
}

// TestMuchToRemember holds that a memory that would be too large forgets the
// longest list's end, and nothing of the others.
func TestMuchToRemember(t *testing.T) {
	t.Parallel()
	long := func(names []string) looked {
		l := see(names...)
		for i := range l.Findings {
			l.Findings[i].Message = "the route of this pod is missing from the table: " + strings.Repeat("x", 150)
		}
		return l
	}
	for _, n := range []int{100, 250, maxStanding} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			p, q := newFake("test"), newFake("other")
			p.set(long(many("Slow", 0, n)))
			q.set(see("Slow/net.ipv4.ip_forward"))
			inBubble(t, func(r *rig) {
				r.cfg.Memory = &r.memory
				r.start().wait(time.Minute).says("TestDrift", "True Slow").says("OtherDrift", "True Slow").stop()
				if size := len(r.memory.content()); size > maxMemory {
					t.Fatalf("%d bytes", size)
				}
				r.heard.forget()
				p.set(fail(errBroken))
				r.start().says("TestDrift", "True Slow").says("OtherDrift", "True Slow").told()
				p.set(long(many("Slow", 0, n)))
				r.wait(p.spec.Every).says("TestDrift", "True Slow")
				kept := 0
				for _, f := range r.condition("TestDrift").Findings {
					if !f.Held {
						kept++
					}
				}
				t.Logf("%d of %d findings were remembered in %d bytes", kept, n, len(r.memory.content()))
				if kept < min(n, 250) {
					t.Errorf("only %d of %d findings were remembered", kept, n)
				}
			}, p, q)
		})
	}
}

// TestSlimmest holds that the memory ends up small whatever there is to keep.
func TestSlimmest(t *testing.T) {
	t.Parallel()
	wide := strings.Repeat("w", maxField)
	list := make([]probes.Probe, 20)
	for i := range list {
		f := newFake(fmt.Sprintf("p%d", i))
		l := see(many("Bad", 0, maxStanding)...)
		for j := range l.Findings {
			l.Findings[j].Subject += wide
			l.Findings[j].Trace.Name = wide
		}
		f.set(l)
		list[i] = f
	}
	inBubble(t, func(r *rig) {
		r.cfg.Memory = &r.memory
		r.start()
		var m remembered
		if err := json.Unmarshal(r.memory.content(), &m); err != nil {
			t.Fatal(err)
		}
		for name, p := range m.Probes {
			if p.Status != True || len(p.Standing) == 0 {
				t.Errorf("%s is forgotten: %s with %d findings", name, p.Status, len(p.Standing))
			}
		}
	}, list...)
}

// TestRecallOldText holds that a finding whose text did not fit says something
// true.
func TestRecallOldText(t *testing.T) {
	t.Parallel()
	k := kept{Reason: "Bad", Subject: "it"}
	s := k.standing(Instant{})
	shown := Finding{Subject: s.F.Subject, Message: s.F.Message, Observed: s.F.Observed, Wanted: s.F.Wanted}
	if got := shown.line(0); got != "it stood before the agent was restarted; acts: AKS or you" {
		t.Error(got)
	}
}

// FuzzRecall holds that whatever lies where the memory should be, the agent
// starts, within bounds, and comes to the truth.
func FuzzRecall(f *testing.F) {
	w := newWorld(f)
	w.journal.did(w.now.Mono, "it", "ns/a")
	w.fold(see("Bad", "Slow", "Traced", "Note/x#1"))
	c := &w.state.Condition
	m := remembered{SchemaVersion: SchemaVersion, Boot: "boot-1", NodeUID: "u", Summary: turnedAt{True, "TestDrift", "m", epoch}, Probes: map[string]probeMemory{}}
	p := probeMemory{turnedAt: turnedAt{c.Status, c.Reason, c.Message, c.LastTransitionTime}, LastGood: w.state.LastGood}
	for i := range w.state.Standing {
		p.Standing = append(p.Standing, keep(&w.state.Standing[i]))
	}
	m.Probes["test"] = p
	b, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, damage := range [][2]string{{`"True"`, `"Unknown"`}, {`"Bad"`, `"Boom"`}, {`"it"`, `"\u001b[2J\n\u202e"`}, {`"first"`, `"gone":1,"first"`},
		{`"confirmed":true`, `"confirmed":true,"blind":-5`}, {`3600000000000`, `-1`}, {`3600000000000`, `9223372036854775807`}, {`"standing":[`, `"standing":[null,{},`},
		{`"2026`, `"9999`}, {`"subject"`, `"hold":9223372036854775807,"subject"`}, {`{"test"`, `{"other":null,"test"`}, {`"severity"`, `"s"`}} {
		f.Add(bytes.ReplaceAll(b, []byte(damage[0]), []byte(damage[1])))
	}
	f.Add([]byte("null"))
	f.Add([]byte(`{"schemaVersion":"nodedrift/v1","boot":"boot-1","probes":{"test":{"status":"True"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a := New(Config{Log: silent, Boot: "boot-1", Memory: &shelf{bytes: b}, Mono: func() time.Duration { return 2 * time.Hour }, Probes: []probes.Probe{specced{testSpec()}}})
		a.recall()
		l := a.loops[0]
		checkBounds(t, &l.state)
		if s := a.summary.Status; s != "" && s != True && s != False && s != Unknown {
			t.Errorf("status %q", s)
		}
		if _, err := a.memory(); err != nil {
			t.Errorf("what was recalled cannot be remembered: %v", err)
		}
		now := Instant{epoch, 2 * time.Hour}
		for _, look := range []looked{fail(errBroken), see("Bad"), see()} {
			look.at = now
			l.state, _, _ = fold(l.sub, a.rules, l.state, &look, nil, now)
			checkBounds(t, &l.state)
			now.Mono += time.Hour
		}
		look := see()
		look.at = now
		if l.state, _, _ = fold(l.sub, a.rules, l.state, &look, nil, now); l.state.Condition.Status != False {
			t.Errorf("a node in order is %s", l.state.Condition.Status)
		}
	})
}

// TestMemoryIsSmall prints what a finding costs.
func TestMemoryIsSmall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.journal.did(w.now.Mono, "net.ipv4.ip_forward", "kube-system/tuner-x7k2")
	w.fold(see("Traced/net.ipv4.ip_forward"))
	b, err := json.Marshal(keep(&w.state.Standing[0]))
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 480 {
		t.Errorf("a finding with its actor takes %d bytes: %s", len(b), b)
	}
	back := reborn(t, w)
	was, is := w.state.Standing[0], back.Standing[0]
	was.severity, is.First.Wall = 0, was.First.Wall
	was.SeenAt, is.SeenAt = 0, 0
	if fmt.Sprintf("%+v %+v", was.F, *was.Actor) != fmt.Sprintf("%+v %+v", is.F, *is.Actor) || was.First != is.First || was.Raised != is.Raised || was.CleanAt != is.CleanAt {
		t.Errorf("recalled %+v, was %+v", is, was)
	}
}
