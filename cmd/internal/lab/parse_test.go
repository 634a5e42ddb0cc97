package lab

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	const rest = " S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 39516"
	for _, name := range []string{"(systemd)", "(a b)", "(x) S 9 (y)"} {
		start, state, err := parseStat("12 " + name + rest)
		if err != nil || start != 4711 || state != 'S' {
			t.Errorf("%s: start %d, state %c, error %v", name, start, state, err)
		}
	}
	if _, _, err := parseStat("12 (cut off) S 1"); err == nil {
		t.Error("a short line is no error")
	}
}

func TestProcessAlive(t *testing.T) {
	t.Parallel()
	if p := self(); !p.alive() {
		t.Errorf("%+v is this process, but not alive", p)
	}
	other := self()
	other.Start++
	if other.alive() || (process{}).alive() {
		t.Error("another process of the same pid, or none, is alive")
	}
}

func TestParseCgroups(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mounts, own string
		want        cgroups
	}{
		"hybrid": {
			"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n" +
				"35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n" +
				"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"9:name=systemd:/\n4:memory:/box/411f\n0::/\n",
			cgroups{{"/sys/fs/cgroup/memory/box/411f/nodelab-x", false}, {"/sys/fs/cgroup/systemd/nodelab-x", false}, {"/sys/fs/cgroup/unified/nodelab-x", true}},
		},
		"v1 joined, in another order": {
			"33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpuacct,cpu\n",
			"3:cpu,cpuacct:/a\n2:cpuset:/\n",
			cgroups{{"/sys/fs/cgroup/cpu,cpuacct/a/nodelab-x", false}},
		},
		"v2": {
			"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
			"0::/user.slice/session-1.scope\n",
			cgroups{{"/sys/fs/cgroup/nodelab-x", true}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parseCgroups(strings.NewReader(c.mounts), strings.NewReader(c.own), "nodelab-x")
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("got %v, %v; want %v", got, err, c.want)
			}
		})
	}
	if _, err := parseCgroups(strings.NewReader(""), strings.NewReader("0::/\n"), "x"); err == nil {
		t.Error("no mount is no error")
	}
}

func TestMountsBelow(t *testing.T) {
	t.Parallel()
	const info = `27 1 254:0 / / rw - ext4 /dev/vda rw
50 27 0:99 / /var/lab/run/a/node0/root rw - overlay overlay rw
51 50 0:98 / /var/lab/run/a/node0/root/with\040space rw - tmpfs tmpfs rw
52 27 0:97 / /var/lab/run/ab/node0/root rw - overlay overlay rw
`
	got, err := mountsBelow(strings.NewReader(info), "/var/lab/run/a")
	want := []string{"/var/lab/run/a/node0/root", "/var/lab/run/a/node0/root/with space"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestParseMirror(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Types: deb\n# URIs: http://old.example/debian\nURIs: http://m.example/debian\nSuites: bookworm\n": "http://m.example/debian",
		"deb [signed-by=/k.gpg] https://m.example/debian/ bookworm main\n":                                 "https://m.example/debian/",
		"URIs: http://m.example/debian-security\n":                                                         "",
		"deb https://other.example/apt stable main\n":                                                      "",
	} {
		if got := parseMirror(strings.NewReader(text)); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestParseAudit(t *testing.T) {
	t.Parallel()
	const log = `{"auditID":"1","stage":"ResponseComplete","requestURI":"/api/v1/nodes/node0?timeout=10s","verb":"get","user":{"username":"system:node:node0"},"userAgent":"kubelet/v1","responseStatus":{"code":200},"requestReceivedTimestamp":"2026-01-02T03:04:05.500000Z"}
{"auditID":"2","stage":"ResponseStarted","requestURI":"/api/v1/pods?watch=1","verb":"watch","user":{"username":"u"},"userAgent":"nodedrift/1","responseStatus":{"code":200},"requestReceivedTimestamp":"2026-01-02T03:04:06.000000Z"}
{"auditID":"2","stage":"ResponseComplete","requestURI":"/api/v1/pods?watch=1","verb":"watch","user":{"username":"u"},"userAgent":"nodedrift/1","responseStatus":{"code":200},"requestReceivedTimestamp":"2026-01-02T03:04:06.000000Z"}
{"auditID":"3","stage":"ResponseComplete","requestURI":"/api/v1/nodes/n/status","verb":"patch","user":{"username":"u"},"userAgent":"nodedrift/1","responseStatus":{"code":403},"requestReceivedTimestamp":"2026-01-02T03:04:07.000000Z"}
{"auditID":"4","stage":"Resp`
	since := time.Date(2026, 1, 2, 3, 4, 5, 500_000_000, time.UTC)
	for _, c := range []struct {
		who   string
		since time.Time
		want  []string
	}{
		{"", since, []string{"get /api/v1/nodes/node0", "watch /api/v1/pods", "patch /api/v1/nodes/n/status"}},
		{"", since.Add(time.Millisecond), []string{"watch /api/v1/pods", "patch /api/v1/nodes/n/status"}},
		{"nodedrift/", since, []string{"watch /api/v1/pods", "patch /api/v1/nodes/n/status"}},
		{"system:node:node0", since, []string{"get /api/v1/nodes/node0"}},
		{"system:node", since, nil}, // a user is named in full
	} {
		all, err := parseAudit(t.Context(), strings.NewReader(log), c.since, c.who)
		var got []string
		for _, r := range all {
			got = append(got, r.Verb+" "+r.Path)
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q since %s: got %q, %v; want %q", c.who, c.since, got, err, c.want)
		}
	}
}

func TestIsInit(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]bool{
		"Name:\tsystemd\nNSpid:\t4711\t1\nNSpgid:\t1\n": true,
		"Name:\tsystemd\nNSpid:\t4711\t12\n":            false,
		"Name:\tnspawn\nNSpid:\t1\n":                    false, // number 1 here, but not below
		"":                                              false,
	} {
		if got := isInit(status); got != want {
			t.Errorf("%q: got %v", status, got)
		}
	}
}

func TestNodeReady(t *testing.T) {
	t.Parallel()
	heard := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	say := func(status string, at time.Time, taints string) node {
		var n node
		text := fmt.Sprintf(`{"spec": {"taints": [%s]}, "status": {"conditions": [{"type": "DiskPressure", "status": "False"},
			{"type": "Ready", "status": %q, "lastHeartbeatTime": %q}]}}`, taints, status, at.Format(time.RFC3339))
		if err := json.Unmarshal([]byte(text), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for name, c := range map[string]struct {
		node  node
		ready bool
	}{
		"ready":                  {say("True", heard.Add(time.Second), ""), true},
		"said before it stopped": {say("True", heard, ""), false},
		"not ready":              {say("False", heard.Add(time.Second), ""), false},
		"not to be used yet":     {say("True", heard.Add(time.Second), `{"key": "node.kubernetes.io/not-ready"}`), false},
		"nothing said":           {node{}, false},
	} {
		if err := c.node.ready(heard); (err == nil) != c.ready {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKubeletConfig(t *testing.T) {
	t.Parallel()
	b, err := kubeletConfig(map[string]any{"cgroupDriver": "cgroupfs", "maxPods": 30})
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	if c["cgroupDriver"] != "cgroupfs" || c["maxPods"] != 30.0 || c["kind"] != "KubeletConfiguration" {
		t.Errorf("got %s", b)
	}
}

func TestRenderFiles(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(outside, []byte("outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	n := &Node{lab: &Lab{}, name: "node3", index: 3}
	if err := renderFiles(nodeFiles, root, n.facts()); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"etc/hostname":                               "node3\n",
		"etc/systemd/system/kubelet.service":         "--hostname-override=node3 --node-ip=10.240.0.7",
		"etc/cni/net.d/10-lab.conflist":              `"subnet": "10.241.3.0/24"`,
		"etc/containerd/config.toml":                 `sandbox_image = "localhost/pause:1"`,
		"etc/chrony/chrony.conf":                     "server 10.240.0.1 iburst",
		"etc/systemd/system/kube-proxy.service":      "--cluster-cidr=10.240.0.0/16",
		"etc/resolv.conf":                            "nameserver 127.0.0.1",
		"etc/systemd/system.conf.d/lab.conf":         "DefaultTimeoutStopSec",
		"etc/systemd/system/images.service":          "/var/lib/images/",
		"etc/default/chrony":                         "-x",
		"etc/systemd/system/cgroup-writable.service": "remount",
	} {
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil || !strings.Contains(string(b), want) || strings.Contains(string(b), "{{") {
			t.Errorf("%s: %v: want %q in %s", file, err, want, b)
		}
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "outside" {
		t.Errorf("wrote through a link: %q, %v", b, err)
	}
}

func TestTestImage(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "thing")
	if err := os.WriteFile(program, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	path, err := TestImage(t.Context(), "localhost/thing:1", program)
	if err != nil {
		t.Fatal(err)
	}
	files := readTar(t, path)
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	var config struct {
		Architecture string
		Config       struct{ Entrypoint []string }
		Rootfs       struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(files[manifest[0].Config], &config); err != nil {
		t.Fatalf("%v in %v", err, slices.Collect(maps.Keys(files)))
	}
	layer := fmt.Sprintf("sha256:%x", sha256.Sum256(files[manifest[0].Layers[0]]))
	if config.Architecture != runtime.GOARCH || config.Config.Entrypoint[0] != "/thing" || config.Rootfs.DiffIDs[0] != layer ||
		manifest[0].RepoTags[0] != "localhost/thing:1" {
		t.Errorf("got %+v, %+v", manifest, config)
	}
	if _, err := TestImage(t.Context(), "thing:1", program); err == nil {
		t.Error("a name without a host is taken")
	}
}

func readTar(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{"lab": true, "a-1": true, "": false, "../x": false, "Lab": false, "1a": false, strings.Repeat("a", 17): false} {
		if err := checkName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// The versions that name the cache are those that are built.
func TestVersions(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../nodelab/kube/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"k8s.io/kubernetes " + kubeVersion, "go.etcd.io/etcd/server/v3 " + etcdVersion} {
		if !strings.Contains(string(b), want+"\n") {
			t.Errorf("cmd/nodelab/kube/go.mod does not require %s", want)
		}
	}
}

func TestOnThread(t *testing.T) {
	t.Parallel()
	for range 50 {
		err := onThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("on the main thread")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(path); !errors.Is(err, errLocked) {
		t.Errorf("taken twice: %v", err)
	}
	unlock()
	again, err := lock(path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestAppear(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "part")
	fails := func(d string) error {
		return errors.Join(os.WriteFile(filepath.Join(d, "half"), nil, 0o644), errors.New("cut off"))
	}
	if err := appear(dir, fails); err == nil {
		t.Error("a failure is hidden")
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("half a part is there")
	}
	if err := appear(dir, func(d string) error { return os.WriteFile(filepath.Join(d, "whole"), nil, 0o644) }); err != nil {
		t.Fatal(err)
	}
	if err := appear(dir, fails); err != nil {
		t.Errorf("built again: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "half")); err == nil {
		t.Error("the half part was kept")
	}
}
