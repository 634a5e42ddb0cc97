package kubelet

import (
	"slices"
	"strings"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// explain names what follows from what. A broken certificate keeps kubelet from
// starting; a kubelet that does not answer, or whose threads hang, is not healthy.
func explain(list []probes.Finding) []probes.Finding {
	list = unit.Explain("Kubelet", list)
	at := func(reason string) int {
		return slices.IndexFunc(list, func(f probes.Finding) bool { return f.Reason == reason })
	}
	if i := at(CertificateBroken); i >= 0 {
		list = unit.Fold(list, i, func(f probes.Finding) bool {
			return f.Reason == CrashLooping || f.Reason == NotRunning && strings.Contains(f.Message, "exit status") || f.Reason == Unhealthy
		})
	}
	if i := at(SyncLoopStuck); i >= 0 {
		list = unit.Fold(list, i, func(f probes.Finding) bool { return f.Reason == Unhealthy || f.Reason == Hung })
	}
	if i := at(CrashLooping); i >= 0 {
		list = unit.Fold(list, i, func(f probes.Finding) bool { return f.Reason == Unhealthy })
	}
	return list
}
