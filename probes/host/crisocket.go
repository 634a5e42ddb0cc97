package host

import (
	"context"
	"io/fs"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// DefaultCRISocket is where containerd listens unless it is told otherwise.
const DefaultCRISocket = "run/containerd/containerd.sock"

// seekEvery is how often it is seen to that the socket is still there, and another one
// sought when it is not.
const seekEvery = 30 * time.Second

// criSocket is what is known of where the runtime listens.
type criSocket struct {
	told  string // by the configuration; "" if not
	found string
	at    time.Time // when it was sought last
}

// Listen says where the runtime listens, "/run/containerd/containerd.sock" or
// with "unix://" before it; "" lets it be found.
func (c *CRI) Listen(endpoint string) {
	if c == nil {
		return
	}
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	c.where.told, _ = unixSocket(endpoint)
}

// Socket is where the runtime listens, as far as is known: a path of the node.
func (c *CRI) Socket(ctx context.Context) string {
	if c == nil {
		return "/" + DefaultCRISocket
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
		return "/" + c.socket(ctx)
	case <-ctx.Done():
		return "/" + DefaultCRISocket
	}
}

// socket finds where the runtime listens: where kubelet looks for it, or, where
// kubelet does not say, the first socket that is there of those that crictl's
// and containerd's own configuration name. What was found is kept while it is there.
func (c *CRI) socket(ctx context.Context) string {
	w := &c.where
	if w.told != "" {
		return w.told
	}
	if w.found != "" && time.Since(w.at) < seekEvery {
		return w.found
	}
	w.at = time.Now()
	if w.found != "" && c.listensAt(w.found) {
		return w.found
	}
	if name, ok := c.kubeletSocket(ctx); ok {
		w.found = name
		return name
	}
	candidates := c.namedSockets()
	for _, name := range candidates {
		if c.listensAt(name) {
			w.found = name
			return name
		}
	}
	if w.found == "" {
		w.found = candidates[0]
	}
	return w.found
}

func (c *CRI) listensAt(name string) bool {
	info, err := c.root.Stat(name)
	return err == nil && info.Mode().Type() == fs.ModeSocket
}

// kubeletSocket asks kubelet's arguments and its configuration.
func (c *CRI) kubeletSocket(ctx context.Context) (string, bool) {
	for process, err := range c.procs.List() {
		if err != nil || ctx.Err() != nil {
			return "", false
		}
		if comm, err := process.Comm(); err != nil || comm != "kubelet" {
			continue
		}
		args, err := process.Cmdline()
		if err != nil {
			continue
		}
		if name, ok := unixSocket(flagOf(args, "container-runtime-endpoint")); ok {
			return name, true
		}
		config, err := c.root.ReadFile(inRoot(flagOf(args, "config")))
		if err != nil {
			continue
		}
		if name, ok := unixSocket(keyOf(string(config), kubeletEndpoint)); ok {
			return name, true
		}
	}
	return "", false
}

// Where the endpoint stands in kubelet's configuration, which is YAML or JSON,
// and in crictl's.
var (
	kubeletEndpoint = regexp.MustCompile(`(?m)(?:^|[{,\s])"?containerRuntimeEndpoint"?\s*:\s*["']?([^"',}\s]+)`)
	crictlEndpoint  = regexp.MustCompile(`(?m)^\s*"?runtime-endpoint"?\s*:\s*["']?([^"'\s]+)`)
)

func keyOf(text string, key *regexp.Regexp) string {
	if m := key.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

// namedSockets are those that configurations name, and the usual one.
func (c *CRI) namedSockets() (names []string) {
	if b, err := c.root.ReadFile("etc/containerd/config.toml"); err == nil {
		var config struct {
			GRPC struct {
				Address string `toml:"address"`
			} `toml:"grpc"`
		}
		_ = toml.Unmarshal(b, &config) // what is broken says nothing
		if name, ok := unixSocket(config.GRPC.Address); ok {
			names = append(names, name)
		}
	}
	if b, err := c.root.ReadFile("etc/crictl.yaml"); err == nil {
		if name, ok := unixSocket(keyOf(string(b), crictlEndpoint)); ok {
			names = append(names, name)
		}
	}
	return append(names, DefaultCRISocket)
}

// unixSocket is the path in the root of an endpoint such as
// "unix:///run/containerd/containerd.sock"; not ok for what is no unix socket.
func unixSocket(endpoint string) (name string, ok bool) {
	endpoint = strings.TrimPrefix(strings.TrimPrefix(endpoint, "unix://"), "unix:")
	if !strings.HasPrefix(endpoint, "/") {
		return "", false
	}
	name = inRoot(endpoint)
	return name, fs.ValidPath(name) && name != "."
}

// inRoot is a path of the node as package fs wants it.
func inRoot(name string) string {
	if name = strings.TrimPrefix(path.Clean("/"+name), "/"); name == "" {
		return "."
	}
	return name
}

// flagOf finds the value of a flag in arguments, "--name=value" or "--name value".
func flagOf(args []string, name string) string {
	for i, arg := range args {
		arg = strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		if value, ok := strings.CutPrefix(arg, name+"="); ok && args[i] != arg {
			return value
		}
		if arg == name && args[i] != arg && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}
