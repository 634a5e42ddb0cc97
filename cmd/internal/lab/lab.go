package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Config says what lab to start. The zero value is a lab of one node named "lab".
type Config struct {
	Name  string // "": lab. At most 16 letters, digits and hyphens
	Nodes int    // 0: one. They are called node0, node1, ...
	Dirs  Dirs
	Log   io.Writer // short lines of progress; nil: none

	// Detach gives the lab away once it is up: it goes on after this process until somebody calls Down.
	Detach bool
	// Kubelet is laid over the lab's KubeletConfiguration (kubelet.config.k8s.io/v1beta1), field by field at the top level.
	Kubelet map[string]any
	// APIServer has more flags for kube-apiserver.
	APIServer []string
	// Prepare may change a node's files before its first boot.
	Prepare func(node, root string) error
}

// Lab is a running lab. Its methods may be called from several goroutines.
type Lab struct {
	config Config
	dir    string
	log    logf
	unlock func()
	client *http.Client
	nodes  []*Node

	mu    sync.Mutex // guards state.Running and the state file
	state state
}

// upTimeout is several times what the slowest start took on 2 busy cores.
const upTimeout = 3 * time.Minute

var errTooLong = fmt.Errorf("not there after %s", upTimeout)

// Up starts a lab and returns when its nodes are Ready; it builds what is missing first. What an earlier lab of that name
// left behind is removed, but a lab that is still in use is an error. When Up fails, also by the end of ctx, nothing is left
// but logs, which the error names.
func Up(ctx context.Context, c Config) (*Lab, error) {
	if c.Name == "" {
		c.Name = "lab"
	}
	if err := checkName(c.Name); err != nil {
		return nil, err
	}
	c.Nodes = max(c.Nodes, 1)
	var err error
	if c.Dirs, err = c.Dirs.resolve(); err != nil {
		return nil, err
	}
	if os.Getuid() != 0 {
		return nil, errors.New("a lab needs root")
	}
	if !c.Dirs.built() {
		if err := Build(ctx, c.Dirs, c.Log); err != nil {
			return nil, err
		}
	}
	unlock, err := lockLab(c.Name)
	if err != nil {
		return nil, err
	}
	l, err := up(ctx, c)
	if err != nil {
		unlock()
		return nil, err
	}
	if c.Detach {
		unlock()
		return l, nil
	}
	l.unlock = unlock
	return l, nil
}

// up works under the lab's lock.
func up(ctx context.Context, c Config) (*Lab, error) {
	log := say(c.Log, c.Name)
	if err := sweepBefore(ctx, c.Name, log); err != nil {
		return nil, err
	}
	l, err := newLab(c, log)
	if err != nil {
		return nil, err
	}
	timed, cancel := context.WithTimeoutCause(ctx, upTimeout, errTooLong)
	defer cancel()
	if err := l.boot(timed); err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			err = fmt.Errorf("bring up lab %s: %w", c.Name, context.Cause(ctx)) // nothing is wrong with the lab
		} else {
			err = errors.Join(err, l.keepLogs())
		}
		// What ended ctx must not end the cleaning.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		log("removing what was started")
		return nil, errors.Join(err, sweep(ctx, l.state))
	}
	return l, nil
}

// sweepBefore removes a former lab of the name, unless it is alive and was given away.
func sweepBefore(ctx context.Context, lab string, log logf) error {
	old, err := loadState(lab)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !old.abandoned() {
		return fmt.Errorf("lab %s is up already; take it down first", lab)
	}
	log("removing what an earlier run left behind")
	return sweep(ctx, old)
}

// newLab writes down what the lab will have, after making sure that nobody else has it.
func newLab(c Config, log logf) (*Lab, error) {
	groups, err := ownCgroups(c.Name)
	if err != nil {
		return nil, err
	}
	l := &Lab{config: c, dir: c.Dirs.run(c.Name), log: log}
	l.state = state{Name: c.Name, Dir: l.dir, Bin: c.Dirs.bin(), Boot: bootID(), Owner: self(), Detach: c.Detach, Nodes: c.Nodes,
		Cgroups: groups, APIServer: c.APIServer, Running: map[string]process{}}
	for _, n := range l.state.netns() {
		if _, err := os.Lstat(netnsPath(n)); err == nil {
			return nil, fmt.Errorf("network namespace %s exists and is not this lab's: choose another name", n)
		}
	}
	if err := sweepFiles(l.dir); err != nil { // left by a former boot of the machine
		return nil, err
	}
	if err := l.state.save(); err != nil {
		return nil, err
	}
	l.addNodes()
	return l, nil
}

func (l *Lab) addNodes() {
	for i := range l.state.Nodes {
		l.nodes = append(l.nodes, &Node{lab: l, name: nodeName(i), index: i})
	}
}

func (l *Lab) boot(ctx context.Context) error {
	begin := time.Now()
	for _, d := range []string{"logs", "pki", "etcd", "chrony"} {
		if err := os.MkdirAll(filepath.Join(l.dir, d), 0o700); err != nil {
			return fmt.Errorf("make the lab's folder: %w", err)
		}
	}
	l.log("starting the control plane")
	a, err := l.startControlPlane(ctx)
	if err != nil {
		return err
	}
	if l.client, err = l.newClient(); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if err := n.prepare(ctx, a); err != nil {
			return err
		}
	}
	if err := l.apiReady(ctx); err != nil {
		return err
	}
	l.log("API server ready after %.1f s; booting %d node(s)", time.Since(begin).Seconds(), len(l.nodes))
	if err := l.startControllers(); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if err := n.boot(); err != nil {
			return err
		}
	}
	for _, n := range l.nodes {
		if err := n.ready(ctx, time.Time{}); err != nil {
			return err
		}
	}
	if err := l.usable(ctx); err != nil {
		return err
	}
	l.log("up after %.1f s", time.Since(begin).Seconds())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Up = true
	return l.state.save()
}

// Open returns a lab that another process brought up.
func Open(name string) (*Lab, error) {
	s, err := loadState(name)
	if err != nil {
		return nil, err
	}
	if s.Boot != bootID() {
		return nil, fmt.Errorf("lab %s ended with the machine's last boot", name)
	}
	if !s.Up {
		return nil, fmt.Errorf("lab %s is not up", name)
	}
	l := &Lab{config: Config{Name: name, Detach: s.Detach, Nodes: s.Nodes}, dir: s.Dir, log: say(nil, name), state: s}
	l.addNodes()
	l.client, err = l.newClient()
	return l, err
}

// Down removes the lab and all it has on the machine, at once and without ceremony: its files are thrown away anyway.
func (l *Lab) Down(ctx context.Context) error {
	if l.unlock == nil {
		return Down(ctx, l.state.Name)
	}
	l.client.CloseIdleConnections()
	err := sweep(ctx, l.state)
	l.unlock()
	l.unlock = nil
	return err
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.state.Name }

// Nodes are the lab's nodes, by index.
func (l *Lab) Nodes() []*Node { return l.nodes }

// Node is the node of a name, nil if there is none.
func (l *Lab) Node(name string) *Node {
	for _, n := range l.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (l *Lab) bin(program string) string { return filepath.Join(l.state.Bin, program) }

func (l *Lab) remember(name string, p process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Running[name] = p
	return l.state.save()
}

// process is what was last started under a name, possibly by another process.
func (l *Lab) process(name string) process {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, err := loadState(l.state.Name); err == nil {
		l.state.Running = s.Running
	}
	return l.state.Running[name]
}
