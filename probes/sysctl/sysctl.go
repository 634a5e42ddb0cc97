// Package sysctl finds kernel settings that are not what the node declares.
//
// What is declared is systemd-sysctl's own reading of the node's sysctl.d, then
// what AKS wrote and somebody removed, then the operator's configuration; what
// is, is /proc/sys of the node's network namespace. Distribution defaults that no
// file declares are nobody's wish and are not compared.
package sysctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// Config is what an operator may say.
type Config struct {
	// Expect are values by key, "net.core.somaxconn": "16384". They beat every file.
	Expect map[string]string
}

const sourceConfig = "config"

const (
	reread  = 5 * time.Minute  // the declarations are read again this often, heard or not,
	unheard = time.Minute      // and this often while nobody hears of them
	reglob  = time.Minute      // patterns in them are matched again this often
	retry   = 10 * time.Second // a key that does not exist is looked for again this often
)

// A tree is the node's files, as far as declarations need them.
type tree interface {
	ReadFile(name string) ([]byte, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	ReadLink(name string) (string, error)
	Watch(ctx context.Context, l host.Listener, paths ...string) error
}

// keys are /proc/sys.
type keys interface {
	Read(key string, buf []byte) ([]byte, error)
	Glob(pattern string) ([]string, error)
}

// processes are asked for kubelet's arguments.
type processes interface {
	List() iter.Seq2[*host.Process, error]
}

// Probe compares /proc/sys with the node's declarations.
type Probe struct {
	root   tree
	sysctl keys
	procs  processes
	config Config

	stale atomic.Bool // something was heard about a declaration
	hears atomic.Bool // something would be

	mu      sync.Mutex // of what follows: it is held for a look, and for a sweep between looks
	table   *table     // nil before the first reading
	readAt  time.Time
	matched time.Time // when patterns were
	triedAt time.Time // when missing keys were looked for
	buf     []byte

	look probes.Look // the last one, given again while nothing changes
	err  error
}

// New returns a probe of the node's settings.
func New(root tree, sysctl keys, procs processes, config Config) *Probe {
	return &Probe{root: root, sysctl: sysctl, procs: procs, config: config, buf: make([]byte, 4096)}
}

// Spec implements [probes.Probe].
func (*Probe) Spec() probes.Spec {
	return probes.Spec{Name: "sysctl", Condition: "SysctlDrift", Healthy: "SysctlsAsDeclared",
		Every: 10 * time.Second, Timeout: time.Second, Reasons: reasons, Metrics: metrics}
}

// Watch implements [probes.Watcher]: it hears the declarations. /proc/sys itself
// is silent (inotify does not see writes through another mount of it) and is swept
// each second.
func (p *Probe) Watch(ctx context.Context, h probes.Hearer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := host.OnBeat(ctx, time.Second, func() {
		if p.differs() {
			h.Changed()
		}
	})
	if err != nil {
		return err
	}
	paths := slices.Concat(folders, []string{procpsFile, azureJSON, provisioned, "etc/cni/net.d"}, kubeletEnv, kubeletConfigs)
	defer p.hears.Store(false)
	return p.root.Watch(ctx, probes.Noting(h, p.note), paths...)
}

// differs tells whether a key's value is another one than at the last look. While one
// is under way it leaves that to it.
func (p *Probe) differs() bool {
	if !p.mu.TryLock() {
		return false
	}
	defer p.mu.Unlock()
	if p.table == nil {
		return false
	}
	for i := range p.table.watch {
		w := &p.table.watch[i]
		if w.err != nil {
			continue // tried again by looks
		}
		value, err := p.sysctl.Read(w.key, p.buf)
		if err != nil || !w.seen || !bytes.Equal(value, w.last) {
			return true
		}
		p.buf = value[:cap(value)]
	}
	return false
}

// note makes the next look read the declarations again.
func (p *Probe) note() {
	p.hears.Store(true)
	p.stale.Store(true)
}

// Check reads every declared key and compares it. The declarations themselves
// are read again when something was heard of them, and every few minutes. While
// nothing changes it allocates nothing and returns the same Look.
func (p *Probe) Check(context.Context) (probes.Look, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	changed := false
	each := unheard
	if p.hears.Load() {
		each = reread
	}
	if p.stale.Swap(false) || p.table == nil || p.table.err != nil || now.Sub(p.readAt) >= each || p.moved(now) {
		p.readAt, p.matched, p.triedAt, changed = now, now, time.Time{}, true
		p.table = readTable(p.root, p.sysctl, p.procs, p.config, p.table)
	}
	if p.sweep(now) || changed {
		p.look, p.err = p.judge()
	}
	return p.look, p.err
}

// moved tells, once a minute, whether patterns match other keys.
func (p *Probe) moved(now time.Time) bool {
	if now.Sub(p.matched) < reglob {
		return false
	}
	p.matched = now
	return p.table.moved(p.sysctl)
}

// Keys are the keys that the last Check read, as paths below /proc/sys. It is
// called from where Check is.
func (p *Probe) Keys() []string {
	if p.table == nil {
		return nil
	}
	return p.table.keys
}

// A watched key is one that is read at each look.
type watched struct {
	*setting // nil: nothing declares it, but kubelet wants it
	key      string
	last     []byte // the value read last
	seen     bool   // last was read
	err      error  // why the last reading failed
}

// unread is why a key could not be read.
func (w *watched) unread() error {
	if w.err == nil || errors.Is(w.err, fs.ErrNotExist) {
		return nil
	}
	return w.err
}

// sweep reads every key, and says whether any is other than it was.
func (p *Probe) sweep(now time.Time) (changed bool) {
	again := now.Sub(p.triedAt) >= retry
	if again {
		p.triedAt = now
	}
	for i := range p.table.watch {
		w := &p.table.watch[i]
		if w.err != nil && !again {
			continue
		}
		value, err := p.sysctl.Read(w.key, p.buf)
		if err != nil {
			changed = changed || w.err == nil || w.err.Error() != err.Error()
			w.err = err
			continue
		}
		p.buf = value[:cap(value)]
		if w.err == nil && w.seen && bytes.Equal(value, w.last) {
			continue
		}
		w.last, w.seen, w.err = append(w.last[:0], value...), true, nil
		changed = true
	}
	return changed
}

// judge makes a look of the table and the values read last.
func (p *Probe) judge() (probes.Look, error) {
	t := p.table
	look := probes.Look{Findings: slices.Clone(t.findings), NotJudged: t.notJudged}
	errs := []error{t.err}
	unread := 0
	for i := range t.watch {
		f, err := t.judge(&t.watch[i])
		if f != nil {
			look.Findings = append(look.Findings, *f)
		}
		if err != nil {
			errs = append(errs, err)
		}
		if t.watch[i].err != nil {
			unread++
		}
	}
	if unread > 0 {
		// A key that is not there proves nothing until /proc/sys is seen.
		if _, err := p.sysctl.Read("kernel/osrelease", nil); err != nil {
			return probes.Look{}, fmt.Errorf("see the node's /proc/sys: %w", errors.Join(err, t.err))
		}
	}
	slices.SortStableFunc(look.Findings, gravestFirst)
	look.Fingerprints = map[string]string{"sysctl": fingerprint(t.watch)}
	look.Samples = []probes.Sample{{Name: "sysctl_declared_keys", Value: float64(t.declared)}}
	return look, errors.Join(errs...)
}
