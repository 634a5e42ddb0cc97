// Package host is the ways to reach one node: its files, its processes, its
// sysctls, its systemd and its container runtime.
//
// Everything here reads. Nothing blocks for longer than a deadline, nothing
// leaves the node's root, nothing is read beyond a bound, and nothing runs a
// program. What could not be read is an error that says why, never an empty
// answer.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Node is every way to reach one node. Its fields are values: package probetest
// fills them with recorded ones.
type Node struct {
	Root   Files     // the node's root file system
	Proc   Processes // the node's /proc
	Sysctl Sysctls   // /proc/sys
	Units  *Systemd  // nil is a systemd that is not there
	CRI    *CRI      // the container runtime; nil is none
	Kernel Kernel    // the running kernel
	API    Registry  // what the API server says of this node; nil is nobody who asks it
}

// A Registry knows what the node's own Node object said when it was read last.
type Registry interface {
	// Registration returns it at once; zero: it was not read yet.
	Registration() Registration
	// Reread has it read again, within minutes.
	Reread()
}

// Registration is what a Node object says that nothing on the node does.
type Registration struct {
	Kubelet string // the version of the kubelet that registered: "v1.33.2"
	// Patch is the version of kubelet that AKS's live patching puts in place, by the
	// annotation kubernetes.azure.com/live-patching-kubelet-version; "": none.
	Patch string
	At    time.Time // when it was read
}

// Files is a node's root. Names are as package fs wants them: "etc/sysctl.d",
// no leading slash. Errors name the node's path, with the slash, and wrap
// [fs.ErrNotExist], [fs.ErrPermission], [ErrIrregular], [ErrTooLarge] or
// [os.ErrDeadlineExceeded].
type Files interface {
	fs.FS
	fs.ReadFileFS
	fs.StatFS
	fs.ReadDirFS
	fs.ReadLinkFS

	// OpenNetNS opens the network namespace that is mounted at a path, to be
	// entered or asked about. It must be closed.
	OpenNetNS(name string) (*os.File, error)

	// Watch calls l.Changed once when it listens, and then after something at
	// one of the paths was created, written, renamed, removed or had its
	// attributes changed. A path is a file, or a folder with what is right in it
	// (not below); it need not exist yet, nor need its parents. Watch returns nil
	// only when ctx has ended.
	Watch(ctx context.Context, l Listener, paths ...string) error
}

// A Listener hears that something may have changed. Every probes.Hearer is one.
// Its methods do not block.
type Listener interface {
	// Changed says that something moved, or that the listening began.
	Changed()
	// Lost says that n events of a source were lost.
	Lost(source string, n uint64)
}

// Open opens the node whose root is mounted at root: "/" on the node itself,
// "/host" in a pod. Processes and sysctls are those of the caller's own /proc,
// which with hostPID and hostNetwork are the node's. Open does not need a
// systemd: what is absent answers with errors when it is asked.
func Open(root string) (*Node, error) {
	files, err := OpenRoot(root)
	if err != nil {
		return nil, err
	}
	kernel, err := ReadKernel()
	if err != nil {
		files.Close()
		return nil, err
	}
	sysctls, err := OpenSysctls("/proc/sys")
	if err != nil {
		files.Close()
		return nil, err
	}
	procs := OpenProcesses("/proc")
	return &Node{
		Root:   files,
		Proc:   procs,
		Sysctl: sysctls,
		Units:  NewSystemd(files),
		CRI:    NewCRI(files, procs),
		Kernel: kernel,
	}, nil
}

// Close releases what the node holds.
func (n *Node) Close() error {
	errs := []error{n.Units.Close(), n.CRI.Close()}
	for _, part := range []any{n.Sysctl, n.Root} {
		if c, ok := part.(interface{ Close() error }); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// Kernel is the running kernel as uname(2) tells it.
type Kernel struct {
	Release string // uname -r: "5.15.0-1089-azure"
	Version string // uname -v: "#98-Ubuntu SMP Tue Apr 15 15:12:14 UTC 2025"
	Machine string // uname -m: "x86_64"
}

// ReadKernel asks uname(2).
func ReadKernel() (Kernel, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Kernel{}, fmt.Errorf("ask uname: %w", err)
	}
	return Kernel{
		Release: unix.ByteSliceToString(u.Release[:]),
		Version: unix.ByteSliceToString(u.Version[:]),
		Machine: unix.ByteSliceToString(u.Machine[:]),
	}, nil
}
