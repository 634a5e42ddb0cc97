package konnectivity

import (
	"testing"

	"github.com/nodedrift/nodedrift/probes/probetest"
)

// kubelet's certificates are not read: that they change is a reason to ask, whatever
// they become.
var stated = []string{"var/lib/kubelet/pki/*", "etc/kubernetes/certs/kubeletserver.crt"}

func TestHostile(t *testing.T) {
	lawful := probetest.Lawful{}
	for _, thing := range []string{probetest.Empty, probetest.Folder, probetest.FIFO, probetest.Sparse, probetest.Noise, probetest.Unreadable,
		probetest.Broken, probetest.Hanging, probetest.LinkUp, probetest.LinkOut, probetest.Loop} {
		lawful[thing] = stated
	}
	probetest.Hostile(t, newProbe, lawful)
}
