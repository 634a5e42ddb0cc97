package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ear is a Listener that a test waits on.
type ear struct {
	changed chan struct{}
	lost    chan string
}

func newEar() *ear { return &ear{make(chan struct{}, 1), make(chan string, 100)} }

func (e *ear) Changed() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

func (e *ear) Lost(source string, _ uint64) {
	select {
	case e.lost <- source:
	default:
	}
}

// hears waits for one call of Changed.
func (e *ear) hears(t *testing.T, what string) {
	t.Helper()
	select {
	case <-e.changed:
	case <-time.After(10 * time.Second):
		t.Fatalf("not heard: %s", what)
	}
}

// settle takes what is still heard of things done before, until nothing comes
// for a while.
func (e *ear) settle() {
	for {
		select {
		case <-e.changed:
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

// watch begins to watch and waits until it is subscribed.
func watch(t *testing.T, r *Root, paths ...string) *ear {
	t.Helper()
	e, done := newEar(), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- r.Watch(ctx, e, paths...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch returned %v", err)
		}
	})
	e.hears(t, "the subscription")
	return e
}

// TestWatch does one thing after the other to a node and hears of each.
func TestWatch(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	put(t, dir, "etc/chrony.conf", "server a\n")
	link(t, dir, "var/run", "/run")
	// Neither /run nor a folder on the way to the second path is there yet.
	e := watch(t, r, "etc/chrony.conf", "var/run/a/b/marker", "etc/sysctl.d")
	steps := []struct {
		what string
		do   func() error
	}{
		{"a write", func() error { return os.WriteFile(at("etc/chrony.conf"), []byte("server b\n"), 0o644) }},
		{"an attribute", func() error { return os.Chmod(at("etc/chrony.conf"), 0o600) }},
		{"a replacement", func() error {
			return errors.Join(os.WriteFile(at("tmp"), nil, 0o644), os.Rename(at("tmp"), at("etc/chrony.conf")))
		}},
		{"a write to the replacement", func() error { return os.WriteFile(at("etc/chrony.conf"), []byte("server c\n"), 0o644) }},
		{"a removal", func() error { return os.Remove(at("etc/chrony.conf")) }},
		{"its return", func() error { return os.WriteFile(at("etc/chrony.conf"), nil, 0o644) }},
		{"a link in its place", func() error {
			return errors.Join(os.WriteFile(at("tmp2"), nil, 0o644), os.Symlink("../elsewhere/real.conf", at("link")), os.Rename(at("link"), at("etc/chrony.conf")))
		}},
		{"the folder of the link's target", func() error { return os.Mkdir(at("elsewhere"), 0o755) }},
		{"the link's target", func() error { return os.WriteFile(at("elsewhere/real.conf"), nil, 0o644) }},
		{"a write to the link's target", func() error { return os.WriteFile(at("elsewhere/real.conf"), []byte("x"), 0o644) }},
		{"a parent", func() error { return os.Mkdir(at("run"), 0o755) }},
		{"more parents", func() error { return os.MkdirAll(at("run/a/b"), 0o755) }},
		{"the marker", func() error { return os.WriteFile(at("run/a/b/marker"), nil, 0o644) }},
		{"a parent renamed away", func() error { return os.Rename(at("run/a"), at("run/z")) }},
		{"a parent renamed back", func() error { return os.Rename(at("run/z"), at("run/a")) }},
		{"the marker's removal", func() error { return os.Remove(at("run/a/b/marker")) }},
		{"a parent's removal", func() error { return os.RemoveAll(at("run")) }},
		{"all again", func() error { return os.MkdirAll(at("run/a/b"), 0o755) }},
		{"the marker again", func() error { return os.WriteFile(at("run/a/b/marker"), nil, 0o644) }},
		{"a watched folder", func() error { return os.Mkdir(at("etc/sysctl.d"), 0o755) }},
		{"a file in it", func() error { return os.WriteFile(at("etc/sysctl.d/99.conf"), nil, 0o644) }},
		{"a write in it", func() error { return os.WriteFile(at("etc/sysctl.d/99.conf"), []byte("x"), 0o644) }},
		{"the folder renamed over", func() error {
			return errors.Join(os.Mkdir(at("new.d"), 0o755), os.Rename(at("etc/sysctl.d"), at("etc/old.d")), os.Rename(at("new.d"), at("etc/sysctl.d")))
		}},
		{"a file in the new one", func() error { return os.WriteFile(at("etc/sysctl.d/10.conf"), nil, 0o644) }},
		{"the way's link turned", func() error {
			return errors.Join(os.Symlink("/srv", at("turned")), os.Rename(at("turned"), at("var/run")))
		}},
		{"the marker behind the turned link", func() error {
			return errors.Join(os.MkdirAll(at("srv/a/b"), 0o755), os.WriteFile(at("srv/a/b/marker"), nil, 0o644))
		}},
		{"its removal", func() error { return os.Remove(at("srv/a/b/marker")) }},
	}
	for _, step := range steps {
		e.settle()
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		e.hears(t, step.what)
	}
}

// TestWatchIsDeafToOthers does things beside the watched paths.
func TestWatchIsDeafToOthers(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	put(t, dir, "run/marker", "")
	put(t, dir, "run/other", "")
	e := watch(t, r, "run/marker", "run/a/b/c")
	e.settle()
	put(t, dir, "run/other", "x")
	put(t, dir, "run/third", "")
	put(t, dir, "etc/passwd", "")
	os.Remove(filepath.Join(dir, "run/third"))
	select {
	case <-e.changed:
		t.Error("heard of what does not matter")
	case <-time.After(100 * time.Millisecond):
	}
	put(t, dir, "run/marker", "x")
	e.hears(t, "the marker")
}

// TestWatchOverflow fills the queue before it is read: the loss is told, and
// what came after it is still heard.
func TestWatchOverflow(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	put(t, dir, "run/a", "")
	put(t, dir, "run/b", "")
	e := newEar()
	w, err := newWatcher(r, e, []string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if _, err := w.walkAll(); err != nil {
		t.Fatal(err)
	}
	for i := range 40_000 { // fs.inotify.max_queued_events is 16384; alternating, so that none merges
		os.Chmod(filepath.Join(dir, "run", string("ab"[i%2])), 0o644)
	}
	done := make(chan error, 1)
	go func() { done <- w.run() }()
	select {
	case source := <-e.lost:
		if source != "inotify" {
			t.Error(source)
		}
	case <-time.After(10 * time.Second):
		t.Error("the loss is not told")
	}
	e.settle()
	put(t, dir, "run/c", "")
	e.hears(t, "what came after the loss")
	w.close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

// TestWatchMount mounts a file system over a watched folder, of which inotify
// tells nothing.
func TestWatchMount(t *testing.T) {
	t.Parallel()
	needRoot(t)
	r, dir := openTemp(t)
	run := filepath.Join(dir, "run")
	put(t, dir, "run/marker", "")
	e := watch(t, r, "run/marker")
	e.settle()
	if err := unix.Mount("tmpfs", run, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("no mounts: ", err)
	}
	defer unix.Unmount(run, unix.MNT_DETACH)
	e.hears(t, "the mount")
	e.settle()
	put(t, dir, "run/marker", "")
	e.hears(t, "the marker in the mount")
	e.settle()
	if err := unix.Unmount(run, 0); err != nil {
		t.Fatal(err)
	}
	e.hears(t, "the unmount")
	e.settle()
	os.Remove(filepath.Join(dir, "run/marker"))
	e.hears(t, "the marker below the mount")
}

// TestWatchLetsGo comes and goes with folders many times and keeps few watches.
func TestWatchLetsGo(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	w, err := newWatcher(r, newEar(), []string{"a/b/c/d", "etc"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	for i := range 100 {
		put(t, dir, fmt.Sprintf("%d/b/c/d", i), "")
		os.Remove(filepath.Join(dir, "a"))
		link(t, dir, "a", fmt.Sprint(i))
		if _, err := w.walkAll(); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.folders) != 4 { // the root, N, N/b, N/b/c
		t.Errorf("%d folders are watched", len(w.folders))
	}
}

func TestWatchErrors(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	link(t, dir, "loop", "loop")
	put(t, dir, "file", "")
	if err := r.Watch(t.Context(), newEar(), "/etc"); err == nil {
		t.Error("a path with a slash is taken")
	}
	e := watch(t, r, "loop/x", "file/below", ".")
	e.settle()
	os.Remove(filepath.Join(dir, "loop"))
	e.hears(t, "the end of a loop")
}

// TestWatchOften repeats the race between a folder that is made and the watch
// that is put on it: a marker made at once in a new folder is never missed.
func TestWatchOften(t *testing.T) {
	t.Parallel()
	r, dir := openTemp(t)
	e := watch(t, r, "run/x/y/marker")
	seen := func() bool { _, err := r.Stat("run/x/y/marker"); return err == nil }
	for range 200 {
		put(t, dir, "run/x/y/marker", "")
		for !seen() { // level by level: each wake is a look
			e.hears(t, "a level")
		}
		os.RemoveAll(filepath.Join(dir, "run"))
		for seen() {
			e.hears(t, "the removal")
		}
	}
	e.settle()
	put(t, dir, "run/x/y/marker", "")
	e.hears(t, "the last marker")
}

func FuzzInotifyEvents(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00marker\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff\x00\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := watcher{l: newEar(), folders: map[int32]*watched{1: {names: map[string]bool{"marker": true}}}}
		w.take(b)
		for e := range inotifyEvents(b) {
			if len(e.name) > len(b) {
				t.Errorf("%q", e.name)
			}
		}
	})
}

func BenchmarkWatch(b *testing.B) {
	r, dir := openTemp(b)
	e := newEar()
	go r.Watch(b.Context(), e, "run/marker")
	<-e.changed
	put(b, dir, "run/x", "")
	<-e.changed
	marker := filepath.Join(dir, "run/marker")
	for b.Loop() {
		os.Mkdir(marker, 0o755)
		<-e.changed
		os.Remove(marker)
		<-e.changed
	}
}

// BenchmarkMountElsewhere is a look whether a mount concerns the watched folders,
// and its naive twin: walking the ways to them anew.
func BenchmarkMountElsewhere(b *testing.B) {
	r, err := OpenRoot("/")
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	w, err := newWatcher(r, newEar(), []string{"run/reboot-required", "etc/systemd/system/a.service", "usr/lib/systemd/system/a.service.d", "etc/sysctl.d", "var/run/a"})
	if err != nil {
		b.Skip(err)
	}
	defer w.close()
	if _, err := w.walkAll(); err != nil {
		b.Fatal(err)
	}
	b.Run("covered", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if w.covered() {
				b.Fatal("nothing was mounted")
			}
		}
	})
	b.Run("naive", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.walkAll(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
