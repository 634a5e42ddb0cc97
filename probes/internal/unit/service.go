package unit

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/probes/host"
)

// Service is what systemd says of one unit, asked no more often than needed: when
// [Service.Heard] was called, when the main process has ended, while the unit is
// not up, and every half minute. It is for one goroutine, but for Heard.
type Service struct {
	units Units
	procs Processes
	names []string

	heard   atomic.Bool
	hearing atomic.Bool
	at      time.Time // of the last answer; zero before the first
	silent  time.Time // since when systemd does not answer; zero: it does
	unit    host.Unit
	main    *host.Process // nil: none, or it cannot be held
	started time.Duration // of main, since boot
	args    []string      // of main
}

const (
	// askEach is how long an answer stands while nothing is heard, and asUnheard
	// while nobody listens.
	askEach   = 30 * time.Second
	asUnheard = 5 * time.Second
	// forgive is how long systemd may go without an answer: a daemon-reexec, which
	// every update of systemd does, takes a second or more on a busy node.
	forgive = time.Minute
	// askWithin bounds one question: the rest of a look needs time, too.
	askWithin = 400 * time.Millisecond
)

// NewService returns the first of the named units that there is.
func NewService(units Units, procs Processes, names ...string) *Service {
	return &Service{units: units, procs: procs, names: names}
}

// Heard makes the next Ask a question.
func (s *Service) Heard() { s.heard.Store(true) }

// Ask returns what systemd says, or what it said last when it has not answered for
// less than a minute. A unit that there is not is no error: its LoadState is
// "not-found".
func (s *Service) Ask(ctx context.Context) (host.Unit, error) {
	if s.fresh() {
		return s.unit, nil
	}
	u, err := s.ask(ctx)
	if err != nil {
		s.heard.Store(true)
		if s.silent.IsZero() {
			s.silent = time.Now()
		}
		if age := time.Since(s.silent); !s.at.IsZero() && age >= 0 && age < forgive {
			return s.unit, nil
		}
		return host.Unit{}, err
	}
	s.unit, s.at, s.silent = u, time.Now(), time.Time{}
	s.hold(u.MainPID)
	return u, nil
}

func (s *Service) fresh() bool {
	limit := askEach
	if !s.hearing.Load() {
		limit = asUnheard - time.Second
	}
	age := time.Since(s.at)
	return !s.heard.Load() && !s.at.IsZero() && age >= 0 && age < limit && active(s.unit) && s.unit.Job == 0 && s.alive()
}

func (s *Service) ask(ctx context.Context) (host.Unit, error) {
	limit := askWithin
	if s.at.IsZero() { // it connects and logs in first, and there is no earlier answer
		limit *= 2
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s.heard.Store(false)
	var first host.Unit
	for i, name := range s.names {
		u, err := s.units.Unit(ctx, name)
		if err != nil {
			return host.Unit{}, err
		}
		if u.LoadState != "not-found" {
			return u, nil
		}
		if i == 0 {
			first = u
		}
	}
	if len(s.names) == 0 {
		return first, fmt.Errorf("no unit to ask for")
	}
	return first, nil
}

// hold holds the unit's main process.
func (s *Service) hold(pid uint32) {
	if s.main != nil && s.main.PID() == int(pid) && s.main.Alive() == nil {
		return
	}
	if s.main != nil {
		s.main.Close()
	}
	s.main, s.started, s.args = nil, 0, nil
	if pid == 0 {
		return
	}
	p, err := s.procs.Process(int(pid))
	if err != nil {
		return
	}
	s.main = p
	s.started, _ = p.StartTime()
	s.args, _ = p.Cmdline()
}

// alive tells whether the main process, if it can be held, has not ended.
func (s *Service) alive() bool { return s.main == nil || s.main.Alive() == nil }
