package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ownerEnv makes this test program bring up a lab of that name and hold it until it is killed.
const ownerEnv = "NODELAB_TEST_OWNER"

func TestMain(m *testing.M) {
	if name := os.Getenv(ownerEnv); name != "" {
		if _, err := Up(context.Background(), Config{Name: name, Log: os.Stdout}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		select {}
	}
	os.Exit(m.Run())
}

// TestLab brings up real nodes: two labs at once, each used by a subtest.
func TestLab(t *testing.T) {
	if os.Getenv("NODEDRIFT_E2E") != "1" {
		t.Skip("it boots real nodes: NODEDRIFT_E2E=1 allows that")
	}
	if os.Getuid() != 0 {
		t.Skip("it needs root")
	}
	if err := GC(t.Context(), t.Output()); err != nil {
		t.Fatal(err)
	}
	if err := Build(t.Context(), Dirs{}, t.Output()); err != nil {
		t.Fatal(err)
	}
	t.Run("pods, reboot, API server", func(t *testing.T) { t.Parallel(); use(t, labName("a")) })
	t.Run("killed owner", func(t *testing.T) { t.Parallel(); killed(t, labName("b")) })
}

func labName(s string) string { return fmt.Sprintf("t%s-%d", s, os.Getpid()) }

func bringUp(t *testing.T, name string) *Lab {
	t.Helper()
	l, err := Up(t.Context(), Config{Name: name, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
		nothingLeft(t, name)
	})
	return l
}

func nothingLeft(t *testing.T, name string) {
	t.Helper()
	for _, pattern := range []string{netnsPath(name + "-*"), stateFile(name), "/sys/fs/cgroup/nodelab-" + name, "/sys/fs/cgroup/*/nodelab-" + name,
		DefaultDirs().run(name), "/run/systemd/nspawn/propagate/" + name + "-*"} {
		if found, err := filepath.Glob(pattern); err != nil || len(found) > 0 {
			t.Errorf("left behind: %q, %v", found, err)
		}
	}
}

func use(t *testing.T, name string) {
	l, ctx := bringUp(t, name), t.Context()
	n := l.Node("node0")
	if _, err := Up(ctx, Config{Name: name}); !errors.Is(err, errLocked) {
		t.Errorf("a lab in use was brought up again: %v", err)
	}
	if out, err := n.Exec(ctx, "systemctl", "is-system-running", "--wait"); err != nil || out != "running\n" {
		t.Errorf("systemd is %q: %v", out, err)
	}
	runPod(t, l)
	if out, err := n.SystemdRun(ctx, "cat", "/proc/self/cgroup"); err != nil || !strings.Contains(out, "system.slice/run-") {
		t.Errorf("a unit's cgroups are %q: %v", out, err)
	}
	apiServerComesAndGoes(t, l)
	reboot(t, n)
}

// runPod has a privileged pod change a sysctl of the node's network namespace, and of no other.
func runPod(t *testing.T, l *Lab) {
	const pod = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "writer"}, "spec": {"hostNetwork": true, "containers": [
		{"name": "c", "image": "localhost/toolbox:1", "args": ["hold", "/proc/sys/net/ipv4/ip_forward", "0"], "securityContext": {"privileged": true}}]}}`
	ctx, since := t.Context(), time.Now()
	if _, err := l.Kubectl(ctx, strings.NewReader(pod), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := poll(ctx, func(ctx context.Context) error {
		if out, err := l.Node("node0").Exec(ctx, "cat", "/proc/sys/net/ipv4/ip_forward"); err != nil || out != "0\n" {
			return fmt.Errorf("ip_forward is %q: %w", out, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	count, err := l.AuditCount(t.Context(), since, "kubectl/")
	if err != nil || count["create /api/v1/namespaces/default/pods"] != 1 {
		t.Errorf("kubectl's requests: %v, %v", count, err)
	}
}

func apiServerComesAndGoes(t *testing.T, l *Lab) {
	ctx := t.Context()
	if err := l.APIServerStop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Get(ctx, "/readyz", nil); err == nil {
		t.Error("a stopped API server answers")
	}
	if err := l.APIServerStart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Get(ctx, "/readyz", nil); err != nil {
		t.Error(err)
	}
}

func reboot(t *testing.T, n *Node) {
	ctx := t.Context()
	identity := func() (boot, machine string) {
		boot, err1 := n.Exec(ctx, "cat", "/proc/sys/kernel/random/boot_id")
		machine, err2 := n.Exec(ctx, "cat", "/etc/machine-id")
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return boot, machine
	}
	boot, machine := identity()
	if _, err := n.Exec(ctx, "touch", "/run/marker", "/var/lib/marker"); err != nil {
		t.Fatal(err)
	}
	if err := n.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if b, m := identity(); b == boot || m != machine {
		t.Errorf("boot id %s was %s, machine id %s was %s", b, boot, m, machine)
	}
	if _, err := n.Exec(ctx, "test", "!", "-e", "/run/marker", "-a", "-e", "/var/lib/marker"); err != nil {
		t.Errorf("/run was kept or /var lost: %v", err)
	}
}

// killed kills the owner of a lab at three moments; each time the next one comes up.
func killed(t *testing.T, name string) {
	for _, moment := range []string{"starting the control plane", "booting 1 node", "up after"} {
		own := exec.Command(os.Args[0])
		own.Env = append(os.Environ(), ownerEnv+"="+name)
		out, err := own.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		own.Stderr = t.Output()
		if err := own.Start(); err != nil {
			t.Fatal(err)
		}
		seen := false
		for s := bufio.NewScanner(out); !seen && s.Scan(); {
			seen = strings.Contains(s.Text(), moment)
		}
		if err := own.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = own.Wait()
		if !seen {
			t.Fatalf("the owner never said %q", moment)
		}
	}
	l := bringUp(t, name)
	if err := l.Get(t.Context(), "/api/v1/nodes/node0", nil); err != nil {
		t.Error(err)
	}
	if l.Node("node1") != nil {
		t.Error("there is a node too many")
	}
}
