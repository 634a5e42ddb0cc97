package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// quietFor is how long pods come and go; NODEDRIFT_QUIET says otherwise.
const quietFor = 2 * time.Minute

// A node where pods come and go and where everything lawful is done to its daemons
// is quiet: not one transition of any condition, not one Event.
func TestQuiet(t *testing.T) {
	const node = "node0"
	alone(t, node)
	length := quietFor
	if s := os.Getenv("NODEDRIFT_QUIET"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		length = d
	}
	until(t, node, "NodeDrift", time.Minute, isFalse)
	before := map[string]time.Time{}
	for _, c := range document(t, node).Conditions {
		is, _ := until(t, node, c.Type, time.Minute, isFalse)
		before[c.Type] = is.LastTransitionTime
	}
	calm(t, node)
	told := newEvents(t, node)

	lawful := []func(){}
	do := func(line string) func() { return func() { sh(t, node, line) } }
	for range 5 {
		lawful = append(lawful, do("systemctl restart kubelet"), do("systemctl restart containerd"), do("systemctl restart chrony"))
	}
	lawful = append(lawful, do("systemctl daemon-reexec"), do("systemctl daemon-reload"), do("touch "+config+" "+criConfig+" "+conflist),
		func() { packagesAtWork(t, node) })

	pods := 0
	for began, i := time.Now(), 0; time.Since(began) < length || i < len(lawful); i++ {
		pods += churn(t, node, pods, 6)
		// containerd 1.6.20 leaves a shim behind for good when it is restarted in the
		// middle of a pod's end, and to say so is no false alarm: no pod ends now.
		if i < len(lawful) {
			lawful[i]()
		}
	}
	t.Logf("%s: %d pods came and went", node, pods)
	if left := shims(t, node); left > 1 {
		// It happens all the same, now and then; then it is to be told, and nothing else is.
		t.Logf("containerd left %d shims behind", left-1)
		until(t, node, "ContainerdDrift", time.Minute, isTrue("OrphanShims", ""))
		// Ours is the oldest.
		sh(t, node, "ours=$(pgrep -of 'containerd-shim-runc-v[2]'); pgrep -f 'containerd-shim-runc-v[2]' | grep -vx $ours | xargs -r kill -9")
		until(t, node, "ContainerdDrift", time.Minute, isFalse)
		return
	}
	for kind, since := range before {
		if after, _ := until(t, node, kind, soonish, isFalse); !after.LastTransitionTime.Equal(since) {
			t.Errorf("%s: a transition at %s", kind, after.LastTransitionTime)
		}
	}
	for _, e := range told() {
		t.Errorf("an Event: %s %s %q", e.Type, e.Reason, e.Message)
	}
}

// packagesAtWork holds dpkg's lock while units and programs change: what it leaves
// half done meanwhile is its own.
func packagesAtWork(t *testing.T, node string) {
	t.Helper()
	lock, err := os.OpenFile(filepath.Join(testLab.Node(node).Root(), "var/lib/dpkg/lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{dropIns, criDropIns} {
		sh(t, node, "mkdir -p "+dir+"; printf '[Service]\\nEnvironment=A=1\\n' >"+dir+"/10-a.conf")
	}
	for _, program := range []string{"/usr/local/bin/kubelet", "/usr/bin/containerd"} {
		sh(t, node, fmt.Sprintf("cp %s %[1]s.new; mv %[1]s.new %[1]s", program))
	}
	time.Sleep(8 * time.Second)
	sh(t, node, "rm -r "+dropIns+" "+criDropIns+"; systemctl daemon-reload; systemctl restart containerd kubelet")
	time.Sleep(3 * time.Second)
}

// churn makes some pods, takes each away as soon as it was started, and waits until
// the node has none of them.
func churn(t *testing.T, node string, first, n int) int {
	t.Helper()
	for i := first; i < first+n; i++ {
		pod := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "churn-%d", "namespace": "default"}, "spec": {"nodeName": %q, "terminationGracePeriodSeconds": 0,
		  "containers": [{"name": "c", "image": "localhost/pause:1", "imagePullPolicy": "Never"}]}}`, i, node)
		if out, err := testLab.Kubectl(t.Context(), strings.NewReader(pod), "apply", "-f", "-"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for i := first; i < first+n; i++ {
		if out, err := testLab.Kubectl(t.Context(), nil, "delete", "pod", fmt.Sprint("churn-", i), "--timeout=60s"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for began := time.Now(); shims(t, node) != 1 && time.Since(began) < 20*time.Second; { // our own pod's
		time.Sleep(200 * time.Millisecond)
	}
	return n
}

// shims counts the pods of a node that have not ended.
func shims(t *testing.T, node string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(sh(t, node, "pgrep -cf 'containerd-shim-runc-v[2]' || true")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
