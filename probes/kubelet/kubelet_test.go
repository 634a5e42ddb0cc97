package kubelet

import (
	"testing"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

func ofNode(n *host.Node) probes.Probe { return New(n.Root, n.Proc, n.Units, n.API, Config{}) }

func TestRecorded(t *testing.T) {
	t.Parallel()
	probetest.Run(t, ofNode)
}

func TestCovers(t *testing.T) {
	t.Parallel()
	probetest.Covers(t, ofNode(&host.Node{}).Spec())
}

func TestHostile(t *testing.T) {
	t.Parallel()
	// A folder of drop-ins need not be there, and what in it is no file systemd
	// passes over.
	const folder, masked = "*/*/*/kubelet.service.d", "etc/systemd/system/kubelet.service.d/20-off.conf"
	folders := []string{"usr/lib/systemd/system/kubelet.service.d"}
	all := append([]string{folder, "usr/local/lib/systemd/system/kubelet.service.d"}, folders...)
	probetest.Hostile(t, ofNode, probetest.Lawful{
		probetest.Absent:  append([]string{masked}, folders...),
		probetest.Empty:   folders,
		probetest.Folder:  append([]string{masked}, all[:2]...),
		probetest.LinkUp:  append([]string{masked}, all...),
		probetest.LinkOut: append([]string{masked}, all...),
		probetest.FIFO:    {masked},
		probetest.Loop:    {masked},
	})
}
