package bpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
)

// A detector is one collection of programs, what it is attached to, and its ring
// buffer.
type detector struct {
	coll   *ebpf.Collection
	links  []link.Link
	reader *ringbuf.Reader // nil: it shares another's
	walk   *walk           // nil: paths come with the events
}

// open opens the ring buffer.
func (d *detector) open(ring string) (err error) {
	if d.reader, err = ringbuf.NewReader(d.coll.Maps[ring]); err != nil {
		d.close()
		return fmt.Errorf("open the ring buffer: %w", err)
	}
	return nil
}

// lost is how many events found the ring buffer full.
func (d *detector) lost() (n uint64) {
	if v := d.coll.Variables["lost"]; v != nil {
		_ = v.Get(&n) // shared memory
	}
	return n
}

// identify says who a task is by its cgroup. The nil detector knows what the event
// says.
func (d *detector) identify(a *actorEvent) identity {
	switch {
	case d != nil && d.walk != nil:
		return identify(d.walk.find(a.Cgroup))
	case a.Where == outside: // not of this node
		return identity{}
	}
	return identify(a.path())
}

// arm makes the programs answer to the agent's own doings, or not.
func (d *detector) arm(on bool) error {
	pid := uint32(0)
	if on {
		pid = uint32(os.Getpid())
	}
	if v := d.coll.Variables["testing"]; v != nil {
		return v.Set(pid) // shared memory
	}
	return nil
}

// free keeps what the programs do and lets go of what only loading them needed.
func (d *detector) free() {
	for _, p := range d.coll.Programs {
		p.Close()
	}
	d.coll.Programs = nil
}

func (d *detector) close() {
	for _, l := range d.links {
		l.Close()
	}
	if d.reader != nil {
		d.reader.Close()
	}
	d.coll.Close()
}

// A loader loads detectors, in one burst: the kernel's types (BTF) are decoded
// once, and dropped with it.
type loader struct {
	cache *btf.Cache
	trees trees
	ring  *ebpf.Map // of the rare detectors; nil before the first
	level uint32    // of the agent's pid namespace
	netns uint32
	ipcns uint32
}

// initialPIDs is the inode of the initial pid namespace (PROC_PID_INIT_INO).
const initialPIDs = 0xEFFFFFFC

func newLoader(root string) (*loader, error) {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return nil, fmt.Errorf("the kernel does not tell its types (BTF): %w", err)
	}
	l := &loader{cache: btf.NewCache()}
	var err error
	if l.trees, err = findTrees(root); err != nil {
		return nil, err
	}
	var pids uint32
	for name, inode := range map[string]*uint32{"pid": &pids, "net": &l.netns, "ipc": &l.ipcns} {
		info, err := os.Stat("/proc/self/ns/" + name)
		if err != nil {
			return nil, fmt.Errorf("tell the agent's namespaces: %w", err)
		}
		*inode = uint32(info.Sys().(*syscall.Stat_t).Ino)
	}
	if pids != initialPIDs {
		if l.level, err = l.depth(); err != nil {
			return nil, fmt.Errorf("tell the agent's pid namespace: %w", err)
		}
	}
	return l, nil
}

// depth asks the kernel how deep the agent's pid namespace lies.
func (l *loader) depth() (uint32, error) {
	spec, err := loadLevel()
	if err != nil {
		return 0, err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: l.cache})
	if err != nil {
		return 0, plain(err)
	}
	defer coll.Close()
	return coll.Programs[levelProgDepth].Run(&ebpf.RunOptions{})
}

// load loads a collection with what every program is told and what is its own.
func (l *loader) load(spec *ebpf.CollectionSpec, own map[string]any, shared map[string]*ebpf.Map) (*ebpf.Collection, error) {
	vars := map[string]any{"level": l.level, "root": l.trees.unified.id, "pids_root": l.trees.pids.id}
	maps.Copy(vars, own)
	for name, v := range vars {
		if s := spec.Variables[name]; s != nil {
			if err := s.Set(v); err != nil {
				return nil, fmt.Errorf("set %s: %w", name, err)
			}
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: l.cache, MapReplacements: shared})
	if err != nil {
		return nil, plain(err)
	}
	return coll, nil
}

// plain cuts the verifier's log off an error: it is for those who change the programs.
func plain(err error) error {
	if v, ok := errors.AsType[*ebpf.VerifierError](err); ok && v.Cause != nil {
		return v.Cause
	}
	return err
}
