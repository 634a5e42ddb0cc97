package host_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

const socket = host.DefaultCRISocket

var pods = []host.Sandbox{
	{ID: strings.Repeat("a", 64), Namespace: "default", Name: "web", UID: "u1", Ready: true, Created: time.Unix(1_767_000_000, 0),
		IPs: []netip.Addr{netip.MustParseAddr("10.241.0.2"), netip.MustParseAddr("fd00::2")}, NetNS: "/var/run/netns/cni-1"},
	{ID: strings.Repeat("b", 64), Namespace: "kube-system", Name: "proxy", UID: "u2", Attempt: 1, Ready: true, Created: time.Unix(1_767_000_001, 0), HostNetwork: true},
	{ID: strings.Repeat("c", 64), Namespace: "default", Name: "done", UID: "u3", Created: time.Unix(1_767_000_002, 0)},
}

// runtimeOf opens the container runtime of a node in a folder.
func runtimeOf(t testing.TB, dir string) *host.CRI {
	t.Helper()
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := host.NewCRI(root, host.OpenProcesses(filepath.Join(dir, "proc")))
	t.Cleanup(func() { c.Close(); root.Close() })
	return c
}

func serveCRI(t testing.TB) (*host.CRI, *probetest.CRI, string) {
	t.Helper()
	dir := t.TempDir()
	s := probetest.ServeCRI(t, dir, socket, probetest.Runtime{Conditions: probetest.ReadyConditions(), Sandboxes: pods, Info: map[string]string{"config": "{}"}})
	return runtimeOf(t, dir), s, dir
}

func TestCRI(t *testing.T) {
	t.Parallel()
	c, s, _ := serveCRI(t)
	if v, err := c.Version(t.Context()); err != nil || v != (host.RuntimeVersion{Name: "containerd", Version: "1.6.20"}) {
		t.Errorf("version is %v, %v", v, err)
	}
	if st, err := c.Status(t.Context(), false); err != nil || len(st.Conditions) != 2 || !st.Conditions[0].Status || len(st.Info) != 0 {
		t.Errorf("status is %+v, %v", st, err)
	}
	if st, err := c.Status(t.Context(), true); err != nil || st.Info["config"] != "{}" {
		t.Errorf("verbose status is %+v, %v", st, err)
	}
	if _, err := c.CgroupDriver(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a runtime that is too old: %v", err)
	}
	s.Change(func(r *probetest.Runtime) { r.CgroupDriver = "cgroupfs" })
	if d, err := c.CgroupDriver(t.Context()); err != nil || d != "cgroupfs" {
		t.Errorf("cgroup driver is %q, %v", d, err)
	}
	if all, err := c.Containers(t.Context()); err != nil || len(all) != 3 || all[0].Sandbox != pods[0].ID || !all[0].Running {
		t.Errorf("containers are %+v, %v", all, err)
	}
	if e, err := c.ContainerExit(t.Context(), "x"); err != nil || e.Code != 137 || e.Reason != "OOMKilled" {
		t.Errorf("exit is %+v, %v", e, err)
	}
	s.Change(func(r *probetest.Runtime) { r.Conditions = nil })
	if _, err := c.Status(t.Context(), false); err == nil {
		t.Error("a status without conditions is no error")
	}
	for _, call := range []string{"Version", "Status", "RuntimeConfig", "ListContainers", "ContainerStatus"} {
		if s.Asked()[call] == 0 {
			t.Errorf("%s was never asked", call)
		}
	}
}

// TestSandboxes asks for a sandbox's details once, and again where they may yet
// become others.
func TestSandboxes(t *testing.T) {
	t.Parallel()
	c, s, _ := serveCRI(t)
	listed, err := c.Sandboxes(t.Context())
	if err != nil || len(listed) != 3 || listed[0].Known || listed[0].Name != "web" {
		t.Fatalf("listed %+v, %v", listed, err)
	}
	want := []host.Sandbox{pods[0], pods[1], pods[2]}
	for i := range want {
		want[i].Known = true
	}
	for range 3 {
		got, err := c.SandboxDetails(t.Context())
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
			t.Errorf("details %v (-want +got):\n%s", err, diff)
		}
	}
	if n := s.Asked()["PodSandboxStatus"]; n != 3 {
		t.Errorf("details of 3 sandboxes were asked %d times", n)
	}
	again, err := c.Sandboxes(t.Context())
	if err != nil || !again[0].Known || len(again[0].IPs) != 2 {
		t.Errorf("a plain list forgets what is known: %+v, %v", again, err)
	}
	// One is not set up yet, one has ended, one is gone.
	s.Change(func(r *probetest.Runtime) {
		r.Sandboxes = []host.Sandbox{{ID: "new", Ready: true}, {ID: pods[0].ID, IPs: pods[0].IPs}}
	})
	for range 2 {
		if got, err := c.SandboxDetails(t.Context()); err != nil || len(got) != 2 || got[0].Ready {
			t.Errorf("after a change: %+v, %v", got, err)
		}
	}
	if n := s.Asked()["PodSandboxStatus"]; n != 3+1+2 {
		t.Errorf("asked %d times, want once for what ended and each time for what has no address yet", n)
	}
	if last := c.LastSandboxes(); len(last) != 2 || !last["new"].Known {
		t.Errorf("remembered %+v", last)
	}
	s.Fail("PodSandboxStatus", fs.ErrPermission)
	if got, err := c.SandboxDetails(t.Context()); err == nil || len(got) != 2 {
		t.Errorf("details that are refused: %+v, %v", got, err)
	}
}

// TestCRIErrors tells the ways apart in which a runtime does not answer.
func TestCRIErrors(t *testing.T) {
	t.Parallel()
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	dir := t.TempDir()
	c := runtimeOf(t, dir)
	if _, err := c.Version(t.Context()); !errors.Is(err, host.ErrNobodyListens) || !strings.Contains(err.Error(), "/run/containerd/containerd.sock: there is no such socket") {
		t.Errorf("no socket: %v", err)
	}
	at := filepath.Join(dir, socket)
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), unix.Mknod(at, unix.S_IFSOCK|0o600, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Version(t.Context()); !errors.Is(err, host.ErrNobodyListens) {
		t.Errorf("a socket that nobody listens at: %v", err)
	}
	os.Remove(at)
	// A listener that accepts nothing is what a stopped process leaves.
	l, err := net.Listen("unix", at)
	if err != nil {
		t.Skip(err) // the folder's path is too long for a socket
	}
	defer l.Close()
	for range 2 {
		if _, err := c.Version(short()); !errors.Is(err, host.ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, host.ErrNobodyListens) {
			t.Errorf("a listener that never answers: %v", err)
		}
	}
	var none *host.CRI
	if _, err := none.Version(t.Context()); err == nil || none.Close() != nil {
		t.Error("a nil CRI answers")
	}
}

func TestCRIAnswers(t *testing.T) {
	t.Parallel()
	c, s, dir := serveCRI(t)
	if _, err := c.Version(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Silence("ListPodSandbox", true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Sandboxes(ctx); !errors.Is(err, host.ErrNoAnswer) {
		t.Errorf("a call that hangs: %v", err)
	}
	if _, err := c.Version(t.Context()); err != nil {
		t.Errorf("another call meanwhile: %v", err)
	}
	s.Silence("ListPodSandbox", false)
	s.Fail("Version", errors.New("boom"))
	if _, err := c.Version(t.Context()); err == nil || !strings.Contains(err.Error(), "Internal: boom") {
		t.Errorf("an error of the runtime's own: %v", err)
	}
	s.Fail("Version", nil)
	s.Change(func(r *probetest.Runtime) { r.Info["config"] = strings.Repeat("x", 17<<20) })
	if _, err := c.Status(t.Context(), true); !errors.Is(err, host.ErrTooLarge) {
		t.Errorf("17 MiB: %v", err)
	}
	if _, err := c.Version(t.Context()); err != nil {
		t.Errorf("after 17 MiB: %v", err)
	}
	// The socket is taken away under a connection that still works.
	os.Remove(filepath.Join(dir, socket))
	if _, err := c.Version(t.Context()); !errors.Is(err, host.ErrNobodyListens) {
		t.Errorf("without a socket: %v", err)
	}
}

// TestCRIRestart restarts the runtime under a kept connection: no call fails
// once it is back.
func TestCRIRestart(t *testing.T) {
	t.Parallel()
	c, s, dir := serveCRI(t)
	for range 5 {
		if _, err := c.Version(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Stop()
		if _, err := c.Version(t.Context()); !errors.Is(err, host.ErrNobodyListens) {
			t.Errorf("a runtime that is stopped: %v", err)
		}
		s = probetest.ServeCRI(t, dir, socket, probetest.Runtime{})
	}
	// And another one in its place, without a look between.
	if _, err := c.Version(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	probetest.ServeCRI(t, dir, socket, probetest.Runtime{Version: "2.0.0"})
	if v, err := c.Version(t.Context()); err != nil || v.Version != "2.0.0" {
		t.Errorf("another runtime: %v, %v", v, err)
	}
}

// TestCRISocket finds the socket where the node's configuration says.
func TestCRISocket(t *testing.T) {
	t.Parallel()
	const kubelet = "proc/7/comm"
	for name, c := range map[string]struct {
		files map[string]string
		told  string
		want  string
	}{
		"usual":             {want: "/run/containerd/containerd.sock"},
		"told":              {told: "unix:///run/a.sock", want: "/run/a.sock"},
		"told wrong":        {told: "tcp://1.2.3.4", want: "/run/containerd/containerd.sock"},
		"kubelet's flag":    {files: map[string]string{kubelet: "kubelet\n", "proc/7/cmdline": "kubelet\x00--container-runtime-endpoint=unix:///run/b.sock\x00"}, want: "/run/b.sock"},
		"kubelet's 2 words": {files: map[string]string{kubelet: "kubelet\n", "proc/7/cmdline": "kubelet\x00--container-runtime-endpoint\x00/run/b.sock\x00"}, want: "/run/b.sock"},
		"kubelet's JSON": {files: map[string]string{kubelet: "kubelet\n", "proc/7/cmdline": "kubelet\x00--config=/etc/k.json\x00",
			"etc/k.json": `{"kind": "KubeletConfiguration","containerRuntimeEndpoint":"unix:///run/c.sock", "x": 1}`}, want: "/run/c.sock"},
		"kubelet's YAML": {files: map[string]string{kubelet: "kubelet\n", "proc/7/cmdline": "kubelet\x00--config\x00/etc/k.yaml\x00",
			"etc/k.yaml": "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/c.sock\n"}, want: "/run/c.sock"},
		"crictl's": {files: map[string]string{"etc/crictl.yaml": "runtime-endpoint: unix:///run/d.sock\n", "run/d.sock": "socket"}, want: "/run/d.sock"},
		"crictl's, not there, and the usual": {files: map[string]string{"etc/crictl.yaml": "runtime-endpoint: unix:///run/d.sock\n", socket: "socket"},
			want: "/run/containerd/containerd.sock"},
		"containerd's": {files: map[string]string{"etc/containerd/config.toml": "[grpc]\naddress = '/run/e.sock'\n"}, want: "/run/e.sock"},
		"broken":       {files: map[string]string{"etc/containerd/config.toml": "[grpc\n"}, want: "/run/containerd/containerd.sock"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			os.MkdirAll(filepath.Join(dir, "proc/1"), 0o755)
			for name, body := range c.files {
				at := filepath.Join(dir, name)
				os.MkdirAll(filepath.Dir(at), 0o755)
				err := os.WriteFile(at, []byte(body), 0o600)
				if body == "socket" {
					os.Remove(at)
					err = unix.Mknod(at, unix.S_IFSOCK|0o600, 0)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			r := runtimeOf(t, dir)
			r.Listen(c.told)
			if got := r.Socket(t.Context()); got != c.want {
				t.Errorf("socket is %s, want %s", got, c.want)
			}
		})
	}
}
