package main

import (
	"net"
	"net/url"
	"os"
	"strings"

	"k8s.io/client-go/transport"

	"github.com/nodedrift/nodedrift/agent/kube"
	"github.com/nodedrift/nodedrift/probes/konnectivity"
)

// Where a pod has its service account's credential and the cluster's authority (the
// volume of the DaemonSet). They are the agent's own files, not the node's.
const (
	tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	caFile    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

// inCluster is the API server as kubelet tells it to each pod ("Accessing the
// Kubernetes API from a Pod"); nil outside of one.
func inCluster() *kube.API {
	name, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if name == "" || port == "" {
		return nil
	}
	return &kube.API{URL: &url.URL{Scheme: "https", Host: net.JoinHostPort(name, port)}, Transport: transport.Config{
		UserAgent: "nodedrift/" + version, BearerTokenFile: tokenFile, TLS: transport.TLSConfig{CAFile: caFile}}}
}

// ownPod is how the API server knows this pod; zero outside of one.
func ownPod() konnectivity.Self {
	return konnectivity.Self{Namespace: os.Getenv("POD_NAMESPACE"), Pod: os.Getenv("POD_NAME"), Token: func() (string, error) {
		b, err := os.ReadFile(tokenFile)
		return strings.TrimSpace(string(b)), err
	}}
}
