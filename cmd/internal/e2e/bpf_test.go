package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// holder runs a pod that writes a file and stays, and returns when it runs.
func holder(t *testing.T, node, name, file, value string) {
	t.Helper()
	pod := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": "default"}, "spec": {"nodeName": %q, "hostNetwork": true, "terminationGracePeriodSeconds": 0,
	  "restartPolicy": "Never", "containers": [{"name": "tool", "image": "localhost/toolbox:1", "imagePullPolicy": "Never", "args": ["hold", %q, %q], "securityContext": {"privileged": true}}]}}`, name, node, file, value)
	if out, err := testLab.Kubectl(t.Context(), strings.NewReader(pod), "apply", "-f", "-"); err != nil {
		t.Fatalf("run pod %s: %v\n%s", name, err, out)
	}
	t.Cleanup(func() {
		_, _ = testLab.Kubectl(context.WithoutCancel(t.Context()), nil, "delete", "pod", name, "--force", "--grace-period=0")
	})
}

// writer is the actor that the agent's own document names for a subject.
func writer(t *testing.T, node, subject string) (who struct {
	PID             int
	Comm, Unit, Pod string
	Container       string
	Time            time.Time
}) {
	t.Helper()
	out := inNode(t, node, "curl", "-sS", "--max-time", "5", "http://127.0.0.1:20258/api/v1/status")
	var d struct {
		Conditions []struct {
			Findings []struct {
				Subject string
				Actor   json.RawMessage
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatal(err)
	}
	for _, c := range d.Conditions {
		for _, f := range c.Findings {
			if f.Subject == subject && f.Actor != nil {
				if err := json.Unmarshal(f.Actor, &who); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return who
}

// eventSays waits for an Event of ours about a node. They go out one in two seconds
// after the first ten, and tests before may have left many.
func eventSays(t *testing.T, node string, says *regexp.Regexp) string {
	t.Helper()
	var seen []string
	for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(50 * time.Millisecond) {
		all, err := events(t.Context(), node)
		if err != nil {
			continue
		}
		seen = seen[:0]
		for _, e := range all {
			if says.MatchString(e.Message) {
				return e.Message
			}
			seen = append(seen, e.Reason+": "+e.Message)
		}
	}
	t.Fatalf("no Event on %s says %s:\n%s", node, says, strings.Join(seen, "\n"))
	return ""
}

const ipForward, finTimeout = "net.ipv4.ip_forward", "net.ipv4.tcp_fin_timeout"

func TestWriterIsNamed(t *testing.T) {
	need(t)
	var took []time.Duration
	for _, n := range testLab.Nodes() { // each once: a node publishes three times at once, then every ten seconds
		took = append(took, writeAndMend(t, n.Name(), "tuner-"+n.Name()))
	}
	record("SysctlWritten", "document", took[0], 0)
	slices.Sort(took)
	t.Logf("from the write to a condition that names the pod: median %s, all %s", took[len(took)/2], took)
	if median := took[len(took)/2]; median > soon {
		t.Errorf("the writer is named %s after the write, want %s", median, soon)
	}
}

// writeAndMend has a pod write a key and a session write it back, and returns how
// long it took until the pod was named.
func writeAndMend(t *testing.T, node, pod string) time.Duration {
	t.Helper()
	until(t, node, "SysctlDrift", time.Minute, isFalse)
	holder(t, node, pod, "/proc/sys/net/ipv4/ip_forward", "0")
	c, _ := until(t, node, "SysctlDrift", 30*time.Second, isTrue("SysctlChanged", "by pod default/"+pod))
	told := time.Now()
	who := writer(t, node, ipForward)
	t.Logf("%q by %+v", c.Message, who)
	if who.Pod != "default/"+pod || who.Comm != "toolbox" {
		t.Errorf("named: %+v", who)
	}
	if comm := strings.TrimSpace(sh(t, node, fmt.Sprintf("cat /proc/%d/comm", who.PID))); comm != "toolbox" {
		t.Errorf("pid %d of the node is %s", who.PID, comm)
	}
	if _, err := testLab.Node(node).SystemdRun(t.Context(), "sysctl", "-w", ipForward+"=1"); err != nil {
		t.Fatal(err)
	}
	until(t, node, "SysctlDrift", 15*time.Second, isFalse)
	t.Logf("%q", eventSays(t, node, regexp.MustCompile(`gone.*by run-\w+\.service`)))
	return told.Sub(who.Time)
}

func TestEachWriterIsNamed(t *testing.T) {
	alone(t, "node1")
	until(t, "node1", "SysctlDrift", time.Minute, isFalse)
	holder(t, "node1", "one", "/proc/sys/net/ipv4/ip_forward", "0")
	holder(t, "node1", "two", "/proc/sys/net/ipv4/tcp_fin_timeout", "30")
	until(t, "node1", "SysctlDrift", 30*time.Second, isTrue("SysctlChanged", "by pod default/one"))
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		one, two := writer(t, "node1", ipForward), writer(t, "node1", finTimeout)
		if one.Pod == "default/one" && two.Pod == "default/two" {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%s by %+v, %s by %+v", ipForward, one, finTimeout, two)
		}
	}
	if _, err := testLab.Node("node1").SystemdRun(t.Context(), "sysctl", "-w", ipForward+"=1", finTimeout+"=60"); err != nil {
		t.Fatal(err)
	}
	until(t, "node1", "SysctlDrift", 15*time.Second, isFalse)
}

// hostPod runs a program of the node's own in a privileged pod, to its end: the
// image has no shell.
func hostPod(t *testing.T, node, name, memory string, command ...string) {
	t.Helper()
	libraries := "/host/usr/lib/x86_64-linux-gnu:/host/usr/lib/aarch64-linux-gnu"
	loader := strings.TrimSpace(sh(t, node, "ls /usr/lib/*-linux-gnu/ld-linux-*.so.*"))
	argv, err := json.Marshal(append([]string{"/host" + loader, "--library-path", libraries}, command...))
	if err != nil {
		t.Fatal(err)
	}
	pod := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": "default"}, "spec": {"nodeName": %q, "hostNetwork": true, "hostPID": true, "terminationGracePeriodSeconds": 0,
	  "restartPolicy": "Never", "volumes": [{"name": "host", "hostPath": {"path": "/"}}], "containers": [{"name": "tool", "image": "localhost/toolbox:1", "imagePullPolicy": "Never", "command": %s,
	  "resources": {"limits": {"memory": %q}}, "securityContext": {"privileged": true}, "volumeMounts": [{"name": "host", "mountPath": "/host", "readOnly": true}]}]}}`, name, node, argv, memory)
	if out, err := testLab.Kubectl(t.Context(), strings.NewReader(pod), "apply", "-f", "-"); err != nil {
		t.Fatalf("run pod %s: %v\n%s", name, err, out)
	}
	t.Cleanup(func() {
		_, _ = testLab.Kubectl(context.WithoutCancel(t.Context()), nil, "delete", "pod", name, "--force", "--grace-period=0")
	})
}

func mainPID(t *testing.T, node, unit string) string {
	return strings.TrimSpace(sh(t, node, "systemctl show --value -p MainPID "+unit))
}

// stays has systemd leave a daemon dead: what killed it is then a condition.
func stays(unit string) (breaks, repairs string) {
	dropIn := "/run/systemd/system/" + unit + ".service.d"
	return "mkdir -p " + dropIn + "; printf '[Service]\\nRestart=no\\n' >" + dropIn + "/stays.conf; systemctl daemon-reload",
		"rm -f " + dropIn + "/stays.conf; systemctl daemon-reload; systemctl start " + unit
}

// killed has a daemon killed that then stays down, and waits for the condition
// that names who did it. (That its unit was edited before stands beside.)
func killed(t *testing.T, node, unit, condition, reason, by string, kill func(pid string)) {
	t.Helper()
	until(t, node, condition, time.Minute, isFalse)
	breaks, repairs := stays(unit)
	t.Cleanup(func() { _, _ = testLab.Node(node).Exec(context.WithoutCancel(t.Context()), "sh", "-c", repairs) })
	sh(t, node, breaks)
	began := time.Now()
	kill(mainPID(t, node, unit))
	c, _ := until(t, node, condition, 20*time.Second, isTrue(reason, "; by "+by))
	t.Logf("%s: %q", node, c.Message)
	t.Logf("%s: %q", node, eventSays(t, node, regexp.MustCompile(unit+`.* was ended by SIGKILL; by `+by)))
	record("DaemonKilled", "Event", time.Since(began), 0)
	sh(t, node, repairs)
	until(t, node, condition, 30*time.Second, isFalse)
}

// Who killed a daemon is named by the Event, and by the condition while it is down.
func TestKillerIsNamed(t *testing.T) {
	need(t)
	killed(t, "node0", "kubelet", "KubeletDrift", "KubeletNotRunning", "run-", func(pid string) {
		if _, err := testLab.Node("node0").SystemdRun(t.Context(), "kill", "-9", pid); err != nil {
			t.Fatal(err)
		}
	})
	killed(t, "node1", "containerd", "ContainerdDrift", "ContainerdNotRunning", "pod default/killer", func(pid string) {
		hostPod(t, "node1", "killer", "64Mi", "/host/usr/bin/kill", "-9", pid)
	})
}

// A pod's folder that kubelet cleans up lies on a file system that never answers
// (a FUSE server that does not even greet): its thread is blocked, and told long
// before the five minutes of kubelet's own witness.
func TestBlockedDaemonIsTold(t *testing.T) {
	const node, pod = "node1", "/var/lib/kubelet/pods/11111111-2222-3333-4444-555555555555"
	alone(t, node)
	until(t, node, "KubeletDrift", time.Minute, isFalse)
	t.Cleanup(func() {
		_, _ = testLab.Node(node).Exec(context.WithoutCancel(t.Context()), "sh", "-c", "systemctl stop silent-fuse; umount -l "+pod+"/volumes; rm -r "+pod)
	})
	sh(t, node, "test -e /dev/fuse || mknod /dev/fuse c 10 229; mkdir -p "+pod+"/volumes")
	began := time.Now()
	sh(t, node, "systemd-run --quiet --collect --unit silent-fuse sh -c 'exec 3<>/dev/fuse; "+
		"mount -i -n -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0,allow_other silent "+pod+"/volumes && exec sleep 300'")
	stuck, raised := until(t, node, "KubeletDrift", time.Minute, isTrue("KubeletSyncLoopStuck", "state D"))
	t.Logf("%.0f s after the mount: %q", raised.Seconds(), stuck.Message)
	blocked := regexp.MustCompile(`kubelet\.service: kubelet \(pid \d+\) has been blocked in the kernel for 1m0s`)
	var said string
	for said == "" {
		all, err := events(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if blocked.MatchString(e.Message) {
				said = e.Message
			}
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("a blocked kubelet is not told of; its threads:\n%s", sh(t, node, "cat /proc/$(pidof kubelet)/task/*/stat | cut -d' ' -f1-3"))
		}
		time.Sleep(time.Second)
	}
	took := time.Since(began)
	t.Logf("%.0f s after the mount: %q", took.Seconds(), said)
	record("TaskHung", "Event", took, 0)
	sh(t, node, "systemctl stop silent-fuse") // the mount then fails, and nobody waits
	_, cleared := until(t, node, "KubeletDrift", time.Minute, isFalse)
	record("KubeletSyncLoopStuck", "condition", raised, cleared)
}

func TestOOMKillNamesItsContainer(t *testing.T) {
	alone(t, "node2")
	began := time.Now()
	hostPod(t, "node2", "hog", "32Mi", "/host/usr/bin/tail", "/dev/zero")
	t.Logf("%q", eventSays(t, "node2", regexp.MustCompile(`default/hog.*out of memory: .* in container tool was killed; it held \d+ MiB`)))
	record("OOMKilled", "Event", time.Since(began), 0)
}
