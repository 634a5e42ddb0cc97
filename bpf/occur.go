package bpf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// rare makes occurrences of rare events.
type rare struct {
	t     *Tracer
	limit *limiter
	ward  ward // owned by mind

	senders map[sent]sender // of signals whose target has not ended yet
	ended   []sent          // to tell an end that two threads told apart from two ends
}

// sent names a process: a pid may be used again.
type sent struct {
	pid   uint32
	start uint64
}

type sender struct {
	act
	signal uint32
	kernel bool
}

const (
	maxSenders = 64
	maxEnded   = 32
	init1      = "init.scope" // systemd itself, acting for somebody else

	// A look may still find a daemon running while the kernel takes it down and
	// before systemd is told: whoever ended it did it later than that look.
	unnoticed = time.Second
)

func (r *rare) reset(t *Tracer) {
	*r = rare{t: t, limit: newLimiter(), ward: ward{}, senders: map[sent]sender{}}
}

// heard takes in one rare event.
func (r *rare) heard(e *event) {
	switch e.Kind {
	case kindTest:
		r.tested(e)
	case kindSignal:
		r.signalled(e)
	case kindExit:
		r.exited(e)
	case kindOOM:
		r.starved(e)
	case kindHang:
		if s := r.t.state(hangDetector); e.By.Where != outside {
			s.events.Add(1)
			r.blocked(s.d.Load(), &e.By, 2*time.Minute)
		}
	case kindClock:
		r.clockSet(e)
	}
}

// tested passes a detector's own event on to it.
func (r *rare) tested(e *event) {
	name := exitDetector
	if e.Number == uint32(unix.SIGURG) {
		name = signalDetector
	}
	r.t.state(name).returned()
}

// signalled remembers who sends a signal until it is seen what became of it.
func (r *rare) signalled(e *event) {
	s := r.t.state(signalDetector)
	s.events.Add(1)
	if len(r.senders) >= maxSenders {
		var oldest sent
		for k, v := range r.senders {
			if o, ok := r.senders[oldest]; !ok || v.mono < o.mono {
				oldest = k
			}
		}
		delete(r.senders, oldest)
	}
	a := act{mono: time.Duration(e.By.Time), who: s.d.Load().identify(&e.By), by: by(&e.By)}
	r.t.journal.name(&a) // now: a second later the pod may be gone
	r.senders[sent{e.Target, e.TargetStart}] = sender{a, e.Number, e.Kernel != 0}
}

// exited tells of a watched daemon that ended, and of who ended it.
func (r *rare) exited(e *event) {
	s := r.t.state(exitDetector)
	d, key := r.daemon(s.d.Load(), &e.By)
	who := sent{e.By.PID, e.By.Start}
	if d == nil || slices.Contains(r.ended, who) {
		return
	}
	r.t.restless.Store(int64(monotonic() + time.Minute))
	if r.ended = append(r.ended, who); len(r.ended) > maxEnded {
		r.ended = r.ended[1:]
	}
	s.events.Add(1)
	by, known := r.senders[who]
	delete(r.senders, who)
	ordered := known && by.who.unit == init1 && by.signal != uint32(unix.SIGABRT) // SIGABRT is systemd's watchdog
	if known && !by.kernel && !ordered {
		by.mono = time.Duration(e.By.Time) + unnoticed
		r.t.journal.put(key, by.act)
	}
	signal := e.Number & 0x7f
	if ordered || signal == 0 && !known {
		return
	}
	how := "ended by " + signalName(cmp.Or(signal, by.signal))
	r.limit.say(r.t, DaemonKilled, key.Name, func() probes.Occurrence {
		return probes.Occurrence{Trace: key, Message: fmt.Sprintf("%s (pid %d) was %s", key.Name, e.By.PID, how)}
	})
}

// daemon tells which watched daemon a task is the main process of, and under
// which key the journal is asked about it.
func (r *rare) daemon(from *detector, a *actorEvent) (*daemon, probes.Key) {
	comm, id := text(a.Comm[:]), from.identify(a)
	for i := range daemons {
		d := &daemons[i]
		if d.comm != comm {
			continue
		}
		if slices.Contains(d.units, id.unit) && a.Parent == 1 {
			return d, probes.Key{Domain: "unit", Name: id.unit}
		}
		if d.pod != "" && id.pod != "" && r.t.cfg.Pods != nil {
			if pod, _ := r.t.cfg.Pods.Name(id.pod, id.container); strings.HasPrefix(pod, d.pod) {
				return d, probes.Key{Domain: "pod", Name: pod}
			}
		}
	}
	return nil, probes.Key{}
}

// starved tells of an OOM kill.
func (r *rare) starved(e *event) {
	s := r.t.state(oomDetector)
	from := s.d.Load()
	if from == nil {
		from = r.t.state(exitDetector).d.Load() // it joined the pid
	}
	if e.By.Where == outside {
		return
	}
	s.events.Add(1)
	subject, container := r.place(from, &e.By)
	message := fmt.Sprintf("out of memory: %s (pid %d)%s was killed", printable(text(e.By.Comm[:]), 64), e.By.PID, container)
	if e.Memory != 0 {
		message += fmt.Sprintf("; it held %d MiB", e.Memory*uint64(unix.Getpagesize())>>20)
	}
	r.limit.say(r.t, OOMKilled, subject, func() probes.Occurrence { return probes.Occurrence{Message: message} })
}

// blocked tells of a task that is stuck in the kernel.
func (r *rare) blocked(from *detector, a *actorEvent, since time.Duration) {
	subject, container := r.place(from, a)
	message := fmt.Sprintf("%s (pid %d)%s has been blocked in the kernel for %s", printable(text(a.Comm[:]), 64), a.PID, container, since)
	r.limit.say(r.t, TaskHung, subject, func() probes.Occurrence { return probes.Occurrence{Message: message} })
}

// place names where a task runs: its pod, its unit, or what it calls itself.
func (r *rare) place(from *detector, a *actorEvent) (subject, container string) {
	of := act{who: from.identify(a)}
	r.t.journal.name(&of)
	if of.by.Container != "" {
		container = " in container " + of.by.Container
	}
	return cmp.Or(of.by.Pod, of.by.Unit, printable(text(a.Comm[:]), 64)), container
}

func signalName(n uint32) string {
	if name := unix.SignalName(unix.Signal(n)); name != "" {
		return name
	}
	return fmt.Sprintf("signal %d", n)
}

// A limiter turns a storm of occurrences into one and a summary.
type limiter struct {
	mu   sync.Mutex
	said map[[2]string]*quiet // by reason and subject
}

// quiet is the time after an occurrence in which others like it are counted.
type quiet struct {
	until time.Time
	more  int
	last  probes.Occurrence
}

const (
	quietFor   = time.Minute
	maxTracked = 256 // subjects; those beyond share one
)

func newLimiter() *limiter { return &limiter{said: map[[2]string]*quiet{}} }

// say tells of an occurrence, or counts it. What it says is asked for only when it
// is the first of its minute.
func (l *limiter) say(t *Tracer, reason, subject string, what func() probes.Occurrence) {
	l.mu.Lock()
	now := time.Now()
	key := [2]string{reason, subject}
	if _, ok := l.said[key]; !ok && len(l.said) >= maxTracked {
		key[1] = ""
	}
	if q := l.said[key]; q != nil && now.Before(q.until) {
		q.more++
		l.mu.Unlock()
		return
	}
	o := what()
	o.Reason, o.Subject = reason, subject
	l.said[key] = &quiet{until: now.Add(quietFor), last: o}
	l.mu.Unlock()
	t.each(false, func(h probes.Hearer) { h.Saw(o) })
}

// flush tells what was counted, once its minute is over.
func (l *limiter) flush(t *Tracer) {
	now := time.Now()
	var due []probes.Occurrence
	l.mu.Lock()
	for key, q := range l.said {
		if now.Before(q.until) {
			continue
		}
		if q.more == 0 {
			delete(l.said, key)
			continue
		}
		o := q.last
		o.Message += fmt.Sprintf("; and %d more like it within a minute", q.more)
		due = append(due, o)
		q.until, q.more = now.Add(quietFor), 0
	}
	l.mu.Unlock()
	for _, o := range due {
		t.each(false, func(h probes.Hearer) { h.Saw(o) })
	}
}
