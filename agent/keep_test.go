package agent

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// rememberer is a probe that keeps words of its own.
type rememberer struct {
	*fake
	kept map[string]string
}

func (r *rememberer) Recall(kept map[string]string) { r.kept = kept }

// TestKeep holds that a probe gets back what it kept, in the same boot only.
func TestKeep(t *testing.T) {
	t.Parallel()
	words := map[string]string{"first:etc/x": "0123"}
	for _, c := range []struct {
		name string
		keep map[string]string
		turn func(r *rig)
		want map[string]string
	}{
		{"same boot", words, func(*rig) {}, words},
		{"nothing new is what it was", nil, func(*rig) {}, nil},
		{"another boot", words, func(r *rig) { r.cfg.Boot = "another" }, nil},
		{"too much", map[string]string{"x": strings.Repeat("x", maxKeep)}, func(*rig) {}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := &rememberer{fake: newFake("test")}
			l := see()
			l.Keep = c.keep
			p.set(l)
			inBubble(t, func(r *rig) {
				r.cfg.Memory = &r.memory
				r.start().wait(time.Minute)
				// An agent that is killed has written already.
				if got := strings.Contains(string(r.memory.content()), "first:etc/x"); got != (c.keep["first:etc/x"] != "") {
					t.Errorf("written is %t: %s", got, r.memory.content())
				}
				r.stop()
				c.turn(r)
				r.start().wait(time.Second)
				if !maps.Equal(p.kept, c.want) {
					t.Errorf("recalled %v, want %v", p.kept, c.want)
				}
			}, p)
		})
	}
}

// TestKeepThroughReconfigure holds that a probe's words outlive a new
// configuration, which comes with a new probe.
func TestKeepThroughReconfigure(t *testing.T) {
	t.Parallel()
	words := map[string]string{"first:etc/x": "0123"}
	p, q := &rememberer{fake: newFake("test")}, &rememberer{fake: newFake("test")}
	l := see()
	l.Keep = words
	p.set(l)
	inBubble(t, func(r *rig) {
		r.cfg.Memory = &r.memory
		r.start().wait(time.Minute)
		r.agent.Reconfigure(r.ctx, Rules{}, []probes.Probe{q})
		r.wait(time.Minute)
		if !maps.Equal(q.kept, words) {
			t.Errorf("the new probe recalls %v, want %v", q.kept, words)
		}
		if !strings.Contains(string(r.memory.content()), "first:etc/x") {
			t.Errorf("forgotten: %s", r.memory.content())
		}
	}, p)
}

func TestKeepsBound(t *testing.T) {
	t.Parallel()
	own := map[string]string{}
	for i := range 8 {
		own[fmt.Sprintf("key%d", i)] = strings.Repeat("v", 1000)
	}
	if !keeps(own) {
		t.Error("8 KB are too much")
	}
	own["more"] = strings.Repeat("v", 1000)
	if keeps(own) {
		t.Error("9 KB are kept")
	}
}
