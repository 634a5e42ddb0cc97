package kubelet

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// registers is how long a kubelet may take after its start to write its version
// into the Node object: it does so with its first status.
const registers = 30 * time.Second

// minor is the minor version (33 of v1.33.2) of this run of kubelet. Nothing on the
// node tells it without running kubelet: the Node object does, once it was read
// after this run had registered. 0: not known.
func (p *Probe) minor(run unit.Run) uint8 {
	if p.api == nil || run.Start.IsZero() {
		return 0
	}
	r := p.api.Registration()
	if r.At.Before(run.Start.Add(registers)) {
		p.api.Reread()
		return 0
	}
	var major, minor uint8
	if _, err := fmt.Sscanf(r.Kubelet, "v%d.%d.", &major, &minor); err != nil || major != 1 {
		return 0
	}
	return minor
}

// patched tells whether AKS's live patching is at work on kubelet: the Node's
// annotation names another version than the one that runs.
func (p *Probe) patched(context.Context) bool {
	if p.api == nil {
		return false
	}
	p.api.Reread()
	r := p.api.Registration()
	return r.Patch != "" && strings.TrimPrefix(r.Patch, "v") != strings.TrimPrefix(r.Kubelet, "v")
}
