package main

import (
	"slices"

	"github.com/nodedrift/nodedrift/bpf"
	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/azurecni"
	"github.com/nodedrift/nodedrift/probes/chrony"
	"github.com/nodedrift/nodedrift/probes/containerd"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/konnectivity"
	"github.com/nodedrift/nodedrift/probes/kubelet"
	"github.com/nodedrift/nodedrift/probes/reboot"
	"github.com/nodedrift/nodedrift/probes/sysctl"
)

// list is every probe there is. To add one, add its line.
func list(cfg *config, node *host.Node, trace *bpf.Tracer) []probes.Probe {
	return []probes.Probe{
		traced(sysctl.New(node.Root, node.Sysctl, node.Proc, section[sysctl.Config](cfg, "sysctl")), trace),
		reboot.New(node.Root, node.Proc, node.Kernel, section[reboot.Config](cfg, "reboot")),
		kubelet.New(node.Root, node.Proc, node.Units, node.API, section[kubelet.Config](cfg, "kubelet")),
		containerd.New(node.Root, node.Proc, node.Units, node.CRI, section[containerd.Config](cfg, "containerd")),
		chrony.New(node.Root, node.Proc, node.Units, section[chrony.Config](cfg, "chrony")),
		konnectivity.New(node.Root, node.Proc, node.Units, node.CRI, ownPod(), tunnelTrace{trace}, section[konnectivity.Config](cfg, "konnectivity")),
		azurecni.New(node.Root, node.CRI, section[azurecni.Config](cfg, "azurecni")),
		occurrences(cfg, trace),
	}
}

// enabled is every probe that the configuration leaves on.
func enabled(cfg *config, node *host.Node, trace *bpf.Tracer) []probes.Probe {
	return slices.DeleteFunc(list(cfg, node, trace), func(p probes.Probe) bool { return !cfg.enabled(p.Spec().Name) })
}

// specs describes every probe; the node is not looked at.
func (c *config) specs() (specs []probes.Spec) {
	for _, p := range list(c, &host.Node{}, nil) {
		specs = append(specs, p.Spec())
	}
	return specs
}

// catalogue describes every probe as the built-in defaults have it.
func catalogue() []probes.Spec { return (&config{common: map[string]common{}}).specs() }
