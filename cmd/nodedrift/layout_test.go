package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nodedrift/nodedrift/manifests/policytest"
)

const module = "github.com/nodedrift/nodedrift"

// deps lists what a package pulls in, for the binary as it is shipped.
func deps(t *testing.T, pkg string) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-tags", "grpcnotrace,nethttpomithttp2", pkg)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pkg, err)
	}
	return strings.Fields(string(out))
}

func packages(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("go", "list", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.Fields(string(out))
}

// The binary stays small because of what it does not link: a template engine
// keeps every method of every type (4 MB), the typed API the whole scheme (14 MB).
func TestBinaryLinksNothingLarge(t *testing.T) {
	t.Parallel()
	all := deps(t, module+"/cmd/nodedrift")
	for _, heavy := range []string{"text/template", "html/template", "k8s.io/api/core/v1", "k8s.io/client-go/kubernetes", "runtime/cgo"} {
		if slices.Contains(all, heavy) {
			t.Errorf("cmd/nodedrift imports %s", heavy)
		}
	}
}

// The agent never runs a program. (The D-Bus library could, to start a bus, but
// is only ever given connections.)
func TestAgentImportsNoExec(t *testing.T) {
	t.Parallel()
	for _, pkg := range deps(t, module+"/cmd/nodedrift") {
		if !strings.HasPrefix(pkg, module+"/") {
			continue
		}
		out, err := exec.Command("go", "list", "-f", `{{join .Imports " "}}`, pkg).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", pkg, err)
		}
		if slices.Contains(strings.Fields(string(out)), "os/exec") {
			t.Errorf("%s imports os/exec", pkg)
		}
	}
}

// The condition types that the admission policy lets through are those that the
// probes have, and a few that later probes will.
func TestPolicyLetsEveryConditionThrough(t *testing.T) {
	t.Parallel()
	for _, name := range conditionTypes() {
		if !slices.Contains(policytest.Types, name) {
			t.Errorf("the admission policy refuses %s", name)
		}
	}
}

// What is shipped is valid, for the reasons that there are.
func TestShippedConfigurationsAreValid(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"base", "overlays/nodelab"} {
		if _, err := loadConfig("../../manifests/" + name + "/nodedrift.yaml"); err != nil {
			t.Error(err)
		}
	}
}

// Data flows one way, and so do imports.
func TestImportsFollowTheDesign(t *testing.T) {
	t.Parallel()
	for _, pkg := range packages(t) {
		rel := strings.TrimPrefix(pkg, module+"/")
		var may func(own string) bool
		stdlibOnly := false
		switch {
		case rel == "probes":
			may, stdlibOnly = func(string) bool { return false }, true
		case rel == "agent":
			may, stdlibOnly = func(own string) bool { return own == "probes" }, true
		case strings.HasPrefix(rel, "agent/"):
			may = func(own string) bool { return own == "probes" || own == "agent" || strings.HasPrefix(own, rel+"/") }
		case rel == "probes/host" || rel == "probes/probetest":
			may = func(own string) bool { return own == "probes" || own == "probes/host" }
		case rel == "bpf":
			may = func(own string) bool { return own == "probes" }
		case strings.HasPrefix(rel, "probes/"):
			may = func(own string) bool { return own == "probes" || own == "probes/host" || own == "probes/internal/unit" }
		default:
			continue
		}
		for _, dep := range deps(t, pkg) {
			own, ours := strings.CutPrefix(dep, module+"/")
			if ours && dep != pkg && !may(own) {
				t.Errorf("%s imports %s", rel, own)
			}
			if !ours && stdlibOnly && strings.Contains(strings.Split(dep, "/")[0], ".") {
				t.Errorf("%s imports %s; it may import the standard library only", rel, dep)
			}
			if !ours && rel != "agent/kube" && strings.HasPrefix(dep, "k8s.io/client-go") || !ours && rel != "agent/metrics" && strings.HasPrefix(dep, "github.com/prometheus/client_golang") {
				t.Errorf("%s imports %s, which only its publisher may", rel, dep)
			}
		}
	}
}

// Every condition, reason and metric is one name for one thing.
func TestCatalogueIsComplete(t *testing.T) {
	t.Parallel()
	reserved := []string{"KubeletProblem", "ContainerRuntimeProblem", "FilesystemCorruptionProblem", "VMEventScheduled", "FrequentUnregisterNetDevice",
		"KernelDeadlock", "ReadonlyFilesystem", "PreemptionScheduled", "kubernetes.azure.com/NodeHealthy"}
	seen := map[string]string{}
	for _, s := range catalogue() {
		if slices.Contains(reserved, s.Condition) || s.Condition != "" && path.Base(s.Condition) != s.Condition {
			t.Errorf("probe %s: condition %s belongs to somebody else", s.Name, s.Condition)
		}
		if s.Name == "" || s.Every <= 0 || s.Timeout <= 0 || s.Condition != "" && s.Healthy == "" {
			t.Errorf("probe %q: its spec is not complete: %+v", s.Name, s)
		}
		for _, r := range s.Reasons {
			if by, twice := seen[r.Name]; twice {
				t.Errorf("reason %s is given by %s and %s", r.Name, by, s.Name)
			}
			seen[r.Name] = s.Name
			for field, text := range map[string]string{"Meaning": r.Meaning, "Breaks": r.Breaks, "Confirm": r.Confirm, "Mend": r.Mend, "Owner": string(r.Owner), "Severity": r.Severity.String()} {
				if text == "" {
					t.Errorf("reason %s has no %s", r.Name, field)
				}
			}
			if len(r.Links) == 0 {
				t.Errorf("reason %s links to nothing", r.Name)
			}
		}
	}
}

// opensFiles are the functions by which a path is opened, listed or changed.
var opensFiles = map[string][]string{
	"os": {"Open", "OpenFile", "OpenRoot", "OpenInRoot", "ReadFile", "ReadDir", "DirFS", "Stat", "Lstat", "Readlink", "Create", "WriteFile",
		"Mkdir", "MkdirAll", "MkdirTemp", "CreateTemp", "Remove", "RemoveAll", "Rename", "Symlink", "Link", "Chmod", "Truncate", "CopyFS"},
	"path/filepath":         {"Glob", "Walk", "WalkDir", "EvalSymlinks"},
	"syscall":               {"Open", "Openat", "Stat", "Lstat", "Readlink", "Statfs"},
	"golang.org/x/sys/unix": {"Open", "Openat", "Openat2", "Stat", "Lstat", "Statx", "Fstatat", "Readlink", "Readlinkat", "Statfs", "Unlink", "Rename", "Mkdir"},
}

// notOfTheNode are the functions outside probes/host that open files, and why they
// may: what they open is the agent's own, or the kernel's.
var notOfTheNode = map[string]string{
	"cmd/internal/lock/lock.go allow":    "the agent's own folder, to keep it writable",
	"cmd/internal/lock/lock.go Try":      "a file of the agent's own process",
	"cmd/nodedrift/config.go loadConfig": "the agent's configuration",
	"cmd/nodedrift/memory.go giveBack":   "the agent's own process",
	"cmd/nodedrift/pod.go ownPod":        "the pod's own token",
	"cmd/nodedrift/self.go threads":      "the agent's own threads",
	"cmd/nodedrift/state.go Load":        "the agent's own folder",
	"cmd/nodedrift/state.go Save":        "the agent's own folder",
	"cmd/nodedrift/state.go lockState":   "the agent's own folder",
	"probes/azurecni/slow.go counters":   "the network namespace of the agent's own thread",
	"bpf/detector.go newLoader":          "the kernel's types, and the agent's own namespaces",
	"bpf/tracer.go confidential":         "whether the kernel is locked down",
	"bpf/tracer.go try":                  "a sysctl of the agent's namespace: its read is the event that is waited for",
	"bpf/cgroup.go findTrees":            "the agent's own mounts",
	"bpf/cgroup.go openTree":             "cgroupfs, which holds nothing but what the kernel made",
	"bpf/cgroup.go read":                 "cgroupfs, which holds nothing but what the kernel made",
	"bpf/census.go readCensus":           "procfs: none of these files waits for a lock of the process's own",
	"bpf/census.go readThread":           "procfs: none of these files waits for a lock of the process's own",
}

// Files of the node are opened through probes/host alone, which bounds how far it
// follows links, what it opens, how much it reads and how long it waits.
func TestHostFilesOnlyThroughHost(t *testing.T) {
	t.Parallel()
	met := map[string]bool{}
	for _, pkg := range deps(t, module+"/cmd/nodedrift") {
		dir, ours := strings.CutPrefix(pkg, module+"/")
		if !ours || dir == "probes/host" {
			continue
		}
		files, err := filepath.Glob("../../" + dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			for _, f := range openers(t, name) {
				where := dir + "/" + filepath.Base(name) + " " + f.in
				if met[where] = true; notOfTheNode[where] == "" {
					t.Errorf("%s calls %s: files of the node are opened through probes/host", where, f.calls)
				}
			}
		}
	}
	for where := range notOfTheNode {
		if !met[where] {
			t.Errorf("%s opens nothing any more", where)
		}
	}
}

// An opener is a function that opens a file.
type opener struct{ in, calls string }

func openers(t *testing.T, name string) (list []opener) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	imported := map[string]string{}
	for _, i := range file.Imports {
		p := strings.Trim(i.Path.Value, `"`)
		local := path.Base(p)
		if i.Name != nil {
			local = i.Name.Name
		}
		imported[local] = p
	}
	for _, d := range file.Decls {
		in := "a variable"
		if f, ok := d.(*ast.FuncDecl); ok {
			in = f.Name.Name
		}
		ast.Inspect(d, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && slices.Contains(opensFiles[imported[x.Name]], s.Sel.Name) {
					list = append(list, opener{in, imported[x.Name] + "." + s.Sel.Name})
				}
			}
			return true
		})
	}
	return list
}
