package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxFile is the most that is read of one file. A larger one is an error: half
// a file is no authority.
const MaxFile = 1 << 20

// MaxEntries is the most that is read of one folder.
const MaxEntries = 10_000

// ErrTooLarge says that a file is larger than [MaxFile] or a folder than [MaxEntries].
var ErrTooLarge = errors.New("too large")

// ErrIrregular says that a path holds a FIFO, a socket or a device where a file
// was wanted. Such things are never opened: opening a FIFO disturbs its writer,
// and opening a watchdog starts it.
var ErrIrregular = errors.New("not a regular file")

// ErrUnsettled says that a file was being rewritten each time it was read.
var ErrUnsettled = errors.New("changes while it is read")

// Root is the file system of a node below one folder. Every path, and every link
// on the way, is resolved by the kernel inside that folder (openat2(2),
// RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS); mounts are crossed. It implements
// [Files].
type Root struct {
	dir   *os.File // O_PATH
	raw   syscall.RawConn
	calls *calls

	uncached atomic.Bool // the kernel does not know RESOLVE_CACHED
}

// OpenRoot opens a node's root folder. It fails where openat2(2) is missing
// (Linux before 5.6, or a seccomp profile that does not know it).
func OpenRoot(dir string) (*Root, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the node's root: %w", err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open the node's root: %w", err)
	}
	r := &Root{dir: f, raw: raw, calls: newCalls(fileDeadline)}
	fd, err := r.open(".", unix.O_PATH)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("openat2 in %s (needs Linux 5.6 and a seccomp profile that allows it): %w", dir, err)
	}
	unix.Close(fd)
	return r, nil
}

// Close releases the root folder. Questions still under way end as they would.
func (r *Root) Close() error { return r.dir.Close() }

// ReadFile reads a regular file whole, from one descriptor. A file that is
// replaced meanwhile yields the old or the new content; one that is rewritten
// in place is read again until it stood still.
func (r *Root) ReadFile(name string) ([]byte, error) {
	f, err := ask(r, "read", name, r.read)
	if err != nil {
		return nil, err
	}
	return f.content, nil
}

// Open implements [fs.FS]. The file is read at once and closed: the [fs.File] is
// a copy in memory and holds nothing of the node.
func (r *Root) Open(name string) (fs.File, error) {
	return ask(r, "open", name, func(name string) (fs.File, error) {
		f, err := r.read(name)
		if err == nil {
			return &openFile{f.info, bytes.NewReader(f.content)}, nil
		}
		if !errors.Is(err, unix.EISDIR) {
			return nil, err
		}
		info, err := r.stat(name, 0)
		if err != nil {
			return nil, err
		}
		entries, err := r.list(name)
		if err != nil {
			return nil, err
		}
		return &openFolder{info: info, path: name, entries: entries}, nil
	})
}

// Stat describes what a path leads to, through links.
func (r *Root) Stat(name string) (fs.FileInfo, error) {
	if i, err, known := r.cached(name, 0); known {
		return answered(i, "stat", name, err)
	}
	return ask(r, "stat", name, func(name string) (fs.FileInfo, error) { return r.stat(name, 0) })
}

// Lstat describes a path itself, be it a link.
func (r *Root) Lstat(name string) (fs.FileInfo, error) {
	if i, err, known := r.cached(name, unix.O_NOFOLLOW); known {
		return answered(i, "lstat", name, err)
	}
	return ask(r, "lstat", name, func(name string) (fs.FileInfo, error) { return r.stat(name, unix.O_NOFOLLOW) })
}

// ReadLink returns the target of a link as it is written.
func (r *Root) ReadLink(name string) (string, error) {
	return ask(r, "readlink", name, r.readLink)
}

// ask puts a question about a valid path within the deadline, and names the
// node's path in the error.
func ask[T any](r *Root, op, name string, question func(string) (T, error)) (T, error) {
	var zero T
	if !fs.ValidPath(name) {
		return zero, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	v, err := within(r.calls, name, func() (T, error) { return question(name) })
	if err != nil {
		return zero, &fs.PathError{Op: op, Path: nodePath(name), Err: err}
	}
	return v, nil
}

// nodePath is a path as a person on the node would write it.
func nodePath(name string) string {
	if name == "." {
		return "/"
	}
	return "/" + name
}

// open is openat2(2) below the root.
func (r *Root) open(name string, flags uint64) (fd int, err error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd = -1
	// The kernel says EAGAIN when a rename anywhere kept it from proving that a
	// ".." stayed inside; and a lease (fcntl(2)) says it until its holder lets go.
	for range 128 {
		ctlErr := r.raw.Control(func(root uintptr) { fd, err = unix.Openat2(int(root), name, &how) })
		if ctlErr != nil {
			return -1, fs.ErrClosed
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return fd, err
}

// stat describes a path without opening what is there.
func (r *Root) stat(name string, flags uint64) (info, error) {
	fd, err := r.open(name, unix.O_PATH|flags)
	if err != nil {
		return info{}, err
	}
	defer unix.Close(fd)
	return fstat(fd, name)
}

func (r *Root) readLink(name string) (string, error) {
	fd, err := r.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	switch {
	case err == unix.ENOENT: // what readlinkat(2) says of an empty path on no link
		return "", unix.EINVAL
	case err != nil:
		return "", err
	}
	return string(buf[:n]), nil
}

// read reads a file until it was the same before and after.
func (r *Root) read(name string) (*snapshot, error) {
	for range 8 {
		f, settled, err := r.readOnce(name)
		if err != nil || settled {
			return f, err
		}
	}
	return nil, ErrUnsettled
}

// A snapshot is a file as it was at one time.
type snapshot struct {
	info    info
	content []byte
}

func (r *Root) readOnce(name string) (f *snapshot, settled bool, err error) {
	// What it is is asked before it is opened, so that no FIFO or device is.
	if seen, err := r.stat(name, 0); err != nil {
		return nil, false, err
	} else if err := regular(seen); err != nil {
		return nil, false, err
	}
	fd, err := r.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, false, err
	}
	defer unix.Close(fd)
	before, err := fstat(fd, name)
	if err != nil {
		return nil, false, err
	}
	if err := regular(before); err != nil {
		return nil, false, err
	}
	content, err := readAll(fd, before.size)
	if err != nil {
		return nil, false, err
	}
	after, err := fstat(fd, name)
	if err != nil {
		return nil, false, err
	}
	same := before.size == after.size && before.mtime.Equal(after.mtime)
	if same && time.Since(after.mtime).Abs() < clockGrain {
		again, err := readAll(fd, after.size)
		if err != nil {
			return nil, false, err
		}
		same = bytes.Equal(content, again)
	}
	return &snapshot{after, content}, same, nil
}

// clockGrain is how long two writes can carry the same time stamp: a tick of
// the slowest kernel (CONFIG_HZ=100), doubled.
const clockGrain = 20 * time.Millisecond

// regular says why something is not a file that can be read.
func regular(i info) error {
	switch i.mode.Type() {
	case 0:
		if i.size > MaxFile {
			return fmt.Errorf("larger than 1 MiB (%d bytes): %w", i.size, ErrTooLarge)
		}
		return nil
	case fs.ModeDir:
		return unix.EISDIR
	case fs.ModeNamedPipe:
		return fmt.Errorf("a FIFO, %w", ErrIrregular)
	case fs.ModeSocket:
		return fmt.Errorf("a socket, %w", ErrIrregular)
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		return fmt.Errorf("a device, %w", ErrIrregular)
	case fs.ModeSymlink:
		return unix.ELOOP
	}
	return ErrIrregular
}

// readAll reads from the start to the end of a file, as it is at the end: a file of /proc
// tells no size.
func readAll(fd int, size int64) ([]byte, error) {
	buf := make([]byte, min(size, MaxFile)+512)
	n := 0
	for {
		got, err := unix.Pread(fd, buf[n:], int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case got == 0:
			return buf[:n], nil
		}
		if n += got; n > MaxFile {
			return nil, fmt.Errorf("larger than 1 MiB: %w", ErrTooLarge)
		}
		if n == len(buf) {
			buf = append(buf, make([]byte, min(len(buf), MaxFile+1))...)
		}
	}
}

// fstat describes an open descriptor.
func fstat(fd int, name string) (info, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return info{}, err
	}
	return infoOf(path.Base(name), &st), nil
}

// info implements [fs.FileInfo].
type info struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
	stat  *Stat
}

// Stat is what [fs.FileInfo.Sys] returns for a file of a node, always as a *Stat.
type Stat struct {
	Dev, Ino, Nlink uint64
	UID, GID        uint32
	// Change is the ctime of stat(2): when content or attributes were changed
	// last. No program can set it back.
	Change time.Time
}

func infoOf(name string, st *unix.Stat_t) info {
	return newInfo(name, st.Mode, st.Size, time.Unix(st.Mtim.Unix()), &Stat{
		Dev: uint64(st.Dev), Ino: st.Ino, Nlink: uint64(st.Nlink),
		UID: st.Uid, GID: st.Gid, Change: time.Unix(st.Ctim.Unix()),
	})
}

// newInfo makes the mode of st_mode (inode(7)).
func newInfo(name string, kind uint32, size int64, mtime time.Time, st *Stat) info {
	mode := fs.FileMode(kind & 0o777)
	if kind&unix.S_ISUID != 0 {
		mode |= fs.ModeSetuid
	}
	if kind&unix.S_ISGID != 0 {
		mode |= fs.ModeSetgid
	}
	if kind&unix.S_ISVTX != 0 {
		mode |= fs.ModeSticky
	}
	switch kind & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	default:
		mode |= fs.ModeIrregular
	}
	return info{name, size, mode, mtime, st}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return i.mtime }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return i.stat }
func (i info) String() string     { return fs.FormatFileInfo(i) }

// openFile is a file that was read.
type openFile struct {
	info
	*bytes.Reader
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Close() error               { return nil }
func (f *openFile) Size() int64                { return f.info.size }

// openFolder is a folder that was listed.
type openFolder struct {
	info
	path    string
	entries []fs.DirEntry
}

func (d *openFolder) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openFolder) Close() error               { return nil }

func (d *openFolder) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: nodePath(d.path), Err: unix.EISDIR}
}

// ReadDir implements [fs.ReadDirFile].
func (d *openFolder) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		n = len(d.entries)
	} else if len(d.entries) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.entries))
	got := d.entries[:n:n]
	d.entries = d.entries[n:]
	return got, nil
}

// inside is a path below a folder.
func inside(folder, name string) string {
	return strings.TrimPrefix(path.Join(folder, name), "/")
}
