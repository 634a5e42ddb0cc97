package chrony

import (
	"slices"
	"testing"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

func TestHostile(t *testing.T) {
	t.Parallel()
	// Folders of drop-ins need not be there. A first look has nothing to compare a unit's
	// file with: that systemd has read another one, systemd says.
	folders := []string{"*/systemd/system/chrony*.service.d", "*/*/systemd/system/chrony*.service.d", "*/*/*/systemd/system/chrony*.service.d"}
	files := []string{"lib/systemd/system/chrony.service", "usr/lib/systemd/system/chronyd.service", "etc/systemd/system/chronyd.service.d/10-chrony-restarts.conf",
		"etc/default/chrony", "etc/sysconfig/chronyd"}
	// What a device is called tells nothing, and without the vendor's name the machine
	// is nobody's.
	const device, vendor = "dev/ptp0", "sys/class/dmi/id/sys_vendor"
	gone := slices.Concat(files, folders[:1], []string{vendor})
	links := slices.Concat(gone, folders[1:])
	said := parseStandIn(t, "tracking ref=PHC0 stratum=1 frequency=-3.0\nsource PHC0 mode=2 poll=3 stratum=0\n") // AKS's, in order
	ofNode := func(n *host.Node) probes.Probe {
		p := New(n.Root, n.Proc, n.Units, Config{})
		p.line.dial = to(func() *chronyd { return said })
		p.kernel = func() (kernelClock, error) { return kernelText(t, "status=8193 maxerror=2100 freq=196608") }
		return p
	}
	probetest.Hostile(t, ofNode, probetest.Lawful{
		probetest.Absent:     gone,
		probetest.Empty:      {folders[0], device, vendor},
		probetest.Folder:     append([]string{device}, folders...),
		probetest.FIFO:       {device},
		probetest.Sparse:     {device},
		probetest.Noise:      {device, vendor},
		probetest.Unreadable: {device},
		probetest.Broken:     {device},
		probetest.Hanging:    {device},
		probetest.Loop:       {device},
		probetest.LinkUp:     links,
		probetest.LinkOut:    links,
	})
}
