package main

import (
	"os"
	"strings"

	"github.com/nodedrift/nodedrift/probes/konnectivity"
)

// tokenFile is where a pod has its service account's credential (the volume of the
// DaemonSet). It is the agent's own file, not the node's.
const tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// ownPod is how the API server knows this pod; zero outside of one.
func ownPod() konnectivity.Self {
	return konnectivity.Self{Namespace: os.Getenv("POD_NAMESPACE"), Pod: os.Getenv("POD_NAME"), Token: func() (string, error) {
		b, err := os.ReadFile(tokenFile)
		return strings.TrimSpace(string(b)), err
	}}
}
