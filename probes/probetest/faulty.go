package probetest

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes/host"
)

// faulty is a node's root in which the paths of err/ entries fail, and files
// that may not be read are not, not by root either.
type faulty struct {
	host.Files
	*recorded
	tcp *web
}

// fails says how looking at a path fails: as its err/ entry says, or that of a
// folder above it.
func (r *recorded) fails(name string) error {
	for at := name; ; at = path.Dir(at) {
		if err := r.faults[at]; err != nil {
			return err
		}
		if at == "." {
			return nil
		}
	}
}

// guard asks a question unless the path, or what its links lead to, fails.
func guard[T any](f *faulty, op, name string, reads bool, ask func(string) (T, error)) (T, error) {
	var zero T
	at := []string{name, follow(f.Files, name, false)}
	if !strings.HasPrefix(op, "l") || op == "list" {
		at = append(at, follow(f.Files, name, true))
	}
	for _, at := range at {
		err := f.fails(at)
		if err == nil && reads && f.unreadable(at) {
			err = unix.EACCES
		}
		if err != nil {
			return zero, &fs.PathError{Op: op, Path: "/" + name, Err: err}
		}
	}
	return ask(name)
}

func (r *recorded) unreadable(name string) bool {
	for _, e := range r.files {
		if e.name == name && e.kind != fs.ModeSymlink && e.mode&0o400 == 0 {
			return true
		}
	}
	return false
}

// follow resolves the links in a path, inside the root.
func follow(fsys host.Files, name string, last bool) string {
	here, rest := ".", strings.Split(name, "/")
	for links := 0; len(rest) > 0 && links < 40; {
		part := rest[0]
		rest = rest[1:]
		next := strings.TrimPrefix(path.Join("/", here, part), "/")
		if next == "" {
			next = "."
		}
		target, err := fsys.ReadLink(next)
		if err != nil || len(rest) == 0 && !last {
			here = next
			continue
		}
		links++
		if strings.HasPrefix(target, "/") {
			here = "."
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	return here
}

func (f *faulty) Open(name string) (fs.File, error) {
	return guard(f, "open", name, true, f.Files.Open)
}

func (f *faulty) ReadFile(name string) ([]byte, error) {
	return guard(f, "read", name, true, f.Files.ReadFile)
}

func (f *faulty) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := guard(f, "list", name, true, f.Files.ReadDir)
	for i, e := range entries {
		entries[i] = &datedEntry{e, f, path.Join(name, e.Name())}
	}
	return entries, err
}

func (f *faulty) Stat(name string) (fs.FileInfo, error) {
	i, err := guard(f, "stat", name, false, f.Files.Stat)
	return f.dated(i, follow(f.Files, name, true)), err
}

func (f *faulty) Lstat(name string) (fs.FileInfo, error) {
	i, err := guard(f, "lstat", name, false, f.Files.Lstat)
	return f.dated(i, follow(f.Files, name, false)), err
}

// datedEntry is an entry of a folder whose description is the recorded one.
type datedEntry struct {
	fs.DirEntry
	files *faulty
	path  string
}

func (e *datedEntry) Info() (fs.FileInfo, error) { return e.files.Lstat(e.path) }

// datedInfo is a description with the recorded ctime, which no program can set.
type datedInfo struct {
	fs.FileInfo
	stat host.Stat
}

func (i *datedInfo) Sys() any { return &i.stat }

func (f *faulty) dated(i fs.FileInfo, name string) fs.FileInfo {
	for _, e := range f.files {
		if i != nil && e.name == name {
			dated := &datedInfo{i, *i.Sys().(*host.Stat)}
			dated.stat.Change = e.ctime
			return dated
		}
	}
	return i
}

func (f *faulty) ReadLink(name string) (string, error) {
	return guard(f, "lreadlink", name, false, f.Files.ReadLink)
}

// Dial makes sockets fail, too.
func (f *faulty) Dial(ctx context.Context, name string) (net.Conn, error) {
	return guard(f, "dial", name, false, func(name string) (net.Conn, error) {
		return (&host.Node{Root: f.Files}).Dial(ctx, name)
	})
}

func (f *faulty) Watch(ctx context.Context, l host.Listener, paths ...string) error {
	for _, p := range paths {
		if err := f.fails(p); err != nil {
			return &fs.PathError{Op: "watch", Path: "/" + p, Err: err}
		}
	}
	return f.Files.Watch(ctx, l, paths...)
}

// faultySysctls are sysctls of which the err/proc/sys/ ones fail.
type faultySysctls struct {
	host.Sysctls
	*recorded
}

func (f *faultySysctls) Read(key string, buf []byte) ([]byte, error) {
	if err := f.fails("proc/sys/" + key); err != nil {
		return nil, fmt.Errorf("read %s: %w", host.SysctlName(key), err)
	}
	return f.Sysctls.Read(key, buf)
}

func (f *faultySysctls) Glob(pattern string) ([]string, error) {
	keys := host.SysctlKey(pattern)
	folder, _, _ := strings.Cut(keys, "*")
	if err := f.fails("proc/sys/" + strings.TrimSuffix(folder, "/")); err != nil {
		return nil, fmt.Errorf("match %s: %w", pattern, err)
	}
	return f.Sysctls.Glob(pattern)
}
