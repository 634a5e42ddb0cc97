package bpf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/nodedrift/nodedrift/probes"
)

// The Go shape of sysctl.bpf.c; a test compares them.
type sysctlEvent struct {
	Kind  uint32
	IPCNS uint32
	Key   [64]byte
	Value [64]byte
	By    actorEvent
}

const (
	sysctlWrite = 1
	sysctlTest  = 2

	filterBits = 8192
)

// testKey is read to see whether the program hears: a write would change the node.
const testKey = "kernel/osrelease"

// hashKey is the hash of sysctl.bpf.c: FNV-1a, folded.
func hashKey(name string) uint32 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return h ^ h>>16
}

// A writes is the detector of writes to /proc/sys.
type writes struct {
	detector
	ipcns uint32
}

// attachSysctl loads the first variant that this kernel takes, and attaches it at
// the root of the cgroup tree: by link, which stands beside whatever others attached.
func (l *loader) attachSysctl() (*writes, error) {
	w := &writes{}
	var errs []error
	for _, variant := range []string{sysctlProgSysctlDirect, sysctlProgSysctlProbed, sysctlProgSysctlLocked} {
		spec, err := loadSysctl()
		if err != nil {
			return nil, err
		}
		for name := range spec.Programs {
			if name != variant {
				delete(spec.Programs, name)
			}
		}
		w.coll, err = l.load(spec, map[string]any{sysctlVarNetns: l.netns}, nil)
		if err != nil {
			errs = append(errs, fmt.Errorf("load %s: %w", variant, err))
			continue
		}
		at, err := link.AttachCgroup(link.CgroupOptions{Path: l.trees.unified.dir, Attach: ebpf.AttachCGroupSysctl, Program: w.coll.Programs[variant]})
		if err != nil {
			w.close()
			return nil, fmt.Errorf("attach %s at %s: %w", variant, l.trees.unified.dir, err)
		}
		w.links = append(w.links, at)
		w.ipcns = l.ipcns
		if variant == sysctlProgSysctlLocked {
			w.walk = l.walk()
		}
		return w, w.open("events")
	}
	return nil, errors.Join(errs...)
}

// watch puts the keys that matter in place. The filter is memory shared with the
// program, so this takes no right to BPF.
func (w *writes) watch(keys []string) error {
	filter := make([]byte, filterBits/8)
	for _, key := range append(keys, testKey) {
		h := hashKey(key) % filterBits
		filter[h/8] |= 1 << (h % 8)
	}
	return w.coll.Variables[sysctlVarFilter].Set(filter)
}

// dots turns a path below /proc/sys into a key, by the rule of sysctl(8): a dot in
// the name of an interface becomes a slash.
func dots(path string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, path)
}

// namespaced keys belong to an IPC namespace (ipc_namespaces(7)); net.* is sorted
// out in the kernel.
func namespaced(key string) bool {
	for _, prefix := range []string{"kernel/shm", "kernel/msg", "kernel/sem", "kernel/auto_msgmni", "fs/mqueue/"} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// keyOf is the question that probes ask about a write.
func keyOf(path string) probes.Key { return probes.Key{Domain: "sysctl", Name: dots(path)} }
