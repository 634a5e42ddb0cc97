package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one that the lab started. A pid alone may be somebody else's by now; with its start time it is not.
type process struct {
	Pid   int
	Start uint64 // clock ticks since boot: proc_pid_stat(5), field 22
}

func self() process {
	start, _, _ := procStat(os.Getpid())
	return process{os.Getpid(), start}
}

// alive is false for a zombie: it only waits for its parent.
func (p process) alive() bool {
	start, state, err := procStat(p.Pid)
	return p.Pid > 0 && err == nil && start == p.Start && state != 'Z' && state != 'X'
}

func procStat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	return parseStat(string(b))
}

// parseStat splits after the last parenthesis, since the name before it may contain anything.
func parseStat(s string) (start uint64, state byte, err error) {
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 20 {
		return 0, 0, errors.New("short /proc/PID/stat")
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, f[0][0], err
}

// onThread runs do on an operating system thread of its own, which ends afterwards: what do changes of the thread, such as its
// network namespace and its cgroups, never reaches other goroutines. A child that do starts inherits it.
func onThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, and others read its namespace as the process's. While this goroutine holds it, the next gets another.
			done <- onThread(do)
			runtime.UnlockOSThread()
			return
		}
		done <- do() // not unlocked: the thread ends with the goroutine
	}()
	return <-done
}

// spawn starts a program of the lab that outlives its parent: in a session of its own, in the named cgroup of the lab and
// in the given network namespace ("": this one), its output in logs/NAME.log.
func (l *Lab) spawn(name, netns string, env []string, argv ...string) (process, error) {
	log, err := os.OpenFile(l.logFile(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return process{}, fmt.Errorf("make the log of %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append([]string{"PATH=" + path, "HOME=/root", "LANG=C.UTF-8"}, env...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = onThread(func() error {
		if netns != "" {
			if err := enterNetns(netns); err != nil {
				return err
			}
		}
		leave, err := l.state.Cgroups.enter(name, cmd.SysProcAttr)
		if err != nil {
			return err
		}
		defer leave()
		return cmd.Start()
	})
	if err != nil {
		return process{}, fmt.Errorf("start %s: %w", name, err)
	}
	start, _, err := procStat(cmd.Process.Pid)
	if err != nil {
		return process{}, fmt.Errorf("see %s run: %w", name, err)
	}
	go cmd.Wait() //nolint:errcheck // reaps it; whether it should have ended is seen elsewhere
	return process{cmd.Process.Pid, start}, nil
}

const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (l *Lab) logFile(name string) string { return filepath.Join(l.dir, "logs", name+".log") }

// errEnded ends a poll: what is waited for cannot come any more.
var errEnded = errors.New("the process ended")

// poll tries every 20 ms until it works; when ctx ends it returns the last failure. It is for state that nothing announces.
func poll(ctx context.Context, try func(context.Context) error) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		err := try(ctx)
		if err == nil || errors.Is(err, errEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-t.C:
		}
	}
}
