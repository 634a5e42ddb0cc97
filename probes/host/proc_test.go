package host

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// child starts a process that waits for its input to end.
func child(t *testing.T) *exec.Cmd {
	t.Helper()
	c := exec.Command("cat")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Skip(err)
	}
	in.Write([]byte("\n")) // once it answers it is cat, and no more this program
	bufio.NewReader(out).ReadByte()
	t.Cleanup(func() { in.Close(); c.Wait() })
	return c
}

func TestProcess(t *testing.T) {
	t.Parallel()
	procs := OpenProcesses("/proc")
	if !procs.live {
		t.Fatal("/proc is no procfs")
	}
	c := child(t)
	p, err := procs.Process(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if comm, err := p.Comm(); comm != "cat" || err != nil {
		t.Errorf("%q, %v", comm, err)
	}
	if args, err := p.Cmdline(); !slices.Equal(args, []string{"cat"}) || err != nil {
		t.Errorf("%q, %v", args, err)
	}
	if group, err := p.Cgroup(); !strings.HasPrefix(group, "/") || err != nil {
		t.Errorf("%q, %v", group, err)
	}
	boot, err := procs.Boot()
	if err != nil {
		t.Fatal(err)
	}
	started, err := p.StartTime()
	if now := boot.Started + boot.Age; started > now || now-started > time.Minute || err != nil {
		t.Errorf("started at %v of %v, %v", started, now, err)
	}
}

// TestProcessGone holds a process over its end: nothing of another one with its
// pid is ever read.
func TestProcessGone(t *testing.T) {
	t.Parallel()
	procs := OpenProcesses("/proc")
	c := child(t)
	p, err := procs.Process(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c.Process.Kill()
	c.Process.Wait()
	for what, read := range map[string]func() error{
		"comm":    func() error { _, err := p.Comm(); return err },
		"cmdline": func() error { _, err := p.Cmdline(); return err },
		"start":   func() error { _, err := p.StartTicks(); return err },
		"cgroup":  func() error { _, err := p.Cgroup(); return err },
		"maps":    func() error { _, err := p.DeletedLibraries(); return err },
		"open":    func() error { _, err := procs.Process(p.PID()); return err },
	} {
		if err := read(); !errors.Is(err, ErrProcessGone) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// What another process with this pid would look like: the folder is there.
	p.proc, err = procs.fs(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if comm, err := p.Comm(); !errors.Is(err, ErrProcessGone) || comm != "" {
		t.Errorf("read %q of another process, %v", comm, err)
	}
}

func TestProcessList(t *testing.T) {
	t.Parallel()
	var pids []int
	for p, err := range OpenProcesses("/proc").List() {
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, p.PID())
	}
	if !slices.Contains(pids, 1) || !slices.Contains(pids, os.Getpid()) || !slices.IsSorted(pids) {
		t.Error(pids)
	}
	for _, err := range OpenProcesses(t.TempDir()).List() {
		if err == nil {
			t.Error("an empty folder has processes")
		}
	}
	for _, err := range (Processes{}).List() {
		if err == nil {
			t.Error("no folder has processes")
		}
	}
}

// TestDeletedLibraries loads a file as code, removes it, and finds it.
func TestDeletedLibraries(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p, err := OpenProcesses("/proc").Process(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dir, err := os.MkdirTemp("/var/lib", "nodedrift-test") // a temporary folder's files do not count
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	mapped(t, dir+"/libssl.so.3")
	before, err := p.DeletedLibraries()
	if err != nil || slices.Contains(before, dir+"/libssl.so.3") {
		t.Fatal(before, err)
	}
	os.Remove(dir + "/libssl.so.3")
	after, err := p.DeletedLibraries()
	if err != nil || !slices.Contains(after, dir+"/libssl.so.3") {
		t.Error(after, err)
	}
}

const someMaps = `55d0c0000000-55d0c0001000 r--p 00000000 08:01 1234                       /usr/bin/kubelet (deleted)
55d0c0001000-55d0c0002000 r-xp 00001000 08:01 1234                       /usr/bin/kubelet (deleted)
55d0c0002000-55d0c0003000 r-xp 00002000 08:01 1234                       /usr/bin/kubelet (deleted)
7f0000000000-7f0000001000 r-xp 00000000 08:01 99                         /usr/lib/x86_64-linux-gnu/libc.so.6
7f0000002000-7f0000003000 r--p 00000000 08:01 98                         /usr/lib/locale (deleted)
7f0000004000-7f0000005000 rwxp 00000000 00:00 0                          /memfd:jit (deleted)
7f0000006000-7f0000007000 rwxs 00000000 00:01 5                          /dev/zero (deleted)
7f0000008000-7f0000009000 r-xs 00000000 00:01 5                          /SYSV00000000 (deleted)
7f000000a000-7f000000b000 r-xp 00000000 00:01 5                          /tmp/jna123.tmp (deleted)
7f000000c000-7f000000d000 rwxp 00000000 00:00 0
7f000000e000-7f000000f000 r-xp 00000000 08:01 97                         /opt/with  two spaces/lib.so (deleted)
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0                          [vdso]
`

func TestDeletedLibrariesParse(t *testing.T) {
	t.Parallel()
	got, err := deletedLibraries(strings.NewReader(someMaps))
	if want := []string{"/opt/with  two spaces/lib.so", "/usr/bin/kubelet"}; !slices.Equal(got, want) || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzDeletedLibraries(f *testing.F) {
	f.Add(someMaps)
	f.Fuzz(func(t *testing.T, maps string) {
		got, _ := deletedLibraries(strings.NewReader(maps))
		for _, name := range got {
			if !strings.HasPrefix(name, "/") || strings.Contains(name, "\n") || !strings.Contains(maps, name+" (deleted)") {
				t.Errorf("%q", name)
			}
		}
	})
}

func TestBoot(t *testing.T) {
	t.Parallel()
	procs := OpenProcesses("/proc")
	a, err := procs.Boot()
	if err != nil {
		t.Fatal(err)
	}
	b, _ := procs.Boot()
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if a.ID != b.ID || !strings.HasPrefix(a.ID, strings.TrimSpace(string(id))+"/") || a.Age <= 0 || b.At.Sub(a.At).Abs() > time.Second {
		t.Errorf("%+v, %+v", a, b)
	}
	if _, err := (Processes{}).Boot(); err == nil {
		t.Error("no /proc has a boot")
	}
}

func TestBootOfARecording(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, "sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n")
	put(t, dir, "uptime", "1000.50 1.00\n")
	put(t, dir, "1/stat", "1 (systemd) S 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 25050 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 0 0 0 0 0 1 1 1 1 1 1 1 0\n")
	b, err := OpenProcesses(dir).Boot()
	if err != nil || b.ID != "11111111-2222-3333-4444-555555555555/25050" || b.Started != 250500*time.Millisecond || b.Age != 750*time.Second {
		t.Errorf("%+v, %v", b, err)
	}
}

func FuzzParseUptime(f *testing.F) {
	f.Add("1000.50 1.00\n")
	f.Add("-1.00")
	f.Fuzz(func(t *testing.T, s string) {
		if up, err := parseUptime(s); err == nil && up < 0 {
			t.Error(up)
		}
	})
}

func TestKernel(t *testing.T) {
	t.Parallel()
	k, err := ReadKernel()
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	if k.Release != strings.TrimSpace(string(release)) || k.Version == "" || k.Machine == "" || err != nil {
		t.Errorf("%+v, %v", k, err)
	}
}

func TestMonotonic(t *testing.T) {
	t.Parallel()
	a := Monotonic()
	if b := Monotonic(); a <= 0 || b < a {
		t.Error(a, b)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	n, err := Open("/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Root.Stat("etc"); err != nil {
		t.Error(err)
	}
	if v, err := n.Sysctl.Read("kernel/ostype", nil); string(v) != "Linux" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// mapped makes a file and maps it as code, until the test ends.
func mapped(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(name, make([]byte, 4096), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
}
