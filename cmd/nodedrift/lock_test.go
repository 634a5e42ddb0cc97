package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/cmd/internal/lock"
	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// A cell is what a locked agent is tried in: written by the test, read by the
// process that is the agent.
type cell struct {
	Root     string   // the node's
	State    string   // folder that stays writable
	Victims  []string // folders on the node's mounts, each with "file", "other", "folder" and "link"
	Closed   []string // files that must not be opened for writing; they are not written
	Folders  []string // folders in which nothing may be made
	Process  int      // of the same user, which must not be touched
	Socket   string   // that somebody listens on
	Config   string   // file that is rewritten once the agent is locked
	Key      string   // of /proc/sys, declared in Config and written again and again
	Rights   []uint   // capabilities to begin with; nil: all there are
	Services bool     // systemd and a container runtime are there
}

// A verdict is how one attempt ended, or one thing that must go on.
type verdict struct {
	What  string
	Error string
}

// trial is what the locked agent says at its end.
type trial struct {
	Attempts []verdict
	GoesOn   []verdict
	Self     selfDocument
}

const (
	cellVariable = "NODEDRIFT_TEST_CELL"
	trialFile    = "trial.json" // in the folder that stays writable
)

// The agent itself, all of it, runs in a process of its own, locks itself in, and
// then tries to write.
func TestLockedIn(t *testing.T) {
	if os.Getenv(cellVariable) != "" {
		beAgent(t)
		return
	}
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root: others can change little")
	}
	program := withoutCgo(t)
	const key = "kernel.printk_ratelimit_burst"
	value, err := os.ReadFile("/proc/sys/kernel/printk_ratelimit_burst")
	if err != nil {
		t.Skip(err)
	}
	c := newCell(t, "/", "/tmp", "/run", "/dev/shm", "/var/tmp")
	c.Key = key
	configText := fmt.Sprintf("mode: observe\nprobes: {sysctl: {expect: {%s: %q}}}\n", key, strings.TrimSpace(string(value)))
	if os.Getenv("NODEDRIFT_VMTEST") == "1" {
		configText += "bpf: {clock: true}\n" // other kernels may refuse it
	}
	if err := os.WriteFile(c.Config, []byte(configText), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func() {
		line := "read v </proc/sys/kernel/printk_ratelimit_burst; echo $v >/proc/sys/kernel/printk_ratelimit_burst"
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	judge(t, tryCell(t, c, configText, write, func(encoded string) *exec.Cmd {
		cmd := exec.Command(program, "-test.run=^TestLockedIn$", "-test.v")
		cmd.Env = append(os.Environ(), cellVariable+"="+encoded)
		return cmd
	}))
}

// withoutCgo is this test as a program whose threads are all Go's: others cannot
// be locked.
func withoutCgo(t *testing.T) string {
	t.Helper()
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno == 0 {
		return os.Args[0]
	}
	program := filepath.Join(t.TempDir(), "agent.test")
	build := exec.Command("go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// newCell makes victims on the mounts.
func newCell(t *testing.T, root string, mounts ...string) *cell {
	t.Helper()
	c := &cell{Root: root, State: t.TempDir(), Config: filepath.Join(t.TempDir(), "nodedrift.yaml")}
	for _, m := range mounts {
		dir, err := os.MkdirTemp(m, "nodedrift-victim")
		if err != nil {
			t.Logf("%s: %v", m, err)
			continue
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		for _, name := range []string{"file", "other"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("as it was"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "folder"), 0o755), os.Symlink("file", filepath.Join(dir, "link"))); err != nil {
			t.Fatal(err)
		}
		c.Victims = append(c.Victims, dir)
	}
	c.Closed = []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/printk", "/proc/sys/vm/swappiness", "/proc/sysrq-trigger", "/proc/1/oom_score_adj",
		"/proc/self/oom_score_adj", "/proc/self/comm", "/dev/null", "/dev/kmsg", "/etc/passwd", "/sys/kernel/mm/transparent_hugepage/enabled"}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	c.Closed = append(c.Closed, groups...)
	c.Folders = []string{"/etc", "/run", "/tmp", "/var/tmp", "/dev/shm", "/usr/bin", "/root", "/var/log", "/sys/fs/cgroup"}
	if err := os.WriteFile(filepath.Join(c.State, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Socket = filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	sleep := exec.Command("sleep", "600")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
	})
	c.Process = sleep.Process.Pid
	return c
}

// tryCell runs the agent in the cell, writes what it must hear, and returns what
// it says.
func tryCell(t *testing.T, c *cell, configText string, write func(), agent func(encoded string) *exec.Cmd) *trial {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() { // what it must go on to hear once it is locked
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			write()
			_ = os.WriteFile(c.Config+".new", []byte(configText+strings.Repeat("#", n%9)+"\n"), 0o600)
			_ = os.Rename(c.Config+".new", c.Config)
			for _, dir := range c.Victims {
				_ = os.Chtimes(filepath.Join(dir, "other"), time.Now(), time.Now())
			}
		}
	})
	out, err := agent(string(b)).CombinedOutput()
	close(stop)
	writing.Wait()
	if err != nil {
		t.Fatalf("the agent ended with %v\n%s", err, out)
	}
	if b, err = os.ReadFile(filepath.Join(c.State, trialFile)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var said trial
	if err := json.Unmarshal(b, &said); err != nil {
		t.Fatal(err)
	}
	return &said
}

// judge holds a trial against what is promised.
func judge(t *testing.T, said *trial) {
	t.Helper()
	if len(said.Attempts) < 60 {
		t.Errorf("%d attempts to write, want 60 or more", len(said.Attempts))
	}
	open := 0
	for _, v := range said.Attempts {
		if v.Error == "" {
			if open++; said.Self.LandlockABI > 0 {
				t.Errorf("not refused: %s", v.What)
			}
		}
	}
	for _, v := range said.GoesOn {
		if v.Error != "" {
			t.Errorf("does not go on: %s: %s", v.What, v.Error)
		}
	}
	for _, l := range said.Self.Locks {
		if l.Holds == (l.Name == "landlock" && said.Self.LandlockABI == 0) {
			t.Errorf("lock %s holds %v: %s", l.Name, l.Holds, l.Why)
		}
	}
	for _, th := range said.Self.Threads {
		if len(th.Effective)+len(th.Permitted) > 0 || !th.NoNewPrivs || th.Filters == 0 {
			t.Errorf("a thread is not locked: %+v", th)
		}
	}
	if len(said.Self.Threads) < 3 || len(said.Self.Locks) != 3 || len(said.Self.Detectors) == 0 {
		t.Errorf("it does not tell all of itself: %+v", said.Self)
	}
	t.Logf("%d attempts, %d not refused, %d things go on, %d threads, Landlock ABI %d", len(said.Attempts), open, len(said.GoesOn), len(said.Self.Threads), said.Self.LandlockABI)
}

// beAgent is the process that is tried.
func beAgent(t *testing.T) {
	var c cell
	if err := json.Unmarshal([]byte(os.Getenv(cellVariable)), &c); err != nil {
		t.Fatal(err)
	}
	if c.Rights != nil {
		begin(t, c.Rights)
	}
	cfg, err := loadConfig(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	node, err := host.Open(c.Root)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	flags := &runFlags{root: c.Root, config: c.Config, node: "node0", stateDir: c.State, writes: []string{c.State}, listen: addresses{"127.0.0.1:0"}, bpf: flagOn}
	d, err := newDaemon(flags, cfg, node, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx) }()
	for d.locked.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	said := trial{Attempts: c.attempts(), GoesOn: c.goesOn(ctx, d), Self: *d.self()}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	b, err := json.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(c.State, trialFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); errors.Join(err, f.Close()) != nil {
		t.Fatal(err)
	}
}

// begin leaves the process with the rights of the pod.
func begin(t *testing.T, rights []uint) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var want [2]unix.CapUserData
	for _, c := range rights {
		want[c/32].Effective |= 1 << (c % 32)
		want[c/32].Permitted |= 1 << (c % 32)
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&want[0])), 0); errno != 0 {
		t.Fatal(errno)
	}
}

// attempts tries to change the host in every way that comes to mind. On a thread
// of its own, which may be spoiled.
func (c *cell) attempts() (all []verdict) {
	runtime.LockOSThread()
	try := func(what string, err error) {
		v := verdict{What: what}
		switch {
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS), errors.Is(err, unix.EXDEV):
			v.Error = err.Error()
		case err != nil:
			v.What += ": " + err.Error() // not refused, only failed
		}
		all = append(all, v)
	}
	open := func(name string, flags int) error {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	roots := []string{""}
	if c.Root != "/" {
		roots = append(roots, c.Root)
	}
	for _, root := range roots {
		for _, name := range c.Closed {
			if _, err := os.Stat(root + name); err == nil {
				try("open "+root+name+" for writing", open(root+name, unix.O_WRONLY))
			}
		}
		for _, dir := range c.Folders {
			if _, err := os.Stat(root + dir); err == nil {
				name := root + dir + "/nodedrift-attempt"
				try("make a file in "+root+dir, open(name, unix.O_CREAT|unix.O_WRONLY))
				try("make a folder in "+root+dir, unix.Mkdir(name+"-folder", 0o700))
			}
		}
	}
	for _, dir := range c.Victims {
		c.attempt(dir, open, try)
	}
	c.touch(try)
	return all
}

// attempt tries one mount.
func (c *cell) attempt(dir string, open func(string, int) error, try func(string, error)) {
	file, made := dir+"/file", dir+"/made"
	try("append to "+file, open(file, unix.O_WRONLY|unix.O_APPEND))
	try("empty "+file, open(file, unix.O_RDONLY|unix.O_TRUNC))
	try("truncate "+file, unix.Truncate(file, 0))
	try("write through a link in "+dir, open(dir+"/link", unix.O_RDWR))
	try("write through /proc/self/root"+file, open("/proc/self/root"+file, unix.O_WRONLY))
	try("make a file in "+dir, open(made, unix.O_CREAT|unix.O_WRONLY))
	try("make a nameless file in "+dir, open(dir, unix.O_TMPFILE|unix.O_WRONLY))
	try("make a folder in "+dir, unix.Mkdir(made, 0o700))
	try("make a link in "+dir, unix.Symlink("file", made))
	try("make a second name in "+dir, unix.Link(file, made))
	try("make a FIFO in "+dir, unix.Mknod(made, unix.S_IFIFO|0o600, 0))
	try("make a device in "+dir, unix.Mknod(made, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	try("rename in "+dir, unix.Rename(file, made))
	try("rename out of "+dir, unix.Rename(file, c.State+"/stolen"))
	try("rename into "+dir, unix.Rename(c.State+"/mine", made))
	try("remove "+file, unix.Unlink(file))
	try("remove "+dir+"/folder", unix.Rmdir(dir+"/folder"))
	try("change the mode of "+file, unix.Chmod(file, 0o600))
	try("change the owner of "+file, unix.Chown(file, 0, 1))
	try("change the times of "+file, unix.UtimesNano(file, []unix.Timespec{{}, {}}))
	try("set an attribute of "+file, unix.Setxattr(file, "user.nodedrift", nil, 0))
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(socket, &unix.SockaddrUnix{Name: made})
		unix.Close(socket)
	}
	try("make a socket in "+dir, err)
	if fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		try("change the mode of the open "+file, unix.Fchmod(fd, 0o600))
		try("set flags of "+file, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0))
		unix.Close(fd)
	}
}

// touch tries what is no file.
func (c *cell) touch(try func(string, error)) {
	raw := func(trap, a, b, d uintptr) error {
		if _, _, errno := unix.Syscall(trap, a, b, d); errno != 0 {
			return errno
		}
		return nil
	}
	pid := c.Process
	try("end a process", unix.Kill(pid, unix.SIGTERM))
	try("stop a process", unix.Kill(pid, unix.SIGSTOP))
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		try("end a process by pidfd", unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0))
		unix.Close(fd)
	}
	try("end a thread", unix.Tgkill(pid, pid, unix.SIGTERM))
	try("trace a process", unix.PtraceSeize(pid))
	try("change a priority", unix.Setpriority(unix.PRIO_PROCESS, pid, 19))
	try("change processors", unix.SchedSetaffinity(pid, &unix.CPUSet{1}))
	try("change a limit", unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 10, Max: 10}, nil))
	try("mount", unix.Mount("tmpfs", c.State, "tmpfs", 0, ""))
	try("name the host", unix.Sethostname([]byte("attempt")))
	try("leave the namespaces", unix.Unshare(unix.CLONE_NEWNS))
	try("make a user namespace", unix.Unshare(unix.CLONE_NEWUSER))
	try("set the clock", raw(unix.SYS_SETTIMEOFDAY, 0, 0, 0)) // to nothing: the right is asked for all the same
	try("load a program", raw(unix.SYS_BPF, 5, uintptr(unsafe.Pointer(&[128]byte{})), 128))
	try("make a route", route())
	try("make a process", raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0))
	try("run a program", unix.Exec("/bin/true", []string{"true"}, nil))
}

// route adds a route to a documentation prefix (RFC 5737) over lo.
func route() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	msg := make([]byte, unix.SizeofNlMsghdr+unix.SizeofRtMsg+8)
	h := (*unix.NlMsghdr)(unsafe.Pointer(&msg[0]))
	*h = unix.NlMsghdr{Len: uint32(len(msg)), Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE}
	*(*unix.RtMsg)(unsafe.Pointer(&msg[unix.SizeofNlMsghdr])) = unix.RtMsg{Family: unix.AF_INET, Dst_len: 32, Table: unix.RT_TABLE_MAIN,
		Protocol: unix.RTPROT_STATIC, Scope: unix.RT_SCOPE_LINK, Type: unix.RTN_BLACKHOLE}
	copy(msg[unix.SizeofNlMsghdr+unix.SizeofRtMsg:], []byte{8, 0, unix.RTA_DST, 0, 192, 0, 2, 77})
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 512)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		return errors.Join(err, errors.New("no answer"))
	}
	if code := *(*int32)(unsafe.Pointer(&answer[unix.SizeofNlMsghdr])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// goesOn looks at what a locked agent must still be able to do.
func (c *cell) goesOn(ctx context.Context, d *daemon) (all []verdict) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	check := func(what string, f func() error) {
		v := verdict{What: what}
		if err := f(); err != nil {
			v.Error = err.Error()
		}
		all = append(all, v)
	}
	soon := func(f func() bool) error {
		for !f() {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
		return nil
	}
	check("events: who writes a sysctl", func() error {
		since := host.Monotonic()
		return soon(func() bool {
			_, ok := d.trace.Who(probes.Key{Domain: "sysctl", Name: c.Key}, since)
			return ok
		})
	})
	check("every detector, the census read again", func() error {
		time.Sleep(2 * time.Second) // the first census is a second after the start
		lockdown, _ := os.ReadFile("/sys/kernel/security/lockdown")
		for _, s := range d.trace.States() {
			// Before Linux 5.19, as before the second version of Landlock, an iterator takes CAP_BPF: /proc is read instead.
			// Under lockdown=confidentiality connections cannot be listed: tables are read instead.
			instead := s.Detector == "census" && lock.ABI() < 2 || s.Detector == "sockets" && strings.Contains(string(lockdown), "[confidentiality]")
			if s.Asked && !s.Active && !instead {
				return fmt.Errorf("%s: %s", s.Detector, s.Reason)
			}
		}
		return nil
	})
	check("a changed configuration is put in place", func() error {
		reloaded := func() string {
			w := httptest.NewRecorder()
			d.metrics.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			_, after, _ := strings.Cut(w.Body.String(), "\nnodedrift_config_last_reload_success_timestamp_seconds ")
			at, _, _ := strings.Cut(after, "\n")
			return at
		}
		before := reloaded()
		return soon(func() bool { return reloaded() != before })
	})
	check("a watch is set up anew and hears", func() error {
		heard := make(changes, 1)
		watching, stop := context.WithCancel(ctx)
		defer stop()
		go func() {
			_ = d.node.Root.Watch(watching, heard, strings.TrimPrefix(strings.TrimPrefix(c.Victims[0], c.Root), "/")+"/other")
		}()
		for range 2 { // that it listens, and a change
			select {
			case <-heard:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	check("rtnetlink", func() error {
		_, err := net.Interfaces()
		return err
	})
	check("a processes' list", func() error {
		for _, err := range d.node.Proc.List() {
			if err != nil {
				return err
			}
		}
		return nil
	})
	check("the folder that stays writable: the agent's memory", func() error { // it looks, and so remembers, once it is locked
		return soon(func() bool {
			_, err := os.Stat(memoryFile{c.State}.name())
			return err == nil
		})
	})
	check("a unix socket", func() error {
		conn, err := net.Dial("unix", c.Socket)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	check("new threads", func() error {
		var running sync.WaitGroup
		for range 20 {
			running.Go(func() {
				runtime.LockOSThread()
				time.Sleep(10 * time.Millisecond)
			})
		}
		running.Wait()
		return nil
	})
	if c.Services {
		check("systemd", func() error {
			_, err := d.node.Units.Stopping(ctx)
			return err
		})
		check("the container runtime", func() error {
			_, err := d.node.CRI.Version(ctx)
			return err
		})
	}
	return all
}
