// Package konnectivity finds a node that the API server cannot reach, or that cannot
// reach the API server: the tunnel of an agent that runs here is down, silent or about
// to be cut; the way from this node to the API server fails; or the way back, to this
// node's kubelet, does. It looks at the agent's process, its health port and sockets, at
// kubelet's own connection, and, rarely, asks the API server.
//
// A look takes less than half a millisecond of processor time. Where connections are not
// traced (see [Tracer]) one look a minute takes 10 ms more on a node where an agent runs,
// and each second one while its tunnel is down or kubelet hears nothing: what it finds is
// the same.
package konnectivity

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// Config is what an operator may say.
type Config struct {
	// Kubeconfig names the API server; "" means kubelet's.
	Kubeconfig string `yaml:"kubeconfig"`
	// Back is how often the API server is asked for a line of the agent's own log;
	// 0 means an hour.
	Back time.Duration `yaml:"back"`
}

// tree is the node's root; host.Files satisfies it.
type tree = host.Files

// units are the node's systemd; *host.Systemd satisfies it.
type units interface {
	Unit(ctx context.Context, name string) (host.Unit, error)
}

// sockets are the node's own; *host.TCP satisfies it.
type sockets interface {
	Received(from []netip.AddrPort, owner uint64, fresh time.Duration) (age time.Duration, ok bool, err error)
	Listens(port uint16) (id uint64, ok bool, err error)
}

// Probe looks at the tunnel and the ways between the node and the API server.
type Probe struct {
	config Config
	root   tree
	procs  processes
	units  units
	cri    containerRuntime
	self   Self
	tcp    sockets
	traced traced
	lookup func(ctx context.Context, name string) ([]netip.Addr, error)

	findEach time.Duration
	backEach time.Duration

	mu          sync.Mutex // of agents' processes: the watch reads them, too
	agents      []*agent
	agentsErr   error
	found       time.Time // when agents were looked for
	loops       []probes.Finding
	loopsUnseen error
	others      chan struct{} // full when agents are others

	endpoint    *endpoint
	endpointErr error
	kubeconfig  string // the running kubelet's, as last seen
	group       string // kubelet's cgroup, likewise: "/system.slice/kubelet.service"
	kubelet     *host.Process
	askedFor    time.Time // kubelet, when it was found
	ownedBy     uint64    // kubelet's cgroup; 0: to be looked up

	trips     errand[trip]
	heardLast bool // kubelet's connection heard something since the last trip
	back      wayBack

	last     probes.Look
	lookedAt time.Time
	calm     bool // as of the last look: no agent runs here, and nothing is to be waited for

	hearer     atomic.Pointer[probes.Hearer]
	woken      atomic.Bool                // something was heard since the last look
	certsHeard atomic.Bool                // kubelet's certificates moved since they were looked at
	frozen     atomic.Int64               // CLOCK_BOOTTIME of the last freeze of the node; 0: none
	drops      map[string][]time.Duration // of an earlier process of the agent, by key
}

// New returns a probe of the node's tunnel; where trace is nil, the kernel's tables are
// read in its place.
func New(root tree, procs host.Processes, systemd *host.Systemd, cri *host.CRI, self Self, trace Tracer, config Config) *Probe {
	p := &Probe{config: config, root: root, procs: procs, units: systemd, cri: cri, self: self, traced: traced{tracer: trace}, lookup: resolver{root}.lookup,
		findEach: 30 * time.Second, backEach: backEach}
	p.others = make(chan struct{}, 1)
	p.tcp = &host.TCP{Candidates: p.kubelets, Rest: tableMoved}
	if config.Back > 0 {
		p.backEach = config.Back
	}
	p.trips.within, p.back.within = forwardWithin, backWithin
	return p
}

// Spec implements [probes.Probe].
func (p *Probe) Spec() probes.Spec {
	return probes.Spec{Name: "konnectivity", Condition: "KonnectivityUnavailable", Healthy: "KonnectivityAvailable",
		Every: 5 * time.Second, Timeout: lookWithin, Reasons: reasons, Metrics: metrics}
}

const (
	lookWithin = 5 * time.Second
	// findAgain is how soon agents are looked for again that could not be: at the next
	// look, but not at each of a burst.
	findAgain = 4 * time.Second
	// leave is what the first look, which waits for answers, keeps of its time.
	leave = 500 * time.Millisecond
	// thaw is how long after the node stood still nothing is held against the tunnel: three looks.
	thaw = 15 * time.Second
	// calmEach is how often a node without an agent is looked at while all is well and
	// nothing is heard: every second look. What can fail there shows after 25 s.
	calmEach = 9 * time.Second
)

// Check looks at the agents that run here and at both ways.
func (p *Probe) Check(ctx context.Context) (look probes.Look, err error) {
	if age := time.Since(p.lookedAt); !p.woken.Swap(false) && p.calm && age >= 0 && age < calmEach {
		return p.last, nil
	}
	p.calm = false
	up, err := p.procs.Uptime()
	if err != nil {
		return probes.Look{}, err
	}
	p.traced.asked = false
	p.refresh(ctx)
	if p.endpoint == nil && errors.Is(p.endpointErr, errNoKubeconfig) && p.agentsErr == nil && len(p.agents) == 0 && p.config.Kubeconfig == "" {
		return probes.Look{}, fmt.Errorf("%w, and no konnectivity-agent: %w", p.endpointErr, probes.ErrNotApplicable)
	}
	err = errors.Join(p.ways(ctx, &look), p.tunnels(ctx, up, &look))
	p.tellPeers()
	p.hold(up, &look)
	look.Keep = p.keep()
	p.last, p.lookedAt = look, time.Now()
	_, _, there := p.trips.get()
	_, _, back := p.back.get()
	p.calm = err == nil && len(look.Findings) == 0 && len(p.agents) == 0 && !there && !back
	return look, err
}

// refresh looks for agents and for the API server's address when it is time to.
func (p *Probe) refresh(ctx context.Context) {
	gone := slices.ContainsFunc(p.agents, func(a *agent) bool { return a.process.Alive() != nil })
	each := p.findEach
	switch {
	case p.agentsErr != nil:
		each = findAgain
	case len(p.agents) == 0 && !p.fails():
		each *= 2 // an agent that comes is not judged before it is 90 s old
	}
	if age := time.Since(p.found); !p.found.IsZero() && age >= 0 && age < each && !gone {
		return
	}
	p.found = time.Now()
	within, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	agents, err := p.find(within)
	p.mu.Lock()
	for _, old := range p.agents {
		if !slices.Contains(agents, old) {
			old.process.Close()
		}
	}
	if !slices.Equal(p.agents, agents) {
		select {
		case p.others <- struct{}{}:
		default:
		}
	}
	p.agents, p.agentsErr = agents, err
	p.mu.Unlock()
	for _, a := range agents {
		if known, ok := p.drops[a.key()]; ok {
			a.dropped = known
			delete(p.drops, a.key())
		}
	}
	e, err := p.findEndpoint(within)
	if err == nil || p.endpoint == nil || !errors.Is(err, errNoKubeconfig) {
		p.endpoint, p.endpointErr = e, err
	}
}

// fails tells whether the API server could not be reached last: it may be looked for in
// the wrong place.
func (p *Probe) fails() bool {
	last, _, _ := p.trips.get()
	return last.failed != nil
}

// ways judges the way to the API server and the way back. The first look waits for
// their answers.
func (p *Probe) ways(ctx context.Context, look *probes.Look) error {
	e := p.endpoint
	if e == nil {
		for _, reason := range []string{APIServerUnresolvable, APIServerUnreachable, APIServerTLSIntercepted, APIServerNotReady, KubeletUnreachable} {
			look.NotJudged = append(look.NotJudged, reason+": nothing tells where the API server is")
		}
		return p.endpointErr
	}
	if e.elsewhere != "" {
		for _, reason := range []string{APIServerUnresolvable, APIServerUnreachable, APIServerTLSIntercepted, APIServerNotReady, KubeletUnreachable} {
			look.NotJudged = append(look.NotJudged, reason+": "+e.elsewhere)
		}
		return nil
	}
	p.forward(e, look)
	p.askBack(e)
	_, there, _ := p.trips.get()
	_, back, _ := p.back.get()
	if there.IsZero() || p.self.known() && back.IsZero() {
		p.awaitFirst(ctx)
	}
	err := p.told(e, look)
	p.toldBack(look)
	return err
}

// awaitFirst waits for the first answers, as long as the look may.
func (p *Probe) awaitFirst(ctx context.Context) {
	within, cancel := ctx, context.CancelFunc(func() {})
	if deadline, ok := ctx.Deadline(); ok {
		within, cancel = context.WithDeadline(ctx, deadline.Add(-leave))
	}
	defer cancel()
	if _, ended, _ := p.trips.get(); ended.IsZero() {
		p.trips.wait(within)
	}
	if _, ended, _ := p.back.get(); ended.IsZero() {
		p.back.wait(within)
	}
}

// tunnels judges the agents that run here.
func (p *Probe) tunnels(ctx context.Context, up time.Duration, look *probes.Look) error {
	err := p.agentsErr
	open, known := 0.0, 0.0
	for _, a := range p.agents {
		s, failed := p.lookAt(ctx, a, up, look)
		err = errors.Join(err, failed)
		open, known = open+max(s.open, 0), known+max(s.known, 0)
	}
	look.Findings = append(look.Findings, p.loops...)
	if p.loopsUnseen != nil && len(p.agents) > 0 {
		look.NotJudged = append(look.NotJudged, TunnelAgentCrashLooping+": "+why(p.loopsUnseen))
	}
	look.Samples = append(look.Samples, probes.Sample{Name: agentsHere, Value: float64(len(p.agents))})
	if len(p.agents) > 0 {
		look.Samples = append(look.Samples, probes.Sample{Name: serverConnections, Value: open}, probes.Sample{Name: knownServers, Value: known})
	}
	return err
}

// hold takes back what is found right after the node stood still: all peers had
// reason to hang up.
func (p *Probe) hold(up time.Duration, look *probes.Look) {
	froze := time.Duration(p.frozen.Load())
	if froze == 0 || up-froze > thaw {
		return
	}
	look.Findings = slices.DeleteFunc(look.Findings, func(f probes.Finding) bool {
		if f.Reason == TunnelKeepaliveUnsafe || f.Reason == TunnelAgentCrashLooping {
			return false
		}
		look.NotJudged = append(look.NotJudged, f.Reason+": the node stood still a moment ago")
		return true
	})
	slices.Sort(look.NotJudged)
	look.NotJudged = slices.Compact(look.NotJudged)
}

// wake lets the agent look again.
func (p *Probe) wake() {
	if h := p.hearer.Load(); h != nil {
		(*h).Changed()
	}
}

// keep is what is to be known after a restart of the agent: when tunnels dropped.
func (p *Probe) keep() map[string]string {
	kept := map[string]string{}
	for _, a := range p.agents {
		if len(a.dropped) == 0 {
			continue
		}
		var times []string
		for _, at := range a.dropped {
			times = append(times, strconv.FormatInt(int64(at/time.Millisecond), 10))
		}
		kept["drops "+a.key()] = strings.Join(times, " ")
	}
	return kept
}

// Recall implements [probes.Rememberer].
func (p *Probe) Recall(kept map[string]string) {
	p.drops = map[string][]time.Duration{}
	for name, text := range kept {
		key, ok := strings.CutPrefix(name, "drops ")
		if !ok {
			continue
		}
		for word := range strings.FieldsSeq(text) {
			if ms, err := strconv.ParseInt(word, 10, 64); err == nil && ms >= 0 && len(p.drops[key]) < drops {
				p.drops[key] = append(p.drops[key], time.Duration(ms)*time.Millisecond)
			}
		}
	}
}

// causes lists reasons from cause to consequence; those of one agent explain only its own.
var causes = []string{APIServerUnresolvable, APIServerTLSIntercepted, APIServerUnreachable, APIServerNotReady,
	TunnelAgentCrashLooping, TunnelAgentHung, TunnelNotResponding, TunnelDown}

// Explain implements [probes.Explainer]: one cause, one finding.
func (p *Probe) Explain(list []probes.Finding) []probes.Finding {
	for rank, reason := range causes {
		for at := 0; at < len(list); at++ {
			if cause := list[at]; cause.Reason == reason {
				list = unit.Fold(list, at, func(f probes.Finding) bool { return follows(cause, f, rank) })
				at = slices.IndexFunc(list, func(f probes.Finding) bool {
					return f.Reason == reason && f.Subject == cause.Subject && f.ID == cause.ID
				})
			}
		}
	}
	return list
}

// follows tells whether one finding is a consequence of a cause of a rank.
func follows(cause, f probes.Finding, rank int) bool {
	of := slices.Index(causes, f.Reason)
	if rank <= slices.Index(causes, APIServerNotReady) {
		return f.Reason == KubeletUnreachable || of > rank && of <= slices.Index(causes, APIServerNotReady) ||
			f.Reason == TunnelDown || f.Reason == TunnelNotResponding || f.Reason == TunnelRetransmitting || f.Reason == TunnelUnstable
	}
	if f.Reason == KubeletUnreachable {
		return f.ID == noAgent || f.ID == agentSilent
	}
	return f.Subject == cause.Subject && (of > rank || f.Reason == TunnelRetransmitting || f.Reason == TunnelUnstable || f.Reason == TunnelNotRedundant)
}
