package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"
)

// openTemp makes a root in a temporary folder.
func openTemp(t testing.TB) (*Root, string) {
	t.Helper()
	dir := t.TempDir()
	r, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, dir
}

func put(t testing.TB, dir, name, content string) {
	t.Helper()
	name = filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func link(t testing.TB, dir, name, target string) {
	t.Helper()
	name = filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.Symlink(target, name)); err != nil {
		t.Fatal(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestRootIsAnFS(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	put(t, dir, "etc/hostname", "node0\n")
	put(t, dir, "etc/sysctl.d/99-a.conf", "net.ipv4.ip_forward = 1\n")
	put(t, dir, "empty", "")
	link(t, dir, "var/run", "/run")
	link(t, dir, "etc/alias", "hostname")
	put(t, dir, "run/x", "x")
	if err := fstest.TestFS(r, "etc/hostname", "etc/sysctl.d/99-a.conf", "empty", "etc/alias", "run/x"); err != nil {
		t.Fatal(err)
	}
}

// TestRootLinks follows each kind of link: whatever it says, it ends inside.
func TestRootLinks(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	outside := filepath.Join(t.TempDir(), "secret")
	put(t, filepath.Dir(outside), "secret", "outside")
	put(t, dir, "run/marker", "inside")
	link(t, dir, "var/run", "/run")
	link(t, dir, "etc/up", "../../../../../../../run/marker")
	link(t, dir, "etc/out", outside)
	link(t, dir, "etc/loop", "loop")
	link(t, dir, "etc/passwd", "/etc/passwd")
	for name, want := range map[string]error{
		"var/run/marker": nil,
		"etc/up":         nil,
		"etc/out":        fs.ErrNotExist,
		"etc/loop":       unix.ELOOP,
		"etc/passwd":     unix.ELOOP, // itself, once the root is the root
	} {
		got, err := r.ReadFile(name)
		if !errors.Is(err, want) {
			t.Errorf("%s: error %v, want %v", name, err, want)
		}
		if want == nil && string(got) != "inside" {
			t.Errorf("%s: read %q", name, got)
		}
	}
	if target, err := r.ReadLink("var/run"); target != "/run" || err != nil {
		t.Errorf("ReadLink = %q, %v", target, err)
	}
	if _, err := r.ReadLink("run/marker"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("ReadLink of a file: %v", err)
	}
}

func TestRootFollowsNoMagicLinks(t *testing.T) {
	t.Parallel()
	r, err := OpenRoot("/")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, name := range []string{"proc/self/root/etc/passwd", "proc/self/exe", "proc/self/cwd"} {
		if _, err := r.Stat(name); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: %v, want ELOOP", name, err)
		}
	}
	// A file of proc tells no size and is read to its end.
	if b, err := r.ReadFile("proc/sys/kernel/ostype"); string(b) != "Linux\n" || err != nil {
		t.Errorf("ostype = %q, %v", b, err)
	}
}

// TestRootRefuses asks for everything that is no file, and each answer comes at
// once and says what is there.
func TestRootRefuses(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	put(t, dir, "folder/file", "")
	put(t, dir, "big", "")
	put(t, dir, "exact", strings.Repeat("x", MaxFile))
	link(t, dir, "zero", "dev-zero")
	socket, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := errors.Join(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644), os.Truncate(filepath.Join(dir, "big"), 1<<30)); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		want error
		text string
	}{
		{"fifo", ErrIrregular, "read /fifo: a FIFO, not a regular file"},
		{"socket", ErrIrregular, "read /socket: a socket, not a regular file"},
		{"folder", unix.EISDIR, "read /folder: is a directory"},
		{"big", ErrTooLarge, "read /big: larger than 1 MiB (1073741824 bytes): too large"},
		{"absent", fs.ErrNotExist, "read /absent: no such file or directory"},
		{"folder/file/below", unix.ENOTDIR, "read /folder/file/below: not a directory"},
		{"../etc", fs.ErrInvalid, "read ../etc: invalid argument"},
		{"/etc", fs.ErrInvalid, "read /etc: invalid argument"},
		{"exact", nil, ""},
	}
	for _, test := range tests {
		begin := time.Now()
		_, err := r.ReadFile(test.name)
		if !errors.Is(err, test.want) || err != nil && err.Error() != test.text {
			t.Errorf("%s: %v, want %s", test.name, err, test.text)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("%s took %v", test.name, took)
		}
	}
}

func TestRootRefusesDevices(t *testing.T) {
	t.Parallel()
	needRoot(t)
	r, dir := openTemp(t)
	if err := unix.Mknod(filepath.Join(dir, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Skip("cannot make a device: ", err)
	}
	_, err := r.ReadFile("zero")
	if !errors.Is(err, ErrIrregular) || !strings.Contains(err.Error(), "a device") {
		t.Error(err)
	}
}

// TestRootLeavesFIFOWriters shows that looking at a FIFO is not seen by who
// waits to write to it.
func TestRootLeavesFIFOWriters(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		r.ReadFile("fifo")
		r.Open("fifo")
		r.ReadDir("fifo")
		if fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK, 0); err != unix.ENXIO {
			unix.Close(fd)
			t.Fatalf("there was a reader: %v", err)
		}
	}
}

func TestRootNamesPermission(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root may read everything")
	}
	r, dir := openTemp(t)
	put(t, dir, "secret", "x")
	os.Chmod(filepath.Join(dir, "secret"), 0)
	if _, err := r.ReadFile("secret"); !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
}

func TestRootFolderBound(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	for i := range MaxEntries {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%05d", i)))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	entries, err := r.ReadDir(".")
	if len(entries) != MaxEntries || err != nil {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	put(t, dir, "one-more", "")
	if _, err := r.ReadDir("."); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "list /: more than 10000 entries") {
		t.Error(err)
	}
}

// TestRootReadsOldOrNew replaces a file by rename as fast as it can be done:
// what is read is always one version whole.
func TestRootReadsOldOrNew(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	versions := [][]byte{bytes.Repeat([]byte("old"), 40_000), bytes.Repeat([]byte("newer"), 30_000)}
	replace := func(i int) error {
		next := filepath.Join(dir, "next")
		if err := os.WriteFile(next, versions[i%2], 0o644); err != nil {
			return err
		}
		return os.Rename(next, filepath.Join(dir, "file"))
	}
	if err := replace(0); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for i := 1; err == nil; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
				err = replace(i)
			}
		}
		done <- err
	}()
	for range 500 {
		got, err := r.ReadFile("file")
		if err != nil || !bytes.Equal(got, versions[0]) && !bytes.Equal(got, versions[1]) {
			t.Errorf("read %d bytes, %v", len(got), err)
			break
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestRootInPlace rewrites a file in place all the time: what is read was there
// as a whole (here: one byte, many times), or the reader says that it cannot tell.
func TestRootInPlace(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	put(t, dir, "file", strings.Repeat("a", 100_000))
	f, err := os.OpenFile(filepath.Join(dir, "file"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			content := bytes.Repeat([]byte{'a' + byte(rand.IntN(26))}, 100_000)
			select {
			case <-stop:
				return
			default:
				f.WriteAt(content, 0)
			}
		}
	}()
	whole := 0
	for range 300 {
		got, err := r.ReadFile("file")
		switch {
		case errors.Is(err, ErrUnsettled):
		case err != nil:
			t.Fatal(err)
		case bytes.Count(got, got[:1]) == len(got) && len(got) == 100_000:
			whole++
		default:
			// Between two writes to a page the file itself is mixed and stands still:
			// no reader can know. But it is as the file was, so all of its size.
			if len(got) != 100_000 {
				t.Fatalf("read %d bytes", len(got))
			}
		}
	}
	close(stop)
	<-done
	t.Logf("%d of 300 reads were of one version", whole)
}

func TestOpenFileIsACopy(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	put(t, dir, "file", "before")
	f, err := r.Open("file")
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "file", "after it was opened")
	if b, err := io.ReadAll(f); string(b) != "before" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestStatTellsChangeTime(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	put(t, dir, "file", "")
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "file"), past, past); err != nil {
		t.Fatal(err)
	}
	i, err := r.Stat("file")
	if err != nil {
		t.Fatal(err)
	}
	if st := i.Sys().(*Stat); !i.ModTime().Equal(past) || time.Since(st.Change) > time.Minute || st.Nlink != 1 {
		t.Errorf("%+v", st)
	}
}

func TestRootClosed(t *testing.T) {
	t.Parallel()
	r, _ := openTemp(t)
	r.Close()
	if _, err := r.Stat("etc"); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
}

// TestOpenRootAbsent shows the error of a root that is not mounted.
func TestOpenRootAbsent(t *testing.T) {
	t.Parallel()
	if _, err := OpenRoot(filepath.Join(t.TempDir(), "host")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestRootHangs mounts a FUSE file system that never answers: a look at it is
// given up at the deadline, leaves one thread behind however often it is
// repeated, and other files are read meanwhile.
func TestRootHangs(t *testing.T) {
	needRoot(t)
	r, dir := openTemp(t)
	r.calls = newCalls(100 * time.Millisecond)
	put(t, dir, "etc/hostname", "node0")
	put(t, dir, "run/b", "b")
	dead := filepath.Join(dir, "dead")
	if err := os.Mkdir(dead, 0o755); err != nil {
		t.Fatal(err)
	}
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no FUSE: ", err)
	}
	if err := unix.Mount("dead", dead, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse)); err != nil {
		t.Skip("no mounts: ", err)
	}
	defer unix.Unmount(dead, unix.MNT_DETACH)
	before := runtime.NumGoroutine()
	for range 50 {
		for _, look := range []func(string) error{
			func(n string) error { _, err := r.ReadFile(n); return err },
			func(n string) error { _, err := r.Stat(n); return err },
		} {
			if err := look("dead/file"); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
	}
	if stuck := runtime.NumGoroutine() - before; stuck > 1 {
		t.Errorf("%d goroutines are stuck", stuck)
	}
	if b, err := r.ReadFile("etc/hostname"); string(b) != "node0" || err != nil {
		t.Errorf("a healthy file: %q, %v", b, err)
	}
	for i := range 3 * maxCalls { // many dead paths: the threads are bounded, too
		if err := func() error { _, err := r.Stat(fmt.Sprintf("dead/%d", i)); return err }(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if stuck := runtime.NumGoroutine() - before; stuck > maxCalls {
		t.Errorf("%d goroutines are stuck", stuck)
	}
	unix.Close(fuse) // the dead file system is no more: all stuck looks end
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := r.ReadFile("run/b")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the threads do not come back: ", err)
		}
	}
}

func FuzzDirents(f *testing.F) {
	dir, err := os.Open("/")
	if err != nil {
		f.Fatal(err)
	}
	defer dir.Close()
	buf := make([]byte, 4096)
	n, err := syscall.ReadDirent(int(dir.Fd()), buf)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(buf[:n])
	f.Add([]byte(strings.Repeat("\x00", 40)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name := range dirents(b) {
			if strings.ContainsRune(name, 0) || len(name) > len(b) {
				t.Errorf("%q", name)
			}
		}
	})
}

func BenchmarkReadFile(b *testing.B) {
	r, dir := openTemp(b)
	put(b, dir, "etc/sysctl.d/99-a.conf", strings.Repeat("net.ipv4.ip_forward = 1\n", 20))
	past := time.Now().Add(-time.Hour)
	os.Chtimes(filepath.Join(dir, "etc/sysctl.d/99-a.conf"), past, past)
	b.Run("host", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.ReadFile("etc/sysctl.d/99-a.conf")
		}
	})
	b.Run("os.Root", func(b *testing.B) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			b.Fatal(err)
		}
		defer root.Close()
		b.ReportAllocs()
		for b.Loop() {
			root.ReadFile("etc/sysctl.d/99-a.conf")
		}
	})
}
