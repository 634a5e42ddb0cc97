package host

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Beats sends at each whole multiple of a number of seconds on [Monotonic] until ctx
// ends: who has to do something again and again does it then, so that the program, and
// the CPU, wake once for all of them. Beats do not pile up: one that is not taken
// stands for all.
//
// It is no time.Ticker, as for each of Go's timers the runtime wakes its monitor
// thread, too: 170 us of CPU instead of 60.
func Beats(ctx context.Context, each time.Duration) (<-chan struct{}, error) {
	beats := make(chan struct{}, 1)
	if err := metronome.join(beats, max(each, time.Second)); err != nil {
		return nil, fmt.Errorf("beat each %s: %w", each, err)
	}
	context.AfterFunc(ctx, func() { metronome.leave(beats) })
	return beats, nil
}

// The metronome beats for all of the process, while anybody listens.
var metronome beater

type beater struct {
	mu    sync.Mutex
	ears  map[chan<- struct{}]time.Duration // and how often
	timer *os.File                          // nil while nobody listens
}

func (b *beater) join(ear chan<- struct{}, each time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer == nil {
		timer, line, err := eachSecond()
		if err != nil {
			return err
		}
		b.timer, b.ears = timer, map[chan<- struct{}]time.Duration{}
		go b.beat(timer, line)
	}
	b.ears[ear] = each
	return nil
}

func (b *beater) leave(ear chan<- struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ears, ear)
	if len(b.ears) == 0 {
		b.timer.Close()
		b.timer = nil
	}
}

// beat sends until the timer is closed.
func (b *beater) beat(timer *os.File, line syscall.RawConn) {
	for last := Monotonic(); line.Read(expired) == nil; {
		b.mu.Lock()
		now := Monotonic()
		if b.timer == timer {
			for ear, each := range b.ears {
				if now/each == last/each {
					continue
				}
				select {
				case ear <- struct{}{}:
				default: // the one before is still to be taken
				}
			}
		}
		last = now
		b.mu.Unlock()
	}
}

// eachSecond is a timer that expires at whole seconds.
func eachSecond() (*os.File, syscall.RawConn, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, nil, os.NewSyscallError("timerfd_create", err)
	}
	timer := os.NewFile(uintptr(fd), "timerfd")
	second := unix.NsecToTimespec(int64(time.Second))
	first := unix.NsecToTimespec(int64(Monotonic().Truncate(time.Second) + time.Second))
	err = os.NewSyscallError("timerfd_settime", unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &unix.ItimerSpec{Interval: second, Value: first}, nil))
	var line syscall.RawConn
	if err == nil {
		line, err = timer.SyscallConn()
	}
	if err != nil {
		timer.Close()
		return nil, nil, err
	}
	return timer, line, nil
}

// expired reads a timer (timerfd_create(2)) that has expired, once.
func expired(fd uintptr) bool {
	var times uint64
	_, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&times)), unsafe.Sizeof(times))
	return errno == 0
}
