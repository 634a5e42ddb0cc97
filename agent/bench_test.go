package agent

import (
	"context"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// TestAllocations holds what costs nothing: a clean look at a clean node, and
// clean text. A look through the loop costs its context and little else.
func TestAllocations(t *testing.T) {
	w := newWorld(t)
	w.fold(see())
	l := see()
	if n := testing.AllocsPerRun(1000, func() { w.state, _, _ = fold(w.sub, w.rules, w.state, &l, w.journal, w.now) }); n != 0 {
		t.Errorf("a clean fold allocates %v times", n)
	}
	w.rules = &Rules{Waivers: []Waiver{{Reason: "Bad", Until: until(time.Hour)}}}
	if n := testing.AllocsPerRun(1000, func() { w.state, _, _ = fold(w.sub, w.rules, w.state, &l, w.journal, w.now) }); n != 0 {
		t.Errorf("with a waiver it allocates %v times", n)
	}
	text := "net.ipv4.ip_forward Straße ✓"
	if n := testing.AllocsPerRun(1000, func() { text = clean(text, maxField) }); n != 0 {
		t.Errorf("cleaning clean text allocates %v times", n)
	}
	look, stop := benchLoop(t, trivial{})
	defer stop()
	if n := testing.AllocsPerRun(1000, look); n > 6 {
		t.Errorf("a look through the loop allocates %v times", n)
	}
}

// trivial is a probe that looks at nothing.
type trivial struct{}

func (trivial) Spec() probes.Spec                          { return testSpec() }
func (trivial) Check(context.Context) (probes.Look, error) { return probes.Look{}, nil }

// benchLoop is one loop with its eye, looking on demand.
func benchLoop(t testing.TB, p probes.Probe) (look, stop func()) {
	t.Helper()
	a := New(Config{Log: slog.New(slog.DiscardHandler), Probes: []probes.Probe{p}})
	ctx, cancel := context.WithCancel(context.Background())
	l := a.loops[0]
	eye := newEye(ctx, p)
	look = func() { l.look(ctx, eye, a.rules) }
	look()
	return look, cancel
}

// BenchmarkFoldClean is one clean look at a clean node. The naive twin makes the
// condition anew each time and compares.
func BenchmarkFoldClean(b *testing.B) {
	w := newWorld(b)
	w.fold(see())
	l := see()
	b.ReportAllocs()
	for b.Loop() {
		w.state, _, _ = fold(w.sub, w.rules, w.state, &l, w.journal, w.now)
	}
	own := b.Elapsed() / time.Duration(b.N)
	ratio(b, own, func() { foldAnew(w, &l) })
}

// BenchmarkFoldStanding is one look at a node where 250 routes are missing.
func BenchmarkFoldStanding(b *testing.B) {
	w := newWorld(b)
	l := see(many("Bad", 0, 250)...)
	w.fold(l)
	b.ReportAllocs()
	for b.Loop() {
		w.state, _, _ = fold(w.sub, w.rules, w.state, &l, w.journal, w.now)
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/250, "ns/finding")
}

// foldAnew is the naive twin: it knows no shortcut for clean looks, and compares
// states by reflection.
func foldAnew(w *world, l *looked) bool {
	s := w.state
	err := s.take(w.sub, w.rules, l, w.now)
	s.settle(w.sub, w.rules, w.now)
	s.decide(w.sub, w.rules, l, err, w.now)
	s.tell(w.sub, &w.state, nil, w.now)
	return reflect.DeepEqual(s.Condition, w.state.Condition)
}

// ratio measures the naive twin in the same run and reports how much more it costs.
func ratio(b *testing.B, own time.Duration, naive func()) {
	b.Helper()
	n := max(b.N/10, 1)
	began := time.Now()
	for range n {
		naive()
	}
	b.ReportMetric(float64(time.Since(began)/time.Duration(n))/max(float64(own), 1), "naive/own")
}

// BenchmarkLoop is one look of a trivial probe through the loop: the hand-over
// to the probe's goroutine and back, the deadline, the fold, the view. The naive
// twin starts a goroutine for each look and decides anew each time.
func BenchmarkLoop(b *testing.B) {
	look, stop := benchLoop(b, trivial{})
	defer stop()
	w := newWorld(b)
	w.fold(see())
	b.ReportAllocs()
	for b.Loop() {
		look()
	}
	own := b.Elapsed() / time.Duration(b.N)
	ratio(b, own, func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		answer := make(chan looked, 1)
		go func() {
			l, err := trivial{}.Check(ctx)
			answer <- looked{Look: l, err: err}
		}()
		l := <-answer
		cancel()
		foldAnew(w, &l)
	})
}

// BenchmarkSnapshot is what a reader pays on a node with ten probes, one of
// which has 250 findings. The naive twin copies deeply.
func BenchmarkSnapshot(b *testing.B) {
	var list []probes.Probe
	for range 10 {
		list = append(list, trivial{})
	}
	a := New(Config{Log: slog.New(slog.DiscardHandler), Probes: list})
	w := newWorld(b)
	for i, l := range a.loops {
		looked := see()
		if i == 0 {
			looked = see(many("Bad", 0, 250)...)
		}
		looked.at = w.now
		l.state, _, _ = fold(l.sub, a.rules, l.state, &looked, nil, w.now)
		l.show(&looked)
	}
	b.ReportAllocs()
	for b.Loop() {
		if s := a.Snapshot(); len(s.Conditions) != 11 {
			b.Fatal("not all there")
		}
	}
	own := b.Elapsed() / time.Duration(b.N)
	ratio(b, own, func() {
		a.Snapshot()
		for _, l := range a.loops {
			deepCopy(&l.state)
		}
	})
}

// BenchmarkMemory is what is written when something changed on such a node.
func BenchmarkMemory(b *testing.B) {
	a := New(Config{Log: slog.New(slog.DiscardHandler), Probes: []probes.Probe{trivial{}}})
	w, l := newWorld(b), a.loops[0]
	seen := see(many("Bad", 0, 250)...)
	l.state, _, _ = fold(l.sub, a.rules, l.state, &seen, nil, w.now)
	l.show(&seen)
	b.ReportAllocs()
	size := 0
	for b.Loop() {
		m, err := a.memory()
		if err != nil {
			b.Fatal(err)
		}
		size = len(m)
	}
	b.ReportMetric(float64(size), "bytes")
}
