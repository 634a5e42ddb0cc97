package konnectivity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

const (
	namespace = "kube-system"
	podPrefix = "konnectivity-agent-"
	scaler    = "konnectivity-agent-autoscaler-" // AKS sets the number of agents with it
	program   = "proxy-agent"                    // comm of the agent's process

	// young is how old an agent must be: until then it connects for the first time.
	young = 90 * time.Second
	// quick is the longest life of a container that counts for a crash loop: kubelet waits
	// at most 5 min between two starts.
	quick    = 5 * time.Minute
	restarts = 3
)

// processes are the node's; host.Processes satisfies it.
type processes interface {
	List() iter.Seq2[*host.Process, error]
	Process(pid int) (*host.Process, error)
	Uptime() (time.Duration, error)
}

// containerRuntime is the node's container runtime; *host.CRI satisfies it.
type containerRuntime interface {
	Sandboxes(ctx context.Context) ([]host.Sandbox, error)
	SandboxDetails(ctx context.Context) ([]host.Sandbox, error)
	Containers(ctx context.Context) ([]host.Container, error)
	ContainerExit(ctx context.Context, id string) (host.Exit, error)
}

// An agent is one konnectivity-agent that runs here.
type agent struct {
	name    string // its pod: "kube-system/konnectivity-agent-5d78c9869d-abcde"; where the runtime does not tell, its process
	sandbox host.Sandbox
	process *host.Process
	since   time.Duration // since boot
	flags   flags

	memory
}

// key tells this run of the agent from others of the same boot.
func (a *agent) key() string {
	return strconv.Itoa(a.process.PID()) + "/" + strconv.FormatInt(int64(a.since/time.Millisecond), 10)
}

// flags are what an agent was started with (apiserver-network-proxy,
// cmd/agent/app/options).
type flags struct {
	server     string // host of the tunnel's other end
	serverPort uint16
	healthPort uint16
	keepalive  time.Duration
}

// parseFlags reads arguments; what is not there is the agent's default.
func parseFlags(args []string) flags {
	f := flags{server: "127.0.0.1", serverPort: 8091, healthPort: 8093, keepalive: time.Hour}
	if v, ok := unit.Flag(args, "proxy-server-host"); ok {
		f.server = v
	}
	for name, to := range map[string]*uint16{"proxy-server-port": &f.serverPort, "health-server-port": &f.healthPort} {
		if v, ok := unit.Flag(args, name); ok {
			if n, err := strconv.ParseUint(v, 10, 16); err == nil && n > 0 {
				*to = uint16(n)
			}
		}
	}
	if v, ok := unit.Flag(args, "keepalive-time"); ok {
		if d, err := time.ParseDuration(v); err == nil && d > 0 {
			f.keepalive = d
		}
	}
	return f
}

// find finds the agents of this node: pods by the runtime, then their processes. When
// the runtime cannot be asked, a process with the agent's name is one.
func (p *Probe) find(ctx context.Context) ([]*agent, error) {
	pods, criErr := p.pods(ctx)
	if criErr == nil && len(pods) == 0 {
		p.loops, p.loopsUnseen = nil, nil
		return nil, nil
	}
	var containers []host.Container
	if criErr == nil {
		containers, criErr = p.cri.Containers(ctx)
		if criErr == nil {
			p.loops, p.loopsUnseen = p.crashLoops(ctx, pods, containers)
		}
	}
	if criErr != nil {
		p.loopsUnseen = criErr
	}
	if p.stillThere(pods, containers, criErr == nil) {
		return p.agents, nil
	}
	agents, err := p.scan(pods, containers, criErr == nil)
	if criErr != nil && len(agents) == 0 {
		// Without the runtime none is no proof: a process may have another name.
		return agents, errors.Join(criErr, err)
	}
	return agents, err
}

// pods are the agents' pods that are there to stay: kubelet ends a pod's sandbox with it.
func (p *Probe) pods(ctx context.Context) ([]host.Sandbox, error) {
	isAgent := func(s host.Sandbox) bool {
		return s.Ready && s.Namespace == namespace && strings.HasPrefix(s.Name, podPrefix) && !strings.HasPrefix(s.Name, scaler)
	}
	all, err := p.cri.Sandboxes(ctx)
	if err != nil || !slices.ContainsFunc(all, isAgent) {
		return nil, err
	}
	if slices.ContainsFunc(all, func(s host.Sandbox) bool { return isAgent(s) && !s.Known }) {
		all, err = p.cri.SandboxDetails(ctx)
	}
	if all = slices.DeleteFunc(all, func(s host.Sandbox) bool { return !isAgent(s) }); len(all) > 0 {
		err = nil // others that could not be asked do not matter
	}
	return all, err
}

// stillThere tells whether the agents are those that were found before, one to each
// running container.
func (p *Probe) stillThere(pods []host.Sandbox, containers []host.Container, known bool) bool {
	if !known || len(p.agents) == 0 {
		return false
	}
	running := 0
	for _, c := range containers {
		if c.Running && slices.ContainsFunc(pods, func(s host.Sandbox) bool { return s.ID == c.Sandbox }) {
			running++
		}
	}
	return running == len(p.agents) && !slices.ContainsFunc(p.agents, func(a *agent) bool {
		return a.process.Alive() != nil || !slices.ContainsFunc(pods, func(s host.Sandbox) bool { return s.ID == a.sandbox.ID })
	})
}

// scan looks for the agents' processes.
func (p *Probe) scan(pods []host.Sandbox, containers []host.Container, known bool) (agents []*agent, err error) {
	for process, err := range p.procs.List() {
		if err != nil {
			return agents, fmt.Errorf("find the agent's process: %w", err)
		}
		if comm, err := process.Comm(); err != nil || comm != program {
			continue
		}
		group, err := process.Cgroup()
		if err != nil {
			continue
		}
		sandbox, ok := podOf(group, pods, containers)
		if known && !ok {
			continue // a pod of somebody's own
		}
		a, err := p.open(process.PID(), sandbox)
		if errors.Is(err, host.ErrProcessGone) {
			continue
		}
		if err != nil {
			return agents, err
		}
		agents = append(agents, a)
	}
	if known {
		err = missing(pods, containers, agents)
	}
	return agents, err
}

// podOf finds the pod of a cgroup, in whose path stands the container's id.
func podOf(group string, pods []host.Sandbox, containers []host.Container) (host.Sandbox, bool) {
	for _, c := range containers {
		if c.ID == "" || !strings.Contains(group, c.ID) {
			continue
		}
		if i := slices.IndexFunc(pods, func(s host.Sandbox) bool { return s.ID == c.Sandbox }); i >= 0 {
			return pods[i], true
		}
	}
	return host.Sandbox{}, false
}

// missing is an error when an agent's container runs and its process was not found.
func missing(pods []host.Sandbox, containers []host.Container, agents []*agent) error {
	for _, s := range pods {
		runs := slices.ContainsFunc(containers, func(c host.Container) bool {
			return c.Sandbox == s.ID && c.Running && time.Since(c.Created) > young
		})
		if runs && !slices.ContainsFunc(agents, func(a *agent) bool { return a.sandbox.ID == s.ID }) {
			return fmt.Errorf("find the process of %s/%s: none is called %s", s.Namespace, s.Name, program)
		}
	}
	return nil
}

// open holds an agent's process, with what was known of it.
func (p *Probe) open(pid int, sandbox host.Sandbox) (*agent, error) {
	process, err := p.procs.Process(pid)
	if err != nil {
		return nil, err
	}
	since, err := process.StartTime()
	args, argsErr := process.Cmdline()
	if err := cmp.Or(err, argsErr); err != nil {
		process.Close()
		return nil, err
	}
	a := &agent{name: fmt.Sprintf("process %d (%s)", pid, program), sandbox: sandbox, process: process, since: since, flags: parseFlags(args)}
	if sandbox.ID != "" {
		a.name = sandbox.Namespace + "/" + sandbox.Name
	}
	for _, old := range p.agents {
		if old.key() == a.key() {
			a.memory = old.memory
		}
	}
	return a, nil
}

// age is how long the agent has run.
func (a *agent) age(up time.Duration) time.Duration { return up - a.since }

// address is where the agent's health port answers: its pod's address, or the node's.
// Without a runtime it is the near end of its connections.
func (a *agent) address(table []host.TCPSocket) (string, bool) {
	switch {
	case a.sandbox.HostNetwork:
		return join(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.flags.healthPort), true
	case len(a.sandbox.IPs) > 0:
		return join(a.sandbox.IPs[0], a.flags.healthPort), true
	}
	for _, s := range table {
		if s.Remote.Port() == a.flags.serverPort && !s.Local.Addr().IsLoopback() {
			return join(s.Local.Addr(), a.flags.healthPort), true
		}
	}
	return "", false
}

// crashLoops finds agents that end again and again: the last two lives were short.
func (p *Probe) crashLoops(ctx context.Context, pods []host.Sandbox, containers []host.Container) (found []probes.Finding, err error) {
	for _, s := range pods {
		var last, before *host.Container
		for i := range containers {
			c := &containers[i]
			if c.Sandbox != s.ID {
				continue
			}
			if last == nil || c.Attempt > last.Attempt {
				last, before = c, last
			} else if before == nil || c.Attempt > before.Attempt {
				before = c
			}
		}
		if last == nil || last.Attempt < restarts || last.Running && (before == nil || time.Since(last.Created) > quick) {
			continue
		}
		ended := last
		if last.Running {
			ended = before
		}
		exit, exitErr := p.cri.ContainerExit(ctx, ended.ID)
		if exitErr != nil {
			err = exitErr
			continue
		}
		if exit.At.Sub(ended.Created) > quick || exit.Reason == "Completed" && !last.Running {
			continue
		}
		name := s.Namespace + "/" + s.Name
		found = append(found, probes.Finding{Reason: TunnelAgentCrashLooping, Subject: name,
			Message: fmt.Sprintf("%s keeps ending: exit code %d%s", name, exit.Code, because(exit.Reason))})
	}
	return found, err
}

func because(reason string) string {
	if reason == "" || reason == "Error" {
		return ""
	}
	return " (" + reason + ")"
}
