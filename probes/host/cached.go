package host

import (
	"io/fs"
	"path"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const resolveCached = 0x20 // RESOLVE_CACHED of linux/openat2.h

// cached describes what a path leads to from what the kernel has in memory, and is not
// known where it has not (openat2(2), RESOLVE_CACHED, Linux 5.12; statx(2),
// AT_STATX_DONT_SYNC). It never waits for a disk or a server, so it needs no goroutine
// and no deadline, and Go's scheduler need not hear of it.
func (r *Root) cached(name string, flags uint64) (i info, err error, known bool) {
	if r.uncached.Load() || !fs.ValidPath(name) {
		return info{}, nil, false
	}
	text, err := unix.BytePtrFromString(name)
	if err != nil {
		return info{}, nil, false
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolveCached}
	var errno unix.Errno
	var st unix.Statx_t
	ctlErr := r.raw.Control(func(root uintptr) {
		var fd uintptr
		fd, _, errno = unix.RawSyscall6(unix.SYS_OPENAT2, root, uintptr(unsafe.Pointer(text)), uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
		if errno != 0 {
			return
		}
		empty := [1]byte{}
		_, _, errno = unix.RawSyscall6(unix.SYS_STATX, fd, uintptr(unsafe.Pointer(&empty)), unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC,
			unix.STATX_BASIC_STATS, uintptr(unsafe.Pointer(&st)), 0)
		unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
		if errno == unix.ENOENT {
			errno = unix.EAGAIN // not of the path
		}
	})
	switch {
	case ctlErr != nil:
		return info{}, nil, false
	case errno == unix.ENOENT:
		return info{}, errno, true
	case errno == unix.EINVAL:
		r.uncached.Store(true)
		return info{}, nil, false
	case errno != 0 || st.Mask&unix.STATX_BASIC_STATS != unix.STATX_BASIC_STATS:
		return info{}, nil, false
	}
	at := func(t unix.StatxTimestamp) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }
	return newInfo(path.Base(name), uint32(st.Mode), int64(st.Size), at(st.Mtime), &Stat{
		Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino, Nlink: uint64(st.Nlink), UID: st.Uid, GID: st.Gid, Change: at(st.Ctime),
	}), nil, true
}

// answered makes what package fs wants of an answer.
func answered(i info, op, name string, err error) (fs.FileInfo, error) {
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: nodePath(name), Err: err}
	}
	return i, nil
}
