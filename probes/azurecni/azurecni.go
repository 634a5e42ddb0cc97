// Package azurecni finds pods that Azure CNI's host networking has lost.
//
// What should be is read from the CNI configuration, from the CNI's own state
// files and from the container runtime; what is, from one netlink dump of the
// links, addresses, routes, neighbours and rules of the node. Both are held
// against one table of invariants, for transparent and for bridge mode. Nodes of
// other CNIs are not looked at. The CNI's lock is never taken.
package azurecni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// Config is what an operator may say.
type Config struct {
	// Expect is who says which pods should work: "cri", the default, or
	// "state-file", the CNI's own state alone.
	Expect string
	// PodGateway has each pod's network namespace entered to see its gateway. It
	// needs SYS_ADMIN.
	PodGateway bool `yaml:"podGateway"`
	// Ebtables has bridge mode's ebtables rules read. It needs NET_ADMIN.
	Ebtables bool
	// CNS is where azure-cns answers, "http://localhost:10090"; "" asks it nothing.
	CNS string
}

const (
	expectCRI       = "cri"
	expectStateFile = "state-file"
)

// Valid says which key has a value that is none of its own, and what is wanted.
func (c Config) Valid() error {
	if c.Expect != "" && c.Expect != expectCRI && c.Expect != expectStateFile {
		return fmt.Errorf("expect: is %q, want %s or %s", c.Expect, expectCRI, expectStateFile)
	}
	if c.CNS == "" {
		return nil
	}
	if _, err := cnsURL(c.CNS); err != nil {
		return fmt.Errorf("cns: %w", err)
	}
	return nil
}

// A tree is the node's files, as far as a CNI needs them.
type tree interface {
	ReadFile(name string) ([]byte, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	OpenNetNS(name string) (*os.File, error)
	Watch(ctx context.Context, l host.Listener, paths ...string) error
}

// A podRuntime knows the pods' sandboxes.
type podRuntime interface {
	SandboxDetails(ctx context.Context) ([]host.Sandbox, error)
}

// A netstack is the kernel's networking.
type netstack interface {
	observe(s *snapshot, dual bool) error
	lookup(ip netip.Addr) (route, error)
	neighLimits() neighLimits
	counters() counters
	podGateways(root tree, pods []netnsPlace) []podGateway
	ebtables() *bridgeRules
}

const (
	sweep    = 30 * time.Second // IPv4 routes that go with a link are silent
	reread   = 30 * time.Second // files and sandboxes, heard of or not
	pause    = time.Second      // between two lists of sandboxes while pods come and go
	networkd = 30 * time.Second // the time that systemd-networkd has after its start
)

const afterNetworkd = ", since systemd-networkd restarted"

// Probe holds the node's networking against its CNI's.
type Probe struct {
	root   tree
	cri    podRuntime
	kernel netstack
	config Config

	stale atomic.Bool // something was heard of a file

	files    files // as read last
	readAt   time.Time
	expected *expectation
	podsErr  error // why the pods are not known, when that is not the state file's
	now, was *snapshot
	lookups  map[netip.Addr]lookup
	limits   neighLimits
	counts   counters
	slowAt   time.Time // when what is slow or moves by itself was asked for
	memory   memory
	started  time.Time // of systemd-networkd; zero is unknown
	judgedAt time.Time
	since    map[[3]string]time.Time // findings that systemd-networkd may have brought about

	look probes.Look // the last one, given again while nothing changes
	err  error
}

// files are what the node's files said last.
type files struct {
	conf  conflist
	state state
}

// New returns a probe of the network namespace that the agent is in.
func New(root tree, cri podRuntime, config Config) *Probe {
	return newProbe(root, cri, newKernel(), config)
}

func newProbe(root tree, cri podRuntime, kernel netstack, config Config) *Probe {
	return &Probe{root: root, cri: cri, kernel: kernel, config: config, now: &snapshot{}, was: &snapshot{},
		lookups: map[netip.Addr]lookup{}, memory: memory{explicit: map[netip.Addr]bool{}, failed: map[netip.Addr]int{}}, since: map[[3]string]time.Time{}}
}

// Spec implements [probes.Probe].
func (*Probe) Spec() probes.Spec {
	return probes.Spec{Name: "azurecni", Condition: "CNIRouteDrift", Healthy: "PodRoutesInPlace",
		Every: sweep, Timeout: 5 * time.Second, Reasons: reasons, Metrics: metrics}
}

// Check reads what should be when something was heard of it, dumps what is, and
// holds both against each other. While nothing changes it allocates nothing and
// returns the same Look. When the runtime does not tell the pods, what does not
// need them is found beside the error.
func (p *Probe) Check(ctx context.Context) (probes.Look, error) {
	at := time.Now()
	if len(p.look.Findings) > 0 && at.Sub(p.readAt) >= pause {
		p.stale.Store(true) // a pod that went since is not missed
	}
	moved, err := p.expect(ctx, at)
	if err != nil {
		return p.forget(err)
	}
	p.now, p.was = p.was, p.now
	if err := p.kernel.observe(p.now, p.expected.dual); err != nil {
		return p.forget(err)
	}
	changed := !p.now.same(p.was)
	if changed && !moved && p.config.Expect != expectStateFile && at.Sub(p.readAt) >= pause {
		p.stale.Store(true) // pods may have come or gone: what should be must not be older than what is
		if moved, err = p.expect(ctx, at); err != nil {
			return p.forget(err)
		}
	}
	slow := p.askSlow(at)
	if !moved && !changed && !slow && p.err == nil && len(p.look.Findings) == 0 && p.look.Samples != nil {
		return p.look, nil
	}
	p.look, p.err = p.judge(at), p.podsErr
	return p.look, p.err
}

// forget is a look that could not be taken: nothing of it is compared later.
func (p *Probe) forget(err error) (probes.Look, error) {
	p.look, p.err = probes.Look{}, err
	return p.look, err
}

// expect reads the files and asks the runtime, when it is time.
func (p *Probe) expect(ctx context.Context, at time.Time) (changed bool, err error) {
	if !p.stale.Swap(false) && p.expected != nil && at.Sub(p.readAt) < reread {
		return false, nil
	}
	p.expected, p.readAt = nil, at
	if p.files.conf, err = readConflist(p.root); err != nil {
		return false, err
	}
	if p.files.state, err = readState(p.root); err != nil {
		return false, err
	}
	p.started = time.Time{}
	if i, err := p.root.Lstat(invoked); err == nil {
		p.started = i.ModTime()
	}
	if p.expected, p.podsErr = p.expectPods(ctx); p.podsErr != nil {
		p.expected = (&expectation{unknown: p.podsErr.Error()}).index()
		p.stale.Store(true) // the next look asks again
	}
	return true, nil
}

// expectPods finds which pods should work.
func (p *Probe) expectPods(ctx context.Context) (*expectation, error) {
	if p.config.Expect == expectStateFile || p.files.conf.mode == cilium {
		return expectState(&p.files.state), nil
	}
	if p.cri == nil {
		return nil, errors.New("ask the runtime for the pods: there is none")
	}
	sandboxes, err := p.cri.SandboxDetails(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the runtime for the pods: %w", err)
	}
	e := expectSandboxes(sandboxes, &p.files.state)
	switch waiting, err := p.root.ReadDir(queued); {
	case err == nil && len(waiting) > 0:
		e.extra = nil // their release waits for azure-cns
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		e.extra, e.queueErr = nil, err
	}
	if p.config.CNS != "" {
		if err := e.addCNS(ctx, p.config.CNS); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// askSlow asks, with each sweep, for what is slow to tell or moves all the time.
func (p *Probe) askSlow(at time.Time) bool {
	if at.Sub(p.slowAt) < sweep-sweep/10-pause {
		return false
	}
	p.slowAt = at
	p.limits, p.counts = p.kernel.neighLimits(), p.kernel.counters()
	p.counts.readLease(p.root)
	p.memory.fulls.take(p.limits.fulls, p.limits.err)
	p.memory.rpf.take(p.counts.rpf, p.counts.rpfErr)
	p.memory.conntrack.take(p.counts.insertFailed+p.counts.drop, p.counts.conntrackErr)
	return true
}

// judge holds what is against what should be.
func (p *Probe) judge(at time.Time) probes.Look {
	v := &view{expectation: p.expected, conf: &p.files.conf, state: &p.files.state, config: &p.config, memory: &p.memory,
		now: p.now, at: at, lookups: p.lookups, limits: p.limits, counters: p.counts}
	v.index()
	p.lookAtNeighbors(v, at.Sub(p.judgedAt))
	p.judgedAt = at
	clear(p.lookups)
	for _, ip := range platform {
		r, err := p.kernel.lookup(ip)
		p.lookups[ip] = lookup{r, err}
	}
	if p.config.PodGateway && v.mode == transparent && v.unknown == "" {
		v.gateways = p.kernel.podGateways(p.root, v.netnsPlaces())
	}
	if p.config.Ebtables && v.mode&anyBridge != 0 {
		v.rules = p.kernel.ebtables()
	}
	found, notJudged := v.judge()
	v.remember(found)
	p.giveTime(found, at)
	return probes.Look{Findings: found, NotJudged: notJudged, Samples: v.samples()}
}

// giveTime holds effects as long as their causes, and gives systemd-networkd the
// time it needs after a restart; what is still broken then is its doing.
func (p *Probe) giveTime(found []probes.Finding, at time.Time) {
	for i, c := range causesOf(found) {
		if c >= 0 {
			found[i].Hold = max(found[i].Hold, found[c].Hold)
		}
	}
	restarted := p.restartedAt(at)
	seen := make(map[[3]string]time.Time, len(p.since))
	for i := range found {
		f := &found[i]
		if !routed[f.ID] {
			continue
		}
		key := [3]string{f.Reason, f.ID, f.Subject}
		first, known := p.since[key]
		if !known {
			first = at
		}
		seen[key] = first
		if restarted.IsZero() || first.Before(restarted) || first.Sub(restarted) > networkd {
			continue
		}
		if at.Sub(restarted) < networkd {
			f.Hold = max(f.Hold, networkd)
		}
		f.Message += afterNetworkd
		f.Trace = probes.Key{Domain: "unit", Name: "systemd-networkd.service"}
	}
	p.since = seen
}

// restartedAt is when systemd-networkd was started again, if that was while this
// probe looked, or less than a window ago.
func (p *Probe) restartedAt(at time.Time) time.Time {
	if p.started.After(at) {
		return time.Time{}
	}
	return p.started
}

// lookAtNeighbors counts how often pods' neighbours were tried again since the
// last look, and failed.
func (p *Probe) lookAtNeighbors(v *view, since time.Duration) {
	failed := map[netip.Addr]int{}
	for i := range v.now.neighs {
		n := &v.now.neighs[i]
		if n.state != neighFailed || len(v.owners[n.ip]) == 0 {
			continue
		}
		failed[n.ip] = p.memory.failed[n.ip]
		if lastTry(n.updated) < since {
			failed[n.ip]++
		}
	}
	p.memory.failed = failed
}

// remember keeps what a node in order has, for the looks after this one.
func (v *view) remember(found []probes.Finding) {
	broken := map[string]bool{}
	for i := range found {
		broken[found[i].ID] = true
	}
	if !broken["N-NODE-IP"] && !broken["N-UPLINK"] && v.l3 != nil {
		for _, a := range v.addrsOf[v.l3.index] {
			if a.Addr().Is4() && !a.Addr().IsLinkLocalUnicast() {
				v.memory.nodeIP = a.Addr()
				break
			}
		}
	}
	for _, ip := range platform {
		v.memory.explicit[ip] = v.memory.explicit[ip] || v.explicit(ip)
	}
	v.memory.constMAC = v.memory.constMAC || v.mode == transparent && v.anyConstantMAC()
}
