package main

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/bpf"
	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/konnectivity"
	"github.com/nodedrift/nodedrift/probes/sysctl"
)

// newTracer makes what the flags and the configuration ask for.
func newTracer(cfg *config, f *runFlags, node *host.Node, log *slog.Logger) *bpf.Tracer {
	traces := bpf.Config{Root: f.root, Sysctl: !off(cfg.BPF.Sysctl), TCP: cfg.enabled("konnectivity"), Clock: cfg.BPF.Clock, Pods: bpf.NewPodLogs(node.Root), Beats: every(bpf.Beat), Log: log}
	switch {
	case f.bpf == flagOff:
		traces.Off = "BPF is off (--bpf=off)"
	case off(cfg.BPF.Enabled):
		traces.Off = "BPF is off (bpf.enabled in the configuration)"
	}
	return bpf.New(traces)
}

// occurrences is the probe that tells what the tracer hears.
func occurrences(cfg *config, trace *bpf.Tracer) probes.Probe {
	section[struct{}](cfg, "bpf") // it has no keys of its own
	return bpf.NewProbe(trace)
}

func off(b *bool) bool { return b != nil && !*b }

// journal is the tracer's as the agent asks it.
type journal struct{ trace *bpf.Tracer }

// Who implements [agent.Journal].
func (j journal) Who(key probes.Key, since time.Duration) (agent.Actor, bool) {
	a, ok := j.trace.Who(key, since)
	return agent.Actor(a), ok
}

// traced is the sysctl probe that looks as soon as one of its keys is written.
func traced(p *sysctl.Probe, trace *bpf.Tracer) probes.Probe {
	if trace == nil {
		return p
	}
	return &tracedSysctl{Probe: p, trace: trace}
}

type tracedSysctl struct {
	*sysctl.Probe
	trace *bpf.Tracer
	keys  []string // as the tracer knows them
}

// Check implements [probes.Probe].
func (p *tracedSysctl) Check(ctx context.Context) (probes.Look, error) {
	look, err := p.Probe.Check(ctx)
	if keys := p.Keys(); !slices.Equal(keys, p.keys) {
		p.keys = keys
		p.trace.Watch(keys)
	}
	return look, err
}

// Watch implements [probes.Watcher]: it hears the declarations and the writes.
func (p *tracedSysctl) Watch(ctx context.Context, h probes.Hearer) error {
	defer p.trace.OnWrite(h)()
	return p.Probe.Watch(ctx, h)
}

// tunnelTrace is the tracer as the konnectivity probe asks it.
type tunnelTrace struct{ *bpf.Tracer }

// Sockets implements [konnectivity.Tracer].
func (t tunnelTrace) Sockets(take func(konnectivity.Socket)) error {
	return t.Tracer.Sockets(func(s bpf.Socket) { take(konnectivity.Socket(s)) })
}
