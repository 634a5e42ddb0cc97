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
	stop := context.AfterFunc(ctx, w.close)
	defer stop()
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
	folders map[int32]*watched // by watch descriptor
}

// watched is a folder under watch: the names in it that matter.
type watched struct {
	all   bool            // every name matters
	names map[string]bool // true: the name is on the way to a path, so when it changes the way is walked anew
}

func newWatcher(r *Root, l Listener, paths []string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		return nil, fmt.Errorf("watch files: no inotify instance is free (fs.inotify.max_user_instances): %w", err)
	} else if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	return &watcher{root: r, l: l, paths: paths, queue: os.NewFile(uintptr(fd), "inotify")}, nil
}

func (w *watcher) close() { w.queue.Close() }

// run walks the ways to all paths and then tells what moves on them.
func (w *watcher) run() error {
	buf := make([]byte, 64<<10)
	for walk := true; ; {
		if walk {
			if err := w.walkAll(); err != nil {
				return err
			}
			w.l.Changed()
		}
		n, err := w.queue.Read(buf)
		if err != nil {
			return fmt.Errorf("hear of files: %w", err)
		}
		var changed bool
		changed, walk = w.take(buf[:n])
		if changed && !walk {
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
		if folder == nil {
			continue // of a watch that was taken away
		}
		if e.name == "" {
			changed = true
			walk = walk || e.mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0
			continue
		}
		way, named := folder.names[e.name]
		changed = changed || named || folder.all
		walk = walk || way && e.mask&(unix.IN_MODIFY|unix.IN_CLOSE_WRITE) == 0
	}
	return changed, walk
}

// walkAll walks the way to each path and puts a watch on every folder there is.
// Each folder is watched before the next part is looked up in it, so nothing
// falls between.
func (w *watcher) walkAll() error {
	old := w.folders
	w.folders = map[int32]*watched{}
	for _, p := range w.paths {
		_, err := within(w.root.calls, p, func() (struct{}, error) { return struct{}{}, w.walk(p) })
		if err != nil {
			return &fs.PathError{Op: "watch", Path: nodePath(p), Err: err}
		}
	}
	for wd := range old {
		if w.folders[wd] == nil {
			w.control(func(fd int) { unix.InotifyRmWatch(fd, uint32(wd)) })
		}
	}
	return nil
}

// walk follows one path part by part, as the kernel would, links included, and
// stops at what does not exist.
func (w *watcher) walk(name string) error {
	here, rest, links := ".", strings.Split(name, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			here = path.Dir(here)
			continue
		}
		if ok, err := w.add(here, part, len(rest) == 0); err != nil || !ok {
			return err
		}
		next := inside(here, part)
		i, err := w.root.stat(next, unix.O_NOFOLLOW)
		switch {
		case absent(err):
			return nil
		case err != nil:
			return err
		case i.mode.Type() == fs.ModeSymlink:
			if links++; links > maxLinks {
				return nil // a loop: there is nothing behind it until one of its links changes
			}
			target, err := w.root.readLink(next)
			if err != nil {
				return ignoreAbsent(err)
			}
			if strings.HasPrefix(target, "/") {
				here = "."
			}
			rest = append(strings.Split(target, "/"), rest...)
		case i.IsDir():
			here = next
		default:
			return nil
		}
	}
	_, err := w.add(here, "", true)
	return err
}

// add watches a folder for a name in it, or for all names (""). It says false
// when there is no such folder.
func (w *watcher) add(folder, name string, end bool) (bool, error) {
	fd, err := w.root.open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return false, ignoreAbsent(err)
	}
	defer unix.Close(fd)
	mask := uint32(wayEvents)
	if end {
		mask = endEvents
	}
	var wd int
	w.control(func(queue int) {
		// The path is our own descriptor's: what openat2 found is what is watched.
		wd, err = unix.InotifyAddWatch(queue, "/proc/self/fd/"+strconv.Itoa(fd), mask|unix.IN_MASK_ADD)
	})
	switch {
	case err == unix.ENOSPC:
		return false, fmt.Errorf("no inotify watch is free (fs.inotify.max_user_watches): %w", err)
	case err != nil:
		return false, err
	}
	at := w.folders[int32(wd)]
	if at == nil {
		at = &watched{names: map[string]bool{}}
		w.folders[int32(wd)] = at
	}
	if name == "" {
		at.all = true
	} else {
		at.names[name] = true
	}
	return true, nil
}

func (w *watcher) control(use func(fd int)) {
	if raw, err := w.queue.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { use(int(fd)) })
	}
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
