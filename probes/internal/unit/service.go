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
// not up, and every five minutes. Twice a minute it is asked for the one thing that
// no signal tells, by which is also seen that it answers. A Service is for one
// goroutine, but for Heard.
type Service struct {
	units Units
	procs Processes
	names []string

	heard   atomic.Bool
	hearing atomic.Bool
	at      time.Time // of the last whole answer; zero before the first
	stood   time.Time // when systemd last said that the answer stands
	name    string    // of the names, the one that the answer is of
	silent  time.Time // since when systemd does not answer; zero: it does
	unit    host.Unit
	main    *host.Process // nil: none, or it cannot be held
	started time.Duration // of main, since boot
	args    []string      // of main
}

const (
	// askEach is how long an answer stands while nothing is heard before systemd is
	// asked whether it does, askWhole until all is asked again, which takes PID 1 a
	// millisecond, and asUnheard while nobody listens.
	askEach   = 45 * time.Second
	askWhole  = 5 * time.Minute
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
	known := s.known()
	if known && within(s.stood, askEach) {
		return s.unit, nil
	}
	asked := time.Now()
	if err := s.ask(ctx, known); err != nil {
		s.heard.Store(true)
		if s.silent.IsZero() {
			s.silent = asked
		}
		if !s.at.IsZero() && within(s.silent, forgive) {
			return s.unit, nil
		}
		return host.Unit{}, err
	}
	s.stood, s.silent = time.Now(), time.Time{}
	return s.unit, nil
}

// within tells whether a moment was and is less than so long ago.
func within(at time.Time, d time.Duration) bool {
	age := time.Since(at)
	return age >= 0 && age < d
}

// known tells whether the last whole answer is all there is to know, unless
// the unit's files have changed.
func (s *Service) known() bool {
	limit := askWhole
	if !s.hearing.Load() {
		limit = asUnheard - time.Second
	}
	return !s.heard.Load() && within(s.at, limit) && active(s.unit) && s.unit.Job == 0 && s.alive()
}

// ask asks whether what is known stands, and for all when it does not.
func (s *Service) ask(ctx context.Context, known bool) error {
	limit := askWithin
	if s.at.IsZero() { // it connects and logs in first, and there is no earlier answer
		limit *= 2
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if known {
		switch stale, err := s.units.NeedDaemonReload(ctx, s.name); {
		case err != nil:
			return err
		case stale == s.unit.NeedDaemonReload:
			return nil
		}
	}
	s.heard.Store(false)
	u, name, err := s.find(ctx)
	if err != nil {
		return err
	}
	s.unit, s.name, s.at = u, name, time.Now()
	s.hold(u.MainPID)
	return nil
}

// find asks for the first of the units that there is, else for the first.
func (s *Service) find(ctx context.Context) (first host.Unit, name string, err error) {
	if len(s.names) == 0 {
		return first, "", fmt.Errorf("no unit to ask for")
	}
	for i, name := range s.names {
		u, err := s.units.Unit(ctx, name)
		if err != nil || u.LoadState != "not-found" {
			return u, name, err
		}
		if i == 0 {
			first = u
		}
	}
	return first, s.names[0], nil
}

// hold holds the unit's main process.
func (s *Service) hold(pid uint32) {
	if s.main != nil && s.main.PID() == int(pid) && s.main.Alive() == nil {
		s.args, _ = s.main.Cmdline() // a child of systemd's at first
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
