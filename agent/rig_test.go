package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// A rig is an agent in a bubble, with everything around it faked.
type rig struct {
	t       *testing.T
	cfg     Config
	agent   *Agent
	booted  time.Time
	heard   hearsay
	memory  shelf
	life    nodeLife
	strain  strain
	journal ledger
	log     bytes.Buffer // read it in the bubble only, after settle
	logMu   sync.Mutex

	cancel context.CancelFunc
	ctx    context.Context
	ended  chan struct{}
}

// inBubble runs f in a bubble, with an agent an hour after boot that has not
// been started; it is stopped afterwards, and the bubble fails when a goroutine
// stays behind.
func inBubble(t *testing.T, f func(r *rig), list ...probes.Probe) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, booted: time.Now().Add(-time.Hour), journal: ledger{diary: diary{}}}
		r.life.announce = make(chan struct{}, 1)
		r.cfg = Config{Node: "node0", Boot: "boot-1", Mono: func() time.Duration { return time.Since(r.booted) }, Probes: list,
			Publishers: []Publisher{&r.heard}, Log: slog.New(slog.NewTextHandler(r, nil)), Beats: beats}
		f(r)
		r.stop()
	})
}

// beats are those of a node that was booted at a whole multiple of [Beat].
func beats(ctx context.Context) (<-chan struct{}, error) {
	out := make(chan struct{}, 1)
	go func() {
		for {
			wait(ctx, Beat-time.Duration(time.Now().UnixNano())%Beat)
			if ctx.Err() != nil {
				return
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, nil
}

// Write implements [io.Writer] for the log.
func (r *rig) Write(b []byte) (int, error) {
	r.logMu.Lock()
	defer r.logMu.Unlock()
	return r.log.Write(b)
}

func (r *rig) logged(what string) int {
	r.logMu.Lock()
	defer r.logMu.Unlock()
	return strings.Count(r.log.String(), what)
}

// start runs a new agent and lets it settle.
func (r *rig) start() *rig {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	a, ended := New(r.cfg), make(chan struct{})
	r.agent, r.cancel, r.ctx, r.ended = a, cancel, ctx, ended
	go func() {
		defer close(ended)
		if err := a.Run(ctx); err != nil {
			r.t.Errorf("Run: %v", err)
		}
	}()
	synctest.Wait()
	return r
}

// stop ends the agent, which must not take long.
func (r *rig) stop() {
	if r.agent == nil {
		return
	}
	r.cancel()
	select {
	case <-r.ended:
	case <-time.After(5 * time.Second):
		r.t.Error("Run does not end")
	}
	r.agent = nil
}

// wait lets time pass, and all that is due be done.
func (r *rig) wait(d time.Duration) *rig {
	time.Sleep(d)
	synctest.Wait()
	return r
}

// condition is one condition of the snapshot.
func (r *rig) condition(name string) Condition {
	r.t.Helper()
	s := r.agent.Snapshot()
	if i := slices.IndexFunc(s.Conditions, func(c Condition) bool { return c.Type == name }); i >= 0 {
		return s.Conditions[i]
	}
	return Condition{}
}

// says checks a condition's status and reason: "True Bad"; "" when there is none.
func (r *rig) says(name, want string) *rig {
	r.t.Helper()
	c := r.condition(name)
	if got := strings.TrimSpace(string(c.Status) + " " + c.Reason); got != want {
		r.t.Errorf("%s is %q (%s), want %q", name, got, c.Message, want)
	}
	return r
}

// told checks all that was told of conditions other than the summary, ever.
func (r *rig) told(want ...string) *rig {
	r.t.Helper()
	if got := r.heard.lines(); !slices.Equal(got, want) {
		r.t.Errorf("told %q, want %q", got, want)
	}
	return r
}

// hearsay is a [Publisher] that keeps everything.
type hearsay struct {
	mu       sync.Mutex
	calls    int
	happened []Happening
}

func (h *hearsay) Publish(happened []Happening) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	h.happened = append(h.happened, happened...)
}

func (h *hearsay) all() []Happening {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.happened)
}

func (h *hearsay) of(condition string) (lines []string) {
	for _, x := range h.all() {
		if x.Condition == condition {
			lines = append(lines, happeningLine(&x))
		}
	}
	return lines
}

func (h *hearsay) lines() (lines []string) {
	for _, x := range h.all() {
		if x.Condition != NodeDrift {
			lines = append(lines, happeningLine(&x))
		}
	}
	return lines
}

func (h *hearsay) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.happened, h.calls = nil, 0
}

// shelf is a [Memory] that outlives agents.
type shelf struct {
	mu    sync.Mutex
	bytes []byte
	saved int
	err   error
	wait  chan struct{} // saving blocks until it is closed
}

func (m *shelf) Load() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.bytes), m.err
}

func (m *shelf) Save(b []byte) error {
	if m.wait != nil {
		<-m.wait
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes, m.saved = slices.Clone(b), m.saved+1
	return nil
}

func (m *shelf) content() []byte {
	b, _ := m.Load()
	return b
}

// ledger is a diary that goroutines share.
type ledger struct {
	mu    sync.Mutex
	diary diary
}

func (l *ledger) Who(key probes.Key, since time.Duration) (Actor, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.diary.Who(key, since)
}

func (l *ledger) did(at time.Duration, subject, pod string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.diary.did(at, subject, pod)
}

// nodeLife is a [Lifecycle] in the test's hands.
type nodeLife struct {
	mu       sync.Mutex
	stopping bool
	failing  bool // nobody can be asked
	setup    Provisioning
	asked    int
	announce chan struct{}
}

func (n *nodeLife) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func (n *nodeLife) Stopping(context.Context) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	if n.failing {
		return false, errors.New("no bus")
	}
	return n.stopping, nil
}

func (n *nodeLife) Provisioning(context.Context) (Provisioning, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.setup, nil
}

func (n *nodeLife) Watch(ctx context.Context, changed func()) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.announce:
			changed()
		}
	}
}

// strain is a [StrainReader] in the test's hands.
type strain struct {
	delayed, paused atomic.Int64
	broken          atomic.Bool
	each            atomic.Int64 // added to delayed at each reading
}

func (s *strain) Strain() (Strain, error) {
	if s.broken.Load() {
		return Strain{}, errors.New("no /proc")
	}
	return Strain{time.Duration(s.delayed.Add(s.each.Load())), time.Duration(s.paused.Load())}, nil
}

// A fake is a probe that says what it is told to.
type fake struct {
	spec probes.Spec

	mu    sync.Mutex
	says  looked
	check func(context.Context) (probes.Look, error) // instead of says
	looks []time.Time
}

func newFake(name string) *fake {
	f := &fake{spec: testSpec()}
	f.spec.Name, f.spec.Condition = name, strings.ToUpper(name[:1])+name[1:]+"Drift"
	return f
}

func (f *fake) Spec() probes.Spec { return f.spec }

func (f *fake) Check(ctx context.Context) (probes.Look, error) {
	f.mu.Lock()
	f.looks = append(f.looks, time.Now())
	says, check := f.says, f.check
	f.mu.Unlock()
	if check != nil {
		return check(ctx)
	}
	return says.Look, says.err
}

// set changes what the next looks say.
func (f *fake) set(l looked) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.says, f.check = l, nil
}

func (f *fake) do(check func(context.Context) (probes.Look, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.check = check
}

func (f *fake) looked() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.looks)
}

// A listener is a fake that also hears.
type listener struct {
	*fake
	hearer chan probes.Hearer
	watch  func(context.Context, probes.Hearer) error // nil: until ctx ends
	began  []time.Time
}

func newListener(name string) *listener {
	return &listener{fake: newFake(name), hearer: make(chan probes.Hearer, 1)}
}

func (l *listener) Watch(ctx context.Context, h probes.Hearer) error {
	l.mu.Lock()
	l.began = append(l.began, time.Now())
	watch := l.watch
	l.mu.Unlock()
	if watch != nil {
		return watch(ctx, h)
	}
	h.Changed()
	select {
	case l.hearer <- h:
	default:
	}
	<-ctx.Done()
	return nil
}
