// Package reboot finds what a node has installed and does not run yet: the
// marker by which the distribution asks for a reboot, a newer kernel under
// /boot, and daemons that still run replaced libraries.
package reboot

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// Config is what an operator may say.
type Config struct {
	// Overdue is how old a marker may grow; 0 means a week.
	Overdue time.Duration
}

const week = 7 * 24 * time.Hour

// A tree is the node's files, as far as markers and kernels need them.
type tree interface {
	ReadFile(name string) ([]byte, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	Watch(ctx context.Context, l host.Listener, paths ...string) error
}

// processes are asked for the libraries they run, and for the boot.
type processes interface {
	List() iter.Seq2[*host.Process, error]
	Boot() (host.Boot, error)
}

// Probe looks for what a reboot or a restart would bring.
type Probe struct {
	root    tree
	procs   processes
	running string // uname -r
	overdue time.Duration

	heard atomic.Bool // something was heard since the last scan
	scan  scan        // the last look at the processes
}

// New returns a probe of the node's marker, kernels and processes.
func New(root tree, procs processes, kernel host.Kernel, config Config) *Probe {
	p := &Probe{root: root, procs: procs, running: kernel.Release, overdue: config.Overdue}
	if p.overdue <= 0 {
		p.overdue = week
	}
	return p
}

// Spec implements [probes.Probe].
func (*Probe) Spec() probes.Spec {
	return probes.Spec{Name: "reboot", Condition: "RebootPending", Healthy: "NoRebootRequired",
		Every: time.Minute, Timeout: 5 * time.Second, Reasons: reasons, Metrics: metrics}
}

// Watch implements [probes.Watcher]: it hears the marker and the kernels.
func (p *Probe) Watch(ctx context.Context, h probes.Hearer) error {
	return p.root.Watch(ctx, probes.Noting(h, func() { p.heard.Store(true) }), marker, packages, "var/run", bootFolder, modulesFolder)
}

// Check looks for the marker, compares the kernels, and every minute asks the
// processes. Each of the three stands alone: what one could not see does not
// hide what another saw.
func (p *Probe) Check(ctx context.Context) (probes.Look, error) {
	var look probes.Look
	m, err := p.findMarker()
	look.Findings = p.judgeMarker(m)
	if err == nil {
		look.Samples = []probes.Sample{{Name: pendingSince, Value: m.timestamp()}}
	}

	switch f, why := p.judgeKernel(); {
	case why != nil:
		look.NotJudged = append(look.NotJudged, KernelOutdated+": "+why.Error())
	case f != nil:
		look.Findings = append(look.Findings, *f)
	}

	p.rescan(ctx)
	look.Findings = append(look.Findings, p.scan.findings...)
	if p.scan.err != nil {
		look.NotJudged = append(look.NotJudged, ServiceRestartRequired+": "+p.scan.err.Error())
	}
	return look, err
}

// Explain implements [probes.Explainer]: an overdue reboot is the same reboot,
// and it starts the newer kernel and the updated libraries too.
func (*Probe) Explain(confirmed []probes.Finding) []probes.Finding {
	var overdue, required *probes.Finding
	kept := make([]probes.Finding, 0, len(confirmed))
	for _, f := range confirmed {
		switch f.Reason {
		case Overdue:
			overdue = &f
		case Required:
			required = &f
		}
	}
	cause := required
	if overdue != nil {
		cause = overdue
	}
	if cause == nil {
		return confirmed
	}
	first := *cause
	first.Consequences = nil
	for _, f := range confirmed {
		switch {
		case f.Reason == cause.Reason:
		case f.Reason == Required || f.Reason == KernelOutdated:
			first.Consequences = append(first.Consequences, probes.Ref{ID: f.ID, Subject: f.Subject})
		default:
			kept = append(kept, f)
		}
	}
	return append([]probes.Finding{first}, kept...)
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
