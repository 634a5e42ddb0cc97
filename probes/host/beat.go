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
// ends. Beats do not pile up: one that is not taken stands for all.
func Beats(ctx context.Context, each time.Duration) (<-chan struct{}, error) {
	beats := make(chan struct{}, 1)
	err := OnBeat(ctx, each, func() {
		select {
		case beats <- struct{}{}:
		default: // the one before is still to be taken
		}
	})
	return beats, err
}

// OnBeat calls f at each whole multiple of a number of seconds on [Monotonic] until ctx
// ends: who has to do something again and again does it then, so that the program, and
// the CPU, wake once for all of them. All are called one after the other, so f must not
// wait for anything, nor take long.
//
// It is no time.Ticker, as for each of Go's timers the runtime wakes its monitor
// thread, too: 170 us of CPU instead of 60.
func OnBeat(ctx context.Context, each time.Duration, f func()) error {
	e := &beatEar{f, max(each, time.Second)}
	if err := metronome.join(e); err != nil {
		return fmt.Errorf("beat each %s: %w", each, err)
	}
	context.AfterFunc(ctx, func() { metronome.leave(e) })
	return nil
}

// The metronome beats for all of the process, while anybody listens.
var metronome beater

type beater struct {
	mu    sync.Mutex
	ears  map[*beatEar]struct{}
	timer *os.File // nil while nobody listens
}

// A beatEar is one who is called, and how often.
type beatEar struct {
	call func()
	each time.Duration
}

func (b *beater) join(e *beatEar) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer == nil {
		timer, line, err := eachSecond()
		if err != nil {
			return err
		}
		b.timer, b.ears = timer, map[*beatEar]struct{}{}
		go b.beat(timer, line)
	}
	b.ears[e] = struct{}{}
	return nil
}

func (b *beater) leave(e *beatEar) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ears, e)
	if len(b.ears) == 0 {
		b.timer.Close()
		b.timer = nil
	}
}

// beat calls until the timer is closed.
func (b *beater) beat(timer *os.File, line syscall.RawConn) {
	for last := Monotonic(); line.Read(expired) == nil; {
		now := Monotonic()
		b.mu.Lock()
		if b.timer == timer {
			for e := range b.ears {
				if now/e.each != last/e.each {
					e.call()
				}
			}
		}
		b.mu.Unlock()
		last = now
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
