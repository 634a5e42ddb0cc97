// Package kubelet finds a kubelet that does not run, does not answer, or runs with
// something else than what lies on the node's disk: its unit, configuration,
// program and certificates. It asks systemd, kubelet's own health port and the
// node's files, and needs no credential.
package kubelet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// Config is what an operator may say.
type Config struct {
	// Unit is kubelet's unit; "" means kubelet.service.
	Unit string `yaml:"unit"`
	// Healthz is kubelet's health address; "" means what its flags and configuration say.
	Healthz string `yaml:"healthz"`
	// Runtime is the unit of the container runtime, for which kubelet waits; "" means containerd.service.
	Runtime string `yaml:"runtime"`
	// Files are the SHA-256 sums that unit files must have, by path, in place of what is first seen.
	Files map[string]string `yaml:"files"`
}

// processes are the node's; host.Processes satisfies it.
type processes = unit.Processes

// units are the node's systemd; *host.Systemd satisfies it.
type units = unit.Units

// tree is the node's root; host.Files satisfies it.
type tree interface {
	unit.Files
	ReadLink(name string) (string, error)
}

// Probe looks at the node's kubelet.
type Probe struct {
	config  Config
	root    tree
	api     host.Registry // nil: nobody asks the API server
	checker *unit.Checker
	runtime *unit.Service
	health  health
	threads threads
	certs   certs
	own     settings // as of the last fresh look
	gates   []probes.Finding
	unread  []string // not judged for want of files

	runtimeDown time.Time // when it was last seen down; zero: never
}

// New returns a probe of the node's kubelet. api may be nil.
func New(root tree, procs processes, systemd units, api host.Registry, config Config) *Probe {
	config.Unit = cmp.Or(config.Unit, "kubelet.service")
	config.Runtime = cmp.Or(config.Runtime, "containerd.service")
	p := &Probe{config: config, root: root, api: api, runtime: unit.NewService(systemd, procs, config.Runtime)}
	o := options(config)
	o.Configs, o.Normal, o.Started, o.Lawful = p.configs, normal, p.startedAsEmitted, p.patched
	p.checker = unit.New(root, procs, systemd, o)
	p.health = health{root: root}
	p.certs = certs{root: root, known: map[string]*certificate{}}
	return p
}

// options is what is fixed of the unit's checker.
func options(c Config) unit.Options {
	return unit.Options{Prefix: "Kubelet", Metric: "kubelet", Units: []string{cmp.Or(c.Unit, "kubelet.service")}, Owner: probes.AKS, Declared: c.Files}
}

// Spec implements [probes.Probe].
func (p *Probe) Spec() probes.Spec {
	return probes.Spec{Name: "kubelet", Condition: "KubeletDrift", Healthy: "KubeletAsDeclared",
		Every: 5 * time.Second, Timeout: time.Second, Reasons: reasons(p.config), Metrics: metrics(p.config)}
}

// Recall implements [probes.Rememberer].
func (p *Probe) Recall(kept map[string]string) { p.checker.Recall(kept) }

// Watch implements [probes.Watcher]: it hears the units and all files that matter.
func (p *Probe) Watch(ctx context.Context, h probes.Hearer) error {
	return p.checker.Watch(ctx, h, p.runtime.Watch)
}

// Explain implements [probes.Explainer].
func (p *Probe) Explain(list []probes.Finding) []probes.Finding { return explain(list) }

// runtimeGrace is how long kubelet may take to get well after its runtime did.
const runtimeGrace = time.Minute

// Check takes a light look each time: the unit and the health port. Files are read
// when they moved, and each minute.
func (p *Probe) Check(ctx context.Context) (probes.Look, error) {
	if look, ok := p.checker.Rest(); ok {
		return look, nil
	}
	excuse := p.excused(ctx)
	p.checker.Excuse(excuse)
	st, err := p.checker.Look(ctx)
	if err != nil {
		return probes.Look{}, err
	}
	if st.Fresh {
		p.readFiles(&st)
	}
	look := probes.Look{Findings: st.Findings, NotJudged: st.NotJudged, Samples: st.Samples, Keep: st.Keep}
	look.Findings = append(look.Findings, p.gates...)
	look.NotJudged = append(look.NotJudged, p.unread...)
	if st.Running {
		p.lookAtHealth(ctx, &st, excuse, &look)
	}
	p.lookAtCertificates(ctx, &st, &look)
	return p.checker.Seen(look, nil)
}

// excused says why kubelet cannot be well: its runtime is down, or was until just
// now. That is containerd's finding.
func (p *Probe) excused(ctx context.Context) string {
	u, err := p.runtime.Ask(ctx)
	if err != nil {
		return "" // kubelet's own question will tell
	}
	why, ok := unit.Up(u, host.Monotonic(), runtimeGrace)
	switch {
	case !ok:
		p.runtimeDown = time.Now()
		return why
	case !p.runtimeDown.IsZero() && time.Since(p.runtimeDown) < runtimeGrace:
		return u.Id + " was down until just now"
	}
	return ""
}

// lookAtHealth asks the health port and looks at the threads.
func (p *Probe) lookAtHealth(ctx context.Context, st *unit.State, excuse string, look *probes.Look) {
	name := p.config.Unit
	found, notJudged := p.health.look(ctx, p.address(), name, st)
	more, unseen := p.threads.look(name, st)
	found, notJudged = append(found, more...), append(notJudged, unseen...)
	if p.health.took > 0 {
		look.Samples = append(look.Samples, probes.Sample{Name: healthSeconds, Value: p.health.took.Seconds()})
	}
	if excuse != "" && len(found) > 0 {
		for _, f := range found {
			notJudged = append(notJudged, f.Reason+": "+excuse)
		}
		found = nil
	}
	look.Findings = append(look.Findings, found...)
	look.NotJudged = append(look.NotJudged, notJudged...)
}

// address is where kubelet tells its health: "" where it does not.
func (p *Probe) address() string {
	if p.config.Healthz != "" {
		return p.config.Healthz
	}
	return p.own.healthz()
}

// readFiles reads what kubelet's flags and configuration say.
func (p *Probe) readFiles(st *unit.State) {
	p.unread = nil
	var err error
	if p.own, err = p.settings(st.Run); err != nil {
		// Where the certificates are may be said in what cannot be read.
		p.unread = notJudged(err, AlphaFeature, CertificateExpiring, CertificateBroken, ServesOldCertificate)
		if errors.Is(err, fs.ErrNotExist) {
			p.unread = append(p.unread, notJudged(err, ConfigNotLoaded)...)
		}
		p.gates, p.certs.pairs = nil, nil
		return
	}
	var unsure []string
	p.gates, unsure = alpha(p.own, func() uint8 { return p.minor(st.Run) })
	p.unread = append(p.unread, unsure...)
	listen, err := p.certs.find(p.own)
	if err != nil {
		p.unread = append(p.unread, notJudged(err, CertificateExpiring, CertificateBroken)...)
	}
	p.checker.Listen(listen...)
}

// notJudged says of reasons why they could not be judged.
func notJudged(err error, reasons ...string) (list []string) {
	for _, r := range reasons {
		list = append(list, fmt.Sprintf("%s: %v", r, err))
	}
	return list
}
