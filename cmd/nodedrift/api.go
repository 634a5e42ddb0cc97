package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/agent/kube"
	"github.com/nodedrift/nodedrift/probes/host"
)

// apiServer is the way to the API server, in the mode that is set. A change of
// mode makes another publisher.
type apiServer struct {
	daemon *daemon
	modes  chan string // the newest wins
	now    atomic.Pointer[kube.Publisher]
	read   atomic.Pointer[host.Registration] // nil: the own Node was not read yet
}

// setMode changes what is published.
func (a *apiServer) setMode(mode string) {
	select {
	case <-a.modes:
	default:
	}
	a.modes <- mode
}

// run publishes until ctx ends.
func (a *apiServer) run(ctx context.Context) error {
	mode := <-a.modes
	for {
		p, err := a.publisher(mode)
		if err != nil {
			return err
		}
		during, cancel := context.WithCancel(ctx)
		var publishing sync.WaitGroup
		if p != nil {
			a.now.Store(p)
			publishing.Go(func() { _ = p.Run(during) }) // it returns nil
		}
		next := mode
		for next == mode && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case next = <-a.modes:
			}
		}
		mode = next
		cancel()
		publishing.Wait()
		a.now.Store(nil)
		if ctx.Err() != nil {
			return nil
		}
		a.daemon.log.Info("publishing differently", "mode", mode)
	}
}

// publisher makes the publisher of a mode; nil for mode observe and outside of a
// cluster.
func (a *apiServer) publisher(mode string) (*kube.Publisher, error) {
	d := a.daemon
	if mode == modeObserve {
		return nil, nil
	}
	api := inCluster()
	if api == nil {
		d.log.Warn("not in a cluster: metrics and logs only")
		return nil, nil
	}
	return kube.New(kube.Config{
		Node: d.flags.node, Pod: d.flags.pod, Mode: kube.Mode(mode), Types: conditionTypes(), Boot: d.boot.At, API: api,
		Source: d.snapshot, Adopter: d.agent, Ready: a.readiness, Log: d.log,
	})
}

// conditionTypes are all condition types that this agent may ever own.
func conditionTypes() []string {
	types := []string{agent.NodeDrift}
	for _, s := range catalogue() {
		if s.Condition != "" {
			types = append(types, s.Condition)
		}
	}
	return types
}

// readiness passes on what the own Node object says.
func (a *apiServer) readiness(r agent.Readiness) {
	a.daemon.agent.SetReadiness(r)
	a.daemon.metrics.SetLabels(r.Labels)
	a.read.Store(&host.Registration{Kubelet: r.Kubelet, Patch: r.Patch, At: r.At})
}

// Registration implements [host.Registry].
func (a *apiServer) Registration() host.Registration {
	if r := a.read.Load(); r != nil {
		return *r
	}
	return host.Registration{}
}

// Reread implements [host.Registry].
func (a *apiServer) Reread() {
	if p := a.now.Load(); p != nil {
		p.Reread()
	}
}

// publish passes on what happened.
func (a *apiServer) publish(happened []agent.Happening) {
	if p := a.now.Load(); p != nil {
		p.Follow(a.daemon.agent.Provisioning())
		p.Publish(happened)
	}
}

func (a *apiServer) alive() error {
	if p := a.now.Load(); p != nil {
		return p.Alive()
	}
	return nil
}

// Requests implements [metrics.Publishing], as the methods below do.
func (a *apiServer) Requests() map[string]uint64 {
	if p := a.now.Load(); p != nil {
		return p.Requests()
	}
	return nil
}

// Pending tells whether the API server has yet to be told something.
func (a *apiServer) Pending() bool {
	p := a.now.Load()
	return p != nil && p.Pending()
}

// LastSuccess is when a request last succeeded; zero for never.
func (a *apiServer) LastSuccess() (t time.Time) {
	if p := a.now.Load(); p != nil {
		t = p.LastSuccess()
	}
	return t
}

// DroppedEvents counts Events that were never sent.
func (a *apiServer) DroppedEvents() uint64 {
	if p := a.now.Load(); p != nil {
		return p.DroppedEvents()
	}
	return 0
}
