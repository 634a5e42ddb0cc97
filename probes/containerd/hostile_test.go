package containerd

import (
	"testing"

	"github.com/nodedrift/nodedrift/probes/probetest"
)

func TestHostile(t *testing.T) {
	const (
		group   = "sys/fs/cgroup/system.slice/containerd.service/cgroup.procs" // without it all processes are asked
		config  = "etc/containerd/config.toml"                                 // without it containerd has its defaults
		unit    = "lib/systemd/system/containerd.service"                      // what is first seen is the measure
		dropIns = "*/systemd/system/containerd.service.d"
		more    = "usr/local/lib/systemd/system/containerd.service.d"
		vendor  = "usr/lib/systemd/system/containerd.service.d"
	)
	probetest.Hostile(t, newProbe, probetest.Lawful{
		probetest.Absent:     {group, config},
		probetest.Empty:      {group, config, unit},
		probetest.Folder:     {group, dropIns, more, vendor},
		probetest.FIFO:       {group},
		probetest.Sparse:     {group},
		probetest.Noise:      {group, unit},
		probetest.Unreadable: {group},
		probetest.Broken:     {group},
		probetest.Hanging:    {group},
		probetest.LinkUp:     {group, config, unit, dropIns, more, vendor},
		probetest.LinkOut:    {group, config, unit, dropIns, more, vendor},
		probetest.Loop:       {group},
	})
}
