package bpf

import (
	"strings"
	"time"
)

// An Actor is who did something. Its text is bounded and printable. Pod and Unit
// come from the cgroup, which only root can choose; Comm is what the process calls
// itself and identifies nobody.
type Actor struct {
	PID       int
	Comm      string
	Unit      string // "tuned.service", "session-3.scope"; "" in a pod
	Pod       string // "namespace/name"; the pod's UID when its name is not known
	Container string
	Time      time.Time
}

// An identity is what a cgroup path says.
type identity struct {
	unit      string
	pod       string // UID, with dashes
	container string // 64 hex digits
}

// identify reads a cgroup path from the root on: who is nearest to the root was
// put there by root, and whoever lives below can make any name it likes.
//
// Pods are where kubelet puts them, with either cgroup driver:
//
//	kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/cri-containerd-<id>.scope
//	kubepods/burstable/pod<uid>/<id>
func identify(path []string) identity {
	for i, name := range path {
		switch {
		case name == "kubepods" || name == "kubepods.slice":
			return inPod(path[i+1:])
		case strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope"):
			return identity{unit: printable(name, nameSize)}
		}
	}
	return identity{}
}

func inPod(path []string) (id identity) {
	for i, name := range path {
		at := strings.LastIndex(name, "pod")
		if at < 0 || at > 0 && name[at-1] != '-' {
			continue
		}
		uid := strings.ReplaceAll(strings.TrimSuffix(name[at+len("pod"):], ".slice"), "_", "-")
		if !isUID(uid) {
			continue
		}
		id.pod = uid
		if i+1 < len(path) {
			id.container = containerID(path[i+1])
		}
		return id
	}
	return id
}

// isUID accepts a UUID, and the 32 hex digits of a static pod's.
func isUID(s string) bool {
	digits := strings.ReplaceAll(s, "-", "")
	return len(digits) == 32 && isHex(digits) && (len(s) == 32 || len(s) == 36)
}

// containerID finds the id in "cri-containerd-<id>.scope" or "<id>".
func containerID(name string) string {
	name = strings.TrimSuffix(name, ".scope")
	name = name[strings.LastIndexByte(name, '-')+1:]
	if len(name) != 64 || !isHex(name) {
		return ""
	}
	return name
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
