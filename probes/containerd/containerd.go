// Package containerd finds a containerd that does not run, hangs, runs with
// something else than what is on disk, or cannot give a pod its network: from
// systemd, from its CRI socket, from the CNI configuration and plugins that it
// uses, and from its shims.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// Config is what an operator may say.
type Config struct {
	// Unit is containerd's unit; "" means containerd.service.
	Unit string
	// Socket is where it serves CRI; "" lets it be found.
	Socket string
	// Files are SHA-256 sums by path that the unit file and drop-ins must have.
	Files map[string]string
}

const (
	defaultUnit   = "containerd.service"
	defaultConfig = "etc/containerd/config.toml"
)

// A tree is the node's files.
type tree interface {
	ReadFile(name string) ([]byte, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	Watch(ctx context.Context, l host.Listener, paths ...string) error
}

// processes are asked for the daemon and its shims.
type processes interface {
	List() iter.Seq2[*host.Process, error]
	Process(pid int) (*host.Process, error)
	Uptime() (time.Duration, error)
}

// A runtime answers CRI.
type runtime interface {
	Version(context.Context) (host.RuntimeVersion, error)
	Status(ctx context.Context, verbose bool) (host.RuntimeStatus, error)
	Sandboxes(context.Context) ([]host.Sandbox, error)
	Socket(context.Context) string
	Listen(endpoint string)
}

// Probe looks at containerd.
type Probe struct {
	root   tree
	procs  processes
	cri    runtime
	unit   *unit.Checker
	name   string // the unit's
	config string // path of the configuration, without the leading slash

	run     string // InvocationID of the run that the settings are of
	running settings
	asked   time.Time // when they were asked for
	cni     network
	cniAt   time.Time // when CNI's files were read; zero: they are to be read
	store   store
	shims   shims
	speed   speed
	last    []held // what was found of the runtime when it could be asked last
}

// How old the heavy parts of a look may be.
const (
	cniEach    = 30 * time.Second // where no unit is known, whose files and CNI's are heard
	storeEach  = 40 * time.Second
	configEach = time.Minute
)

// Deadlines of calls. One look has time for the two that it may wait for.
const (
	statusWithin  = time.Second
	versionWithin = 700 * time.Millisecond
	listWithin    = 2 * time.Second
)

// New returns a probe of the node's containerd.
func New(root tree, procs processes, units unit.Units, cri runtime, config Config) *Probe {
	p := &Probe{root: root, procs: procs, cri: cri, name: config.Unit, config: defaultConfig}
	if p.name == "" {
		p.name = defaultUnit
	}
	cri.Listen(config.Socket)
	o := options(p.name)
	o.Declared, o.Configs, o.Normal, o.Started = config.Files, p.configs, normalTOML, p.startedWithThis
	p.unit = unit.New(root, procs, units, o)
	return p
}

func options(name string) unit.Options {
	return unit.Options{Prefix: "Containerd", Metric: "containerd", Units: []string{name}, Owner: probes.AKS}
}

// Spec implements [probes.Probe].
func (p *Probe) Spec() probes.Spec {
	return probes.Spec{Name: "containerd", Condition: "ContainerdDrift", Healthy: "ContainerdAsDeclared",
		Every: 5 * time.Second, Timeout: 4 * time.Second, Reasons: catalogue(p.name), Metrics: metrics(p.name)}
}

// Recall implements [probes.Rememberer].
func (p *Probe) Recall(kept map[string]string) { p.unit.Recall(kept) }

// Watch implements [probes.Watcher]: it hears the unit and its files, the socket,
// and CNI's configuration and plugins.
func (p *Probe) Watch(ctx context.Context, h probes.Hearer) error {
	return p.unit.Watch(ctx, h)
}

// Check looks at the unit and asks the runtime whether it is ready. Everything
// that costs more (the plugins, a list of sandboxes, the running configuration)
// is done about twice a minute, or when it was heard that something moved; what it
// found then stands until the next time.
func (p *Probe) Check(ctx context.Context) (probes.Look, error) {
	if look, ok := p.unit.Rest(); ok {
		return look, nil
	}
	s, err := p.unit.Look(ctx)
	noUnit := errors.Is(err, probes.ErrNotApplicable)
	switch {
	case err != nil && !p.present(ctx):
		return probes.Look{}, fmt.Errorf("no containerd on this node: %w", probes.ErrNotApplicable)
	case noUnit && p.running.other != "":
		return probes.Look{}, fmt.Errorf("the container runtime is %q: %w", p.running.other, probes.ErrNotApplicable)
	case noUnit:
		err = nil
	}
	sees := &sight{state: &s, blind: noUnit || err != nil}
	if id := s.Unit.InvocationID; id != p.run && s.Running {
		p.run, p.asked, p.running = id, time.Time{}, settings{}
	}
	errs := []error{err, p.lookAtRuntime(ctx, sees)}
	p.lookAtNetwork(sees)
	look := probes.Look{Findings: s.Findings, NotJudged: s.NotJudged, Samples: s.Samples, Keep: s.Keep}
	p.lookAtConfig(&look)
	look.Findings = append(look.Findings, sees.findings...)
	look.NotJudged = append(look.NotJudged, sees.notJudged...)
	look.Samples = append(look.Samples, p.samples()...)
	if s.Fresh {
		p.unit.Listen(p.listenTo(ctx)...)
	}
	return p.unit.Seen(look, errors.Join(errs...))
}

// present tells whether there is anything of a containerd, although systemd knows
// no unit of it.
func (p *Probe) present(ctx context.Context) bool {
	for _, name := range []string{p.cri.Socket(ctx)[1:], p.config, "usr/bin/containerd", "usr/local/bin/containerd"} {
		if _, err := p.root.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// sight is what one look sees beside the unit.
type sight struct {
	state    *unit.State
	blind    bool // systemd does not say how the unit is
	starting bool // the unit runs, and the runtime reads its state

	findings  []probes.Finding
	notJudged []string
}

// settled tells whether the runtime is to be judged by its own answers: its unit
// runs and nobody is about to stop it.
func (s *sight) settled() bool { return s.blind || s.state.Running && s.state.Unit.Job == 0 }

// moving tells whether systemd is at work on the unit, or has just been.
func (s *sight) moving() bool {
	if s.starting {
		return true
	}
	switch s.state.Unit.ActiveState {
	case "activating", "deactivating":
		return true
	}
	return s.state.Unit.Job != 0 || s.state.Unit.ActiveState == "active" && !s.state.Running
}

func (s *sight) unjudged(reason, format string, args ...any) {
	s.notJudged = append(s.notJudged, reason+": "+fmt.Sprintf(format, args...))
}

func (p *Probe) trace() probes.Key { return probes.Key{Domain: "unit", Name: p.name} }

func (p *Probe) finding(reason, subject, message string) probes.Finding {
	return probes.Finding{Reason: reason, Subject: subject, Message: message, Trace: p.trace()}
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
