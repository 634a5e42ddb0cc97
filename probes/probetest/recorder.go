package probetest

import (
	"context"
	"io/fs"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/nodedrift/nodedrift/probes/host"
)

// Recorder wraps a node's root and returns what tells, sorted, the paths that
// were opened, described, listed or watched through it.
func Recorder(files host.Files) (host.Files, func() []string) {
	r := &recorder{Files: files}
	return r, r.all
}

// paths remembers paths; many goroutines may add some.
type paths struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (p *paths) add(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil {
		p.seen = map[string]bool{}
	}
	for _, name := range names {
		p.seen[name] = true
	}
}

func (p *paths) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.seen))
}

type recorder struct {
	host.Files
	paths
}

func (r *recorder) Open(name string) (fs.File, error) {
	r.add(name)
	return r.Files.Open(name)
}

func (r *recorder) ReadFile(name string) ([]byte, error) {
	r.add(name)
	return r.Files.ReadFile(name)
}

func (r *recorder) ReadDir(name string) ([]fs.DirEntry, error) {
	r.add(name)
	return r.Files.ReadDir(name)
}

func (r *recorder) Stat(name string) (fs.FileInfo, error) {
	r.add(name)
	return r.Files.Stat(name)
}

func (r *recorder) Lstat(name string) (fs.FileInfo, error) {
	r.add(name)
	return r.Files.Lstat(name)
}

func (r *recorder) ReadLink(name string) (string, error) {
	r.add(name)
	return r.Files.ReadLink(name)
}

func (r *recorder) Dial(ctx context.Context, name string) (net.Conn, error) {
	r.add(name)
	return (&host.Node{Root: r.Files}).Dial(ctx, name)
}

func (r *recorder) Watch(ctx context.Context, l host.Listener, names ...string) error {
	r.add(names...)
	return r.Files.Watch(ctx, l, names...)
}

// sysctlRecorder does the same for sysctls, as proc/sys/KEY.
type sysctlRecorder struct {
	host.Sysctls
	*paths
}

func (r *sysctlRecorder) Read(key string, buf []byte) ([]byte, error) {
	r.add("proc/sys/" + key)
	return r.Sysctls.Read(key, buf)
}
