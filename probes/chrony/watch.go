package chrony

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// A reading is all clocks at once.
type reading struct {
	real, mono, boot time.Duration
	strain           host.Strain // as of the last beat that read it
}

const (
	beat       = time.Second
	strainEach = 20 // seconds, and whole ones: when others look, too; and after each gap, which it must explain
	leastStep  = 50 * time.Millisecond
	leastGap   = 2 * time.Second
	stepAfter  = time.Minute // a step within it of a freeze is the freeze's
	heldPolls  = 3
	clockTrace = "clock"
)

// A witness tells steps and freezes from readings of the clocks; it is pure.
type witness struct {
	last   reading
	frozen time.Duration // boot time of the last freeze; 0: none
}

// resume goes on after a pause in which no clock was read: that time passed is no
// freeze, but a clock that was set is told by the next reading.
func (w *witness) resume(boot time.Duration) {
	if w.last.mono != 0 {
		w.last.real += boot - w.last.boot
		w.last.boot = boot
	}
}

// hear compares a reading with the last one.
func (w *witness) hear(r reading) (what []probes.Occurrence, froze bool) {
	last := w.last
	w.last = r
	if last.mono == 0 {
		return nil, false
	}
	mono, boot := r.mono-last.mono, r.boot-last.boot
	step := (r.real - last.real) - boot
	s := r.strain.Sub(last.strain)
	gap := boot - beat
	// Who is held back by the CPU's other users or its own limit waits on a queue,
	// and that is counted; who is frozen with the node waits on none.
	starved := s.Delayed+s.Throttled > gap/2
	if gap > leastGap && (!starved || boot-mono > leastGap) {
		w.frozen = r.boot
		what = append(what, probes.Occurrence{Reason: NodeFrozen, Subject: "node",
			Message: fmt.Sprintf("the node stood still for %s", rounded(gap))})
		froze = true
	}
	if step.Abs() > leastStep && (w.frozen == 0 || r.boot-w.frozen > stepAfter) {
		way := "forward"
		if step < 0 {
			way = "back"
		}
		what = append(what, probes.Occurrence{Reason: ClockStepped, Subject: "clock", Trace: probes.Key{Domain: clockTrace}, Since: last.mono,
			Message: fmt.Sprintf("the clock was set %s by %s", way, rounded(step.Abs()))})
	}
	return what, froze
}

// rounded is a span of time for people.
func rounded(d time.Duration) time.Duration {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond)
	case d < time.Minute:
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}

func clockOf(id int32) time.Duration {
	return host.Clock(id)
}

// watchClock beats once a second and is woken when the clock is set
// (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET), until ctx ends.
func (p *Probe) watchClock(ctx context.Context, h probes.Hearer) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("hear the clock being set: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := os.NewFile(uintptr(fd), "timerfd")
	defer timer.Close()
	set := make(chan error, 1)
	if err := arm(timer); err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 8)
		for {
			_, err := timer.Read(buf)
			switch {
			case errors.Is(err, unix.ECANCELED):
				err = nil
			case err != nil:
			default:
				continue // a year has passed
			}
			if err == nil {
				err = arm(timer)
			}
			select {
			case set <- err:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	gauge := host.NewStrainGauge()
	defer gauge.Close()
	var mu sync.Mutex
	w := p.lastSeen // as of the last time that this listened
	w.resume(clockOf(unix.CLOCK_BOOTTIME))
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		p.witnessed(&w, gauge, h)
	}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		p.lastSeen = w
	}()
	if err := host.OnBeat(ctx, beat, look); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-set:
			if err != nil {
				return fmt.Errorf("hear the clock being set: %w", err)
			}
			look()
		}
	}
}

// witnessed reads the clocks and tells what became of them.
func (p *Probe) witnessed(w *witness, gauge *host.StrainGauge, h probes.Hearer) {
	// A step between the first two is of this reading, and later than its mono.
	mono, real, boot := clockOf(unix.CLOCK_MONOTONIC), clockOf(unix.CLOCK_REALTIME), clockOf(unix.CLOCK_BOOTTIME)
	now := reading{real, mono, boot, w.last.strain}
	if int(now.mono.Round(beat)/beat)%strainEach == 0 || now.boot-w.last.boot > beat+leastGap {
		now.strain, _ = gauge.Read() // not told: a gap is then taken for a freeze
	}
	what, froze := w.hear(now)
	if froze {
		p.frozen.Store(int64(clockOf(unix.CLOCK_BOOTTIME)))
	}
	for _, o := range what {
		h.Saw(o)
	}
	if len(what) > 0 {
		h.Changed()
	}
}

// arm lets the timer expire in a year, or when the clock is set.
func arm(timer *os.File) error {
	line, err := timer.SyscallConn()
	if err != nil {
		return err
	}
	at := unix.ItimerSpec{Value: unix.NsecToTimespec(time.Now().AddDate(1, 0, 0).UnixNano())}
	// A set clock since the last reading is told here.
	var settime error
	if err := line.Control(func(fd uintptr) {
		settime = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &at, nil)
	}); err != nil {
		return err
	}
	if settime != nil && settime != unix.ECANCELED {
		return fmt.Errorf("hear the clock being set: %w", settime)
	}
	return nil
}
