// Package e2e breaks real nodes and reads what our agent says of them from a real
// API server: our own image and manifests, on a lab of Kubernetes nodes (see
// cmd/nodelab). Run it with "make e2e".
package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/cmd/internal/lab"
)

// testLab is the lab that all tests share; nil when they are to be skipped.
var (
	testLab *lab.Lab
	bin     string // the built agent
	why     string // why there is no lab
)

func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := withLab(ctx, m)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// withLab runs the tests on a lab with our DaemonSet, and prints what was shown.
func withLab(ctx context.Context, m *testing.M) (code int, err error) {
	switch {
	case os.Getenv("NODEDRIFT_E2E") != "1":
		why = "set NODEDRIFT_E2E=1, or run make e2e"
	case os.Getuid() != 0:
		why = "the lab needs root"
	}
	if why != "" {
		return m.Run(), nil
	}
	top, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return 1, err
	}
	bin = filepath.Join(filepath.Dir(strings.TrimSpace(string(top))), "bin")
	nodes := 3
	if os.Getenv("NODEDRIFT_FOOTPRINT") == "1" {
		nodes = 1 // what is measured shares the machine with less
	}
	testLab, err = lab.Up(ctx, lab.Config{Name: cmp.Or(os.Getenv("NODEDRIFT_E2E_LAB"), "e2e"), Nodes: nodes, Log: os.Stderr, Prepare: prepare})
	if err != nil {
		return 1, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, testLab.Down(ctx))
	}()
	if err := deploy(ctx); err != nil {
		return 1, err
	}
	code = m.Run()
	if f := flag.Lookup("test.run"); f != nil && f.Value.String() != "" {
		return code, nil // a choice of tests shows a part of the reasons
	}
	missing, err := report()
	if err != nil || code == 0 && missing {
		code = 1
	}
	return code, err
}

// prepare declares, on every node, what the tests then break. Only net.* keys:
// those are the node's own.
func prepare(_, root string) error {
	return os.WriteFile(filepath.Join(root, "etc/sysctl.d/60-e2e.conf"),
		[]byte("net.ipv4.ip_forward = 1\nnet.ipv4.tcp_fin_timeout = 60\nnet.ipv4.tcp_keepalive_time = 7200\n"), 0o644)
}

// deploy brings our image and manifests onto the lab.
func deploy(ctx context.Context) error {
	for _, n := range testLab.Nodes() {
		if err := n.Import(ctx, filepath.Join(bin, "nodedrift-image.tar")); err != nil {
			return err
		}
	}
	_, err := testLab.Kubectl(ctx, nil, "apply", "-k", filepath.Join(filepath.Dir(bin), "manifests/overlays/nodelab"))
	return err
}

// need skips a test that has no lab.
func need(t *testing.T) *lab.Lab {
	t.Helper()
	if testLab == nil {
		t.Skip(why)
	}
	return testLab
}

// inUse are the nodes, each held by the test that breaks it.
var inUse = map[string]*sync.Mutex{"node0": {}, "node1": {}, "node2": {}}

// alone is need for a test that breaks one node and nothing else: it runs beside
// tests of other nodes, when those of all nodes and of the API server have ended.
func alone(t *testing.T, node string) *lab.Lab {
	t.Helper()
	l := need(t)
	t.Parallel()
	inUse[node].Lock()
	t.Cleanup(inUse[node].Unlock)
	return l
}

// A condition is a NodeCondition, as far as tests read it.
type condition struct {
	Type, Status, Reason, Message         string
	LastHeartbeatTime, LastTransitionTime time.Time
}

type event struct {
	Type, Reason, Message string
	InvolvedObject        struct{ Name, UID string }
	Source                struct{ Component string }
	FirstTimestamp        time.Time // when it happened, in whole seconds
}

// conditions reads the conditions of a node from the API server.
func conditions(ctx context.Context, node string) (map[string]condition, error) {
	var n struct {
		Status struct{ Conditions []condition }
	}
	if err := testLab.Get(ctx, "/api/v1/nodes/"+node, &n); err != nil {
		return nil, err
	}
	byType := map[string]condition{}
	for _, c := range n.Status.Conditions {
		byType[c.Type] = c
	}
	return byType, nil
}

// events reads our Events about a node.
func events(ctx context.Context, node string) ([]event, error) {
	var list struct{ Items []event }
	if err := testLab.Get(ctx, "/api/v1/namespaces/default/events", &list); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(e event) bool { return e.InvolvedObject.Name != node || e.Source.Component != "nodedrift" }), nil
}

// until polls for a condition that satisfies ok, and returns how long it took.
func until(t *testing.T, node, kind string, within time.Duration, ok func(condition) bool) (condition, time.Duration) {
	t.Helper()
	began := time.Now()
	var last condition
	for time.Since(began) < within {
		if all, err := conditions(t.Context(), node); err == nil {
			if last = all[kind]; ok(last) {
				return last, time.Since(began)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s on %s after %s: %s %s %q", kind, node, within, last.Status, last.Reason, last.Message)
	return last, 0
}

func isTrue(reason, text string) func(condition) bool {
	return func(c condition) bool {
		return c.Status == "True" && c.Reason == reason && strings.Contains(c.Message, text)
	}
}

func isFalse(c condition) bool { return c.Status == "False" }

// inNode runs a command in a node and fails the test when the command fails.
func inNode(t *testing.T, node string, command ...string) string {
	t.Helper()
	out, err := testLab.Node(node).Exec(t.Context(), command...)
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", node, strings.Join(command, " "), err, out)
	}
	return out
}

// sh runs a shell line in a node.
func sh(t *testing.T, node, line string) string {
	t.Helper()
	return inNode(t, node, "sh", "-c", line)
}

// judged is a condition as the agent has it.
type judged struct {
	Type, Status, Error string
	NotJudged           []string
	Findings            []struct {
		Reason, Subject, Message, Severity string
		Held                               bool
	}
}

// document is what the agent on a node says of itself on its loopback.
func document(t *testing.T, node string) (d struct{ Conditions []judged }) {
	t.Helper()
	out := inNode(t, node, "curl", "-sS", "--max-time", "5", "http://127.0.0.1:20258/api/v1/status")
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// finds tells whether the agent's own document lists a finding of the reason.
func finds(t *testing.T, node, reason string) bool {
	t.Helper()
	for _, c := range document(t, node).Conditions {
		for _, f := range c.Findings {
			if f.Reason == reason && !f.Held {
				return true
			}
		}
	}
	return false
}

// toolbox runs a privileged pod on a node that does one thing and ends.
func toolbox(t *testing.T, node, name string, args ...string) {
	t.Helper()
	quoted, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	pod := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": "default"}, "spec": {"nodeName": %q, "hostNetwork": true,
	  "restartPolicy": "Never", "containers": [{"name": "tool", "image": "localhost/toolbox:1", "imagePullPolicy": "Never", "args": %s, "securityContext": {"privileged": true}}]}}`, name, node, quoted)
	if out, err := testLab.Kubectl(t.Context(), strings.NewReader(pod), "apply", "-f", "-"); err != nil {
		t.Fatalf("run pod %s: %v\n%s", name, err, out)
	}
	waitPod(t, name)
	t.Cleanup(func() {
		_, _ = testLab.Kubectl(context.WithoutCancel(t.Context()), nil, "delete", "pod", name, "--force", "--grace-period=0")
	})
}

// waitPod waits until a pod has succeeded.
func waitPod(t *testing.T, name string) {
	t.Helper()
	var p struct{ Status struct{ Phase string } }
	for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(20 * time.Millisecond) {
		if err := testLab.Get(t.Context(), "/api/v1/namespaces/default/pods/"+name, &p); err == nil && p.Status.Phase == "Succeeded" {
			return
		}
	}
	t.Fatalf("pod %s is %s", name, p.Status.Phase)
}

// The ledger holds what was shown of each reason, on which node, in what time.
var ledger = struct {
	sync.Mutex
	rows map[string]row
}{rows: map[string]row{}}

type row struct{ raised, cleared, how string }

// record notes that a reason was raised and cleared for real.
func record(reason, how string, raised, cleared time.Duration) {
	ledger.Lock()
	defer ledger.Unlock()
	if _, ok := ledger.rows[reason]; !ok || how == "condition" {
		ledger.rows[reason] = row{fmt.Sprintf("%.2f s", raised.Seconds()), fmt.Sprintf("%.2f s", cleared.Seconds()), how}
	}
}

// fixtureOnly are reasons, and whole probes, that cannot be had on a lab node, and why.
var fixtureOnly = map[string]string{}

// report prints the ledger, and tells whether a reason is missing in it.
func report() (missing bool, err error) {
	out, err := exec.Command(filepath.Join(bin, "nodedrift"), "list", "-o", "json").Output()
	if err != nil {
		return false, fmt.Errorf("list the reasons: %w", err)
	}
	var list []struct {
		Name    string
		Reasons []struct{ Name string }
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return false, err
	}
	fmt.Printf("\n%-12s %-26s %-10s %-10s %s\n", "probe", "reason", "raised", "cleared", "seen in")
	for _, p := range list {
		for _, r := range p.Reasons {
			why := cmp.Or(fixtureOnly[r.Name], fixtureOnly[p.Name])
			switch got, ok := ledger.rows[r.Name]; {
			case ok:
				fmt.Printf("%-12s %-26s %-10s %-10s %s\n", p.Name, r.Name, got.raised, got.cleared, got.how)
			case why != "":
				fmt.Printf("%-12s %-26s fixture only: %s\n", p.Name, r.Name, why)
			default:
				missing = true
				fmt.Printf("%-12s %-26s MISSING: neither shown for real nor listed as fixture only\n", p.Name, r.Name)
			}
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(fixtureOnly)) {
		if _, ok := ledger.rows[reason]; ok {
			fmt.Printf("%s is listed as fixture only and was shown for real\n", reason)
			missing = true
		}
	}
	return missing, nil
}
