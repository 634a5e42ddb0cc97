package sysctl

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/nodedrift/nodedrift/probes/host"
)

// folders hold the declarations, the first wins for files of one name
// (systemd's CONF_PATHS; lib is read where /usr is not merged, and is a link to
// usr/lib elsewhere).
var folders = []string{"etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d"}

// procpsFile is what "sysctl --system" (procps) reads after all the rest, and
// AKS runs that while it provisions. systemd-sysctl reads it only where
// etc/sysctl.d/99-sysctl.conf is a link to it, in the place of that name.
const procpsFile = "etc/sysctl.conf"

// A file is one declaration file.
type file struct {
	path        string // "etc/sysctl.d/60-CIS.conf"
	assignments []assignment
	flaws       []flaw
}

func (f file) name() string { return path.Base(f.path) }

// unreadable is true for a file that is flawed as a whole.
func (f file) unreadable() bool { return len(f.flaws) > 0 && f.flaws[0].line == 0 }

// local tells what somebody put on this node from what the distribution ships.
func (f file) local() bool {
	return !strings.HasPrefix(f.path, "usr/lib/") && !strings.HasPrefix(f.path, "lib/")
}

// declarations are the files of a node, in the order in which they are applied.
type declarations struct {
	files  []file
	procps *file // nil where there is none
}

// readDeclarations reads every declaration file. A file that systemd-sysctl
// cannot read either is a flaw of that file; one that only we may not read is
// an error, and so is a node where no folder can be seen at all.
func readDeclarations(root tree) (declarations, error) {
	paths, err := list(root)
	if err != nil {
		return declarations{}, err
	}
	var d declarations
	var errs []error
	for _, p := range paths {
		f, err := readFile(root, p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a dangling link masks, and declares nothing
			errs = append(errs, err)
			continue
		}
		d.files = append(d.files, f)
	}
	switch f, err := readFile(root, procpsFile); {
	case err == nil:
		d.procps = &f
	case !errors.Is(err, fs.ErrNotExist):
		errs = append(errs, err)
	}
	return d, errors.Join(errs...)
}

// list names the declaration files in the order of their names, whatever their
// folder: a file hides those of the same name in later folders.
func list(root tree) ([]string, error) {
	seen := map[string]bool{}
	found := 0
	var paths []string
	for _, folder := range folders {
		entries, err := root.ReadDir(folder)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("list the sysctl declarations: %w", err)
		}
		found++
		for _, e := range entries {
			if name := e.Name(); path.Ext(name) == ".conf" && name[0] != '.' && !seen[name] {
				seen[name] = true
				paths = append(paths, path.Join(folder, name))
			}
		}
	}
	if found == 0 {
		return nil, fmt.Errorf("list the sysctl declarations: none of /%s: %w", strings.Join(folders, ", /"), fs.ErrNotExist)
	}
	slices.SortFunc(paths, func(a, b string) int { return cmp.Compare(path.Base(a), path.Base(b)) })
	return paths, nil
}

// readFile reads one declaration file.
func readFile(root tree, name string) (file, error) {
	f := file{path: name}
	content, err := root.ReadFile(name)
	switch {
	case err == nil:
		f.assignments, f.flaws = parse(content)
	case errors.Is(err, host.ErrIrregular) && masked(root, name):
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission),
		errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, host.ErrUnsettled):
		return f, fmt.Errorf("read a sysctl declaration: %w", err)
	default:
		f.flaws = []flaw{{why: "cannot be read: " + reasonOf(err)}}
	}
	return f, nil
}

// masked is true for a link to /dev/null, by which people take a file of the
// distribution out of use.
func masked(root tree, name string) bool {
	target, err := root.ReadLink(name)
	if err == nil && !path.IsAbs(target) {
		target = path.Join("/", path.Dir(name), target)
	}
	return err == nil && path.Clean(target) == "/dev/null"
}

// reasonOf is an error without the path that a finding names already.
func reasonOf(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return err.Error()
}
