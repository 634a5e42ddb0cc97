package host

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCached holds that what the kernel has in memory is told as what it is asked for,
// and that a file that comes, goes and is exchanged is seen at once.
func TestCached(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write("file", "text")
	socket, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	err = errors.Join(os.Mkdir(filepath.Join(dir, "folder"), 0o2755), os.Symlink("/file", filepath.Join(dir, "link")), os.Symlink("nowhere", filepath.Join(dir, "dangling")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", "file", "folder", "link", "dangling", "fifo", "socket", "folder/../file", "absent"} {
		for _, flags := range []uint64{0, unix.O_NOFOLLOW} {
			want, wantErr := root.stat(name, flags) // which brings it to memory
			got, err, known := root.cached(name, flags)
			if !known && fs.ValidPath(name) && !root.uncached.Load() {
				t.Errorf("%s: not known", name)
			}
			if known && (!reflect.DeepEqual(got, want) || !errors.Is(err, wantErr)) {
				t.Errorf("%s: %+v (%+v), %v; want %+v (%+v), %v", name, got, got.stat, err, want, want.stat, wantErr)
			}
		}
	}
	for range 100 {
		write("new", "other")
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "file")); err != nil {
			t.Fatal(err)
		}
		want, err := os.Stat(filepath.Join(dir, "file"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := root.Stat("link")
		if err != nil || got.Sys().(*Stat).Ino != want.Sys().(*syscall.Stat_t).Ino {
			t.Fatalf("%v, %v; want %v", got, err, want)
		}
		os.Remove(filepath.Join(dir, "file"))
		if _, err := root.Stat("file"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// BenchmarkStat fails when a path in memory costs more than half of one that is asked
// for within a deadline.
func BenchmarkStat(b *testing.B) {
	root, err := OpenRoot("/")
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	took := map[bool]float64{}
	for _, uncached := range []bool{true, false} {
		root.uncached.Store(uncached)
		b.Run(map[bool]string{true: "asked", false: "cached"}[uncached], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := root.Stat("etc/passwd"); err != nil {
					b.Fatal(err)
				}
			}
			took[uncached] = b.Elapsed().Seconds() / float64(b.N)
		})
	}
	if took[false] > took[true]/2 {
		b.Errorf("%.2f times as long", took[false]/took[true])
	}
}
