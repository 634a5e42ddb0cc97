package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// cgroups is the lab's own folder in every cgroup hierarchy of the machine. Everything the lab starts, and all that these
// start in turn, is in it: whoever is in it belongs to the lab, and nobody else does.
type cgroups []cgroup

type cgroup struct {
	Dir string
	V2  bool
}

// ownCgroups plans the folders, below the caller's own cgroups: the lab is part of what its caller may use.
func ownCgroups(lab string) (cgroups, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find the cgroup hierarchies: %w", err)
	}
	defer mounts.Close()
	own, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find the cgroup hierarchies: %w", err)
	}
	defer own.Close()
	return parseCgroups(mounts, own, "nodelab-"+lab)
}

// parseCgroups joins /proc/self/mountinfo with /proc/self/cgroup: cgroups(7).
func parseCgroups(mountinfo, own io.Reader, folder string) (cgroups, error) {
	mine := map[string]string{} // sorted controllers, "" for v2: path
	s := bufio.NewScanner(own)
	for s.Scan() {
		if f := strings.SplitN(s.Text(), ":", 3); len(f) == 3 {
			mine[f[1]] = f[2]
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read /proc/self/cgroup: %w", err)
	}
	var all cgroups
	root := "" // of v2
	for s = bufio.NewScanner(mountinfo); s.Scan(); {
		before, after, _ := strings.Cut(s.Text(), " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		if len(b) < 5 || len(a) < 3 || b[3] != "/" {
			continue
		}
		switch a[0] {
		case "cgroup2":
			root = b[4]
			all = append(all, cgroup{filepath.Join(root, mine[""], folder), true})
		case "cgroup":
			for names, p := range mine {
				if names != "" && containsAll(strings.Split(a[2], ","), strings.Split(names, ",")) {
					all = append(all, cgroup{filepath.Join(b[4], p, folder), false})
				}
			}
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	if len(all) == 1 && root != "" {
		// With v2 alone the controllers are there, and a group that has processes, as the caller's has, cannot hand them down.
		all[0].Dir = filepath.Join(root, folder)
	}
	return all, s.Err()
}

func containsAll(all, some []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

// make makes the folder of one program in every hierarchy.
func (c cgroups) make(unit string) error {
	for _, g := range c {
		if err := os.MkdirAll(g.Dir, 0o755); err != nil {
			return fmt.Errorf("make a cgroup: %w", err)
		}
		if err := g.prepare(); err != nil {
			return fmt.Errorf("prepare cgroup %s: %w", g.Dir, err)
		}
		if err := os.MkdirAll(filepath.Join(g.Dir, unit), 0o755); err != nil {
			return fmt.Errorf("make a cgroup: %w", err)
		}
	}
	return nil
}

// prepare lets children be used: a v1 cpuset begins with no CPU at all, a v2 group without controllers.
func (g cgroup) prepare() error {
	if g.V2 {
		return errors.Join(handDown(filepath.Dir(g.Dir)), handDown(g.Dir))
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(g.Dir), f))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(g.Dir, f), b, 0)
		}
		if err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(g.Dir, "cgroup.clone_children"), []byte("1"), 0)
}

// handDown gives a v2 group's controllers to its children; on a hybrid machine it has none.
func handDown(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for f := range strings.FieldsSeq(string(b)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+f), 0); err != nil {
			return err
		}
	}
	return nil
}

// enter makes the next child of this thread start in the groups of one program: v1 groups are inherited from the thread, the
// v2 group is handed to clone3(2). The thread must not be used for anything else.
func (c cgroups) enter(unit string, attr *syscall.SysProcAttr) (leave func(), err error) {
	// Groups of a former run must not be used again: Linux 6.14 and later kill what clone3 puts into a group whose cgroup.kill was
	// ever written (cgroup_css_set_fork takes the parent's kill_seq, cgroup_post_fork compares it with the group's).
	for _, g := range c {
		if err := rmdirs(filepath.Join(g.Dir, unit)); err != nil {
			return nil, err
		}
	}
	if err := c.make(unit); err != nil {
		return nil, err
	}
	fd := -1
	for _, g := range c {
		dir := filepath.Join(g.Dir, unit)
		if g.V2 {
			if fd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
				return nil, fmt.Errorf("open cgroup %s: %w", dir, err)
			}
			attr.UseCgroupFD, attr.CgroupFD = true, fd
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte("0"), 0); err != nil {
			return nil, fmt.Errorf("enter cgroup %s: %w", dir, err)
		}
	}
	return func() {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}, nil
}

// kill ends all processes in the groups of one program ("": of the whole lab), waits until they are gone and removes the groups.
func (c cgroups) kill(ctx context.Context, unit string) error {
	err := poll(ctx, func(context.Context) error {
		left := 0
		for _, g := range c {
			dir := filepath.Join(g.Dir, unit)
			if g.V2 {
				_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) // since Linux 5.14
			}
			for _, pid := range members(dir) {
				left++
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if left > 0 {
			return fmt.Errorf("%d processes do not end", left)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return poll(ctx, func(context.Context) error { // a group stays busy for a moment after its last process
		var errs []error
		for _, g := range c {
			errs = append(errs, rmdirs(filepath.Join(g.Dir, unit)))
		}
		return errors.Join(errs...)
	})
}

// members lists the processes in a group and in all groups below it.
func members(dir string) (pids []int) {
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir // gone meanwhile
		}
		if !d.IsDir() {
			return nil
		}
		b, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

func rmdirs(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := rmdirs(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}
