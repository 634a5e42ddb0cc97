package host

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// A file system can hang: a dead NFS server, a FUSE daemon that never answers,
// a disk in trouble. The thread that asked then sits in the kernel (state D) and
// no signal moves it. So each question runs in a goroutine of its own, is given
// up at the deadline, and what is stuck is counted.
const (
	fileDeadline = 2 * time.Second
	maxCalls     = 8 // at once, stuck ones included
)

// calls bounds the questions put to a file system, in time and in number.
type calls struct {
	deadline time.Duration
	slots    chan struct{}

	mu    sync.Mutex
	stuck map[string]bool // paths whose question was given up and has not returned
}

func newCalls(deadline time.Duration) *calls {
	return &calls{deadline: deadline, slots: make(chan struct{}, maxCalls), stuck: map[string]bool{}}
}

type answer[T any] struct {
	value T
	err   error
}

// within asks a question about a path and gives up at the deadline. While one
// question about a path is stuck, others about the same path fail at once: one
// dead path takes one thread, however often it is asked.
func within[T any](c *calls, path string, ask func() (T, error)) (T, error) {
	var zero T
	if c.hangs(path) {
		return zero, fmt.Errorf("an earlier look at it still hangs: %w", os.ErrDeadlineExceeded)
	}
	timer := time.NewTimer(c.deadline)
	defer timer.Stop()
	select {
	case c.slots <- struct{}{}:
	case <-timer.C:
		return zero, fmt.Errorf("%d earlier looks at files still hang: %w", maxCalls, os.ErrDeadlineExceeded)
	}
	answers := make(chan answer[T], 1)
	go func() {
		v, err := ask()
		answers <- answer[T]{v, err} // before the mark goes, so that giveUp finds it
		c.unmark(path)
		<-c.slots
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-timer.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case a := <-answers:
		return a.value, a.err
	default:
		c.stuck[path] = true
		return zero, fmt.Errorf("no answer for %v: %w", c.deadline, os.ErrDeadlineExceeded)
	}
}

func (c *calls) hangs(path string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stuck[path]
}

func (c *calls) unmark(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.stuck, path)
}
