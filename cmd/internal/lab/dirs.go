package lab

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	kubeVersion = "v1.36.3" // of k8s.io/kubernetes in cmd/nodelab/kube/go.mod
	etcdVersion = "v3.6.8"  // of go.etcd.io/etcd/server/v3 there
	debian      = "bookworm"
	module      = "github.com/nodedrift/nodedrift"
)

// Dirs says where the lab keeps its files.
type Dirs struct {
	Base   string // built parts, shared by all labs, and the folder of each running lab
	Source string // a checkout of nodedrift; only Build reads it. "": the one around the working directory
}

// DefaultDirs honours NODELAB_DIR; without it, files go to /var/tmp, because an overlay needs a real disk below it.
func DefaultDirs() Dirs {
	if d := os.Getenv("NODELAB_DIR"); d != "" {
		return Dirs{Base: d}
	}
	return Dirs{Base: "/var/tmp/nodedrift-lab"}
}

// Each built part is kept under a name made of what it was built from, so another version is another part.

func (d Dirs) bin() string {
	return filepath.Join(d.Base, "cache", "kube-"+kubeVersion+"-etcd-"+etcdVersion)
}

func (d Dirs) root() string {
	sum := sha256.Sum256([]byte(debian + strings.Join(nodePackages, ",")))
	return filepath.Join(d.Base, "cache", fmt.Sprintf("root-%s-%x", debian, sum[:4]))
}

func (d Dirs) run(lab string) string    { return filepath.Join(d.Base, "run", lab) }
func (d Dirs) failed(lab string) string { return filepath.Join(d.Base, "failed", lab) }

// resolve makes both folders absolute, so that they can be compared with mount points.
func (d Dirs) resolve() (Dirs, error) {
	if d.Base == "" {
		d.Base = DefaultDirs().Base
	}
	if err := os.MkdirAll(d.Base, 0o755); err != nil {
		return d, fmt.Errorf("make the lab's folder: %w", err)
	}
	abs, err := filepath.Abs(d.Base)
	if err != nil {
		return d, fmt.Errorf("find the lab's folder: %w", err)
	}
	if d.Base, err = filepath.EvalSymlinks(abs); err != nil {
		return d, fmt.Errorf("find the lab's folder: %w", err)
	}
	return d, nil
}

// source finds the checkout.
func (d Dirs) source(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = d.Source
	out, err := cmd.Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		return "", fmt.Errorf("find the source of %s (run inside a checkout): %w", module, withStderr(err))
	}
	return dir, nil
}
