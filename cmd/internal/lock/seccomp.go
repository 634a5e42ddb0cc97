package lock

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refused are system calls that the agent never makes. uid 0 may make all of them
// without any capability, on what belongs to uid 0, and Landlock sees none of them
// (or not before a version that nodes may not have).
var refused = append([]uint32{
	// What a file is, other than its content.
	unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT, unix.SYS_TRUNCATE,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_SETXATTRAT,
	unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR, unix.SYS_REMOVEXATTRAT, unix.SYS_FILE_SETATTR,
	// What it makes no more of, on kernels without Landlock too.
	unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_LINKAT, unix.SYS_SYMLINKAT,
	// Other processes.
	unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_WRITEV,
	unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_SET, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_SETAFFINITY,
	// New programs, and namespaces in which it would have capabilities again.
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
}, refusedHere...)

const (
	fssetxattr = 0x401c5820 // FS_IOC_FSSETXATTR (linux/fs.h)

	// Offsets in struct seccomp_data (seccomp(2)); both machines are little-endian.
	atNumber, atMachine = 0, 4
)

func atArgument(i uint32) uint32 { return 16 + 8*i }

// A program is a classic BPF program that decides on a system call.
type program []unix.SockFilter

const (
	load    = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	equal   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	atLeast = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	anyBit  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	say     = unix.BPF_RET | unix.BPF_K

	yes = unix.SECCOMP_RET_ALLOW
	no  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
)

func (p *program) add(code uint16, k uint32, jt, jf uint8) {
	*p = append(*p, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
}

// when decides by one word of the system call what to do with number.
func (p *program) when(number, word uint32, test uint16, k, pass, fail uint32) {
	p.add(equal, number, 0, 4) // else to the next
	p.add(load, word, 0, 0)
	p.add(test, k, 0, 1)
	p.add(say, pass, 0, 0)
	p.add(say, fail, 0, 0)
}

// rules is the filter of the process with that pid.
func rules(machine, pid uint32, calls []uint32) program {
	var p program
	p.add(load, atMachine, 0, 0)
	p.add(equal, machine, 1, 0)
	p.add(say, no, 0, 0)
	p.add(load, atNumber, 0, 0)
	p.add(atLeast, 0x40000000, 0, 1) // x32's
	p.add(say, no, 0, 0)
	for _, n := range refused {
		if slices.Contains(calls, n) {
			continue
		}
		p.add(equal, n, 0, 1)
		p.add(say, no, 0, 0)
	}
	p.when(unix.SYS_TGKILL, atArgument(0), equal, pid, yes, no) // the runtime's own
	p.when(unix.SYS_PIDFD_SEND_SIGNAL, atArgument(1), equal, 0, yes, no)
	p.when(unix.SYS_CLONE, atArgument(0), anyBit, unix.CLONE_THREAD, yes, no)
	p.when(unix.SYS_OPENAT, atArgument(2), anyBit, unix.O_TRUNC, no, yes) // Landlock sees it from Linux 6.2 on
	p.add(equal, unix.SYS_CLONE3, 0, 1)
	p.add(say, unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS), 0, 0) // callers fall back to clone
	p.add(equal, unix.SYS_KILL, 0, 6)
	p.add(load, atArgument(1), 0, 0)
	p.add(equal, 0, 2, 0) // asks whether it is there
	p.add(load, atArgument(0), 0, 0)
	p.add(equal, pid, 0, 1)
	p.add(say, yes, 0, 0)
	p.add(say, no, 0, 0)
	p.add(equal, unix.SYS_PRLIMIT64, 0, 5)
	p.add(load, atArgument(0), 0, 0)
	p.add(equal, 0, 1, 0) // itself
	p.add(equal, pid, 0, 1)
	p.add(say, yes, 0, 0)
	p.add(say, no, 0, 0)
	return p.device()
}

// device refuses the two ioctls that change a file's flags, and lets all else be.
func (p program) device() program {
	p.add(equal, unix.SYS_IOCTL, 1, 0)
	p.add(say, yes, 0, 0)
	p.add(load, atArgument(1), 0, 0)
	p.add(equal, unix.FS_IOC_SETFLAGS, 1, 0)
	p.add(equal, fssetxattr, 0, 1)
	p.add(say, no, 0, 0)
	p.add(say, yes, 0, 0)
	return p
}

var machines = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// filter installs the rules on every thread.
func filter(calls []uint32) error {
	machine, known := machines[runtime.GOARCH]
	if !known {
		return errors.New("there is no filter of system calls for " + runtime.GOARCH)
	}
	p := rules(machine, uint32(unix.Getpid()), calls)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("refuse system calls: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("refuse system calls: thread %d has a filter of its own", thread)
	}
	return nil
}
