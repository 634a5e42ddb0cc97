// Package unit is what probes of a daemon share: whether its systemd unit runs,
// keeps dying or waits for a daemon-reload, whether its unit file, its
// configuration or its program were changed under it, and how to hear of all that.
//
// A probe has one [Checker], asks it first in each look, and adds what it found
// to its own. What a reason means is in [Reasons], under the probe's prefix.
package unit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// Files are a node's files, as far as units need them; host.Files satisfies it.
type Files interface {
	ReadFile(name string) ([]byte, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	Watch(ctx context.Context, l host.Listener, paths ...string) error
}

// Processes are a node's processes; host.Processes satisfies it.
type Processes interface {
	Process(pid int) (*host.Process, error)
	Uptime() (time.Duration, error)
}

// Units are a node's systemd; *host.Systemd satisfies it.
type Units interface {
	Unit(ctx context.Context, name string) (host.Unit, error)
	NeedDaemonReload(ctx context.Context, name string) (bool, error)
	WatchUnits(ctx context.Context, l host.Listener, names ...string) error
}

// Options describe a daemon.
type Options struct {
	Prefix string       // of the reasons: "Kubelet" makes KubeletNotRunning
	Metric string       // of the metrics: "kubelet" makes kubelet_restarts_total
	Units  []string     // names the unit may have, the first that there is counts
	Owner  probes.Owner // who acts when the daemon itself is down

	// Configs are the files that the daemon reads when it starts, beside its unit
	// and environment files; paths without the leading slash. nil: none are known.
	Configs func(Run) []string
	// Normal takes from a file's content what is without effect, such as comments.
	// nil: every byte counts. Units and environment files have their own.
	Normal func(name string, content []byte) []byte
	// Started says, of configuration found in place when the daemon had long run,
	// whether it is what the daemon started with. known is false: nobody knows.
	Started func(Run) (same, known bool)
	// Declared are SHA-256 sums by path ("/etc/systemd/system/kubelet.service"), in
	// place of what is first seen.
	Declared map[string]string
	// Lawful says that a program was replaced by who may. nil: nobody may.
	Lawful func(ctx context.Context) bool
}

// A Run is one run of the daemon.
type Run struct {
	Unit host.Unit
	// Args are the running process's; when none runs, those of ExecStart.
	Args []string
	// Env is what the environment files say, by name, later ones first seen last.
	Env map[string]string
	// Since is how long the main process has run; 0 when there is no Main.
	Since time.Duration
	// Start is when it started, on the present wall clock.
	Start time.Time
	// Main is the main process, held until the next look; nil when none runs.
	Main *host.Process
}

// A State is what one look of a Checker saw.
type State struct {
	Run
	// Running says that systemd holds the unit for active and that its main
	// process is there.
	Running bool
	// Fresh says that files were looked at in this look, and not taken from the last.
	Fresh bool

	Findings  []probes.Finding
	NotJudged []string
	Samples   []probes.Sample
	// Keep is for probes.Look.Keep.
	Keep map[string]string
}

// Checker looks at one unit. One goroutine looks; another may watch.
type Checker struct {
	o       Options
	files   Files
	procs   Processes
	service *Service
	hearer  atomic.Pointer[probes.Hearer]

	heard atomic.Bool // files moved since they were read
	hears atomic.Bool // it would be heard if they did
	heavy time.Time   // when files were read last
	known files       // what is known of files
	loop  restarts
	last  unitNow // what of the unit makes files be looked at anew
	kept  map[string]string
	// excuse says why the unit may be down for now; of one look.
	excuse string

	fileFindings  []probes.Finding
	fileNotJudged []string
	env           map[string]string
	rest          rest
	stirred       atomic.Bool // something was heard since the last look
	seen          pending
	paths         watched
	unloaded      string   // a drop-in that systemd has not read
	own           []string // paths of the unit itself
	listens       bool     // Listen is called after each fresh look
}

// New returns a checker.
func New(files Files, procs Processes, units Units, o Options) *Checker {
	c := &Checker{o: o, files: files, procs: procs, service: NewService(units, procs, o.Units...)}
	c.known = newFiles(files)
	c.paths.more = make(chan struct{}, 1)
	c.seen = pending{first: map[key]time.Time{}}
	return c
}

// heavyEach is how old what files say may become without anything heard, and
// heavyUnheard while nobody listens to them.
const (
	heavyEach    = 5 * time.Minute
	heavyUnheard = time.Minute
)

// Look takes a look. Without a unit the error wraps [probes.ErrNotApplicable]; one
// that was there on this boot and is gone does not run.
// Most looks cost a system call: systemd is asked when it was heard, when the
// process is gone, when all is not well, and every 45 s for little.
func (c *Checker) Look(ctx context.Context) (State, error) {
	u, err := c.service.Ask(ctx)
	if err != nil && c.withoutSystemd() {
		return State{}, fmt.Errorf("no %s, and no systemd to run it: %w", c.o.Units[0], probes.ErrNotApplicable)
	}
	if err != nil {
		return State{}, err
	}
	if u.LoadState == "not-found" && u.ActiveState != "active" && !c.loop.first { // not once on this boot
		return State{}, fmt.Errorf("no %s: %w", c.o.Units[0], probes.ErrNotApplicable)
	}
	s := State{Run: Run{Unit: u}}
	c.fillRun(&s)
	switch f, ok := c.notRunning(u); {
	case ok && c.excuse != "" && f.Hold == holdBusy:
		s.NotJudged = append(s.NotJudged, f.Reason+": "+c.excuse)
	case ok:
		s.Findings = append(s.Findings, f)
	}
	s.Findings = append(s.Findings, c.restarted(u, &s.NotJudged)...)
	c.excuse = ""
	if s.Fresh = c.due(&s); s.Fresh {
		c.lookAtFiles(ctx, &s)
	}
	s.Env = c.env
	s.Findings = append(s.Findings, c.pendings(ctx, u, &s.NotJudged)...)
	s.NotJudged = append(s.NotJudged, c.fileNotJudged...)
	s.Samples = []probes.Sample{{Name: c.o.Metric + "_restarts_total", Value: float64(c.loop.total)}}
	if s.Fresh || c.kept == nil || c.loop.moved {
		c.keep()
	}
	s.Keep = c.kept
	return s, nil
}

// withoutSystemd tells whether the node was booted with something else than
// systemd (sd_booted(3)). A /run that is not to be seen proves nothing.
func (c *Checker) withoutSystemd() bool {
	if _, err := c.files.Stat("run"); err != nil {
		return false
	}
	_, err := c.files.Stat("run/systemd/system")
	return errors.Is(err, fs.ErrNotExist)
}

// due tells whether files are to be looked at.
func (c *Checker) due(s *State) bool {
	u := &s.Unit
	now := unitNow{s.Running, u.NeedDaemonReload, u.InvocationID, u.LoadState, u.FragmentPath, u.DropInPaths}
	moved := !now.is(c.last)
	c.last = now
	limit := heavyUnheard
	if c.hears.Load() {
		limit = heavyEach
	}
	return c.heard.Swap(false) || moved || c.heavy.IsZero() || !within(c.heavy, limit)
}

// unitNow is what decides which files a unit has, and whether they are in use.
type unitNow struct {
	running, stale           bool
	invocation, load, source string
	dropIns                  []string
}

func (n unitNow) is(o unitNow) bool {
	return n.running == o.running && n.stale == o.stale && n.invocation == o.invocation && n.load == o.load && n.source == o.source &&
		slices.Equal(n.dropIns, o.dropIns)
}

// Excuse says, before a look, that the unit may be on its way up or down for
// another's sake: then that is not judged, and its restarts do not count.
func (c *Checker) Excuse(why string) { c.excuse = why }

// Refresh makes the next look ask systemd and read files.
func (c *Checker) Refresh() {
	c.stirred.Store(true)
	c.service.Heard()
	c.heard.Store(true)
}

// fillRun adds the main process.
func (c *Checker) fillRun(s *State) {
	s.Running = active(s.Unit) && s.Unit.MainPID != 0 && c.service.alive()
	if s.Running {
		s.Main = c.service.main
		s.Start = s.Unit.ExecMainStartTimestamp
	}
	s.Args = c.service.args
	if s.Running && c.service.started > 0 {
		if up, err := c.procs.Uptime(); err == nil && up >= c.service.started {
			s.Since = up - c.service.started
			s.Start = time.Now().Add(-s.Since).Round(0)
		}
	}
	if len(s.Args) == 0 && len(s.Unit.ExecStart) > 0 {
		s.Args = s.Unit.ExecStart[0].Args
	}
}

func active(u host.Unit) bool {
	return u.ActiveState == "active" || u.ActiveState == "reloading" || u.ActiveState == "refreshing"
}

// reason is a reason's whole name.
func (c *Checker) reason(suffix string) string { return c.o.Prefix + suffix }

// Recall takes what was kept by an earlier process of this boot. Call it before
// the first look, or not at all.
func (c *Checker) Recall(kept map[string]string) {
	c.known.recall(kept)
	c.loop.recall(kept)
}

func (c *Checker) keep() {
	now := map[string]string{}
	c.known.keep(now)
	c.loop.keep(now)
	c.loop.moved = false
	if !maps.Equal(now, c.kept) {
		c.kept = now
	}
}

// Listen adds paths to those that Watch listens to, after a look that was fresh:
// what moves there makes the next one fresh.
func (c *Checker) Listen(paths ...string) {
	c.listens = true
	c.paths.set(append(slices.Clone(c.own), paths...))
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
