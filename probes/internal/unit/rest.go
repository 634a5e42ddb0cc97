package unit

import (
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// restEach is how old a look may be that is given again: every second one, where
// probes look each five seconds.
const restEach = 9 * time.Second

// rest is the last look of a probe, and whether it may stand for the next one.
type rest struct {
	look probes.Look
	at   time.Time
	calm bool
}

// Rest gives the probe's last look again while nothing was found, nothing was heard
// since, and the main process goes on and is not stopped: to ask a daemon that is well
// whether it is costs more than all the rest. What hangs without being stopped is so
// found at the second look.
func (c *Checker) Rest() (probes.Look, bool) {
	r := &c.rest
	stirred := c.stirred.Swap(false)
	if stirred || !r.calm || !within(r.at, restEach) || !c.hears.Load() || !c.service.hearing.Load() || !c.service.goesOn() {
		r.calm = false
		return probes.Look{}, false
	}
	return r.look, true
}

// Seen keeps a look for Rest, and returns it.
func (c *Checker) Seen(look probes.Look, err error) (probes.Look, error) {
	c.rest = rest{look, time.Now(), err == nil && len(look.Findings) == 0}
	return look, err
}

// goesOn tells whether the main process is there and is not stopped (proc_pid_stat(5)).
func (s *Service) goesOn() bool {
	if s.main == nil {
		return false
	}
	state, err := s.main.State()
	return err == nil && (state == 'S' || state == 'R' || state == 'D' || state == 'I')
}
