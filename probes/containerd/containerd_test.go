package containerd

import (
	"testing"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

func newProbe(n *host.Node) probes.Probe { return New(n.Root, n.Proc, n.Units, n.CRI, Config{}) }

func TestNodes(t *testing.T) { probetest.Run(t, newProbe) }

// One look cannot know how fast the runtime usually is, nor have two lists.
func TestCovered(t *testing.T) {
	probetest.Covers(t, (&Probe{name: defaultUnit}).Spec(), Slow, OrphanShims)
}
