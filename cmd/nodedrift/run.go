package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/agent/metrics"
	"github.com/nodedrift/nodedrift/agent/web"
	"github.com/nodedrift/nodedrift/bpf"
	"github.com/nodedrift/nodedrift/probes/host"
)

// softMemory is the limit of Go's memory unless GOMEMLIMIT says otherwise: the
// collector works harder before the agent grows beyond it. The live heap is 1 to
// 2 MB, but the runtime's own share counts too: with BPF on, a limit of 10 MiB
// made it collect four times a second (12 millicores in the lab), 16 MiB never.
const softMemory = 16 << 20

// heapGrowth is by how many per cent the heap grows before it is collected, unless
// GOGC says otherwise: the agent makes a megabyte of garbage in a minute, so less
// than half of Go's default costs it 0.03 millicores and saves 2 MB.
const heapGrowth = 40

// settled is how long after the start every probe has looked.
const settled = 20 * time.Second

// runFlags are the flags of run.
type runFlags struct {
	root, config, node, pod, stateDir, logFormat, logLevel, bpf string
	listen                                                      addresses
	writes                                                      []string // folders that the agent goes on to write
}

// addresses is a flag that may be given several times.
type addresses []string

// String implements [flag.Value].
func (a *addresses) String() string { return strings.Join(*a, ",") }

// Set implements [flag.Value]. An IPv6 address may go without its brackets, as
// the downward API writes it.
func (a *addresses) Set(s string) error {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return errors.New("want ADDRESS:PORT")
	}
	*a = append(*a, net.JoinHostPort(strings.Trim(s[:i], "[]"), s[i+1:]))
	return nil
}

// withLoopback adds the loopback address with the same port: the page and the
// document are served there alone.
func (a addresses) withLoopback() []string {
	if len(a) == 0 {
		return []string{"127.0.0.1:20258"}
	}
	all := slices.Clone(a)
	for _, addr := range a {
		name, port, err := net.SplitHostPort(addr)
		ip := net.ParseIP(name)
		if err != nil || port == "0" || ip == nil || ip.IsUnspecified() || ip.IsLoopback() {
			continue
		}
		if local := net.JoinHostPort("127.0.0.1", port); !slices.Contains(all, local) {
			all = append(all, local)
		}
	}
	return all
}

func (c *cli) runFlags(args []string) (*runFlags, error) {
	set, root, conf := c.flags("run")
	f := &runFlags{pod: c.env("POD_NAME")}
	set.StringVar(&f.node, "node-name", c.nodeName(), "name of the Node object; also from NODE_NAME")
	set.StringVar(&f.stateDir, "state-dir", stateDir, "folder on a tmpfs of the host: memory across restarts, and the instance lock")
	set.StringVar(&f.logFormat, "log-format", "json", "json or text")
	set.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	set.StringVar(&f.bpf, "bpf", flagOn, "on, as far as the configuration and the node allow, or off: who did what is then not known, and nothing else changes")
	set.Var(&f.listen, "listen", "ADDRESS:PORT for metrics and health; may be repeated; loopback always serves them, the page and /api/v1 (default 127.0.0.1:20258)")
	rest, err := parse(set, args)
	if err != nil {
		return nil, err
	}
	if f.bpf != flagOn && f.bpf != flagOff {
		return nil, usagef("-bpf is %q, want on or off", f.bpf)
	}
	f.root, f.config = *root, *conf
	return f, noArguments(rest)
}

// What a switch on the command line is set to.
const flagOn, flagOff = "on", "off"

func (c *cli) logger(f *runFlags) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return nil, usagef("-log-level is %q, want debug, info, warn or error", f.logLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch f.logFormat {
	case "json":
		return slog.New(slog.NewJSONHandler(c.err, options)), nil
	case "text":
		return slog.New(slog.NewTextHandler(c.err, options)), nil
	}
	return nil, usagef("-log-format is %q, want json or text", f.logFormat)
}

// run is the agent.
func run(ctx context.Context, c *cli, args []string) (int, error) {
	f, err := c.runFlags(args)
	if err != nil {
		return 0, err
	}
	log, err := c.logger(f)
	if err != nil {
		return 0, err
	}
	cfg, err := loadConfig(f.config)
	if err != nil {
		return 0, usageError{err}
	}
	if c.env("GOGC") == "" {
		debug.SetGCPercent(heapGrowth)
	}
	if c.env("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemory)
	}
	if c.env("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1) // looks are short and mostly wait: more processors would wake each other for nothing
	}
	node, err := host.Open(f.root)
	if err != nil {
		return 0, err
	}
	defer node.Close()
	release, err := lockState(ctx, f.stateDir, log)
	if ctx.Err() != nil {
		return exitClean, nil
	}
	if err != nil {
		log.Warn("no folder to remember in; a restart forgets holds and actors", "error", err)
	} else {
		defer release()
		f.writes = []string{f.stateDir}
	}
	d, err := newDaemon(f, cfg, node, log)
	if err != nil {
		return 0, err
	}
	return exitClean, d.run(ctx)
}

// A daemon is the agent with everything around it.
type daemon struct {
	flags   *runFlags
	node    *host.Node
	log     *slog.Logger
	boot    host.Boot
	agent   *agent.Agent
	trace   *bpf.Tracer
	metrics *metrics.Metrics
	web     *web.Server
	api     *apiServer
	config  string // the text of the configuration in place
	keep    []capability
	locked  atomic.Pointer[locks] // nil: not yet
}

func newDaemon(f *runFlags, cfg *config, node *host.Node, log *slog.Logger) (*daemon, error) {
	d := &daemon{flags: f, node: node, log: log, config: cfg.text}
	d.api = &apiServer{daemon: d, modes: make(chan string, 1)}
	d.api.modes <- cfg.Mode
	node.API = d.api
	var err error
	if d.boot, err = node.Boot(); err != nil {
		return nil, fmt.Errorf("tell this boot from others: %w", err)
	}
	d.metrics = metrics.New(metrics.Config{Source: d.snapshot, API: d.api, Locks: d.locks, Node: f.node, Kernel: node.Kernel.Release, Version: version, Revision: revision()})
	d.trace = newTracer(cfg, f, node, log)
	d.keep = needs(cfg)
	d.agent = agent.New(agent.Config{
		Node: f.node, Log: log, Boot: d.boot.ID, Mono: host.Monotonic, Probes: enabled(cfg, node, d.trace), Rules: cfg.rules(),
		Publishers: []agent.Publisher{d.metrics, d}, Memory: memoryFile{f.stateDir}, Lifecycle: &lifecycle{node: node}, Journal: journal{d.trace}, Strain: strain{host.NewStrainGauge()}, Beats: every(agent.Beat),
	})
	d.web, err = web.New(web.Config{Listen: f.listen.withLoopback(), Source: d.snapshot, Metrics: d.metrics.Handler(),
		Self: func() any { return d.self() }, Alive: d.alive, Ready: d.agent.Ready, Version: version, Log: log})
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (d *daemon) snapshot() agent.Snapshot { return d.agent.Snapshot() }

func (d *daemon) alive() error { return errors.Join(d.agent.Alive(), d.api.alive()) }

// Publish implements [agent.Publisher]: it passes on to the API server.
func (d *daemon) Publish(happened []agent.Happening) { d.api.publish(happened) }

// run runs all parts until ctx ends or one of them fails.
func (d *daemon) run(ctx context.Context) error {
	stop := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(stop))
	defer cancel(nil)
	defer context.AfterFunc(stop, func() {
		d.agent.Leave(ctx)
		cancel(nil)
	})()
	d.log.Info("looking", "node", d.flags.node, "root", d.flags.root, "version", version, "boot", d.boot.ID, "listen", d.flags.listen.withLoopback())
	var parts sync.WaitGroup
	start := func(part func(context.Context) error) {
		parts.Go(func() {
			if err := part(ctx); err != nil {
				cancel(err)
			}
		})
	}
	start(d.trace.Run)
	d.lock() // before anything of the node is looked at: what hangs there would hold the lock up
	for _, part := range []func(context.Context) error{d.agent.Run, d.web.Run, d.api.run, d.followConfig} {
		start(part)
	}
	defer time.AfterFunc(settled, giveBack).Stop()
	parts.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	d.log.Info("leaving; conditions stay as they are")
	return nil
}

// followConfig puts the configuration in place again when its file changes. A
// file that is wrong changes nothing.
func (d *daemon) followConfig(ctx context.Context) error {
	if d.flags.config == "" {
		return nil
	}
	name, err := filepath.Abs(d.flags.config)
	if err != nil {
		return err
	}
	files, err := host.OpenRoot("/")
	if err != nil {
		return err
	}
	defer files.Close()
	changed := make(changes, 1)
	go func() {
		for range changed {
			d.reload(ctx)
		}
	}()
	defer close(changed)
	for ctx.Err() == nil {
		if err := files.Watch(ctx, changed, strings.TrimPrefix(name, "/")); err != nil {
			d.log.Warn("cannot listen for a new configuration", "error", err)
			pause(ctx)
		}
	}
	return nil
}

// reload reads the configuration and puts it in place.
func (d *daemon) reload(ctx context.Context) {
	cfg, err := loadConfig(d.flags.config)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		d.metrics.Reloaded(err)
		d.log.Error("the new configuration is wrong; the last good one stays", "error", err)
		return
	}
	if cfg.text == d.config {
		return
	}
	d.config = cfg.text
	d.metrics.Reloaded(nil)
	d.agent.Reconfigure(ctx, cfg.rules(), enabled(cfg, d.node, d.trace))
	d.api.setMode(cfg.Mode)
	d.log.Info("configuration in place", "file", d.flags.config)
}
