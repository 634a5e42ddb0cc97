package host

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What inotify(7) is asked to tell. Folders are watched, never files: a file
// that is replaced by rename takes a watch on it away.
const (
	// of a folder on the way to a path: that its entries or itself come and go
	wayEvents = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ATTRIB |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK
	// of a folder that holds a watched file, or is watched itself
	endEvents = wayEvents | unix.IN_MODIFY | unix.IN_CLOSE_WRITE

	maxLinks = 40 // path_resolution(7)

	heard = 4 << 10 // bytes read at a time: fifteen events of the longest names, a hundred of usual ones

	settle = 200 * time.Millisecond // for the mounts of a pod, which come together
)

// Watch implements [Files].
func (r *Root) Watch(ctx context.Context, l Listener, paths ...string) error {
	for _, p := range paths {
		if !fs.ValidPath(p) {
			return &fs.PathError{Op: "watch", Path: p, Err: fs.ErrInvalid}
		}
	}
	w, err := newWatcher(r, l, paths)
	if err != nil {
		return err
	}
	defer w.close()
	defer context.AfterFunc(ctx, w.close)()
	err = w.run()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// A watcher is one inotify instance and the folders it watches now.
type watcher struct {
	root    *Root
	l       Listener
	paths   []string
	queue   *os.File
	raw     syscall.RawConn // queue's
	mounts  *os.File        // nil where it cannot be heard of
	folders map[int32]*watched
	buf     []byte // for what is heard; as a local variable it would be on a stack that is grown for it
}

// watched is a folder under watch, by its watch descriptor: the names in it that matter.
type watched struct {
	all      bool // every name matters
	names    map[string]bool
	path     string // in the root, without links
	dev, ino uint64 // of what was there
}

func newWatcher(r *Root, l Listener, paths []string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		return nil, fmt.Errorf("watch files: no inotify instance is free (fs.inotify.max_user_instances): %w", err)
	} else if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	queue := os.NewFile(uintptr(fd), "inotify")
	raw, err := queue.SyscallConn()
	if err != nil {
		queue.Close()
		return nil, fmt.Errorf("watch files: %w", err)
	}
	return &watcher{root: r, l: l, paths: paths, queue: queue, raw: raw, mounts: openMounts(), buf: make([]byte, heard)}, nil
}

func (w *watcher) close() {
	w.queue.Close()
	if w.mounts != nil {
		w.mounts.Close()
	}
}

// run walks the ways to all paths and then tells what moves on them.
func (w *watcher) run() error {
	if _, err := w.walkAll(); err != nil {
		return err
	}
	w.l.Changed()
	var mounts sync.WaitGroup
	defer mounts.Wait()
	defer w.close()
	var pending atomic.Bool // one look at mounts serves all that come within settle
	mounts.Go(func() {
		hearMounts(w.mounts, func() {
			if !pending.Swap(true) {
				w.queue.SetReadDeadline(time.Now().Add(settle))
			}
		})
	})
	for {
		n, err := w.queue.Read(w.buf)
		changed, walk := w.take(w.buf[:max(n, 0)])
		if errors.Is(err, os.ErrDeadlineExceeded) { // a mount came or went
			err = w.queue.SetReadDeadline(time.Time{})
			pending.Store(false)
			walk = walk || w.covered()
		}
		if err != nil {
			return fmt.Errorf("hear of files: %w", err)
		}
		if walk {
			moved, err := w.walkAll()
			if err != nil {
				return err
			}
			changed = changed || moved
		}
		if changed {
			w.l.Changed()
		}
	}
}

// take sorts out what was heard: whether anything at a path changed, and
// whether the ways must be walked anew.
func (w *watcher) take(buf []byte) (changed, walk bool) {
	for e := range inotifyEvents(buf) {
		if e.mask&unix.IN_Q_OVERFLOW != 0 {
			w.l.Lost("inotify", 1)
			return true, true
		}
		folder := w.folders[e.folder]
		switch {
		case folder == nil: // of a watch that was taken away
		case e.name == "":
			changed = true
			walk = walk || e.mask&^(unix.IN_ATTRIB|unix.IN_ISDIR) != 0
		case folder.names[e.name]:
			changed = true
			walk = walk || e.mask&(unix.IN_MODIFY|unix.IN_CLOSE_WRITE) == 0
		case folder.all:
			changed = true
		}
	}
	return changed, walk
}

// covered tells whether a watched folder is not any more what is found at its path.
// Each pod that starts or ends mounts ten things, and none of them where we watch:
// that must cost little.
func (w *watcher) covered() bool {
	yes, err := within(w.root.calls, "watch "+strings.Join(w.paths, " "), func() (bool, error) {
		for _, f := range w.folders {
			i, err := w.root.stat(f.path, unix.O_DIRECTORY|unix.O_NOFOLLOW)
			if err != nil || i.stat.Dev != f.dev || i.stat.Ino != f.ino {
				return true, nil
			}
		}
		return false, nil
	})
	return yes || err != nil
}

// walkAll walks the way to each path, puts a watch on every folder there is,
// and lets go of those that are on no way any more. It tells whether other
// folders are watched now.
func (w *watcher) walkAll() (moved bool, err error) {
	now, err := within(w.root.calls, "watch "+strings.Join(w.paths, " "), func() (walk, error) {
		k := walk{w.root, w.raw, map[int32]*watched{}}
		for _, p := range w.paths {
			if err := k.follow(p); err != nil {
				return k, &fs.PathError{Op: "watch", Path: nodePath(p), Err: err}
			}
		}
		return k, nil
	})
	if err != nil {
		return false, err
	}
	for wd := range w.folders {
		if now.folders[wd] == nil {
			moved = true
			w.raw.Control(func(queue uintptr) { unix.InotifyRmWatch(int(queue), uint32(wd)) })
		}
	}
	moved = moved || len(now.folders) != len(w.folders)
	w.folders = now.folders
	return moved, nil
}

// A walk finds the folders on the ways to paths, and watches each before it
// looks up the next part in it, so that nothing falls between.
type walk struct {
	root    *Root
	queue   syscall.RawConn
	folders map[int32]*watched
}

// follow goes along one path part by part, as the kernel would, links included
// (path_resolution(7)), and stops at what does not exist.
func (k walk) follow(name string) error {
	here, rest := ".", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			here = path.Dir(here)
			continue
		}
		if ok, err := k.add(here, part, len(rest) == 0); err != nil || !ok {
			return err
		}
		next := inside(here, part)
		i, err := k.root.stat(next, unix.O_NOFOLLOW)
		if err != nil {
			return ignoreAbsent(err)
		}
		switch i.mode.Type() {
		case fs.ModeDir:
			here = next
			continue
		case fs.ModeSymlink:
			if links++; links > maxLinks {
				return nil // a loop leads nowhere until one of its links changes
			}
		default:
			return nil
		}
		target, err := k.root.readLink(next)
		if err != nil {
			return ignoreAbsent(err)
		}
		if strings.HasPrefix(target, "/") {
			here = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	_, err := k.add(here, "", true)
	return err
}

// add watches a folder for a name in it, or for all names (""). It says false
// when there is no such folder.
func (k walk) add(folder, name string, end bool) (bool, error) {
	fd, err := k.root.open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return false, ignoreAbsent(err)
	}
	defer unix.Close(fd)
	mask := uint32(wayEvents)
	if end {
		mask = endEvents
	}
	var wd int
	ctlErr := k.queue.Control(func(queue uintptr) {
		// The path is our own descriptor's: what openat2 found is what is watched.
		wd, err = unix.InotifyAddWatch(int(queue), "/proc/self/fd/"+strconv.Itoa(fd), mask|unix.IN_MASK_ADD)
	})
	switch {
	case ctlErr != nil:
		return false, ctlErr
	case err == unix.ENOSPC:
		return false, fmt.Errorf("no inotify watch is free (fs.inotify.max_user_watches): %w", err)
	case err != nil:
		return false, err
	}
	at := k.folders[int32(wd)]
	if at == nil {
		at = &watched{names: map[string]bool{}, path: folder}
		if i, err := fstat(fd, folder); err == nil {
			at.dev, at.ino = i.stat.Dev, i.stat.Ino
		}
		k.folders[int32(wd)] = at
	}
	if name == "" {
		at.all = true
	} else {
		at.names[name] = true
	}
	return true, nil
}

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func ignoreAbsent(err error) error {
	if absent(err) {
		return nil
	}
	return err
}

// inotifyEvent is a struct inotify_event.
type inotifyEvent struct {
	folder int32
	mask   uint32
	name   string
}

// inotifyEvents yields what read(2) on an inotify descriptor returned. It stops
// at the first record that cannot be one.
func inotifyEvents(buf []byte) func(yield func(inotifyEvent) bool) {
	return func(yield func(inotifyEvent) bool) {
		for len(buf) >= unix.SizeofInotifyEvent {
			size := uint64(binary.NativeEndian.Uint32(buf[12:])) + unix.SizeofInotifyEvent
			if size > uint64(len(buf)) {
				return
			}
			name, _, _ := bytes.Cut(buf[unix.SizeofInotifyEvent:size], []byte{0})
			e := inotifyEvent{
				folder: int32(binary.NativeEndian.Uint32(buf)),
				mask:   binary.NativeEndian.Uint32(buf[4:]),
				name:   string(name),
			}
			buf = buf[size:]
			if !yield(e) {
				return
			}
		}
	}
}
