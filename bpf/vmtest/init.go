package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// boot is process 1 of the virtual machine.
func boot() {
	fmt.Printf("%s%d\n", marker, inside())
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func inside() int {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
		{"securityfs", "/sys/kernel/security"}, {"cgroup2", "/sys/fs/cgroup"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			fmt.Printf("vmtest: mount %s: %v\n", m.kind, err)
		}
	}
	if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0); err != nil {
		fmt.Println("vmtest:", err)
	}
	// Before 5.11 maps count as locked memory.
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		fmt.Println("vmtest:", err)
	}
	if err := loopback(); err != nil {
		fmt.Println("vmtest: lo:", err)
	}
	b, err := os.ReadFile("/arguments")
	if err != nil {
		fmt.Println("vmtest:", err)
		return 1
	}
	var args []string
	if len(b) > 0 {
		args = strings.Split(string(b), "\x00")
	}
	cmd := exec.Command("/test", args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = os.Stdout, os.Stdout, "/tmp"
	cmd.Env = []string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp", "NODEDRIFT_VMTEST=1"}
	if err := cmd.Run(); err != nil {
		fmt.Println("vmtest:", err)
		return 1
	}
	return 0
}

// loopback brings lo up.
func loopback() error {
	if _, err := net.InterfaceByName("lo"); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
