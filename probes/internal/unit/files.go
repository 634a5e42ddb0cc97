package unit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// files is what is known of a unit's files: what they held when they were first
// seen on this boot, and when the present run started. Sums are of what matters
// in a file, and short: they tell contents apart, they prove nothing.
type files struct {
	root Files

	fragment string            // the unit file that was seen first
	first    map[string]string // unit files and drop-ins, by path
	started  map[string]string // all that the run has read, by path; unknown where nobody knows
	run      string            // InvocationID that started is of
	exec     string            // the program's file in that run, see identity

	cache map[string]cached
}

// unknown stands for a sum that nobody has seen.
const unknown = "?"

// otherThanNow stands for a sum that is known to be another.
const otherThanNow = "-"

type cached struct {
	id   string
	sum  string
	body []byte // of unit and environment files
}

func newFiles(root Files) files {
	return files{root: root, first: map[string]string{}, started: map[string]string{}, cache: map[string]cached{}}
}

// identity tells files apart: no program can set a ctime back.
func identity(i fs.FileInfo) string {
	st, ok := i.Sys().(*host.Stat)
	if !ok {
		return fmt.Sprintf("%d %d", i.Size(), i.ModTime().UnixNano())
	}
	return fmt.Sprintf("%d:%d %d %d", st.Dev, st.Ino, i.Size(), st.Change.UnixNano())
}

// changedAt is when a file got what it holds, at the latest.
func changedAt(i fs.FileInfo) time.Time {
	if st, ok := i.Sys().(*host.Stat); ok && st.Change.After(i.ModTime()) {
		return st.Change
	}
	return i.ModTime()
}

// read returns a file's sum, and its content when it is wanted; a file that
// stands still is read once.
func (f *files) read(name string, normal func([]byte) []byte) (cached, fs.FileInfo, error) {
	i, err := f.root.Stat(name)
	if err != nil {
		return cached{}, nil, err
	}
	id := identity(i)
	// Within a tick of the clock a file can change twice and keep its times.
	if had, ok := f.cache[name]; ok && had.id == id && time.Since(changedAt(i)).Abs() > time.Second {
		return had, i, nil
	}
	b, err := f.root.ReadFile(name)
	if err != nil {
		return cached{}, nil, err
	}
	if normal != nil {
		b = normal(b)
	}
	s := sha256.Sum256(b)
	got := cached{id, hex.EncodeToString(s[:16]), b}
	f.cache[name] = got
	return got, i, nil
}

// lookAtFiles takes the heavy part of a look: what the unit's files say.
func (c *Checker) lookAtFiles(ctx context.Context, s *State) {
	c.heavy = time.Now()
	c.fileFindings, c.fileNotJudged = nil, nil
	u := s.Unit
	unread := func(suffix, what string, err error) {
		c.fileNotJudged = append(c.fileNotJudged, fmt.Sprintf("%s: %s: %v", c.reason(suffix), what, err))
	}
	c.checkMask(u)
	if c.unloaded = ""; u.LoadState == "loaded" {
		var err error
		if c.unloaded, err = c.newDropIn(u); err != nil {
			unread(DaemonReloadNeeded, "list drop-ins", err)
		}
	}
	unitFiles, err := c.unitFiles(u)
	if err != nil {
		unread(UnitChanged, "read the unit", err)
		unread(ConfigNotLoaded, "read the unit", err)
	} else {
		c.compareFirst(unitFiles)
		if err := c.compareStarted(s, unitFiles); err != nil {
			unread(ConfigNotLoaded, "read the configuration", err)
		}
	}
	if err := c.compareBinary(ctx, s); err != nil {
		unread(BinaryReplaced, "see the program", err)
	}
	c.own = c.pathsOf(u, s)
	if !c.listens {
		c.paths.set(c.own)
	}
}

// A file is one file of a unit as it is now.
type file struct {
	name string // without the leading slash
	sum  string
	body []byte
	info fs.FileInfo
}

// unitFiles reads the unit file and the drop-ins that systemd has loaded. One that
// is gone is left out: systemd wants a daemon-reload then, which is another finding.
func (c *Checker) unitFiles(u host.Unit) (list []file, err error) {
	if u.LoadState == "masked" {
		return nil, nil
	}
	for _, p := range append([]string{u.FragmentPath}, u.DropInPaths...) {
		name, ok := inRoot(p)
		if !ok {
			continue
		}
		got, info, err := c.known.read(name, withoutComments)
		switch {
		case absent(err):
			continue
		case err != nil:
			return nil, err
		}
		list = append(list, file{name, got.sum, got.body, info})
	}
	return list, nil
}

// newDropIn finds a drop-in on disk that systemd has not read. systemd itself
// (252) does not notice one in a folder that is new, as it remembers which there were.
func (c *Checker) newDropIn(u host.Unit) (string, error) {
	loaded := map[string]bool{} // by name: one in /etc hides another of its name in /usr/lib
	for _, p := range u.DropInPaths {
		loaded[path.Base(p)] = true
	}
	for _, place := range unitPlaces {
		folder := path.Join(place, c.name(u)+".d")
		entries, err := c.files.ReadDir(folder)
		if err != nil {
			if absent(err) {
				continue
			}
			return "", err
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".conf") || loaded[e.Name()] {
				continue
			}
			name := path.Join(folder, e.Name())
			i, err := c.files.Stat(name)
			switch {
			case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ELOOP):
				return "", err
			case err == nil && i.Mode().IsRegular():
				return "/" + name, nil
			}
		}
	}
	return "", nil
}

// inRoot is a path as the node's root takes it.
func inRoot(p string) (string, bool) {
	if !strings.HasPrefix(p, "/") || p == "/dev/null" {
		return "", false
	}
	name := strings.TrimPrefix(path.Clean(p), "/")
	return name, fs.ValidPath(name) && name != "."
}

// checkMask finds a unit that was masked while it ran.
func (c *Checker) checkMask(u host.Unit) {
	if u.LoadState == "masked" && active(u) {
		name := c.name(u)
		c.fileFindings = append(c.fileFindings, probes.Finding{Reason: c.reason(UnitChanged), Subject: name,
			Message: name + " was masked: it runs, and cannot be started again"})
	}
}

// compareFirst compares unit files with what they held when they were first seen
// on this boot, or with what was declared.
func (c *Checker) compareFirst(list []file) {
	k := &c.known
	for i, f := range list {
		subject := "/" + f.name
		if want, ok := c.o.Declared[subject]; ok {
			if got, err := c.wholeSum(f.name); err == nil && !strings.EqualFold(strings.TrimPrefix(want, "sha256:"), got) {
				c.changed(subject, subject+" is not what the configuration declares")
			}
			continue
		}
		isUnit := i == 0 && !strings.HasSuffix(path.Dir(f.name), ".d")
		if isUnit && k.fragment == "" {
			k.fragment = f.name
		}
		first, ok := k.first[f.name]
		switch {
		case isUnit && f.name != k.fragment && !c.packaged(f):
			c.changed(subject, fmt.Sprintf("%s is the unit file now, it was /%s", subject, k.fragment))
		case !ok || first != f.sum && c.packaged(f):
			k.first[f.name] = f.sum
			if isUnit {
				k.fragment = f.name
			}
		case first != f.sum:
			c.changed(subject, subject+" was changed since it was first seen on this boot")
		}
	}
}

func (c *Checker) changed(subject, text string) {
	c.fileFindings = append(c.fileFindings, probes.Finding{Reason: c.reason(UnitChanged), Subject: subject, Message: text, Source: subject})
}

// wholeSum is the sum that sha256sum(1) prints.
func (c *Checker) wholeSum(name string) (string, error) {
	b, err := c.files.ReadFile(name)
	if err != nil {
		return "", err
	}
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:]), nil
}

// Databases of package managers: they are written with each installation.
var packageDatabases = []string{"var/lib/dpkg/status", "var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages", "usr/lib/sysimage/rpm/rpmdb.sqlite"}

// packaged tells whether a vendor's unit file was written by a package manager:
// its database was written within minutes of it. Updates are lawful.
func (c *Checker) packaged(f file) bool {
	if !strings.HasPrefix(f.name, "usr/lib/") && !strings.HasPrefix(f.name, "lib/") {
		return false
	}
	for _, db := range packageDatabases {
		if i, err := c.files.Stat(db); err == nil && i.ModTime().Sub(changedAt(f.info)).Abs() < 15*time.Minute {
			return true
		}
	}
	return false
}

// freshRun is how young a run may be for what its files hold now to be what it
// has read.
const freshRun = 30 * time.Second

// settles is how long after its start a daemon may still be about to read its
// files: what changes meanwhile is taken for read.
const settles = 3 * time.Second

// compareStarted compares all that the daemon reads when it starts with what it
// held then. Who comes later believes files that are older than the run; that a
// file is newer proves nothing, as the clock is stepped at boot: then nobody knows.
func (c *Checker) compareStarted(s *State, unitFiles []file) error {
	u := s.Unit
	envFiles := environmentFiles(unitFiles)
	list := unitFiles
	c.env = map[string]string{}
	for _, name := range envFiles {
		got, info, err := c.known.read(name, withoutComments)
		switch {
		case absent(err):
			continue
		case err != nil:
			return err
		}
		maps.Copy(c.env, parseEnv(got.body))
		list = append(list, file{name, got.sum, nil, info})
	}
	s.Env = c.env
	if c.o.Configs != nil {
		for _, name := range c.o.Configs(s.Run) {
			var normal func([]byte) []byte
			if c.o.Normal != nil {
				normal = func(b []byte) []byte { return c.o.Normal(name, b) }
			}
			got, info, err := c.known.read(name, normal)
			switch {
			case absent(err):
				continue
			case err != nil:
				return err
			}
			list = append(list, file{name, got.sum, nil, info})
		}
	}
	if !s.Running || u.InvocationID == "" {
		return nil
	}
	if u.InvocationID != c.known.run || s.Main != nil && s.Since < settles {
		c.known.begin(s, list, c.o.Started)
	}
	c.compareLoaded(s, list, unitFiles)
	return nil
}

// begin notes what a new run has read.
func (k *files) begin(s *State, list []file, asked func(Run) (same, known bool)) {
	before := k.started
	if k.run != s.Unit.InvocationID {
		k.exec = ""
	}
	k.started, k.run = map[string]string{}, s.Unit.InvocationID
	fresh := s.Main != nil && s.Since < freshRun
	var strange []string
	for _, f := range list {
		k.started[f.name] = f.sum
		if !fresh && !changedAt(f.info).Before(s.Start) && before[f.name] != f.sum {
			strange = append(strange, f.name)
		}
	}
	if len(strange) == 0 {
		return
	}
	if asked != nil {
		same, known := asked(s.Run)
		switch {
		case known && same:
			return
		case known:
			for _, name := range strange {
				k.started[name] = otherThanNow
			}
			return
		}
	}
	for _, name := range strange {
		k.started[name] = unknown
	}
}

// compareLoaded makes the findings. While a daemon-reload is missing, the unit's
// own files are that finding's.
func (c *Checker) compareLoaded(s *State, list, unitFiles []file) {
	name, loaded := c.name(s.Unit), c.known.started
	isUnit := func(p string) bool {
		return slices.ContainsFunc(unitFiles, func(f file) bool { return f.name == p }) || strings.Contains(p, "systemd/system/")
	}
	differs := func(p string) {
		c.fileFindings = append(c.fileFindings, probes.Finding{Reason: c.reason(ConfigNotLoaded), Subject: "/" + p, Source: "/" + p,
			Message: fmt.Sprintf("/%s is not what %s started with", p, name)})
	}
	there := map[string]bool{}
	var strange []string
	for _, f := range list {
		there[f.name] = true
		switch sum, ok := loaded[f.name]; {
		case s.Unit.NeedDaemonReload && isUnit(f.name):
		case sum == unknown:
			strange = append(strange, "/"+f.name)
		case !ok || sum != f.sum:
			differs(f.name)
		}
	}
	if len(strange) > 0 {
		c.fileNotJudged = append(c.fileNotJudged, fmt.Sprintf("%s: %s was changed after the start and before it was first looked at", c.reason(ConfigNotLoaded), strings.Join(strange, ", ")))
	}
	for p, sum := range loaded {
		if !there[p] && sum != unknown && !(s.Unit.NeedDaemonReload && isUnit(p)) {
			differs(p)
		}
	}
	slices.SortStableFunc(c.fileFindings, func(a, b probes.Finding) int {
		return strings.Compare(a.Reason+" "+a.Subject, b.Reason+" "+b.Subject)
	})
}

// Keys of what is kept.
const (
	keptFragment = "unit"
	keptRunID    = "run"
	keptExec     = "program"
	keptFirst    = "first:"
	keptStarted  = "started:"
)

func (k *files) keep(into map[string]string) {
	for key, v := range map[string]string{keptFragment: k.fragment, keptRunID: k.run, keptExec: k.exec} {
		if v != "" {
			into[key] = v
		}
	}
	for name, sum := range k.first {
		into[keptFirst+name] = sum
	}
	for name, sum := range k.started {
		into[keptStarted+name] = sum
	}
}

func (k *files) recall(kept map[string]string) {
	k.fragment, k.run, k.exec = kept[keptFragment], kept[keptRunID], kept[keptExec]
	for key, v := range kept {
		if name, ok := strings.CutPrefix(key, keptFirst); ok {
			k.first[name] = v
		} else if name, ok := strings.CutPrefix(key, keptStarted); ok {
			k.started[name] = v
		}
	}
}
