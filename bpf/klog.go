package bpf

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// The kernel log tells of OOM kills and hung tasks where BPF does not: later, only
// while the log holds them, and hung tasks only until the kernel has warned of
// kernel.hung_task_warnings (10). /dev/kmsg is closed to pods; syslog(2) wants
// CAP_SYSLOG where kernel.dmesg_restrict is set.

const (
	syslogReadAll    = 3 // it clears nothing (syslog(2))
	syslogBufferSize = 10
)

// A klog is the kernel log from a moment on.
type klog struct {
	since time.Duration // CLOCK_MONOTONIC, nearly: the log's own clock
	buf   []byte
}

// An entry is one thing that the log tells.
type entry struct {
	reason    string
	comm, pid string
	path      []string // of the cgroup
	seconds   string   // blocked
}

// read returns what was logged since it was last called.
func (k *klog) read() ([]entry, error) {
	if k.buf == nil {
		size, err := unix.Klogctl(syslogBufferSize, nil)
		if err != nil {
			return nil, fmt.Errorf("read the kernel log: %w", err)
		}
		k.buf = make([]byte, min(size, 1<<20))
	}
	n, err := unix.Klogctl(syslogReadAll, k.buf)
	if err != nil {
		return nil, fmt.Errorf("read the kernel log: %w", err)
	}
	var found []entry
	found, k.since = parseKlog(k.buf[:n], k.since)
	return found, nil
}

var (
	klogLine = regexp.MustCompile(`^<\d+>\[ *(\d+)\.(\d{6})\] (.*)$`)
	oomLine  = regexp.MustCompile(`^oom-kill:constraint=.*,task_memcg=(/.*),task=(.*),pid=(\d+),uid=\d+$`) // mm/oom_kill.c, dump_oom_victim
	hungLine = regexp.MustCompile(`^INFO: task (.*):(\d+) blocked .*for more than (\d+) seconds\.$`)       // kernel/hung_task.c
)

// parseKlog finds what was logged after since, and the time of the newest line.
func parseKlog(log []byte, since time.Duration) (found []entry, newest time.Duration) {
	newest = since
	for line := range bytes.Lines(log) {
		m := klogLine.FindSubmatch(bytes.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		seconds, err := strconv.ParseInt(string(m[1]), 10, 32)
		micros, _ := strconv.Atoi(string(m[2]))
		at := time.Duration(seconds)*time.Second + time.Duration(micros)*time.Microsecond
		if err != nil || at <= since {
			continue
		}
		newest = max(newest, at)
		if o := oomLine.FindSubmatch(m[3]); o != nil {
			found = append(found, entry{reason: OOMKilled, comm: string(o[2]), pid: string(o[3]), path: strings.Split(string(o[1][1:]), "/")})
		} else if h := hungLine.FindSubmatch(m[3]); h != nil {
			found = append(found, entry{reason: TaskHung, comm: string(h[1]), pid: string(h[2]), seconds: string(h[3])})
		}
	}
	return found, newest
}

// logEvery is how often the kernel log is read: it wakes nobody.
const logEvery = 10 * time.Second

// fallBack reads the kernel log for what no detector tells.
func (t *Tracer) fallBack() {
	found, err := t.klog.read()
	say := "the kernel log tells, some seconds later"
	if err != nil {
		t.cfg.Log.Warn("the kernel log does not tell either", "error", err)
		t.klog, say = nil, "nor does the kernel log: "+err.Error()
	}
	t.mu.Lock()
	t.logSay = say
	t.mu.Unlock()
	for _, e := range found {
		if t.told(e.reason) {
			continue
		}
		of := act{who: identify(e.path)}
		t.journal.name(&of)
		comm := printable(e.comm, 64)
		message := fmt.Sprintf("out of memory: %s was killed", comm)
		if e.reason == TaskHung {
			message = fmt.Sprintf("%s (pid %s) has been blocked in the kernel for %ss", comm, e.pid, e.seconds)
		}
		if of.by.Container != "" {
			message += " in container " + of.by.Container
		}
		t.rare.limit.say(t, e.reason, cmp.Or(of.by.Pod, of.by.Unit, comm), func() probes.Occurrence { return probes.Occurrence{Message: message} })
	}
}

// told tells whether a detector tells of a reason.
func (t *Tracer) told(reason string) bool {
	name := oomDetector
	if reason == TaskHung {
		name = hangDetector
	}
	s := t.state(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active
}
