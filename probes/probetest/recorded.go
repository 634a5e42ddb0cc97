package probetest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"

	"github.com/nodedrift/nodedrift/probes/host"
)

// topFolders are the folders a node's root has (hier(7)).
var topFolders = strings.Fields("bin boot dev etc home lib lib64 media mnt opt root run sbin srv sys tmp usr var")

// recorded is one node as a txtar file has it.
type recorded struct {
	name, comment string
	files         []entry // the root's
	proc          []entry // /proc's, names without "proc/"
	units         map[string]host.Unit
	runtime       *Runtime         // nil without a container runtime
	state         string           // systemd's; "" without a systemd
	faults        map[string]error // by path
	now           time.Time
	kernel        host.Kernel
	web           *web
	memory        map[string]string // what the probe kept in an earlier life
	want, clears  []string
}

// entry is one file, folder, link or FIFO.
type entry struct {
	name         string
	kind         fs.FileMode // 0, fs.ModeDir, fs.ModeSymlink, fs.ModeNamedPipe, fs.ModeSocket
	mode         fs.FileMode
	mtime, ctime time.Time
	link         string
	size         int64 // -1: the body's
	body         []byte
}

func parseFile(name string) (*recorded, error) {
	archive, err := txtar.ParseFile(name)
	if err != nil {
		return nil, err
	}
	r, err := parse(archive)
	if err != nil {
		return nil, err
	}
	r.name = strings.TrimSuffix(filepath.Base(name), ".txtar")
	return r, nil
}

// parse reads a recorded node. What it does not know is an error.
func parse(archive *txtar.Archive) (*recorded, error) {
	r := &recorded{
		comment: strings.TrimSpace(string(archive.Comment)),
		now:     defaultNow, faults: map[string]error{}, units: map[string]host.Unit{}, web: &web{},
	}
	if r.comment == "" {
		return nil, errors.New("the comment must say where the node came from")
	}
	seen := map[string]bool{}
	for _, f := range archive.Files {
		name, _, _ := strings.Cut(f.Name, " ")
		if seen[name] {
			return nil, fmt.Errorf("%s: twice", name)
		}
		seen[name] = true
		if err := r.take(f); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	if !seen["want"] {
		return nil, errors.New("no want entry")
	}
	if err := errors.Join(belowLinks(r.files), belowLinks(r.proc)); err != nil {
		return nil, err
	}
	for i := range r.files {
		r.files[i].stamp(r.now.Add(-time.Hour))
	}
	return r, nil
}

// belowLinks refuses entries below a link: they would be made wherever it leads.
func belowLinks(entries []entry) error {
	for _, l := range entries {
		for _, e := range entries {
			if l.kind == fs.ModeSymlink && e.name != l.name && below(e.name, l.name) {
				return fmt.Errorf("%s is below the link %s: name its real path", e.name, l.name)
			}
		}
	}
	return nil
}

// take sorts one entry in.
func (r *recorded) take(f txtar.File) (err error) {
	top, rest, below := strings.Cut(f.Name, "/")
	switch {
	case f.Name == "now":
		r.now, err = time.Parse(time.RFC3339, body(f))
		return err
	case f.Name == "uname":
		r.kernel.Release, r.kernel.Version, _ = strings.Cut(body(f), "\n")
		return nil
	case f.Name == "want":
		r.want = lines(f)
		return nil
	case f.Name == "memory":
		r.memory = map[string]string{}
		for _, line := range lines(f) {
			key, value, _ := strings.Cut(line, "=")
			r.memory[key] = value
		}
		return nil
	case top == "http" && below, top == "tls" && below:
		return r.web.take(top, rest, f)
	case f.Name == "clears":
		r.clears = strings.Fields(body(f))
		return nil
	case top == "err" && below:
		r.faults[strings.TrimSuffix(rest, "/")], err = fault(body(f))
		return err
	case f.Name == "systemd/state":
		r.state = body(f)
		return nil
	case top == "systemd" && below:
		r.units[rest], err = parseUnit(string(f.Data))
		return err
	case top == "cri" && below:
		return r.takeCRI(rest, body(f))
	case top == "proc" && below:
		e, err := parseEntry(rest, f.Data)
		r.proc = append(r.proc, e)
		return err
	case slices.Contains(topFolders, top) && below, slices.ContainsFunc(topFolders, func(s string) bool { return strings.HasPrefix(f.Name, s+" ") }):
		e, err := parseEntry(f.Name, f.Data)
		r.files = append(r.files, e)
		return err
	}
	return errors.New("unknown: no folder of a root, and not now, uname, want, clears, memory, http/, tls/, err/, proc/, systemd/ or cri/")
}

func body(f txtar.File) string { return strings.TrimSpace(string(f.Data)) }

func lines(f txtar.File) []string {
	var all []string
	for line := range strings.Lines(string(f.Data)) {
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	return all
}

// fault is what looking at a path of an err/ entry yields.
func fault(text string) (error, error) {
	switch text {
	case "permission denied":
		return unix.EACCES, nil
	case "input/output error":
		return unix.EIO, nil
	case "not supported":
		return errors.ErrUnsupported, nil
	case "timeout":
		return fmt.Errorf("no answer for 2s: %w", os.ErrDeadlineExceeded), nil
	}
	return nil, fmt.Errorf("%q is not permission denied, input/output error, not supported or timeout", text)
}

// parseEntry reads a name with its attributes.
func parseEntry(header string, data []byte) (entry, error) {
	fields := strings.Fields(header)
	e := entry{name: strings.TrimSuffix(fields[0], "/"), mode: 0o644, size: -1, body: data}
	if e.name != fields[0] {
		e.kind, e.mode = fs.ModeDir, 0o755
	}
	if !fs.ValidPath(e.name) || e.name == "." {
		return e, fmt.Errorf("%s is no path below the root", fields[0])
	}
	for _, attr := range fields[1:] {
		if err := e.set(attr); err != nil {
			return e, fmt.Errorf("%s: %w", attr, err)
		}
	}
	if e.kind != 0 && len(strings.TrimSpace(string(e.body))) > 0 {
		return e, errors.New("only a file has a body")
	}
	return e, nil
}

func (e *entry) set(attr string) (err error) {
	key, value, _ := strings.Cut(attr, "=")
	switch key {
	case "mode":
		var bits uint64
		bits, err = strconv.ParseUint(value, 8, 9)
		e.mode = fs.FileMode(bits)
	case "mtime":
		e.mtime, err = time.Parse(time.RFC3339, value)
	case "ctime":
		e.ctime, err = time.Parse(time.RFC3339, value)
	case "link":
		e.kind, e.link = fs.ModeSymlink, value
	case "fifo":
		e.kind = fs.ModeNamedPipe
	case "socket":
		e.kind = fs.ModeSocket
	case "size":
		e.size, err = strconv.ParseInt(value, 10, 64)
	case "base64":
		e.body, err = base64.StdEncoding.DecodeString(strings.TrimSpace(string(e.body)))
	case "nonl":
		e.body = []byte(strings.TrimSuffix(string(e.body), "\n"))
	default:
		err = errors.New("unknown attribute")
	}
	return err
}

// stamp fills the times that an entry does not tell.
func (e *entry) stamp(usual time.Time) {
	if e.mtime.IsZero() {
		e.mtime = usual
	}
	if e.ctime.IsZero() {
		e.ctime = e.mtime
	}
}

// place is a folder in which a recorded node is real: root, proc and, for what
// must not be reached, outside.
type place string

// of is where a path of the node is: proc/… is not in the root.
func (p place) of(name string) string {
	if below(name, "proc") {
		return filepath.Join(string(p), name)
	}
	return filepath.Join(string(p), "root", name)
}

// below tells whether a path is a folder or something in it.
func below(name, folder string) bool { return name == folder || strings.HasPrefix(name, folder+"/") }

// open sets the bubble's clock, makes the recorded node real in a temporary
// folder, and opens it as the agent does.
func (r *recorded) open(t *testing.T) *host.Node {
	t.Helper()
	r.setClock(t)
	n, done := r.node(t, r.make(t))
	t.Cleanup(done)
	return n
}

// make makes the recorded node real.
func (r *recorded) make(t *testing.T) place {
	t.Helper()
	at := place(t.TempDir())
	root, proc := at.of("."), at.of("proc")
	for _, d := range []string{root, proc, filepath.Join(proc, "sys")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(materialise(root, r.files), materialise(proc, r.proc)); err != nil {
		t.Fatal(err)
	}
	r.serve(t, root)
	r.serveCRI(t, root)
	return at
}

// node opens a recorded node that is real, and returns what closes it.
func (r *recorded) node(t *testing.T, at place) (n *host.Node, done func()) {
	t.Helper()
	files, err := host.OpenRoot(at.of("."))
	if err != nil {
		t.Fatal(err)
	}
	sysctls, err := host.OpenSysctls(at.of("proc/sys"))
	if err != nil {
		t.Fatal(err)
	}
	web := &web{pages: r.web.pages, certs: r.web.certs}
	n = &host.Node{
		Root:   &faulty{Files: files, recorded: r, tcp: web},
		Proc:   host.OpenProcesses(at.of("proc")).WithFaults(func(name string) error { return r.fails(path.Join("proc", name)) }),
		Sysctl: &faultySysctls{sysctls, r},
		Units:  host.NewSystemd(files),
		Kernel: r.kernel,
	}
	n.CRI = host.NewCRI(n.Root, n.Proc)
	return n, func() { files.Close(); sysctls.Close(); n.Units.Close(); n.CRI.Close(); web.close() }
}

// serve lets a stand-in answer for the recorded systemd, if there is one.
func (r *recorded) serve(t *testing.T, root string) {
	t.Helper()
	state := r.state
	if state == "" && len(r.units) == 0 {
		return
	} else if state == "" {
		state = "running"
	}
	s := ServeSystemd(t, root, state, r.units, PrivateSocket, BusSocket)
	for name, err := range r.faults {
		if unit, ok := strings.CutPrefix(name, "systemd/"); ok {
			s.Fail(unit, err)
		}
	}
}

// materialise writes entries below a folder: folders' times last, since what is
// put into a folder changes them.
func materialise(dir string, entries []entry) error {
	for _, e := range entries {
		if err := os.MkdirAll(filepath.Join(dir, path.Dir(e.name)), 0o755); err != nil {
			return err
		}
		if err := e.write(filepath.Join(dir, e.name)); err != nil {
			return fmt.Errorf("make %s: %w", e.name, err)
		}
	}
	for _, e := range entries {
		if e.mtime.IsZero() {
			continue
		}
		at := unix.NsecToTimespec(e.mtime.UnixNano())
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, e.name), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("date %s: %w", e.name, err)
		}
	}
	return nil
}

func (e *entry) write(name string) error {
	switch e.kind {
	case fs.ModeDir:
		if err := os.MkdirAll(name, 0o755); err != nil {
			return err
		}
	case fs.ModeSymlink:
		return os.Symlink(e.link, name)
	case fs.ModeNamedPipe:
		return unix.Mkfifo(name, uint32(e.mode))
	case fs.ModeSocket:
		return unix.Mknod(name, unix.S_IFSOCK|uint32(e.mode), 0)
	default:
		if err := os.WriteFile(name, e.body, 0o600); err != nil {
			return err
		}
		if e.size >= 0 {
			if err := os.Truncate(name, e.size); err != nil {
				return err
			}
		}
	}
	return os.Chmod(name, e.mode)
}
