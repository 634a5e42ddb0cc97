package sysctl

import (
	"slices"
	"strings"
	"testing"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

func newProbe(n *host.Node) probes.Probe { return New(n.Root, n.Sysctl, n.Proc, Config{}) }

func TestNodes(t *testing.T) { probetest.Run(t, newProbe) }

func TestCovered(t *testing.T) { probetest.Covers(t, (&Probe{}).Spec()) }

func TestHostile(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a thousand looks")
	}
	absent := []string{ // nothing is declared there, or somebody else declares it
		"etc/kubernetes/azure.json", "opt/azure/containers/provision.complete",
		"etc/sysctl.conf", "etc/sysctl.d/70-*.conf",
		"usr/lib/sysctl.d", "usr/lib/sysctl.d/*.conf",
		"proc/sys/fs/protected_*", "proc/sys/net/ipv4/conf/eth0/*", "proc/sys/net/ipv4/conf/default/promote_secondaries",
		"proc/sys/net/ipv4/ping_group_range", "proc/sys/kernel/sysrq", "proc/sys/kernel/core_uses_pid", // only the distribution's, or a glob's
	}
	gone := slices.DeleteFunc(append(slices.Clone(absent), "lib/sysctl.d"), func(s string) bool { return strings.HasPrefix(s, "proc/") })
	unasked := []string{"etc/cni/net.d/*"}       // who may write is asked of the names only
	const sentinel = "proc/sys/kernel/osrelease" // read to see /proc/sys; what it says is not asked
	seen := append(slices.Clone(unasked), "etc/kubernetes/azure.json", "opt/azure/containers/provision.complete")
	probetest.Hostile(t, newProbe, probetest.Lawful{
		probetest.Absent:     absent,
		probetest.Empty:      append(slices.Clone(gone), append(seen, sentinel)...),
		probetest.Folder:     append(slices.Clone(seen), "run/sysctl.d", "usr/local/lib/sysctl.d", "proc/sys/net/ipv4/conf/eth0/*"),
		probetest.FIFO:       seen,
		probetest.Sparse:     seen,
		probetest.Noise:      append(slices.Clone(seen), sentinel),
		probetest.Unreadable: unasked,
		probetest.Broken:     unasked,
		probetest.Hanging:    unasked,
		probetest.LinkUp:     append(slices.Clone(gone), append(unasked, "run/sysctl.d", "usr/local/lib/sysctl.d")...),
		probetest.LinkOut:    append(slices.Clone(gone), append(unasked, "run/sysctl.d", "usr/local/lib/sysctl.d")...),
		probetest.Loop:       unasked,
	})
}
