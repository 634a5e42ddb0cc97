package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The agent of every node says that all its locks hold, and the kernel says the
// same of its threads.
func TestAgentsAreLockedIn(t *testing.T) {
	for _, n := range need(t).Nodes() {
		node := n.Name()
		out, err := testLab.Kubectl(t.Context(), nil, "-n", "nodedrift-system", "exec", podOn(t, node), "--", "/nodedrift", "self", "-o", "json")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var s struct {
			Locks []struct {
				Name, Why string
				Holds     bool
			}
			Detectors []struct {
				Name, Why string
				Active    bool
			}
			Writable, Kept []string
		}
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			t.Fatal(err)
		}
		if len(s.Locks) != 3 || len(s.Writable) != 1 || len(s.Kept) != 0 {
			t.Errorf("%s: %+v", node, s)
		}
		for _, l := range s.Locks {
			if !l.Holds {
				t.Errorf("%s: lock %s: %s", node, l.Name, l.Why)
			}
		}
		for _, d := range s.Detectors {
			if !d.Active && d.Name != "clock" { // which is asked for with bpf.clock alone
				t.Errorf("%s: detector %s: %s", node, d.Name, d.Why)
			}
		}
		status := sh(t, node, "cat /proc/"+agentPid(t, node)+"/task/*/status")
		for line := range strings.Lines(status) {
			if key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t"); (key == "CapEff" || key == "CapPrm") && strings.Trim(value, "0") != "" ||
				key == "NoNewPrivs" && value != "1" || key == "Seccomp_filters" && value == "0" {
				t.Errorf("%s: a thread of the agent's: %s", node, line)
			}
		}
	}
}

// The same agent, built as a test that then tries to write, runs beside the pod's
// own: in its namespaces, with its mounts and its rights.
func TestLockedInThePod(t *testing.T) {
	const node, folder = "node2", "/run/nodedrift/trial" // the pod's own folder of the host
	l := alone(t, node)
	program := filepath.Join(t.TempDir(), "trial")
	build := exec.Command("go", "test", "-c", "-o", program, "github.com/nodedrift/nodedrift/cmd/nodedrift")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Node(node).Root(), "usr/local/bin/trial"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	type dict map[string]any
	configuration := "mode: observe\n"
	victims := []string{"/run/victim", "/tmp/victim", "/dev/shm/victim", "/var/lib/victim", "/run/containerd/victim"}
	var seen []string // by the pod
	var prepare strings.Builder
	prepare.WriteString("rm -rf " + folder + "; mkdir -p " + folder + "; cd " + folder + "; touch mine; printf '" + configuration + "' >nodedrift.yaml")
	var touch strings.Builder
	for _, v := range victims {
		prepare.WriteString("; mkdir -p " + v + "/folder; echo as it was | tee " + v + "/file >" + v + "/other; ln -sf file " + v + "/link")
		touch.WriteString("touch " + v + "/other; ")
		seen = append(seen, "/host"+v)
	}
	sh(t, node, prepare.String())
	t.Cleanup(func() {
		_, _ = l.Node(node).Exec(context.WithoutCancel(t.Context()), "sh", "-c",
			"systemctl stop trial-target trial-writer; rm -rf "+folder+" "+strings.Join(victims, " ")+" /usr/local/bin/trial /run/cell")
	})
	sh(t, node, "systemd-run --quiet --collect --unit trial-target sleep 600")
	sh(t, node, "systemd-run --quiet --collect --unit trial-writer sh -c 'while sleep 0.1; do sysctl -qw "+finTimeout+"=60; "+touch.String()+
		"n=$((n+1)); { printf \""+strings.ReplaceAll(configuration, "\n", "\\n")+"\"; echo \"# $n\"; } >"+folder+"/new.yaml; mv "+folder+"/new.yaml "+folder+"/nodedrift.yaml; done'")
	cell, err := json.Marshal(dict{"Root": "/host", "State": folder, "Victims": seen, "Key": finTimeout, "Config": folder + "/nodedrift.yaml",
		"Process": json.Number(mainPID(t, node, "trial-target")), "Socket": "/host/run/containerd/containerd.sock", "Services": true,
		"Rights":  []int{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN},
		"Folders": []string{"/etc", "/run", "/tmp", "/var/tmp", "/dev/shm", "/usr/bin", "/root", "/var/log", "/var/lib/kubelet", "/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"},
		"Closed": []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/printk", "/proc/sys/vm/swappiness", "/proc/sysrq-trigger", "/proc/1/oom_score_adj",
			"/proc/self/oom_score_adj", "/proc/self/comm", "/dev/null", "/dev/kmsg", "/etc/passwd", "/etc/sysctl.d/60-e2e.conf", "/sys/kernel/mm/transparent_hugepage/enabled",
			"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs", "/sys/fs/cgroup/pids/cgroup.procs"}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.Node(node).SystemdRun(t.Context(), "sh", "-c", "echo "+base64.StdEncoding.EncodeToString(cell)+" | base64 -d >/run/cell; "+
		"NODEDRIFT_TEST_CELL=\"$$(cat /run/cell)\" nsenter -t "+agentPid(t, node)+" -m -n -i -u /host/usr/local/bin/trial -test.run='^TestLockedIn$' -test.v")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var said struct {
		Attempts, GoesOn []struct{ What, Error string }
		Self             struct{ Locks []struct{ Holds bool } }
	}
	if err := json.Unmarshal([]byte(sh(t, node, "cat "+folder+"/trial.json")), &said); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(said.Attempts) < 60 || len(said.GoesOn) < 10 {
		t.Errorf("%d attempts to write, %d things that go on:\n%s", len(said.Attempts), len(said.GoesOn), out)
	}
	for _, v := range said.Attempts {
		if v.Error == "" {
			t.Errorf("not refused: %s", v.What)
		}
	}
	for _, v := range said.GoesOn {
		if v.Error != "" {
			t.Errorf("does not go on: %s: %s", v.What, v.Error)
		}
	}
	t.Logf("%d attempts to write refused in the pod, %d things go on", len(said.Attempts), len(said.GoesOn))
}
