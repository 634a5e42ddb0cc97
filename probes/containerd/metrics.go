package containerd

import (
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

const (
	callSeconds = "containerd_call_seconds"
	sandboxes   = "containerd_sandboxes"
	shimCount   = "containerd_shims"
)

func metrics(name string) []probes.Metric {
	return append(unit.Metrics(options(name)),
		probes.Metric{Name: callSeconds, Help: "How long the container runtime took for its last answer, by call.",
			Labels: []probes.Label{{Name: "call", Values: []string{"status", "list"}}}},
		probes.Metric{Name: sandboxes, Help: "Pod sandboxes in the container runtime's last list, by state.",
			Labels: []probes.Label{{Name: "state", Values: []string{"ready", "notready"}}}},
		probes.Metric{Name: shimCount, Help: "Shims of pods (containerd-shim-runc-v2) at the last count."})
}

// samples are the numbers of the last answers; what was never asked has none.
func (p *Probe) samples() (all []probes.Sample) {
	add := func(name string, label string, v float64) {
		s := probes.Sample{Name: name, Value: v}
		if label != "" {
			s.Labels = []string{label}
		}
		all = append(all, s)
	}
	seconds := func(label string, d time.Duration) {
		if d > 0 {
			add(callSeconds, label, d.Seconds())
		}
	}
	seconds("status", p.speed.status)
	seconds("list", p.store.took)
	if !p.store.at.IsZero() {
		add(sandboxes, "ready", float64(p.store.ready))
		add(sandboxes, "notready", float64(p.store.other))
	}
	if !p.shims.at.IsZero() {
		add(shimCount, "", float64(p.shims.count))
	}
	return all
}
