package lock

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// decide runs a filter as the kernel would (seccomp(2)).
func decide(t *testing.T, p program, machine, number uint32, arguments ...uint64) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.LittleEndian.PutUint32(data[atNumber:], number)
	binary.LittleEndian.PutUint32(data[atMachine:], machine)
	for i, a := range arguments {
		binary.LittleEndian.PutUint64(data[atArgument(uint32(i)):], a)
	}
	var word uint32
	for at := 0; at < len(p); at++ {
		in := p[at]
		met := false
		switch in.Code {
		case load:
			word = binary.LittleEndian.Uint32(data[in.K:])
			continue
		case say:
			return in.K
		case equal:
			met = word == in.K
		case atLeast:
			met = word >= in.K
		case anyBit:
			met = word&in.K != 0
		default:
			t.Fatalf("instruction %d is %+v", at, in)
		}
		if met {
			at += int(in.Jt)
		} else {
			at += int(in.Jf)
		}
	}
	t.Fatal("the filter does not end")
	return 0
}

func TestRules(t *testing.T) {
	t.Parallel()
	const machine, self, another = unix.AUDIT_ARCH_X86_64, 42, 43
	const absent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	p := rules(machine, self, nil)
	for _, c := range []struct {
		what      string
		number    uint32
		arguments []uint64
		want      uint32
	}{
		{"read", unix.SYS_READ, nil, yes},
		{"write", unix.SYS_WRITE, nil, yes},
		{"bpf, which reads the census", unix.SYS_BPF, nil, yes},
		{"run a program", unix.SYS_EXECVE, nil, no},
		{"change a mode", unix.SYS_FCHMODAT, nil, no},
		{"set times", unix.SYS_UTIMENSAT, nil, no},
		{"enter a namespace", unix.SYS_SETNS, nil, no},
		{"open to read", unix.SYS_OPENAT, []uint64{0, 0, unix.O_RDONLY | unix.O_CLOEXEC}, yes},
		{"make the next memory file", unix.SYS_OPENAT, []uint64{0, 0, unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL}, yes},
		{"open and empty", unix.SYS_OPENAT, []uint64{0, 0, unix.O_RDONLY | unix.O_TRUNC}, no},
		{"the runtime's own signal", unix.SYS_TGKILL, []uint64{self, 44, 23}, yes},
		{"a signal to another's thread", unix.SYS_TGKILL, []uint64{another, another, 15}, no},
		{"whether a process is there", unix.SYS_KILL, []uint64{another, 0}, yes},
		{"end a process", unix.SYS_KILL, []uint64{another, 15}, no},
		{"end itself", unix.SYS_KILL, []uint64{self, 15}, yes},
		{"end all", unix.SYS_KILL, []uint64{^uint64(0), 9}, no},
		{"whether a pidfd's process is there", unix.SYS_PIDFD_SEND_SIGNAL, []uint64{5, 0}, yes},
		{"end a pidfd's process", unix.SYS_PIDFD_SEND_SIGNAL, []uint64{5, 15}, no},
		{"a new thread", unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_THREAD}, yes},
		{"a new process", unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}, no},
		{"clone3", unix.SYS_CLONE3, nil, absent},
		{"its own limits", unix.SYS_PRLIMIT64, []uint64{0, 7}, yes},
		{"its own limits, by pid", unix.SYS_PRLIMIT64, []uint64{self, 7}, yes},
		{"another's limits", unix.SYS_PRLIMIT64, []uint64{another, 7}, no},
		{"an ioctl of a socket", unix.SYS_IOCTL, []uint64{3, unix.SIOCGIFFLAGS}, yes},
		{"a file's flags", unix.SYS_IOCTL, []uint64{3, unix.FS_IOC_SETFLAGS}, no},
		{"a file's project", unix.SYS_IOCTL, []uint64{3, fssetxattr}, no},
		{"x32", 0x40000000 | unix.SYS_READ, nil, no},
	} {
		if got := decide(t, p, machine, c.number, c.arguments...); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, got, c.want)
		}
	}
	if got := decide(t, p, unix.AUDIT_ARCH_I386, unix.SYS_READ); got != no {
		t.Errorf("another machine's calls: %#x", got)
	}
	if got := decide(t, rules(machine, self, []uint32{unix.SYS_SETNS}), machine, unix.SYS_SETNS); got != yes {
		t.Errorf("a call that stays: %#x", got)
	}
}

func TestChangesByVersion(t *testing.T) {
	t.Parallel()
	for abi, want := range map[int]uint64{1: 0x1ff2, 2: 0x3ff2, 3: 0x7ff2, 4: 0x7ff2, 5: 0xfff2, 7: 0xfff2, 11: 0xfff2} { // landlock(7)
		if got := changes(abi); got != want {
			t.Errorf("version %d: %#x, want %#x", abi, got, want)
		}
	}
}
