package bpf

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// clockKey is the question who set the clock.
var clockKey = probes.Key{Domain: "clock"}

// clockStepped is the chrony probe's, which hears a set clock without BPF.
const clockStepped = "ClockStepped"

// readClock asks the kernel how its clock is kept, and changes nothing: the clock
// detector's own event. Setting the clock is not tried.
func readClock() error {
	_, err := unix.Adjtimex(&unix.Timex{})
	return err
}

// clockSet remembers who set the clock.
func (r *rare) clockSet(e *event) {
	s := r.t.state(clockDetector)
	if e.Number == 0 {
		s.returned()
		return
	}
	s.events.Add(1)
	r.t.journal.put(clockKey, act{mono: time.Duration(e.By.Time), who: s.d.Load().identify(&e.By), by: by(&e.By)})
}

// noFunction says what it means that the clock's programs, which run at functions
// of the kernel, were all refused.
func noFunction(err error) error {
	switch {
	case errors.Is(err, btf.ErrNotFound):
		return fmt.Errorf("this kernel has no function by which the clock is set, or it is inlined: %w", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("this kernel takes no program at its functions (fexit): %w", unix.EPERM)
	}
	return err
}
