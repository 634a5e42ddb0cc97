package bpf

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A tree is a cgroup hierarchy of the node as it is mounted here.
type tree struct {
	dir string
	id  uint64 // of its top: a cgroup's id is its folder's inode
}

// trees are where the node's cgroups are seen.
type trees struct {
	unified tree // cgroup v2: programs are attached at its top
	pids    tree // of cgroup v1, by which a hybrid node knows its pods; zero where v2 does
}

// findTrees finds the mounts below root, the node's root as it is mounted here.
func findTrees(root string) (t trees, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return t, fmt.Errorf("find the cgroup mounts: %w", err)
	}
	defer f.Close()
	unified, pids := parseMounts(f, root)
	if unified == "" {
		return t, errors.New("no cgroup2 is mounted")
	}
	if t.unified, err = openTree(unified); err != nil {
		return t, err
	}
	if pids != "" {
		t.pids, err = openTree(pids)
	}
	return t, err
}

func openTree(dir string) (tree, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return tree{}, fmt.Errorf("see the cgroups: %w", err)
	}
	return tree{dir, info.Sys().(*syscall.Stat_t).Ino}, nil
}

// parseMounts finds the cgroup v2 mount and the one of v1's pids controller:
// those nearest to root, as a container has mounts of its own beside.
func parseMounts(mountinfo io.Reader, root string) (unified, pids string) {
	nearer := func(have, dir string) bool { return have == "" || len(dir) < len(have) }
	for s := bufio.NewScanner(mountinfo); s.Scan(); {
		before, after, _ := strings.Cut(s.Text(), " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		if len(b) < 5 || len(a) < 3 {
			continue
		}
		dir := b[4]
		if rel, err := filepath.Rel(root, dir); err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			continue
		}
		switch {
		case a[0] == "cgroup2" && nearer(unified, dir):
			unified = dir
		case a[0] == "cgroup" && slices.Contains(strings.Split(a[2], ","), "pids") && nearer(pids, dir):
			pids = dir
		}
	}
	return unified, pids
}

// A walk finds the path of a cgroup by its id, where programs may not read names.
// It keeps what it saw: events come after the cgroup is gone.
type walk struct {
	tree tree

	mu    sync.Mutex
	spare time.Duration // of time in which the tree may be read
	at    time.Time     // when spare was reckoned
	seen  map[uint64]place
}

// A cgroup is looked for when it is first heard of, since it may be gone a moment
// later: eight may come at once, and one in [readAgain] after that.
const maxSpare = 8 * readAgain

// walk looks for cgroups where pods are seen.
func (l *loader) walk() *walk { return &walk{tree: cmp.Or(l.trees.pids, l.trees.unified)} }

type place struct {
	path []string
	gone time.Time // when first missed
}

// find returns the path of a cgroup; nil when there is none.
func (w *walk) find(id uint64) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, ok := w.seen[id]
	if ok {
		return p.path
	}
	now := time.Now()
	w.spare, w.at = min(w.spare+now.Sub(w.at), maxSpare), now
	if w.spare >= readAgain {
		w.spare -= readAgain
		w.read(now)
	}
	return w.seen[id].path
}

func (w *walk) read(now time.Time) {
	if w.seen == nil {
		w.seen = map[uint64]place{}
	}
	for id, p := range w.seen {
		if p.gone.IsZero() {
			p.gone = now
			w.seen[id] = p
		} else if now.Sub(p.gone) > remembered {
			delete(w.seen, id)
		}
	}
	_ = filepath.WalkDir(w.tree.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // removed meanwhile
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		rel, _ := filepath.Rel(w.tree.dir, name)
		w.seen[info.Sys().(*syscall.Stat_t).Ino] = place{path: strings.Split(rel, "/")}
		return nil
	})
}
