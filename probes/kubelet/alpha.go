package kubelet

import (
	"fmt"

	"github.com/nodedrift/nodedrift/probes"
)

// alpha finds feature gates of alpha stage that are on. A gate whose stage depends
// on kubelet's version, which nothing on the node tells, is not judged.
func alpha(s settings) (found []probes.Finding, unsure []string) {
	gates := s.featureGates()
	for _, name := range sortedKeys(gates) {
		if !gates[name] {
			continue
		}
		stage, listed := alphaGates[name]
		switch {
		case name == "AllAlpha":
			found = append(found, probes.Finding{Reason: AlphaFeature, Subject: name, Message: "all feature gates of alpha stage are on (AllAlpha)"})
		case listed && stage.until == 0:
			found = append(found, probes.Finding{Reason: AlphaFeature, Subject: name,
				Message: fmt.Sprintf("feature gate %s is on, which is alpha in Kubernetes %s", name, gatesOf)})
		case listed:
			unsure = append(unsure, fmt.Sprintf("%s: %s is alpha before 1.%d, and kubelet's version is not known", AlphaFeature, name, stage.until))
		}
	}
	return found, unsure
}
