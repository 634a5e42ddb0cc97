package konnectivity

import (
	"context"
	"slices"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

const (
	beat     = time.Second
	halfBeat = beat / 2
	idleBeat = 5 * beat // where no agent runs
	// froze is how late a beat is when the node stood still, or the agent was kept from
	// running: either way nothing is to be held against others.
	froze = 2 * time.Second
)

// Watch implements [probes.Watcher]: where an agent runs it looks, twice a second, whether
// connections of its network have ended, which costs a read of a few hundred bytes; and
// it hears kubelet's certificates being replaced.
func (p *Probe) Watch(ctx context.Context, h probes.Hearer) error {
	h = probes.Noting(h, func() { p.woken.Store(true) })
	p.hearer.Store(&h)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	files := make(chan error, 1)
	go func() {
		files <- p.root.Watch(ctx, probes.Noting(h, func() { p.certsHeard.Store(true) }), certificates...)
	}()
	slow, err := host.Beats(ctx, idleBeat)
	if err != nil {
		return err
	}
	var second <-chan struct{} // where an agent runs
	var half <-chan time.Time  // likewise
	stop := func() {}
	defer func() { stop() }()
	ear := ear{seen: map[*host.Process]host.TCPCounters{}}
	last, due := p.uptime(), idleBeat
	for {
		select {
		case <-ctx.Done():
			<-files
			return nil
		case err := <-files:
			return err
		case <-half:
			half = nil
		case <-second:
			half = time.After(halfBeat)
		case <-slow:
		case <-p.others:
		}
		switch here := p.agentsHere(); {
		case here && second == nil:
			if second, stop, err = seconds(ctx); err != nil {
				return err
			}
		case !here && second != nil:
			stop()
			second, half = nil, nil
		}
		now := p.uptime()
		if last > 0 && now-last > due+froze {
			p.frozen.Store(int64(now))
		}
		last, due = now, idleBeat
		if second != nil {
			due = beat
		}
		if p.heard(&ear) {
			h.Changed()
		}
	}
}

// seconds beats until it is stopped or ctx ends.
func seconds(ctx context.Context) (beats <-chan struct{}, stop func(), err error) {
	ctx, stop = context.WithCancel(ctx)
	beats, err = host.Beats(ctx, beat)
	return beats, stop, err
}

func (p *Probe) uptime() time.Duration {
	up, err := p.procs.Uptime()
	if err != nil {
		return 0
	}
	return up
}

// An ear knows the counters of each agent's network as they were a beat ago.
type ear struct {
	seen map[*host.Process]host.TCPCounters
}

func (p *Probe) agentsHere() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.agents) > 0
}

// heard tells whether something became worse in an agent's network, or an agent ended.
func (p *Probe) heard(e *ear) (any bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.agents {
		if a.sandbox.HostNetwork {
			continue
		}
		now, err := a.process.TCPCounters()
		old, known := e.seen[a.process]
		any = any || err != nil || known && worse(old, now)
		e.seen[a.process] = now
	}
	for process := range e.seen {
		if !slices.ContainsFunc(p.agents, func(a *agent) bool { return a.process == process }) {
			delete(e.seen, process)
		}
	}
	return any
}
