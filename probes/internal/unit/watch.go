package unit

import (
	"context"
	"errors"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// watched is the paths to listen to, which a look may find to be others.
type watched struct {
	mu   sync.Mutex
	list []string
	more chan struct{}
}

func (w *watched) set(list []string) {
	list = slices.Compact(slices.Sorted(slices.Values(list)))
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.Equal(w.list, list) {
		return
	}
	w.list = list
	select {
	case w.more <- struct{}{}:
	default:
	}
}

func (w *watched) get() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list)
}

// pathsOf is where the unit's files are or may appear.
func (c *Checker) pathsOf(u host.Unit, s *State) []string {
	list := placesOf(append([]string{c.name(u)}, c.o.Units...)...)
	for _, p := range append([]string{u.FragmentPath}, u.DropInPaths...) {
		if name, ok := inRoot(p); ok {
			list = append(list, name)
		}
	}
	for _, f := range u.ExecStart {
		if name, ok := inRoot(f.Path); ok {
			list = append(list, name)
		}
	}
	for name := range c.known.cache {
		list = append(list, name)
	}
	if c.o.Configs != nil {
		list = append(list, c.o.Configs(s.Run)...)
	}
	return slices.DeleteFunc(list, func(p string) bool { return path.Clean(p) != p })
}

// A Part is something else that a probe listens to.
type Part func(ctx context.Context, h probes.Hearer) error

// Watch listens to the unit, to its files and to other parts until ctx or one of
// them ends. When the unit or one of its files moves, the next Look asks anew.
func (c *Checker) Watch(ctx context.Context, h probes.Hearer, also ...Part) error {
	h = probes.Noting(h, func() { c.stirred.Store(true) })
	c.hearer.Store(&h)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts := append([]Part{c.service.Watch, c.watchFiles}, also...)
	errs := make([]error, len(parts))
	var all sync.WaitGroup
	for i, part := range parts {
		all.Go(func() {
			defer cancel()
			errs[i] = part(ctx, h)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// Watch listens to the unit until ctx ends.
func (s *Service) Watch(ctx context.Context, h probes.Hearer) error {
	defer s.hearing.Store(false)
	defer s.heard.Store(true)
	return s.units.WatchUnits(ctx, probes.Noting(h, func() {
		s.heard.Store(true)
		s.hearing.Store(true)
	}), s.names...)
}

// watchFiles listens to the unit's files, and anew when they are others. That it
// cannot (a node may be out of inotify instances) does not deafen the probe to the
// unit: it counts as lost, and is tried again after a pause.
func (c *Checker) watchFiles(ctx context.Context, h probes.Hearer) error {
	for pause := time.Second; ctx.Err() == nil; {
		err := c.watchList(ctx, h)
		if err == nil {
			pause = time.Second
			continue
		}
		h.Lost("files", 1)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Minute)
	}
	return nil
}

// watchList listens until ctx ends or the files are others.
func (c *Checker) watchList(ctx context.Context, h probes.Hearer) error {
	list := c.paths.get()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		if len(list) == 0 {
			<-ctx.Done()
			ended <- nil
			return
		}
		err := c.files.Watch(ctx, probes.Noting(h, func() {
			c.hears.Store(true)
			c.Refresh()
		}), list...)
		c.hears.Store(false)
		ended <- err
	}()
	select {
	case <-ctx.Done():
	case <-c.paths.more:
	case err := <-ended:
		return err
	}
	cancel()
	<-ended
	return nil
}
