package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hostPackages are what the lab runs on this machine; buildah is for the tests, which build the agent's own image.
var hostPackages = []string{"debootstrap", "systemd-container", "dbus", "iproute2", "iptables", "chrony", "buildah", "util-linux"}

// nodePackages are what a node consists of, besides Kubernetes.
var nodePackages = []string{
	"systemd", "systemd-sysv", "dbus", "chrony", "containerd", "runc", "containernetworking-plugins", "iproute2", "iptables", "ebtables",
	"conntrack", "procps", "ca-certificates", "kmod", "util-linux", "ethtool", "curl",
}

var kubePrograms = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "kube-proxy"}

// Deps installs the Debian packages that the lab runs on this machine.
func Deps(ctx context.Context, log io.Writer) error {
	for _, args := range [][]string{{"update", "-q"}, append([]string{"install", "-q", "-y", "--no-install-recommends"}, hostPackages...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("apt-get %s: %w", args[0], err)
		}
	}
	return nil
}

// Build makes what all labs share and is not there yet: the Kubernetes and etcd programs (6 to 8 minutes on 2 cores the
// first time), the nodes' root file system (about a minute), the pause image and the toolbox image.
func Build(ctx context.Context, d Dirs, log io.Writer) error {
	d, err := d.resolve()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(d.Base, "cache"), 0o755); err != nil {
		return fmt.Errorf("make the cache folder: %w", err)
	}
	unlock, err := waitLock(ctx, filepath.Join(d.Base, "cache", "lock")) // two builds at once would spoil each other
	if err != nil {
		return err
	}
	defer unlock()
	if err := buildKube(ctx, d, say(log, "build")); err != nil {
		return err
	}
	if err := buildRoot(ctx, d, say(log, "build")); err != nil {
		return err
	}
	return buildImages(ctx, d, say(log, "build"))
}

// built tells whether Build has nothing to do; the images depend on source code, so only Build itself compares them.
func (d Dirs) built() bool {
	for _, f := range []string{d.bin(), d.root(), d.pauseTar(), d.ToolboxTar()} {
		if _, err := os.Stat(f); err != nil {
			return false
		}
	}
	return true
}

// appear makes the folder at path whole or not at all: it is filled under another name first.
func appear(path string, fill func(dir string) error) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	half := path + ".half"
	if err := os.RemoveAll(half); err != nil {
		return fmt.Errorf("remove a half-built folder: %w", err)
	}
	if err := os.MkdirAll(half, 0o755); err != nil {
		return fmt.Errorf("make a folder to build in: %w", err)
	}
	if err := fill(half); err != nil {
		return err
	}
	return os.Rename(half, path)
}

func buildKube(ctx context.Context, d Dirs, log logf) error {
	return appear(d.bin(), func(dir string) error {
		src, err := d.source(ctx)
		if err != nil {
			return err
		}
		kube := filepath.Join(src, "cmd", "nodelab", "kube")
		log("downloading the modules of Kubernetes %s", kubeVersion)
		if err := retry(ctx, 8, func() error { return goTool(ctx, kube, "mod", "download") }); err != nil {
			return fmt.Errorf("download the Kubernetes modules: %w", err)
		}
		log("building Kubernetes %s and etcd %s: 6 to 8 minutes on 2 cores, once", kubeVersion, etcdVersion)
		// A build outside the Kubernetes repository has to be told its version: kubelet and API server compare theirs.
		const v = "-X k8s.io/component-base/version."
		args := []string{"build", "-trimpath", "-ldflags",
			"-s -w " + v + "gitVersion=" + kubeVersion + " " + v + "gitMajor=1 " + v + "gitMinor=36", "-o", dir + "/"}
		for _, p := range kubePrograms {
			args = append(args, "k8s.io/kubernetes/cmd/"+p)
		}
		if err := goTool(ctx, kube, append(args, "go.etcd.io/etcd/server/v3")...); err != nil {
			return fmt.Errorf("build Kubernetes: %w", err)
		}
		return os.Rename(filepath.Join(dir, "server"), filepath.Join(dir, "etcd"))
	})
}

func buildRoot(ctx context.Context, d Dirs, log logf) error {
	return appear(d.root(), func(dir string) error {
		mirror, err := debianMirror("/etc/apt")
		if err != nil {
			return err
		}
		log("building the nodes' root file system: about a minute, once")
		out, err := os.Create(d.root() + ".log")
		if err != nil {
			return fmt.Errorf("make a log of debootstrap: %w", err)
		}
		defer out.Close()
		cmd := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include="+strings.Join(nodePackages, ","), debian, dir, mirror)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("debootstrap (%s): %w: %s", out.Name(), err, tail(out.Name(), 5))
		}
		// Each node gets an identity of its own at its first boot (machine-id(5)).
		return os.WriteFile(filepath.Join(dir, "etc/machine-id"), nil, 0o444)
	})
}

// debianMirror is the one this machine installs from: sources.list(5), either format.
func debianMirror(apt string) (string, error) {
	files, _ := filepath.Glob(filepath.Join(apt, "sources.list.d", "*"))
	for _, f := range append(files, filepath.Join(apt, "sources.list")) {
		b, err := os.Open(f)
		if err != nil {
			continue
		}
		m := parseMirror(b)
		b.Close()
		if m != "" {
			return m, nil
		}
	}
	return "", errors.New("no Debian mirror in /etc/apt/sources.list or /etc/apt/sources.list.d")
}

func parseMirror(r io.Reader) string {
	for s := bufio.NewScanner(r); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) == 0 || f[0] != "deb" && f[0] != "URIs:" {
			continue
		}
		for _, w := range f[1:] {
			if strings.Contains(w, "://") && strings.HasSuffix(strings.TrimSuffix(w, "/"), "/debian") {
				return w
			}
		}
	}
	return ""
}

// goTool runs the go command without cgo and at low priority: a build must not disturb what else runs here.
func goTool(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("go %s: %w", args[0], err)
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, 10)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go %s: %w: %s", args[0], err, lastLines(out.String(), 10))
	}
	return nil
}

// retry is for module downloads: a proxy under load answers 503 now and then, and what was downloaded is kept.
func retry(ctx context.Context, times int, do func() error) error {
	for i := 1; ; i++ {
		err := do()
		if err == nil || i == times || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(i) * 2 * time.Second):
		}
	}
}
