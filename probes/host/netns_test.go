package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenNetNS opens this network namespace where it is mounted in a node's root,
// and nothing else that may lie there.
func TestOpenNetNS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, "run/netns", name) }
	if err := errors.Join(os.MkdirAll(at("folder"), 0o755), os.WriteFile(at("file"), nil, 0o644), os.WriteFile(at("cni-1"), nil, 0o644),
		os.Symlink("/proc/self/ns/net", at("magic")), os.Symlink("cni-1", at("link")), unix.Mkfifo(at("fifo"), 0o644)); err != nil {
		t.Fatal(err)
	}
	root, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"folder", "file", "fifo", "link", "magic"} {
		if f, err := root.OpenNetNS("run/netns/" + name); err == nil {
			f.Close()
			t.Errorf("%s was opened", name)
		}
	}
	if _, err := root.OpenNetNS("run/netns/gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
	if _, err := root.OpenNetNS("/run/netns/cni-1"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a path that is none: %v", err)
	}

	if err := unix.Mount("/proc/self/ns/net", at("cni-1"), "", unix.MS_BIND, ""); err != nil {
		t.Skip("cannot mount: ", err)
	}
	defer unix.Unmount(at("cni-1"), unix.MNT_DETACH)
	f, err := root.OpenNetNS("run/netns/cni-1")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Stat(); err != nil || !os.SameFile(got, want) {
		t.Errorf("another namespace, %v", err)
	}
}
