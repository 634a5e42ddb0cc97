package bpf

import (
	"cmp"
	"io/fs"
	"strings"
	"sync"
	"time"
)

// A Resolver names pods. It is asked with what a cgroup path says, and answers ""
// for what it does not know.
type Resolver interface {
	// Name returns "namespace/name" of a pod and the name of a container in it.
	Name(podUID, containerID string) (pod, container string)
}

// What kubelet calls the logs of pods (pkg/kubelet/kuberuntime): a folder per pod
// from before its first container starts, a link per container from right after.
const (
	podLogs       = "var/log/pods"       // <namespace>_<name>_<uid>, with a folder per container
	containerLogs = "var/log/containers" // <pod>_<namespace>_<container>-<id>.log
)

const (
	remembered = time.Minute            // a deleted pod is still named
	readAgain  = 100 * time.Millisecond // between two readings of the folders
)

// PodLogs names pods by the folders that kubelet keeps their logs in. They are
// root's own, need no right and no running runtime, and are there before a pod's
// first instruction.
type PodLogs struct {
	root fs.ReadDirFS

	mu         sync.Mutex
	readAt     time.Time
	pods       map[string]named // by UID
	containers map[string]named // by id
}

type named struct {
	name string
	only string    // a pod's container, while it has had one only
	gone time.Time // when it was first missed; zero while it is there
}

// NewPodLogs returns a resolver for the node whose root is given.
func NewPodLogs(root fs.ReadDirFS) *PodLogs {
	return &PodLogs{root: root, pods: map[string]named{}, containers: map[string]named{}}
}

// Name implements [Resolver].
func (p *PodLogs) Name(uid, id string) (pod, container string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); (p.pods[uid].name == "" || id != "" && p.containers[id].name == "") && now.Sub(p.readAt) >= readAgain {
		p.readAt = now
		p.read(now)
	}
	return p.pods[uid].name, cmp.Or(p.containers[id].name, p.pods[uid].only)
}

// read reads both folders and forgets who has been missed for a minute.
func (p *PodLogs) read(now time.Time) {
	for _, m := range []map[string]named{p.pods, p.containers} {
		for k, n := range m {
			if n.gone.IsZero() {
				n.gone = now // unless it is found below
				m[k] = n
			} else if now.Sub(n.gone) > remembered {
				delete(m, k)
			}
		}
	}
	folders, _ := p.root.ReadDir(podLogs) // what is not there names nobody
	for _, f := range folders {
		if part := strings.Split(f.Name(), "_"); len(part) == 3 && isUID(part[2]) {
			n := named{name: printable(part[0]+"/"+part[1], 2*253)}
			if had, _ := p.root.ReadDir(podLogs + "/" + f.Name()); len(had) == 1 {
				n.only = printable(had[0].Name(), 253)
			}
			p.pods[part[2]] = n
		}
	}
	links, _ := p.root.ReadDir(containerLogs)
	for _, l := range links {
		part := strings.Split(strings.TrimSuffix(l.Name(), ".log"), "_")
		if len(part) != 3 || len(part[2]) < 66 {
			continue
		}
		dash := len(part[2]) - 65
		if id := containerID(part[2][dash+1:]); id != "" {
			p.containers[id] = named{name: printable(part[2][:dash], 253)}
		}
	}
}
