package bpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// Config says what to trace.
type Config struct {
	Root   string // where the node's root is mounted
	Sysctl bool   // who writes watched keys of /proc/sys
	Pods   Resolver
	Log    *slog.Logger
}

// A State is what a detector can do on this node.
type State struct {
	Detector string
	Active   bool   // it has heard its own event
	Reason   string // why not
	Events   uint64
	Lost     uint64
}

// A Tracer runs the detectors and keeps the journal. The nil Tracer knows nothing
// and hears nothing.
type Tracer struct {
	cfg     Config
	journal *journal

	mu        sync.Mutex
	states    []*state
	writes    *writes
	keys      map[string]bool // watched, by path; nil before anybody said
	listeners map[*listener]struct{}
}

// A state is the account of one detector.
type state struct {
	name   string
	events atomic.Uint64
	lost   atomic.Uint64
	tested chan uint32

	mu     sync.Mutex
	active bool
	reason string
}

func (s *state) set(active bool, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.reason = active, reason
}

// listener is somebody who wants to look when the sysctls are written.
type listener struct{ h probes.Hearer }

// New returns a tracer that is not attached to anything yet.
func New(cfg Config) *Tracer {
	t := &Tracer{cfg: cfg, journal: newJournal(cfg.Pods), listeners: map[*listener]struct{}{}}
	if cfg.Sysctl {
		t.states = append(t.states, newState("sysctl"))
	}
	return t
}

func newState(name string) *state {
	return &state{name: name, reason: "not attached yet", tested: make(chan uint32, 1)}
}

// States tells what each detector can do.
func (t *Tracer) States() (all []State) {
	if t == nil {
		return nil
	}
	for _, s := range t.states {
		s.mu.Lock()
		all = append(all, State{s.name, s.active, s.reason, s.events.Load(), s.lost.Load()})
		s.mu.Unlock()
	}
	return all
}

// Who returns who last did something to key, not earlier than since on
// CLOCK_MONOTONIC.
func (t *Tracer) Who(key probes.Key, since time.Duration) (Actor, bool) {
	if t == nil {
		return Actor{}, false
	}
	return t.journal.who(key, since)
}

// Watch says which keys of /proc/sys matter, as paths below it: writes to others
// are not heard.
func (t *Tracer) Watch(keys []string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys = make(map[string]bool, len(keys))
	for _, k := range keys {
		t.keys[k] = true
	}
	t.filter()
}

// filter passes the keys on to the kernel. The caller holds the lock.
func (t *Tracer) filter() {
	if t.writes == nil {
		return
	}
	if err := t.writes.watch(slices.Collect(maps.Keys(t.keys))); err != nil {
		t.cfg.Log.Warn("cannot say which sysctls to watch", "error", err)
	}
}

// OnWrite has h told when a watched key was written, until stop is called.
func (t *Tracer) OnWrite(h probes.Hearer) (stop func()) {
	if t == nil {
		return func() {}
	}
	l := &listener{h}
	t.mu.Lock()
	t.listeners[l] = struct{}{}
	t.mu.Unlock()
	return func() {
		t.mu.Lock()
		delete(t.listeners, l)
		t.mu.Unlock()
	}
}

func (t *Tracer) each(tell func(probes.Hearer)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.listeners {
		tell(l.h)
	}
}

// Run attaches the detectors and listens until ctx ends. What this node does not
// allow is said once, and is no error.
func (t *Tracer) Run(ctx context.Context) error {
	if t == nil || len(t.states) == 0 {
		<-ctx.Done()
		return nil
	}
	var reading sync.WaitGroup
	l, err := newLoader(t.cfg.Root)
	if err == nil {
		err = t.attach(ctx, l, &reading)
	}
	if err != nil {
		why := explain(err)
		for _, s := range t.states {
			s.set(false, why)
		}
		t.cfg.Log.Warn("no BPF: who did what will not be known; conditions are not affected", "why", why)
	}
	l = nil // and the kernel's types with it
	debug.FreeOSMemory()
	t.count(ctx)
	reading.Wait()
	return nil
}

// attach attaches every detector that is asked for.
func (t *Tracer) attach(ctx context.Context, l *loader, reading *sync.WaitGroup) error {
	for _, s := range t.states {
		w, err := l.attachSysctl()
		if err != nil {
			return err
		}
		t.mu.Lock()
		t.writes = w
		t.filter()
		t.mu.Unlock()
		reading.Go(func() { t.read(ctx, s, w) })
		if err := w.test(ctx, s.tested); err != nil && ctx.Err() == nil {
			return err
		}
		s.set(true, "")
		t.cfg.Log.Info("listening to writes of sysctls", "cgroup", l.trees.unified.dir, "pods", cmp.Or(l.trees.pids.dir, l.trees.unified.dir), "pidLevel", l.level)
	}
	return nil
}

// read takes in events until ctx ends.
func (t *Tracer) read(ctx context.Context, s *state, w *writes) {
	defer context.AfterFunc(ctx, func() { w.reader.Close() })()
	defer w.close()
	defer func() {
		t.mu.Lock()
		t.writes = nil
		t.mu.Unlock()
	}()
	var rec ringbuf.Record
	for {
		if err := w.reader.ReadInto(&rec); err != nil {
			if !errors.Is(err, ringbuf.ErrClosed) {
				s.set(false, fmt.Sprintf("read events: %v", err))
				t.cfg.Log.Error("no more events", "detector", s.name, "error", err)
			}
			return
		}
		e, err := decode[sysctlEvent](rec.RawSample)
		if err != nil {
			s.lost.Add(1)
			continue
		}
		t.heardWrite(s, w, e)
	}
}

// again is when a look that a write woke is taken once more: the program runs
// before the value is in place.
const again = 30 * time.Millisecond

// heardWrite takes in one event of the sysctl detector.
func (t *Tracer) heardWrite(s *state, w *writes, e *sysctlEvent) {
	if e.Kind == sysctlTest {
		select {
		case s.tested <- e.By.PID:
		default:
		}
		return
	}
	s.events.Add(1)
	key := text(e.Key[:])
	t.mu.Lock()
	watched := t.keys[key]
	t.mu.Unlock()
	if !watched || namespaced(key) && e.IPCNS != w.ipcns {
		return
	}
	t.journal.put(keyOf(key), act{mono: time.Duration(e.By.Time), who: w.identify(&e.By), by: by(&e.By)})
	t.each(func(h probes.Hearer) { h.Changed() })
	time.AfterFunc(again, func() { t.each(func(h probes.Hearer) { h.Changed() }) })
}

func (w *writes) identify(a *actorEvent) identity {
	if w.walk != nil {
		return identify(w.walk.find(a.Cgroup))
	}
	return identify(a.path())
}

// by is what the event itself says of who did it.
func by(a *actorEvent) Actor {
	return Actor{PID: int(a.PID), Comm: printable(text(a.Comm[:]), 64), Time: at(time.Duration(a.Time), time.Now(), monotonic())}
}

func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail
	return time.Duration(ts.Nano())
}

// countEvery is how often lost events are counted.
const countEvery = time.Second

// count counts lost events until ctx ends. Any loss asks for a full look.
func (t *Tracer) count(ctx context.Context) {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t.mu.Lock()
		w := t.writes
		t.mu.Unlock()
		if w == nil {
			continue
		}
		s := t.states[0]
		if n := w.lost(); n > s.lost.Load() {
			more := n - s.lost.Swap(n)
			t.each(func(h probes.Hearer) { h.Lost("bpf "+s.name, more) })
		}
	}
}

// explain says what a refusal means: the library's own words name MEMLOCK for
// nearly everything.
func explain(err error) string {
	var missing []string
	for _, c := range []struct {
		bit  uint
		name string
	}{{unix.CAP_BPF, "BPF"}, {unix.CAP_PERFMON, "PERFMON"}, {unix.CAP_NET_ADMIN, "NET_ADMIN"}} {
		if !capable(c.bit) {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 && errors.Is(err, os.ErrPermission) && !capable(unix.CAP_SYS_ADMIN) {
		return "capabilities are missing: " + strings.Join(missing, ", ")
	}
	if b, e := os.ReadFile("/sys/kernel/security/lockdown"); e == nil && slices.Contains(strings.Fields(string(b)), "[confidentiality]") {
		return "lockdown=confidentiality: " + err.Error()
	}
	return err.Error()
}

// capable tells whether the process has a capability in effect.
func capable(bit uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return true // not known: the error itself will have to say
	}
	return data[bit/32].Effective&(1<<(bit%32)) != 0
}
