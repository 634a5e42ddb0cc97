package probetest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// Lawful lists where a clean look is honest although something else is in a
// file's place: by the name of what is there, patterns of paths ([path.Match]).
// An absent reboot marker is lawful; an absent folder that would hold it is not.
type Lawful map[string][]string

// The things that [Hostile] puts in a path's place.
const (
	Absent     = "absent"     // nothing
	Empty      = "empty"      // an empty file, or an empty folder for a folder
	Folder     = "folder"     // an empty folder for a file, an empty file for a folder
	FIFO       = "fifo"       // whose reader would wait for ever
	Sparse     = "sparse"     // 1 GiB of nothing
	Noise      = "noise"      // 64 KiB of random bytes
	Unreadable = "unreadable" // permission denied
	Broken     = "broken"     // input/output error
	Hanging    = "hanging"    // no answer within the deadline
	LinkUp     = "link-up"    // a link to ../../… and a good copy outside the root
	LinkOut    = "link-out"   // a link to a good copy's real path outside the root
	Loop       = "loop"       // a link to itself
	Flapping   = "flapping"   // renamed away and back all the time; a clean look is honest
)

var things = []string{Absent, Empty, Folder, FIFO, Sparse, Noise, Unreadable, Broken, Hanging, LinkUp, LinkOut, Loop, Flapping}

// Hostile takes the paths (and sysctls, as proc/sys/KEY) that the probe asks for
// on the recorded nodes, and puts each wrong thing in the place of each. The look
// must end within a second of its deadline and must not panic. Where the node was
// in order before, it must not be in order after: there must be a finding or an
// error, unless the pair is in lawful. A pair there that is never clean is an
// error, too.
func Hostile(t *testing.T, newProbe func(*host.Node) probes.Probe, lawful Lawful) {
	t.Helper()
	h := &hostile{newProbe: newProbe, lawful: lawful}
	for thing := range lawful {
		if !slices.Contains(things, thing) {
			t.Errorf("%s is no thing that Hostile does; these are: %s", thing, strings.Join(things, ", "))
		}
	}
	bases := map[string]*recorded{}
	for _, r := range load(t) {
		for _, name := range h.asks(t, r) {
			// A node in order is the better base: there a silent look shows.
			if old := bases[name]; name != "." && (old == nil || r.base(name) > old.base(name)) {
				bases[name] = r
			}
		}
	}
	t.Run("paths", func(t *testing.T) {
		for name, r := range bases {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				h.tryAll(t, r, name, things, func(thing, wrong string) {
					if wrong != "" {
						t.Errorf("%s in place of %s (on %s): %s", thing, name, r.name, wrong)
					}
				})
			})
		}
	})
	if run := flag.Lookup("test.run"); run == nil || !strings.Contains(run.Value.String(), "/") {
		for _, pair := range h.unused() {
			t.Errorf("lawful %s is never clean: take it off the list", pair)
		}
	}
}

// base ranks a case as the base for a path: one in order before one that is not,
// as there a silent look shows, and then one that has the path.
func (r *recorded) base(name string) (rank int) {
	if len(r.want) == 0 {
		rank += 2
	}
	if r.has(name) {
		rank++
	}
	return rank
}

// has tells whether there is something at a path.
func (r *recorded) has(name string) bool {
	is := func(at string) func(entry) bool { return func(e entry) bool { return below(e.name, at) } }
	if inProc, ok := strings.CutPrefix(name, "proc/"); ok {
		return slices.ContainsFunc(r.proc, is(inProc))
	}
	return slices.ContainsFunc(r.files, is(name))
}

type hostile struct {
	newProbe func(*host.Node) probes.Probe
	lawful   Lawful
	uses     paths // lawful pairs that were clean
}

// asks returns the paths that the probe asks for on a recorded node.
func (h *hostile) asks(t *testing.T, r *recorded) (names []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := r.open(t)
		files, asked := Recorder(n.Root)
		keys := &sysctlRecorder{n.Sysctl, &paths{}}
		n.Root, n.Sysctl = files, keys
		look(t, r.probe(h.newProbe, n)) // what is only listened to is not looked at
		names = append(asked(), keys.all()...)
	})
	return names
}

// listen lets a probe that can hear begin to, and end.
func listen(t *testing.T, p probes.Probe) {
	t.Helper()
	w, ok := p.(probes.Watcher)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.Watch(ctx, &deaf{cancel})
}

// deaf is a [probes.Hearer] that has heard enough at once.
type deaf struct{ enough func() }

func (d *deaf) Changed()              { d.enough() }
func (d *deaf) Saw(probes.Occurrence) {}
func (d *deaf) Lost(string, uint64)   {}

// tryAll takes a look with each thing in a path's place, and tells what is wrong
// with it.
func (h *hostile) tryAll(t *testing.T, r *recorded, name string, things []string, tell func(thing, wrong string)) {
	t.Helper()
	// In the bubble no time passes while the kernel is asked: the watch is outside.
	watchdog := time.AfterFunc(5*time.Minute, func() { panic("the look hangs with a wrong thing in place of " + name) })
	defer watchdog.Stop()
	synctest.Test(t, func(t *testing.T) {
		r.setClock(t)
		at := r.make(t)
		for _, thing := range things {
			if r.has(name) || thing != Absent && thing != Flapping {
				tell(thing, h.try(t, r, at, name, thing))
			}
		}
	})
}

// try takes a look with a thing in a path's place, and says what is wrong with it.
func (h *hostile) try(t *testing.T, r *recorded, at place, name, thing string) (wrong string) {
	t.Helper()
	spoiled := *r
	spoiled.faults = maps.Clone(r.faults)
	mend := spoiled.spoil(t, at, name, thing)
	defer mend()
	n, done := spoiled.node(t, at)
	defer done()
	p := spoiled.probe(h.newProbe, n)
	limit := p.Spec().Timeout + time.Second
	begin := host.Monotonic()
	got := outcome(look(t, p))
	took := host.Monotonic() - begin
	listen(t, p)
	switch pattern, ok := h.allows(thing, name); {
	case took > limit:
		return fmt.Sprintf("the look took %v, its limit is %v", took, limit)
	case len(got) > 0 || len(r.want) > 0 || thing == Flapping:
		return ""
	case ok:
		h.uses.add(thing + " " + pattern)
		return ""
	}
	return "the look is clean: no finding, no error"
}

func (h *hostile) allows(thing, name string) (string, bool) {
	for _, pattern := range h.lawful[thing] {
		if ok, err := path.Match(pattern, name); ok && err == nil {
			return pattern, true
		}
	}
	return "", false
}

// unused returns the lawful pairs that were never clean.
func (h *hostile) unused() (pairs []string) {
	used := h.uses.all()
	for thing, patterns := range h.lawful {
		for _, pattern := range patterns {
			if pair := thing + " " + pattern; !slices.Contains(used, pair) {
				pairs = append(pairs, pair)
			}
		}
	}
	return pairs
}

// spoil puts a thing in a path's place and returns what puts it right again.
func (r *recorded) spoil(t *testing.T, at place, name, thing string) (mend func()) {
	t.Helper()
	real := name
	if !below(name, "proc") {
		// Never through a link: what it leads to is this machine's.
		files, err := host.OpenRoot(at.of("."))
		if err != nil {
			t.Fatal(err)
		}
		defer files.Close()
		real = follow(files, name, false)
	}
	target := at.of(real)
	switch thing {
	case Unreadable, Broken, Hanging:
		r.faults[real] = faultOf[thing]
		return func() {}
	case Flapping:
		return flap(target)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return func() {} // below a file: there is nothing to put anywhere
	}
	outside := filepath.Join(string(at), "outside")
	was, _ := os.Lstat(target)
	if was != nil {
		if err := os.Rename(target, outside); err != nil {
			t.Fatal(err)
		}
	} else if err := os.WriteFile(outside, []byte("outside\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := put(thing, target, outside, was != nil && was.IsDir()); err != nil {
		t.Fatalf("put %s at %s: %v", thing, name, err)
	}
	return func() {
		os.RemoveAll(target)
		if was == nil {
			os.Remove(outside)
			return
		}
		if err := os.Rename(outside, target); err != nil {
			t.Fatal(err)
		}
	}
}

// put puts a thing where a file or folder was, which is outside the root now.
func put(thing, target, outside string, folder bool) error {
	switch thing {
	case Absent:
		return nil
	case Empty, Folder:
		if folder == (thing == Empty) {
			return os.Mkdir(target, 0o755)
		}
		return os.WriteFile(target, nil, 0o644)
	case FIFO:
		return unix.Mkfifo(target, 0o644)
	case Sparse:
		return errors.Join(os.WriteFile(target, nil, 0o644), os.Truncate(target, 1<<30))
	case Noise:
		return os.WriteFile(target, noise(), 0o644)
	case LinkUp:
		return os.Symlink(strings.Repeat("../", 40)+strings.TrimPrefix(outside, "/"), target)
	case LinkOut:
		return os.Symlink(outside, target)
	case Loop:
		return os.Symlink(path.Base(target), target)
	}
	return fmt.Errorf("no thing is called %s", thing)
}

var faultOf = map[string]error{Unreadable: unix.EACCES, Broken: unix.EIO, Hanging: fmt.Errorf("no answer for 2s: %w", os.ErrDeadlineExceeded)}

// noise is the same 64 KiB of anything each time.
func noise() []byte {
	b := make([]byte, 64<<10)
	random := rand.NewChaCha8([32]byte{'n', 'o', 'i', 's', 'e'})
	random.Read(b)
	return b
}

// flap renames a path away and back until it is stopped.
func flap(target string) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			default:
				os.Rename(target, target+".away")
				os.Rename(target+".away", target)
			}
		}
	}()
	return func() { close(end); <-ended }
}
