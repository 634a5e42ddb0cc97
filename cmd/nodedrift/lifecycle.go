package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes/host"
)

// What AKS leaves on a node while and after setting it up (AgentBaker,
// parts/linux/cloud-init/artifacts/cse_start.sh and cse_helpers.sh).
const (
	aksMarker         = "etc/kubernetes/azure.json"
	provisionComplete = "opt/azure/containers/provision.complete"
	provisionResult   = "var/log/azure/aks/provision.json"
	kubeletFlags      = "etc/default/kubelet"
	aksLabel          = "kubernetes.azure.com/cluster="
)

// lifecycle implements [agent.Lifecycle] by systemd and AKS's own files.
type lifecycle struct{ node *host.Node }

// Stopping implements [agent.Lifecycle].
func (l *lifecycle) Stopping(ctx context.Context) (bool, error) { return l.node.Units.Stopping(ctx) }

// Watch implements [agent.Lifecycle].
func (l *lifecycle) Watch(ctx context.Context, changed func()) error {
	return l.node.Units.WatchShutdown(ctx, hears(changed))
}

// Provisioning implements [agent.Lifecycle].
func (l *lifecycle) Provisioning(context.Context) (p agent.Provisioning, err error) {
	if p.AKS, err = l.aks(); err != nil || !p.AKS {
		return p, err
	}
	if p.Complete, err = l.there(provisionComplete); err != nil {
		return p, err
	}
	boot, err := l.node.Boot()
	if err != nil {
		return p, err
	}
	p.Age = boot.Age
	if !p.Complete {
		return p, nil
	}
	p.ExitCode, err = l.exitCode()
	return p, err
}

// aks tells whether AKS set the node up: by its marker, or by a label that kubelet
// is to give the Node.
func (l *lifecycle) aks() (bool, error) {
	if there, err := l.there(aksMarker); err != nil || there {
		return there, err
	}
	b, err := l.node.Root.ReadFile(kubeletFlags)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return bytes.Contains(b, []byte(aksLabel)), err
}

func (l *lifecycle) there(name string) (bool, error) {
	_, err := l.node.Root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// exitCode reads how provisioning ended; "" when nobody wrote it down.
func (l *lifecycle) exitCode() (string, error) {
	b, err := l.node.Root.ReadFile(provisionResult)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return parseExitCode(b)
}

// parseExitCode parses provision.json, where AKS writes the code as a string.
func parseExitCode(b []byte) (string, error) {
	var result struct{ ExitCode json.RawMessage }
	if err := json.Unmarshal(b, &result); err != nil {
		return "", fmt.Errorf("parse /%s: %w", provisionResult, err)
	}
	var text string
	if json.Unmarshal(result.ExitCode, &text) == nil {
		return text, nil
	}
	var number json.Number
	if json.Unmarshal(result.ExitCode, &number) == nil {
		return number.String(), nil
	}
	return "", fmt.Errorf("parse /%s: ExitCode is neither a string nor a number", provisionResult)
}

// hears is a [host.Listener] that loses nothing that matters.
type hears func()

// Changed implements [host.Listener].
func (h hears) Changed() { h() }

// Lost implements [host.Listener].
func (h hears) Lost(string, uint64) { h() }

// changes is a [host.Listener] that remembers one change.
type changes chan struct{}

// Changed implements [host.Listener].
func (c changes) Changed() {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Lost implements [host.Listener].
func (c changes) Lost(string, uint64) { c.Changed() }

// strain implements [agent.StrainReader] by the agent's own /proc.
type strain struct{ gauge *host.StrainGauge }

// Strain implements [agent.StrainReader].
func (s strain) Strain() (agent.Strain, error) {
	r, err := s.gauge.Read()
	return agent.Strain{Delayed: r.Delayed + r.Throttled, Paused: r.Paused}, err
}

// every is the beats that come so often.
func every(each time.Duration) func(context.Context) (<-chan struct{}, error) {
	return func(ctx context.Context) (<-chan struct{}, error) { return host.Beats(ctx, each) }
}

// pause waits a few seconds, or until ctx ends.
func pause(ctx context.Context) {
	t := time.NewTimer(time.Second + rand.N(4*time.Second))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
