package konnectivity

import (
	"context"
	"sync"
	"time"
)

// An errand is a question that may take longer than a look. It is put beside the
// looks, one at a time, and its answer wakes a look. One goroutine starts it.
type errand[T any] struct {
	within time.Duration

	mu     sync.Mutex
	done   chan struct{} // closed with the answer; nil before the first start
	answer T
	ended  time.Time // zero before the first answer
	under  bool      // it is under way
	tries  int       // starts
}

// start puts the question unless it is under way.
func (e *errand[T]) start(ask func(context.Context) T, wake func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.under {
		return
	}
	e.under, e.done = true, make(chan struct{})
	e.tries++
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), e.within)
		defer cancel()
		answer := ask(ctx)
		e.mu.Lock()
		e.answer, e.ended, e.under = answer, time.Now(), false
		close(e.done)
		e.mu.Unlock()
		wake()
	}()
}

// wait waits for the answer that is under way, until ctx ends.
func (e *errand[T]) wait(ctx context.Context) {
	e.mu.Lock()
	done := e.done
	e.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// get returns the last answer, when it came, and whether a newer one is under way; a
// zero time is none yet.
func (e *errand[T]) get() (answer T, ended time.Time, under bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.answer, e.ended, e.under
}
