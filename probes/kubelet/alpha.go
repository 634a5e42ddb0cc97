package kubelet

import (
	"fmt"

	"github.com/nodedrift/nodedrift/probes"
)

// alpha finds feature gates of alpha stage that are on. A gate whose stage depends
// on kubelet's version, 1.minor, is not judged while that is not known (0).
func alpha(s settings, minor func() uint8) (found []probes.Finding, unsure []string) {
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
			switch v := minor(); {
			case v == 0:
				unsure = append(unsure, fmt.Sprintf("%s: %s is alpha before 1.%d, and kubelet's version is not known", AlphaFeature, name, stage.until))
			case v >= stage.since && v < stage.until:
				found = append(found, probes.Finding{Reason: AlphaFeature, Subject: name,
					Message: fmt.Sprintf("feature gate %s is on, which is alpha in Kubernetes 1.%d", name, v)})
			}
		}
	}
	return found, unsure
}
