package sysctl

import (
	"testing"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

func newProbe(n *host.Node) probes.Probe { return New(n.Root, n.Sysctl, n.Proc, Config{}) }

func TestNodes(t *testing.T) { probetest.Run(t, newProbe) }
