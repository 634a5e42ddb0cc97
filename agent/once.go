package agent

import (
	"context"
	"sync"
)

// Once takes one look with every probe, all at the same time, and returns what
// they saw. It recalls what a running agent remembers and writes nothing.
// Findings that are still within their hold count, marked as held.
func Once(ctx context.Context, cfg Config) Snapshot {
	cfg.Rules.CountHeld = true
	cfg.Publishers, cfg.Lifecycle = nil, nil
	a := New(cfg)
	a.recall()
	var looks sync.WaitGroup
	for _, l := range a.loops {
		looks.Go(func() {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			l.starved()
			seen := l.see(ctx, newEye(ctx, l.probe))
			l.state, _, _ = fold(l.sub, a.rules, l.state, &seen, a.cfg.Journal, a.now())
			l.show(&seen)
		})
	}
	looks.Wait()
	return a.Snapshot()
}
