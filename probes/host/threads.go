package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Thread is one thread of a process.
type Thread struct {
	TID   int
	State byte // as ps(1) prints it: 'S' sleeping, 'R' running, 'D' in the kernel and not to be interrupted, 'T' stopped
	// Switches counts how often a thread in state D was taken off a processor: while
	// it stays the same, the thread has not run.
	Switches uint64
}

// Threads lists the process's threads (/proc/PID/task). It needs no right.
func (p *Process) Threads() ([]Thread, error) {
	read := func() ([]Thread, error) { return threads(filepath.Join(p.dir, "task")) }
	if p.in.live {
		return readNow(p, "task", read) // the kernel takes no lock for it that is waited for
	}
	return readProcess(p, "task", read)
}

func threads(folder string) (list []Thread, err error) {
	fd, err := openNow(unix.AT_FDCWD, folder, unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: folder, Err: err}
	}
	defer closeNow(fd)
	var entries [4096]byte
	for {
		n, err := listNow(fd, entries[:])
		switch {
		case err == unix.ENOENT || err == nil && n == 0: // ended since, or all were told
			slices.SortFunc(list, func(a, b Thread) int { return a.TID - b.TID })
			return list, nil
		case err != nil:
			return nil, &fs.PathError{Op: "readdirent", Path: folder, Err: err}
		}
		for tid := range dirents(entries[:n]) {
			t, err := readThread(fd, folder, tid)
			switch {
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
				continue // ended since
			case err != nil:
				return nil, err
			}
			list = append(list, t)
		}
	}
}

func readThread(task int, folder, tid string) (t Thread, err error) {
	if t.TID, err = strconv.Atoi(tid); err != nil {
		return t, err
	}
	var buf [1024]byte
	stat, err := readSmall(task, tid+"/stat", buf[:])
	if err != nil {
		return t, &fs.PathError{Op: "read", Path: filepath.Join(folder, tid, "stat"), Err: err}
	}
	if t.State, err = threadState(stat); err != nil || t.State != 'D' {
		return t, err
	}
	status, err := os.ReadFile(filepath.Join(folder, tid, "status"))
	t.Switches = switches(status)
	return t, err
}

// State is what the process's first thread does, as in [Thread]. It never waits.
func (p *Process) State() (byte, error) {
	return readNow(p, "stat", func() (byte, error) {
		var buf [1024]byte
		stat, err := readSmall(unix.AT_FDCWD, filepath.Join(p.dir, "stat"), buf[:])
		if err != nil {
			return 0, err
		}
		return threadState(stat)
	})
}

// readSmall reads a file of /proc that fits into buf.
func readSmall(dir int, name string, buf []byte) ([]byte, error) {
	fd, err := openNow(dir, name, 0)
	if err != nil {
		return nil, err
	}
	defer closeNow(fd)
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	if errno != 0 {
		return nil, errno
	}
	return buf[:n], nil
}

// openNow opens a file of /proc, which never waits: Go's scheduler need not hear of it,
// whose monitor of threads each ordinary system call wakes.
func openNow(dir int, name string, flags int) (int, error) {
	text, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	fd, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(text)), uintptr(flags|unix.O_RDONLY|unix.O_CLOEXEC), 0, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// listNow is getdents64(2) of an open folder of /proc; 0 is its end.
func listNow(fd int, buf []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_GETDENTS64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func closeNow(fd int) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// threadState is field 3 of a stat file, behind the name, which may hold anything
// (proc_pid_stat(5)).
func threadState(stat []byte) (byte, error) {
	i := bytes.LastIndex(stat, []byte(") "))
	if i < 0 || i+2 >= len(stat) {
		return 0, fmt.Errorf("stat is %.40q", stat)
	}
	return stat[i+2], nil
}

// switches adds up the context switches in a status file (proc_pid_status(5)).
func switches(status []byte) (sum uint64) {
	for line := range bytes.Lines(status) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.HasSuffix(key, []byte("_ctxt_switches")) {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64)
			sum += n
		}
	}
	return sum
}
