package host

import (
	"os"

	"golang.org/x/sys/unix"
)

// inotify tells nothing of a mount: a file system mounted over a watched folder
// hides it in silence. poll(2) on mountinfo tells, with POLLPRI and POLLERR, that
// mounts of this namespace came or went (proc_pid_mountinfo(5)); those of the
// node arrive here by propagation (HostToContainer).

// openMounts opens what tells of mounts, or returns nil.
func openMounts() *os.File {
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "mountinfo")
}

// hearMounts calls changed when mounts may have changed, until the file is closed.
func hearMounts(mountinfo *os.File, changed func()) {
	if mountinfo == nil {
		return
	}
	raw, err := mountinfo.SyscallConn()
	if err != nil {
		return
	}
	// The function says "not ready" to every wake of the poller, so Read waits on;
	// it returns when the file is closed, or is of a kind that cannot be polled.
	raw.Read(func(uintptr) (done bool) { changed(); return false })
}
