package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

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
	return readProcess(p, "task", func() (list []Thread, err error) {
		folder := filepath.Join(p.dir, "task")
		entries, err := os.ReadDir(folder)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			t, err := readThread(filepath.Join(folder, e.Name()))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue // ended since
			case err != nil:
				return nil, err
			}
			list = append(list, t)
		}
		return list, nil
	})
}

func readThread(dir string) (t Thread, err error) {
	if t.TID, err = strconv.Atoi(filepath.Base(dir)); err != nil {
		return t, err
	}
	var buf [1024]byte
	stat, err := readSmall(filepath.Join(dir, "stat"), buf[:])
	if err != nil {
		return t, err
	}
	if t.State, err = threadState(stat); err != nil || t.State != 'D' {
		return t, err
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	t.Switches = switches(status)
	return t, err
}

// readSmall reads a file of /proc that fits into buf: a third of the system calls
// of os.ReadFile, as a daemon has dozens of threads.
func readSmall(name string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return buf[:n], nil
}

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
