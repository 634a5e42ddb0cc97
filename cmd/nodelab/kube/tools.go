//go:build tools

// Package kube pins the Kubernetes and etcd programs of the lab.
//
// k8s.io/kubernetes cannot be installed by version, because its go.mod replaces its staging modules by folders. A module
// that requires it has to name the published version of each of them instead; that is what this module is for.
// It stands apart from the agent's module so that none of it reaches the agent's dependencies.
package kube

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
