package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Strain is what kept this very program from running, counted since some time in
// the past: only the difference of two readings says something. A look that was
// taken under strain says more about the agent than about the node.
type Strain struct {
	// Delayed is how long the threads, all together, were ready to run and had no
	// CPU: field 2 of /proc/self/task/*/schedstat (sched-stats.rst).
	Delayed time.Duration
	// Throttled is how long the cgroup's CPU limit kept the program from running:
	// throttled_usec of cpu.stat (cgroup-v2.rst), throttled_time in cgroup v1;
	// 0 without a limit.
	Throttled time.Duration
	// Paused is how long the machine itself stood still, as a suspended VM does:
	// CLOCK_BOOTTIME - CLOCK_MONOTONIC (clock_gettime(2)).
	Paused time.Duration
}

// Sub is the strain between an earlier reading and this one.
func (s Strain) Sub(earlier Strain) Strain {
	return Strain{s.Delayed - earlier.Delayed, s.Throttled - earlier.Throttled, s.Paused - earlier.Paused}
}

// ReadStrain takes one reading. Who takes many keeps a [StrainGauge].
func ReadStrain() (Strain, error) {
	g := NewStrainGauge()
	defer g.Close()
	return g.Read()
}

// A StrainGauge takes readings of the strain of this program, cheaply: it keeps
// a descriptor per thread and one for the cgroup. Threads that have ended stay
// in the sum.
type StrainGauge struct {
	mu      sync.Mutex
	tasks   *os.File // /proc/self/task
	threads map[string]*thread
	ended   time.Duration
	cpuStat int // -1: no cgroup tells
	buf     []byte
}

type thread struct {
	schedstat int
	delayed   time.Duration
	seen      bool
}

// NewStrainGauge returns a gauge of this program.
func NewStrainGauge() *StrainGauge {
	g := &StrainGauge{threads: map[string]*thread{}, cpuStat: -1, buf: make([]byte, 4096)}
	for _, name := range cpuStats() {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			g.cpuStat = fd
			break
		}
	}
	return g
}

// Close closes the descriptors.
func (g *StrainGauge) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for tid, th := range g.threads {
		unix.Close(th.schedstat)
		delete(g.threads, tid)
	}
	if g.cpuStat >= 0 {
		unix.Close(g.cpuStat)
		g.cpuStat = -1
	}
	if g.tasks == nil {
		return nil
	}
	return g.tasks.Close()
}

// Read takes one reading.
func (g *StrainGauge) Read() (Strain, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Strain{Paused: max(Clock(unix.CLOCK_BOOTTIME)-Clock(unix.CLOCK_MONOTONIC), 0)}
	var errs [2]error
	s.Delayed, errs[0] = g.delayed()
	s.Throttled, errs[1] = g.throttled()
	return s, errors.Join(errs[:]...)
}

// delayed sums up the threads' waits.
func (g *StrainGauge) delayed() (time.Duration, error) {
	if err := g.findThreads(); err != nil {
		return 0, fmt.Errorf("list own threads: %w", err)
	}
	sum := time.Duration(0)
	for tid, th := range g.threads {
		n, err := preadKernel(th.schedstat, g.buf)
		if !th.seen || err == unix.ESRCH {
			g.ended += th.delayed
			unix.Close(th.schedstat)
			delete(g.threads, tid)
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read schedstat of thread %s: %w", tid, err)
		}
		if th.delayed, err = parseSchedstat(g.buf[:n]); err != nil {
			return 0, err
		}
		sum += th.delayed
	}
	return sum + g.ended, nil
}

// findThreads lists /proc/self/task and opens what is new there.
func (g *StrainGauge) findThreads() (err error) {
	if g.tasks == nil {
		if g.tasks, err = os.Open("/proc/self/task"); err != nil {
			return err
		}
	}
	tasks := g.tasks.Fd()
	if _, _, errno := unix.RawSyscall(unix.SYS_LSEEK, tasks, 0, 0); errno != 0 { // raw: see preadKernel
		return errno
	}
	for _, th := range g.threads {
		th.seen = false
	}
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_GETDENTS64, tasks, uintptr(unsafe.Pointer(&g.buf[0])), uintptr(len(g.buf)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		if n == 0 {
			return nil
		}
		for tid := range dirents(g.buf[:n]) {
			if th := g.threads[tid]; th != nil {
				th.seen = true
				continue
			}
			fd, err := unix.Open("/proc/self/task/"+tid+"/schedstat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == unix.ENOENT || err == unix.ESRCH {
				continue // ended since, or a kernel without CONFIG_SCHED_INFO
			} else if err != nil {
				return err
			}
			g.threads[tid] = &thread{schedstat: fd, seen: true}
		}
	}
}

// parseSchedstat reads the second of three numbers: nanoseconds on a run queue.
func parseSchedstat(b []byte) (time.Duration, error) {
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0, fmt.Errorf("schedstat is %q", b)
	}
	ns, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil || ns < 0 {
		return 0, fmt.Errorf("schedstat is %q", b)
	}
	return time.Duration(ns), nil
}

func (g *StrainGauge) throttled() (time.Duration, error) {
	if g.cpuStat < 0 {
		return 0, nil
	}
	n, err := preadKernel(g.cpuStat, g.buf)
	if err == unix.ENODEV { // the cgroup was removed, we were moved
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read own cpu.stat: %w", err)
	}
	return parseThrottled(g.buf[:n])
}

// parseThrottled finds the throttled time in a cpu.stat of either version;
// without one the cgroup has no limit.
func parseThrottled(b []byte) (time.Duration, error) {
	for line := range bytes.Lines(b) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		unit := time.Microsecond // cgroup v2
		if string(key) == "throttled_time" {
			unit = time.Nanosecond // cgroup v1
		} else if string(key) != "throttled_usec" {
			continue
		}
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || n < 0 || n > int64(1<<62/unit) {
			return 0, fmt.Errorf("cpu.stat says %q", line)
		}
		return time.Duration(n) * unit, nil
	}
	return 0, nil
}

// cpuStats lists where this program's cpu.stat may be, best first: its path in
// each hierarchy, below that hierarchy's mount.
func cpuStats() []string {
	self, err := procfs.Self()
	if err != nil {
		return nil
	}
	groups, err := self.Cgroups()
	if err != nil {
		return nil
	}
	mounts, err := self.MountInfo()
	if err != nil {
		return nil
	}
	var found []string
	for _, m := range mounts {
		_, cpu := m.SuperOptions["cpu"]
		for _, g := range groups {
			v2 := m.FSType == "cgroup2" && g.HierarchyID == 0
			v1 := m.FSType == "cgroup" && cpu && slices.Contains(g.Controllers, "cpu")
			name := filepath.Join(m.MountPoint, belowMount(g.Path, m.Root), "cpu.stat")
			switch {
			case v1: // then the v2 hierarchy beside it knows no limits
				found = slices.Insert(found, 0, name)
			case v2:
				found = append(found, name)
			}
		}
	}
	return found
}

// belowMount is a cgroup's path below the mount of its hierarchy. In a container
// the mount shows a part of the hierarchy only, and with a cgroup namespace both
// paths are relative to it.
func belowMount(cgroup, mountRoot string) string {
	if mountRoot == "/" || strings.HasPrefix(mountRoot, "/..") {
		if strings.HasPrefix(cgroup, "/..") {
			return "/"
		}
		return cgroup
	}
	rest, ok := strings.CutPrefix(cgroup, mountRoot)
	if ok && (rest == "" || rest[0] == '/') {
		return rest
	}
	return "/"
}
