package bpf

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// The reasons of this probe: all happen, none stands.
const (
	OOMKilled     = "OOMKilled"
	DaemonKilled  = "DaemonKilled"
	TaskHung      = "TaskHung"
	SysctlWritten = "SysctlWritten"
	TunnelReset   = "TunnelReset"
)

// Probe tells what the tracer hears. It has no condition: what stands is judged by
// others.
type Probe struct{ tracer *Tracer }

// NewProbe returns a probe of what a tracer hears; nil is a tracer that is not there.
func NewProbe(t *Tracer) *Probe { return &Probe{t} }

// Spec implements [probes.Probe].
func (*Probe) Spec() probes.Spec {
	return probes.Spec{Name: "bpf", Every: time.Minute, Timeout: 5 * time.Second, Reasons: reasons, Metrics: metrics}
}

// Check tells what can be heard on this node. It waits for the first attempt.
func (p *Probe) Check(ctx context.Context) (look probes.Look, err error) {
	if p.tracer == nil {
		return look, fmt.Errorf("who did what is known to the running agent only: %w", probes.ErrNotApplicable)
	}
	select {
	case <-p.tracer.tried:
	case <-ctx.Done():
		return look, ctx.Err()
	}
	active, why := 0, errors.New("nothing is asked for")
	instead := p.tracer.instead()
	for _, s := range p.tracer.States() {
		value := 0.0
		if s.Active {
			active++
			value = 1
		} else if s.Asked {
			why = errors.New(s.Reason)
			look.NotJudged = append(look.NotJudged, detectorOf[s.Detector]+": detector "+s.Detector+": "+s.Reason+instead[s.Detector])
		}
		look.Samples = append(look.Samples, probes.Sample{Name: "bpf_detector_active", Labels: []string{s.Detector}, Value: value})
	}
	if n, ok := p.tracer.retransmits(); ok {
		look.Samples = append(look.Samples, probes.Sample{Name: "peer_retransmits_total", Value: float64(n)})
	}
	if active == 0 {
		return look, fmt.Errorf("who did what is not known: %w%s: %w", why, instead[oomDetector], probes.ErrNotApplicable)
	}
	return look, nil
}

// instead says what is done in the place of a detector.
func (t *Tracer) instead() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string]string{censusDetector: "; /proc is read instead", socketsDetector: "; the kernel's tables are read instead, at a cost", clockDetector: "; it is told without who set it"}
	if t.logSay != "" {
		all[oomDetector], all[hangDetector] = "; "+t.logSay, "; "+t.logSay
	}
	return all
}

// Watch implements [probes.Watcher].
func (p *Probe) Watch(ctx context.Context, h probes.Hearer) error {
	defer p.tracer.listen(&hearing{h: h})()
	h.Changed()
	<-ctx.Done()
	return nil
}

// detectorOf is what a detector's absence leaves untold.
var detectorOf = map[string]string{
	sysctlDetector: SysctlWritten, oomDetector: OOMKilled, exitDetector: DaemonKilled, signalDetector: DaemonKilled,
	hangDetector: TaskHung, censusDetector: TaskHung, tcpDetector: TunnelReset, socketsDetector: TunnelReset, clockDetector: clockStepped,
}

var metrics = []probes.Metric{{
	Name: "bpf_detector_active", Help: "Whether a detector is attached and has heard its own event.",
	Labels: []probes.Label{{Name: "detector", Values: append([]string{sysctlDetector, socketsDetector, tcpDetector}, rareDetectors...)}},
}, {
	Name: "peer_retransmits_total", Help: "TCP segments to the API server and the tunnel's other end that were sent again, by this node and its konnectivity-agents.", Counter: true,
}}

var reasons = []probes.Reason{
	{
		Name: OOMKilled, Severity: probes.Warning, Happens: true, Owner: probes.Customer,
		Meaning:        "The kernel killed a process because its cgroup, or the node, was out of memory.",
		Breaks:         "The container ends with exit code 137 when it was its first process; any other process of a container vanishes without kubelet noticing.",
		Confirm:        "dmesg | grep -i 'killed process'; kubectl describe pod POD",
		Mend:           "Raise the container's memory limit or make it need less. Where the node itself ran out: requests below what pods really use.",
		FalsePositives: "A program that lives at its limit by design and is started again.",
		Links:          []string{"https://kubernetes.io/docs/tasks/configure-pod-container/assign-memory-resource/", "https://docs.kernel.org/admin-guide/cgroup-v2.html#memory"},
	},
	{
		Name: DaemonKilled, Severity: probes.Warning, Happens: true, Owner: probes.Both,
		Meaning:        "A daemon that this node needs (kubelet, containerd, chronyd, kube-proxy, konnectivity-agent) was ended by a signal that its service manager did not order.",
		Breaks:         "Until it runs again: no pods are started or stopped, no containers, no time, no Services, no logs and exec, in the order above.",
		Confirm:        "systemctl status UNIT; journalctl -u UNIT -n 50",
		Mend:           "The message names the pod or unit that sent the signal; stop it from doing so. systemd starts the daemon again.",
		FalsePositives: "Somebody who restarts it by hand with kill.",
		Links:          []string{"https://man7.org/linux/man-pages/man7/signal.7.html"},
	},
	{
		Name: TaskHung, Severity: probes.Warning, Happens: true, Owner: probes.Both,
		Meaning:        "A task has been blocked in the kernel for a long time without running: a thread of a daemon this node needs for a minute, or any task for the two of the kernel's own watch.",
		Breaks:         "Whatever it holds: a blocked thread of kubelet or containerd stops pods from starting or ending, and no signal ends it.",
		Confirm:        "ps -eLo pid,tid,stat,wchan:32,comm | awk '$3 ~ /D/'; dmesg | grep 'blocked for more than'",
		Mend:           "Mostly storage or a network file system that does not answer: look at what the task waits for, restore it, or reboot the node.",
		FalsePositives: "Very slow disks under load.",
		Links:          []string{"https://docs.kernel.org/admin-guide/sysctl/kernel.html#hung-task-timeout-secs"},
	},
	{
		Name: SysctlWritten, Severity: probes.Info, Happens: true, Owner: probes.Customer,
		Meaning:        "A declared kernel setting was written, with the same value or another.",
		Breaks:         "Nothing by itself; SysctlChanged tells when the value is not the declared one.",
		Confirm:        "sysctl KEY",
		Mend:           "Nothing is needed. Two writers that fight over a key are named here.",
		FalsePositives: "kubelet, kube-proxy and CNI plugins write their settings when they start.",
		Links:          []string{"https://docs.kernel.org/admin-guide/sysctl/index.html"},
	},
	{
		Name: TunnelReset, Severity: probes.Warning, Happens: true, Owner: probes.AKS,
		Meaning:        "A connection of this node to the API server or the tunnel's other end was reset or could not be made.",
		Breaks:         "Nothing when it is made again at once; often or for long: logs, exec, webhooks and aggregated APIs fail.",
		Confirm:        "ss -tni dst ADDRESS; kubectl -n kube-system logs -l app=konnectivity-agent",
		Mend:           "Once: nothing. Often: look at the node's way out, a firewall, a NAT gateway out of ports, an idle timeout.",
		FalsePositives: "A control plane that is updated: one Event, and a minute later one that counts the rest.",
		Links:          []string{"https://kubernetes.io/docs/tasks/extend-kubernetes/setup-konnectivity/"},
	},
}
