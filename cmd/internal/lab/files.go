package lab

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"text/template"

	"golang.org/x/sys/unix"
)

// nodeFiles are laid over a node's root file system. Each is a template over nodeFacts.
//
//go:embed files
var nodeFiles embed.FS

type nodeFacts struct {
	Name, IP, PodSubnet, TimeServer, Network, PauseImage string
}

// Units that a node starts, and units of Debian's that have nothing to do on one.
var (
	enabled = []string{"cgroup-writable", "images", "kubelet", "kube-proxy"}
	masked  = []string{"getty@tty1.service", "console-getty.service", "e2scrub_reap.service", "systemd-pstore.service",
		"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer", "chrony-wait.service"}
)

// prepare makes the node's network and disk: an overlay over the common root, with what makes it this node.
func (n *Node) prepare(ctx context.Context, a *authority) error {
	if err := n.lab.addNodeNetns(ctx, n); err != nil {
		return err
	}
	if err := n.mountRoot(); err != nil {
		return err
	}
	if err := a.user(n.name, "system:node:"+n.name, "system:nodes", n.name, n.ip()); err != nil {
		return err
	}
	if err := renderFiles(nodeFiles, n.Root(), n.facts()); err != nil {
		return fmt.Errorf("write the files of %s: %w", n.name, err)
	}
	if err := n.copyFiles(); err != nil {
		return fmt.Errorf("copy the files of %s: %w", n.name, err)
	}
	if err := n.chooseUnits(); err != nil {
		return fmt.Errorf("enable the units of %s: %w", n.name, err)
	}
	if n.lab.config.Prepare == nil {
		return nil
	}
	if err := n.lab.config.Prepare(n.name, n.Root()); err != nil {
		return fmt.Errorf("prepare %s: %w", n.name, err)
	}
	return nil
}

func (n *Node) facts() nodeFacts {
	return nodeFacts{Name: n.name, IP: n.ip(), PodSubnet: podSubnet(n.index), TimeServer: controlIP, Network: network, PauseImage: PauseImage}
}

func (n *Node) mountRoot() error {
	for _, d := range []string{"root", "upper", "work", "containerd"} {
		if err := os.MkdirAll(filepath.Join(n.dir(), d), 0o755); err != nil {
			return fmt.Errorf("make the disk of %s: %w", n.name, err)
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%[2]s/work", n.lab.config.Dirs.root(), n.dir())
	if err := unix.Mount("overlay", n.Root(), "overlay", 0, layers); err != nil {
		return fmt.Errorf("mount the disk of %s: %w", n.name, err)
	}
	return nil
}

func renderFiles(from fs.FS, root string, facts nodeFacts) error {
	from, err := fs.Sub(from, "files")
	if err != nil {
		return err
	}
	return fs.WalkDir(from, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(root, p)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		text, err := fs.ReadFile(from, p)
		if err != nil {
			return err
		}
		t, err := template.New(p).Option("missingkey=error").Parse(string(text))
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := t.Execute(&out, facts); err != nil {
			return err
		}
		_ = os.Remove(to) // not through a link: the disk below may have one
		return os.WriteFile(to, out.Bytes(), 0o644)
	})
}

// copyFiles brings what was built, and the node's credentials.
func (n *Node) copyFiles() error {
	config, err := kubeletConfig(n.lab.config.Kubelet)
	if err != nil {
		return err
	}
	l, d := n.lab, n.lab.config.Dirs
	for _, f := range []struct {
		from, to string
		mode     os.FileMode
	}{
		{l.bin("kubelet"), "usr/local/bin/kubelet", 0o755},
		{l.bin("kube-proxy"), "usr/local/bin/kube-proxy", 0o755},
		{d.pauseTar(), "var/lib/images/pause.tar", 0o644},
		{d.ToolboxTar(), "var/lib/images/toolbox.tar", 0o644},
		{l.pki("ca.crt"), "etc/kubernetes/ca.crt", 0o644},
		{l.pki(n.name + ".conf"), "var/lib/kubelet/kubeconfig", 0o600},
		// What kubelet serves with; the API server verifies it.
		{l.pki(n.name + ".crt"), "var/lib/kubelet/pki/kubelet.crt", 0o644},
		{l.pki(n.name + ".key"), "var/lib/kubelet/pki/kubelet.key", 0o600},
		{l.pki("kube-proxy.conf"), "var/lib/kube-proxy/kubeconfig", 0o600},
	} {
		if err := copyFile(f.from, filepath.Join(n.Root(), f.to), f.mode); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(n.Root(), "var/lib/kubelet/config.json"), config, 0o644)
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

func (n *Node) chooseUnits() error {
	units := filepath.Join(n.Root(), "etc/systemd/system")
	wants := filepath.Join(units, "multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	for _, u := range enabled {
		if err := os.Symlink("../"+u+".service", filepath.Join(wants, u+".service")); err != nil {
			return err
		}
	}
	for _, u := range masked {
		if err := os.Symlink("/dev/null", filepath.Join(units, u)); err != nil {
			return err
		}
	}
	return nil
}

// kubeletConfig is what differs from the kubelet's defaults, with the caller's fields laid over it.
func kubeletConfig(over map[string]any) ([]byte, error) {
	type fields = map[string]any
	c := fields{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"failCgroupV1": false, "failSwapOn": false, // whatever the machine has
		"cgroupDriver":             "systemd",
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"authentication": fields{"anonymous": fields{"enabled": false}, "webhook": fields{"enabled": true},
			"x509": fields{"clientCAFile": "/etc/kubernetes/ca.crt"}},
		"authorization": fields{"mode": "Webhook"},
		"clusterDNS":    []string{"10.0.0.10"}, "clusterDomain": "cluster.local",
		"localStorageCapacityIsolation": false, // an overlay is not a device whose use could be told
		// A test breaks pods on purpose and waits for their return. Its gate, KubeletCrashLoopBackOffMax, is on since 1.35.
		"crashLoopBackOff": fields{"maxContainerRestartPeriod": "2s"},
		// Nothing could be pulled again, and a developer's disk may be nearly full.
		"imageGCHighThresholdPercent": 100,
		"evictionHard":                fields{"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
	}
	maps.Copy(c, over)
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("make the kubelet's configuration: %w", err)
	}
	return b, nil
}
