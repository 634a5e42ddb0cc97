package host

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// ErrProcessGone says that a process ended while it was looked at. It wraps [fs.ErrNotExist].
var ErrProcessGone = fmt.Errorf("the process has ended: %w", fs.ErrNotExist)

// userHZ is the unit of times in /proc/PID/stat: 1/100 s on every architecture
// that Go runs on (time(7)).
const userHZ = 100

// Processes is a node's /proc. The zero value answers with errors.
type Processes struct {
	dir   string
	live  bool // a procfs of this kernel, and not a recorded folder
	calls *calls
	fault func(name string) error
}

// WithFaults returns the same processes, of which a recorded one can also fail:
// f is asked about each name before it is read ("812/maps", "." for the list),
// and its error is the answer. A recorded /proc has no other way to refuse.
func (p Processes) WithFaults(f func(name string) error) Processes {
	p.fault = f
	return p
}

func (p Processes) fails(name string) error {
	if p.fault == nil {
		return nil
	}
	return p.fault(name)
}

// OpenProcesses uses the processes in a folder: /proc, or a recorded folder of
// its form. Where the folder is a procfs, each process is held by a pidfd.
func OpenProcesses(dir string) Processes {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	return Processes{dir: dir, live: err == nil && st.Type == unix.PROC_SUPER_MAGIC, calls: newCalls(fileDeadline)}
}

// List yields every process. Each is closed after its turn. That there is none,
// or no first one, is an error: there always is.
func (p Processes) List() iter.Seq2[*Process, error] {
	return func(yield func(*Process, error) bool) {
		pids, err := p.pids()
		if err != nil {
			yield(nil, err)
			return
		}
		for _, pid := range pids {
			process, err := p.Process(pid)
			if errors.Is(err, fs.ErrNotExist) {
				continue // ended since
			}
			more := yield(process, err)
			if err == nil {
				process.Close()
			}
			if !more {
				return
			}
		}
	}
}

func (p Processes) pids() ([]int, error) {
	if p.dir == "" {
		return nil, errors.New("list processes: no /proc")
	}
	if err := p.fails("."); err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	entries, err := within(p.calls, ".", func() ([]os.DirEntry, error) { return os.ReadDir(p.dir) })
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	switch {
	case len(pids) == 0:
		return nil, errors.New("list processes: there are none")
	case p.live && pids[0] != 1:
		return nil, fmt.Errorf("list processes: process 1 is hidden (hidepid): %w", fs.ErrPermission)
	}
	return pids, nil
}

// Process holds a process, which must be closed. Its pid cannot be given to
// another one unseen: each method asks the pidfd, after it has read, whether the
// process is still the same (pidfd_open(2)).
func (p Processes) Process(pid int) (*Process, error) {
	if p.dir == "" {
		return nil, errors.New("open a process: no /proc")
	}
	fds := -1
	if p.live {
		var err error
		if fds, err = unix.PidfdOpen(pid, 0); err == unix.ESRCH || err == unix.EINVAL { // EINVAL: a thread's id
			return nil, fmt.Errorf("open process %d: %w", pid, ErrProcessGone)
		} else if err != nil {
			return nil, fmt.Errorf("open process %d: %w", pid, err)
		}
	}
	process := &Process{pid: pid, pidfd: fds, dir: filepath.Join(p.dir, strconv.Itoa(pid)), in: p}
	var err error
	if process.proc, err = p.fs(pid); err != nil {
		process.Close()
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return process, nil
}

func (p Processes) fs(pid int) (procfs.Proc, error) {
	fsys, err := procfs.NewFS(p.dir)
	if err != nil {
		return procfs.Proc{}, err
	}
	return fsys.Proc(pid)
}

// A Process is one process, held by a pidfd so that it is not taken for another.
type Process struct {
	pid   int
	pidfd int // -1: recorded
	dir   string
	proc  procfs.Proc
	in    Processes
}

// PID is the process id.
func (p *Process) PID() int { return p.pid }

// Close lets go of the process.
func (p *Process) Close() error {
	if p.pidfd < 0 {
		return nil
	}
	err := unix.Close(p.pidfd)
	p.pidfd = -1
	return err
}

// Alive says [ErrProcessGone] once the process has ended and was waited for.
func (p *Process) Alive() error {
	if p.pidfd < 0 {
		return nil
	}
	// Signal 0 asks whether there is a process. No right to signal it (EPERM)
	// says that there is.
	if _, _, errno := unix.RawSyscall6(unix.SYS_PIDFD_SEND_SIGNAL, uintptr(p.pidfd), 0, 0, 0, 0, 0); errno == unix.ESRCH { // which never waits
		return ErrProcessGone
	}
	return nil
}

// Comm is the process's name, /proc/PID/comm: at most 15 bytes, chosen by the
// process itself.
func (p *Process) Comm() (string, error) { return readProcess(p, "comm", p.proc.Comm) }

// Cmdline is the process's arguments, /proc/PID/cmdline; none for a kernel thread.
func (p *Process) Cmdline() ([]string, error) { return readProcess(p, "cmdline", p.proc.CmdLine) }

// StartTicks is when the process started, in 1/100 s of CLOCK_BOOTTIME since boot
// (field 22 of /proc/PID/stat). With the pid it identifies a process within a boot.
func (p *Process) StartTicks() (uint64, error) {
	return readProcess(p, "stat", func() (uint64, error) {
		st, err := p.proc.Stat()
		return st.Starttime, err
	})
}

// StartTime is [Process.StartTicks] as the time since boot, suspended time included.
func (p *Process) StartTime() (time.Duration, error) {
	t, err := p.StartTicks()
	return time.Duration(t) * (time.Second / userHZ), err
}

// Cgroup is the path of the process's cgroup: in the unified hierarchy
// (cgroups(7)), or in systemd's own where a node has cgroup v1 only. It is
// relative to the reader's cgroup namespace and may begin with "/../..": match
// its parts, never its beginning.
func (p *Process) Cgroup() (string, error) {
	return readProcess(p, "cgroup", func() (string, error) {
		groups, err := p.proc.Cgroups()
		if err != nil {
			return "", err
		}
		return systemdCgroup(groups)
	})
}

func systemdCgroup(groups []procfs.Cgroup) (string, error) {
	named := ""
	for _, g := range groups {
		// On a hybrid node the unified hierarchy is systemd's too; a pure v1 node has none.
		if g.HierarchyID == 0 {
			return g.Path, nil
		}
		if slices.Contains(g.Controllers, "name=systemd") {
			named = g.Path
		}
	}
	if named == "" {
		return "", errors.New("in no cgroup of systemd's")
	}
	return named, nil
}

// DeletedLibraries lists files that the process runs code from and that are no
// more in place under the name they were loaded by: replaced by an update, as
// "needrestart" looks for them. It reads /proc/PID/maps, which needs the right
// to trace the process (ptrace(2)): without it the error wraps [fs.ErrPermission].
func (p *Process) DeletedLibraries() ([]string, error) {
	return readProcess(p, "maps", func() ([]string, error) {
		f, err := os.Open(filepath.Join(p.dir, "maps"))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return deletedLibraries(f)
	})
}

// deletedLibraries finds the executable mappings of deleted files in a
// /proc/PID/maps (proc_pid_maps(5)), each file once, sorted. (procfs.ProcMaps
// drops read errors and so would take half a list for a whole one.)
func deletedLibraries(maps io.Reader) ([]string, error) {
	var found []string
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		// 7f00a000-7f00b000 r-xp 00000000 08:01 1234    /usr/lib/libssl.so.3 (deleted)
		name, deleted := strings.CutSuffix(lines.Text(), " (deleted)")
		fields := strings.Fields(name)
		if len(fields) < 5 || !strings.Contains(fields[1], "x") {
			continue
		}
		if _, name, _ = strings.Cut(name, "/"); deleted && !scratch("/"+name) {
			found = append(found, "/"+name)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// scratch says that a mapped name is no file of the system: memory that only
// looks like a file, or a program's own scratch file.
func scratch(name string) bool {
	if name == "/" || name == "/dev/zero" || name == "/[aio]" || name == "/anon_hugepage" {
		return true
	}
	for _, prefix := range []string{"/memfd:", "/SYSV", "/dev/shm/", "/dev/", "/tmp/", "/var/tmp/", "/run/", "/drm", "/i915"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// readProcess reads something of a process within a deadline (many files of
// /proc/PID wait for a lock that a stuck process may hold) and then makes sure
// that it was this process's.
func readProcess[T any](p *Process, what string, read func() (T, error)) (T, error) {
	return readNow(p, what, func() (T, error) {
		return within(p.in.calls, strconv.Itoa(p.pid)+"/"+what, read)
	})
}

// readNow is [readProcess] of what is never waited for.
func readNow[T any](p *Process, what string, read func() (T, error)) (T, error) {
	var zero, v T
	var err error
	if p.in.fault != nil {
		err = p.in.fails(strconv.Itoa(p.pid) + "/" + what)
	}
	if err == nil {
		v, err = read()
	}
	if gone := p.Alive(); gone != nil || errors.Is(err, unix.ESRCH) {
		return zero, fmt.Errorf("read %s of process %d: %w", what, p.pid, ErrProcessGone)
	}
	if err != nil {
		return zero, fmt.Errorf("read %s of process %d: %w", what, p.pid, err)
	}
	return v, nil
}
