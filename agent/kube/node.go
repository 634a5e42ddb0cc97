package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nodedrift/nodedrift/agent"
)

// A node is what we read of our own Node object; the rest of it is not ours.
type node struct {
	Metadata struct {
		UID         string            `json:"uid"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Status struct {
		NodeInfo struct {
			BootID         string `json:"bootID"`
			KubeletVersion string `json:"kubeletVersion"`
		} `json:"nodeInfo"`
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

// parseNode decodes a Node or its PartialObjectMetadata.
func parseNode(b []byte) (*node, error) {
	n := new(node)
	if err := json.Unmarshal(b, n); err != nil {
		return nil, fmt.Errorf("decode the own Node: %w", err)
	}
	if n.Metadata.UID == "" {
		return nil, errors.New("decode the own Node: it has no UID")
	}
	return n, nil
}

// livePatch is the annotation with the version of kubelet that AKS's live patching
// puts in place (Azure/AgentBaker, mariner-package-update.sh).
const livePatch = "kubernetes.azure.com/live-patching-kubelet-version"

// readiness is what the agent wants to know of the Node, which was read at a time.
func (n *node) readiness(at time.Time) agent.Readiness {
	r := agent.Readiness{UID: n.Metadata.UID, Labels: n.Metadata.Labels, BootID: n.Status.NodeInfo.BootID,
		Kubelet: oneLine(n.Status.NodeInfo.KubeletVersion, maxMessage), Patch: oneLine(n.Metadata.Annotations[livePatch], maxMessage), At: at}
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" && c.Status == agent.True {
			r.ReadySince = c.LastTransitionTime
		}
	}
	return r
}

// ours lists the conditions of the given types, each once.
func (n *node) ours(types []string) map[string]condition {
	found := map[string]condition{}
	for _, c := range n.Status.Conditions {
		if slices.Contains(types, c.Type) {
			found[c.Type] = c
		}
	}
	return found
}

// writtenSince tells whether a condition was written in this boot and says
// something that the agent may take over.
func (c *condition) writtenSince(boot time.Time) bool {
	known := c.Status == agent.True || c.Status == agent.False || c.Status == agent.Unknown
	return known && !c.LastHeartbeatTime.Before(boot) && !c.LastTransitionTime.IsZero()
}
