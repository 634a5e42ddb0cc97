package chrony

import (
	"testing"

	"github.com/nodedrift/nodedrift/probes/probetest"
)

func TestNodes(t *testing.T) { probetest.Run(t, newProbe(t)) }

func TestCovered(t *testing.T) { probetest.Covers(t, (&Probe{}).Spec()) }
