// Package lock takes from this process what it needs no more, for good: nothing
// that goes wrong in it later, and nobody who takes it over, can change the host
// through it.
//
// Three locks stand behind each other. Capabilities are dropped. Landlock
// (landlock(7), Linux 5.13) refuses to open anything for writing, and to make,
// rename or remove anything, outside of the folders that are named. A seccomp
// filter refuses what uid 0 may do to a host without any capability and Landlock
// does not see: modes, owners, times and extended attributes of files, signals to
// other processes and their priorities, new programs and new namespaces.
//
// What stays open is uid 0's authority on the sockets of systemd and containerd:
// the calls made there are a short list of reads. And before Linux 6.2, where
// Landlock does not know truncation, a file can be emptied by openat2(2), whose
// flags a filter does not see: [State.Gaps] tells.
package lock

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Config says what is still needed.
type Config struct {
	Write []string // folders in which files may be made, written, renamed and removed
	Keep  []uint   // capabilities that stay: unix.CAP_SYSLOG
	Calls []uint32 // system calls that stay though they are refused otherwise: unix.SYS_SETNS
}

// A State is what holds; nil errors are locks that do.
type State struct {
	Capabilities error
	Landlock     error
	Syscalls     error
	ABI          int    // the kernel's version of Landlock; 0: it has none
	Kept         []uint // capabilities that stay: those of Config.Keep that there were
}

// Gaps are what the locks leave open on this kernel though they hold.
func (s State) Gaps() []string {
	if s.Landlock == nil && s.ABI < 3 {
		return []string{"a file can be emptied by openat2(O_TRUNC): Landlock refuses it from Linux 6.2 on"}
	}
	return nil
}

// Err is what does not hold.
func (s State) Err() error { return errors.Join(s.Capabilities, s.Landlock, s.Syscalls) }

// errThreads is what a program with cgo says: its threads are not all Go's.
var errThreads = errors.New("not every thread can be locked: this program was built with cgo")

// Take takes all three locks on every thread. One that the kernel does not have
// keeps no other from being taken. No thread may be stuck in the kernel at that
// time: it would be waited for.
func Take(cfg Config) (s State) {
	s.ABI = ABI()
	// Without a capability the other two want this promise: to gain nothing by running a program.
	if err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		err = fmt.Errorf("promise no new privileges: %w", err)
		s.Capabilities, s.Landlock, s.Syscalls = err, err, err
		return s
	}
	s.Landlock = landlock(cfg.Write, s.ABI)
	s.Syscalls = filter(cfg.Calls)
	s.Kept, s.Capabilities = drop(cfg.Keep)
	return s
}

func allThreads(trap, a1, a2, a3 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0)
	switch errno {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return errThreads
	}
	return errno
}

// drop gives up every capability but those to keep: from the bounding set too,
// which wants CAP_SETPCAP; without it, none that is there can be gained, as no
// program can be run.
func drop(keep []uint) (kept []uint, err error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return nil, fmt.Errorf("read the capabilities: %w", err)
	}
	var want [2]unix.CapUserData
	for _, c := range keep {
		if bit := uint32(1) << (c % 32); have[c/32].Effective&bit != 0 {
			want[c/32].Effective |= bit
			want[c/32].Permitted |= bit
			kept = append(kept, c)
		}
	}
	if have[0].Effective&(1<<unix.CAP_SETPCAP) != 0 {
		for c := uint(0); c <= unix.CAP_LAST_CAP; c++ {
			if want[c/32].Permitted&(1<<(c%32)) != 0 {
				continue
			}
			if err := allThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0); err != nil && !errors.Is(err, unix.EINVAL) { // of a newer kernel
				return nil, fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
			}
		}
	}
	if err := allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&want[0])), 0); err != nil {
		return nil, fmt.Errorf("drop the capabilities: %w", err)
	}
	return kept, nil
}

// ABI is the kernel's version of Landlock; 0 where it has none or it is off.
func ABI() int {
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// inFolders is what is allowed in the folders that stay writable.
const inFolders = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE

// changes are the rights to change a file system that a version of Landlock can
// refuse, in landlock(7)'s order.
func changes(abi int) uint64 {
	rights := uint64(inFolders | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM)
	if abi >= 2 { // before, it refuses to link and rename across folders by itself
		rights |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		rights |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 5 {
		rights |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return rights
}

// landlock refuses every change outside of the folders. Reading and connecting to
// sockets stay as they are. It also ends every look into other processes that the
// kernel counts as tracing (ptrace(2)): exe, maps, fd, ns.
func landlock(folders []string, abi int) error {
	if abi == 0 {
		return errors.New("this kernel has no Landlock, or it is off: see landlock in /sys/kernel/security/lsm")
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: changes(abi)}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET // containerd's shims of old listen on such
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("make Landlock's rules: %w", errno)
	}
	rules := os.NewFile(fd, "landlock")
	defer rules.Close()
	for _, dir := range folders {
		if err := allow(fd, dir, inFolders|changes(abi)&unix.LANDLOCK_ACCESS_FS_TRUNCATE); err != nil {
			return fmt.Errorf("keep %s writable: %w", dir, err)
		}
	}
	if err := allThreads(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); err != nil {
		return fmt.Errorf("take Landlock's lock: %w", err)
	}
	return nil
}

func allow(rules uintptr, dir string, rights uint64) error {
	at, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer at.Close()
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(at.Fd())}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, rules, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// Try tries to open for writing what only Landlock keeps closed: a file of this
// process's own in /proc, which is not written. It returns nil when that was
// refused.
func Try() error {
	f, err := os.OpenFile("/proc/self/comm", os.O_WRONLY, 0)
	if err == nil {
		f.Close()
		return errors.New("/proc/self/comm can be opened for writing")
	}
	if !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("not refused by Landlock: %w", err)
	}
	return nil
}
