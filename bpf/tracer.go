package bpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// Config says what to trace.
type Config struct {
	Off    string // why nothing is to be traced; "" when it is
	Root   string // where the node's root is mounted
	Sysctl bool   // who writes watched keys of /proc/sys
	Clock  bool   // who sets the clock
	TCP    bool   // connections of kubelet and konnectivity-agents, and how those to the peers end that Tracer.Peers names
	Pods   Resolver
	Beats  func(context.Context) (<-chan struct{}, error) // each Beat; nil: a ticker's
	Log    *slog.Logger
}

// A State is what a detector can do on this node.
type State struct {
	Detector string
	Asked    bool   // for, by the configuration
	Active   bool   // attached, and it has heard its own event where one can be made
	Reason   string // why not
	Events   uint64
	Lost     uint64
}

// A Tracer runs the detectors and keeps the journal. The nil Tracer knows nothing
// and hears nothing.
type Tracer struct {
	cfg     Config
	journal *journal
	states  []*state
	tried   chan struct{} // closed when every detector was tried

	waking   atomic.Bool  // a second look is on its way
	restless atomic.Int64 // monotonic, ns: until when daemons that have ended may be started again

	klog   *klog  // nil: not needed, or refused; owned by mind
	logSay string // of the kernel log: what it tells instead, or why not; under mu

	rare rare // owned by the goroutine that reads rare events

	mu     sync.Mutex
	writes *writes
	keys   map[string]bool // watched, as paths below /proc/sys
	ears   map[*hearing]struct{}

	peers peers

	walks  sync.Mutex // of iterators that share what one of them finds
	listed []byte     // a buffer, under walks
}

// A state is the account of one detector.
type state struct {
	name   string
	asked  bool
	events atomic.Uint64
	lost   atomic.Uint64
	tested chan struct{}            // its own event came back
	d      atomic.Pointer[detector] // nil: not attached

	mu     sync.Mutex
	active bool
	reason string
}

func (s *state) set(active bool, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.reason = active, reason
}

func (s *state) returned() {
	select {
	case s.tested <- struct{}{}:
	default:
	}
}

// hearing is somebody who listens, to writes of sysctls or to occurrences.
type hearing struct {
	h      probes.Hearer
	writes bool
}

// New returns a tracer that is not attached to anything yet.
func New(cfg Config) *Tracer {
	t := &Tracer{cfg: cfg, journal: newJournal(cfg.Pods), tried: make(chan struct{}), ears: map[*hearing]struct{}{}, peers: peers{left: map[uint32]time.Duration{}}}
	names := rareDetectors
	if cfg.Sysctl {
		names = append([]string{sysctlDetector}, names...)
	}
	if cfg.TCP {
		names = append(slices.Clone(names), socketsDetector, tcpDetector)
	}
	for _, name := range names {
		s := &state{name: name, asked: true, reason: "not attached yet", tested: make(chan struct{}, 1)}
		if name == clockDetector && !cfg.Clock {
			s.asked, s.reason = false, "not asked for (bpf.clock in the configuration)"
		}
		t.states = append(t.states, s)
	}
	t.rare.reset(t)
	return t
}

func (t *Tracer) state(name string) *state {
	i := slices.IndexFunc(t.states, func(s *state) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return t.states[i]
}

// States tells what each detector can do.
func (t *Tracer) States() (all []State) {
	if t == nil {
		return nil
	}
	for _, s := range t.states {
		s.mu.Lock()
		all = append(all, State{s.name, s.asked, s.active, s.reason, s.events.Load(), s.lost.Load()})
		s.mu.Unlock()
	}
	return all
}

// Tried is closed once every detector was tried: from then on it takes no right to
// BPF.
func (t *Tracer) Tried() <-chan struct{} { return t.tried }

// ReadsLog tells whether the kernel log is read in place of a detector, once all
// were tried.
func (t *Tracer) ReadsLog() bool { return !t.told(OOMKilled) || !t.told(TaskHung) }

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
func (t *Tracer) OnWrite(h probes.Hearer) (stop func()) { return t.listen(&hearing{h, true}) }

func (t *Tracer) listen(l *hearing) (stop func()) {
	if t == nil {
		return func() {}
	}
	t.mu.Lock()
	t.ears[l] = struct{}{}
	t.mu.Unlock()
	return func() {
		t.mu.Lock()
		delete(t.ears, l)
		t.mu.Unlock()
	}
}

// each tells those who listen to writes, or to occurrences.
func (t *Tracer) each(writes bool, tell func(probes.Hearer)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.ears {
		if l.writes == writes {
			tell(l.h)
		}
	}
}

// Run attaches the detectors and listens until ctx ends. What this node does not
// allow is said once, and is no error.
func (t *Tracer) Run(ctx context.Context) error {
	if t == nil {
		<-ctx.Done()
		return nil
	}
	var reading sync.WaitGroup
	t.attach(ctx, &reading)
	close(t.tried)
	t.each(false, probes.Hearer.Changed)
	debug.FreeOSMemory() // the kernel's types took a few MiB
	t.mind(ctx)
	for _, s := range t.states {
		if d := s.d.Load(); d != nil && d.reader != nil {
			d.reader.Close()
		}
	}
	reading.Wait()
	t.walks.Lock() // nobody lists connections meanwhile
	defer t.walks.Unlock()
	for _, s := range t.states {
		if d := s.d.Load(); d != nil {
			s.set(false, "detached")
			d.close()
		}
	}
	return nil
}

// attach tries every detector. One that is refused keeps no other from working.
func (t *Tracer) attach(ctx context.Context, reading *sync.WaitGroup) {
	if t.cfg.Off != "" {
		for _, s := range t.states {
			s.set(false, t.cfg.Off)
		}
		return
	}
	l, err := newLoader(t.cfg.Root)
	refused := map[string][]string{}
	for _, s := range t.states {
		if !s.asked {
			continue
		}
		e := err
		if e == nil {
			e = t.start(ctx, l, s, reading)
		}
		if e != nil {
			s.set(false, explain(e))
			continue
		}
		s.set(true, "")
	}
	for _, s := range t.States() { // now: one may do another's work
		if s.Asked && !s.Active {
			refused[s.Reason] = append(refused[s.Reason], s.Detector)
		}
	}
	for why, names := range refused {
		t.cfg.Log.Warn("who did what will not be known; conditions are not affected", "detectors", names, "why", why)
	}
	if err == nil {
		t.cfg.Log.Info("tracing", "detectors", len(t.states), "cgroup", l.trees.unified.dir, "pods", l.walk().tree.dir, "pidLevel", l.level)
	}
}

// start attaches a detector, begins to read what it says, and tries it.
func (t *Tracer) start(ctx context.Context, l *loader, s *state, reading *sync.WaitGroup) error {
	switch s.name {
	case sysctlDetector:
		w, err := l.attachSysctl()
		if err != nil {
			return err
		}
		s.d.Store(&w.detector)
		t.mu.Lock()
		t.writes = w
		t.filter()
		t.mu.Unlock()
		reading.Go(func() { read(t, s, w.reader, func(e *sysctlEvent) { t.heardWrite(s, w, e) }) })
	case socketsDetector:
		d, err := l.attachSockets(t.state(censusDetector).d.Load())
		if err != nil {
			return err
		}
		s.d.Store(d)
	case tcpDetector:
		d, err := l.attachTCP()
		if err != nil {
			return err
		}
		s.d.Store(d)
		t.mu.Lock()
		t.peers.netns = l.netns
		t.filterPeers()
		t.mu.Unlock()
		reading.Go(func() { read(t, s, d.reader, func(e *tcpEvent) { t.heardTCP(s, e) }) })
	default:
		first := l.ring == nil
		oom := t.state(oomDetector)
		d, err := l.attachRare(s.name, s.name == exitDetector && oom.d.Load() == nil)
		if err != nil {
			return err
		}
		s.d.Store(d)
		if s.name == exitDetector && oom.d.Load() == nil {
			oom.set(true, "") // joined with the pid
		}
		if first {
			if err := d.open("events"); err != nil {
				s.d.Store(nil)
				return err
			}
			reading.Go(func() { read(t, s, d.reader, t.rare.heard) })
		}
	}
	defer s.d.Load().free()
	if err := s.try(ctx, t); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	return nil
}

// try makes the detector's own event until it is heard, for up to two seconds:
// nothing it does changes the node. OOM kills and hung tasks cannot be made.
func (s *state) try(ctx context.Context, t *Tracer) error {
	cause := map[string]func() error{
		sysctlDetector:  func() error { _, err := os.ReadFile("/proc/sys/" + testKey); return err },
		exitDetector:    endThread,
		signalDetector:  func() error { return unix.Kill(os.Getpid(), unix.SIGURG) }, // the runtime's own; it means nothing
		clockDetector:   readClock,
		socketsDetector: t.trySockets,
		tcpDetector:     t.tryTCP,
	}[s.name]
	if cause == nil {
		return nil
	}
	if err := s.d.Load().arm(true); err != nil {
		return err
	}
	defer s.d.Load().arm(false)
	for range 20 {
		if err := cause(); err != nil {
			return err
		}
		select {
		case <-s.tested:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return errors.New("its own event did not come back")
}

// endThread ends a thread of the agent's: one whose goroutine ends locked to it.
func endThread() error {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(done)
	}()
	<-done
	return nil
}

// read takes in events until the reader is closed.
func read[T any](t *Tracer, s *state, r *ringbuf.Reader, heard func(*T)) {
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			if !errors.Is(err, ringbuf.ErrClosed) {
				s.set(false, "read events: "+err.Error())
				t.cfg.Log.Error("no more events", "detector", s.name, "error", err)
			}
			return
		}
		e, err := decode[T](rec.RawSample)
		if err != nil {
			t.cfg.Log.Error("an event of another kind", "detector", s.name, "error", err)
			return
		}
		heard(e)
	}
}

// again is when a look that a write woke is taken once more: the program runs
// before the value is in place.
const again = 30 * time.Millisecond

// heardWrite takes in one event of the sysctl detector.
func (t *Tracer) heardWrite(s *state, w *writes, e *sysctlEvent) {
	if e.Kind == sysctlTest {
		s.returned()
		return
	}
	s.events.Add(1)
	path := text(e.Key[:])
	t.mu.Lock()
	watched := t.keys[path]
	t.mu.Unlock()
	if !watched || namespaced(path) && e.IPCNS != w.ipcns {
		return
	}
	key := keyOf(path)
	t.journal.put(key, act{mono: time.Duration(e.By.Time), who: w.identify(&e.By), by: by(&e.By)})
	t.each(true, probes.Hearer.Changed)
	if t.waking.CompareAndSwap(false, true) {
		time.AfterFunc(again, func() {
			t.waking.Store(false)
			t.each(true, probes.Hearer.Changed)
		})
	}
	t.rare.limit.say(t, SysctlWritten, key.Name, func() probes.Occurrence {
		return probes.Occurrence{Trace: key, Message: key.Name + " was set to " + printable(strings.TrimSpace(text(e.Value[:])), 32)}
	})
}

// by is what the event itself says of who did it.
func by(a *actorEvent) Actor {
	return Actor{PID: int(a.PID), Comm: printable(text(a.Comm[:]), 64), Time: at(time.Duration(a.Time), time.Now(), monotonic())}
}

// monotonic reads CLOCK_MONOTONIC, raw: an ordinary system call wakes Go's monitor
// thread.
func monotonic() time.Duration {
	var ts unix.Timespec
	_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ts)), 0) // cannot fail
	return time.Duration(ts.Nano())
}

// Beat is how often lost events are counted.
const Beat = 5 * time.Second

// mind counts lost events and blocked threads until ctx ends. Any loss asks for
// a full look.
func (t *Tracer) mind(ctx context.Context) {
	beats := t.beats(ctx)
	if t.ReadsLog() {
		t.klog = &klog{since: monotonic()}
	}
	counted := -censusEvery
	for n := time.Duration(0); ; n += Beat { // a beat that was late is no reason for two
		for _, s := range t.states {
			t.countLost(s)
		}
		t.rare.limit.flush(t)
		restless := monotonic() < time.Duration(t.restless.Load()) || len(t.rare.ward) > 0
		if n-counted >= censusEvery || n-counted >= censusSoon && restless {
			counted = n
			t.census(t.state(censusDetector))
			t.tryAgain(ctx)
		}
		if t.klog != nil && n%logEvery == 0 {
			t.fallBack()
		}
		select {
		case <-ctx.Done():
			return
		case <-beats:
		}
	}
}

// beats are those of the configuration, or else a ticker's.
func (t *Tracer) beats(ctx context.Context) <-chan struct{} {
	if t.cfg.Beats != nil {
		beats, err := t.cfg.Beats(ctx)
		if err == nil {
			return beats
		}
		t.cfg.Log.Warn("events are counted by a ticker", "error", err)
	}
	beats, tick := make(chan struct{}), time.NewTicker(Beat)
	go func() {
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case <-ctx.Done():
				return
			case beats <- struct{}{}:
			}
		}
	}()
	return beats
}

// tryAgain tries those that are attached and were not heard: the node may have
// been too busy.
func (t *Tracer) tryAgain(ctx context.Context) {
	for _, s := range t.states {
		s.mu.Lock()
		silent := !s.active && s.name != censusDetector && s.name != socketsDetector && s.d.Load() != nil
		s.mu.Unlock()
		if silent && s.try(ctx, t) == nil {
			s.set(true, "")
		}
	}
}

func (t *Tracer) countLost(s *state) {
	d := s.d.Load()
	if d == nil {
		return
	}
	if n, known := d.lost(), s.lost.Load(); n > known {
		s.lost.Store(n)
		t.each(s.name == sysctlDetector, func(h probes.Hearer) { h.Lost("bpf "+s.name, n-known) })
	}
}

// census tells of threads of daemons that are blocked for long: the kernel counts
// them, or else /proc is read.
func (t *Tracer) census(s *state) {
	from := s.d.Load()
	all, err := t.count()
	if err != nil {
		if from != nil { // before Linux 5.19 it takes CAP_BPF, which the agent gives up
			s.set(false, err.Error())
			from = nil
		}
		all = readCensus("/proc")
	} else {
		s.set(true, "")
	}
	for _, b := range t.rare.ward.hung(all, monotonic()) {
		s.events.Add(1)
		t.rare.blocked(from, &b.By, hungAfter)
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
	if confidential() {
		return "lockdown=confidentiality: " + err.Error()
	}
	return err.Error()
}

// confidential tells whether the kernel lets no program read memory that it does not know.
func confidential() bool {
	b, err := os.ReadFile("/sys/kernel/security/lockdown")
	return err == nil && slices.Contains(strings.Fields(string(b)), "[confidentiality]")
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
