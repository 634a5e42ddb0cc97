package manifests_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/nodedrift/nodedrift/manifests/policytest"
)

// object is a manifest, read by path: get("spec", "template").
type object map[string]any

func (o object) get(path ...string) any {
	var v any = map[string]any(o)
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	return v
}

func (o object) str(path ...string) string { s, _ := o.get(path...).(string); return s }

func parse(t *testing.T, b []byte) (objects []object) {
	t.Helper()
	for d := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var o map[string]any // a named type would become that of the maps inside, too
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return objects
		} else if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
}

// base is the objects as written, so that the rules hold without any tool.
func base(t *testing.T) (objects []object) {
	t.Helper()
	var k struct{ Resources []string }
	b, err := os.ReadFile("base/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &k); err != nil {
		t.Fatal(err)
	}
	for _, f := range k.Resources {
		b, err := os.ReadFile(filepath.Join("base", f))
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, parse(t, b)...)
	}
	return objects
}

func rendered(t *testing.T, dir string) []object {
	t.Helper()
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("no kubectl to render with")
	}
	cmd := exec.Command(kubectl, "kustomize", dir)
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("render %s: %v", dir, err)
	}
	return parse(t, b)
}

func find(t *testing.T, objects []object, kind, name string) object {
	t.Helper()
	for _, o := range objects {
		if o.str("kind") == kind && o.str("metadata", "name") == name {
			return o
		}
	}
	t.Fatalf("no %s %s", kind, name)
	return nil
}

func TestBase(t *testing.T)    { check(t, base(t)) }
func TestAKS(t *testing.T)     { check(t, rendered(t, "overlays/aks")) }
func TestNodelab(t *testing.T) { check(t, rendered(t, "overlays/nodelab")) }

// check holds what a reviewer of the manifests relies on.
func check(t *testing.T, objects []object) {
	pod := object(find(t, objects, "DaemonSet", "nodedrift").get("spec", "template", "spec").(map[string]any))
	t.Run("service account", func(t *testing.T) {
		account := find(t, objects, "ServiceAccount", policytest.Account)
		user := "system:serviceaccount:" + account.str("metadata", "namespace") + ":" + account.str("metadata", "name")
		if pod.str("serviceAccountName") != policytest.Account {
			t.Errorf("the pod runs as %s", pod.str("serviceAccountName"))
		}
		// A policy about another name than the rendered one refuses nothing, and nobody notices.
		for _, name := range []string{"nodedrift-nodes", "nodedrift-events"} {
			policy := find(t, objects, "ValidatingAdmissionPolicy", name)
			conditions := policy.get("spec", "matchConditions").([]any)
			got := object(conditions[0].(map[string]any)).str("expression")
			if want := "request.userInfo.username == '" + user + "'"; len(conditions) != 1 || got != want {
				t.Errorf("%s is about %s, want %s", name, got, want)
			}
			if policy.str("spec", "failurePolicy") != "Fail" {
				t.Errorf("%s does not fail closed", name)
			}
			binding := find(t, objects, "ValidatingAdmissionPolicyBinding", name)
			if binding.str("spec", "policyName") != name || !slices.Contains(binding.get("spec", "validationActions").([]any), "Deny") || binding.get("spec", "matchResources") != nil {
				t.Errorf("%s is not bound to deny, everywhere", name)
			}
		}
		for _, o := range objects {
			subjects, _ := o.get("subjects").([]any)
			for _, s := range subjects {
				if s := object(s.(map[string]any)); s.str("name") != policytest.Account || s.str("namespace") != policytest.Namespace {
					t.Errorf("%s gives rights to %v", o.str("metadata", "name"), s)
				}
			}
		}
	})
	t.Run("condition types", func(t *testing.T) {
		policy := find(t, objects, "ValidatingAdmissionPolicy", "nodedrift-nodes")
		for _, v := range policy.get("spec", "variables").([]any) {
			if v := object(v.(map[string]any)); v.str("name") == "ours" {
				var got []string
				for _, m := range regexp.MustCompile(`'(\w+)'`).FindAllStringSubmatch(v.str("expression"), -1) {
					got = append(got, m[1])
				}
				if !slices.Equal(got, policytest.Types) {
					t.Errorf("the policy lets the agent publish %v, want %v", got, policytest.Types)
				}
			}
		}
	})
	t.Run("rights", func(t *testing.T) {
		want := map[string]string{
			"ClusterRole nodedrift":               "[] [nodes] [get]; [] [nodes/status] [patch]",
			"Role default/nodedrift-events":       "[] [events] [create patch]",
			"Role nodedrift-system/nodedrift-log": "[] [pods/log] [get]",
		}
		for _, o := range objects {
			if !strings.HasSuffix(o.str("kind"), "Role") {
				continue
			}
			name := o.str("kind") + " " + strings.TrimPrefix(o.str("metadata", "namespace")+"/"+o.str("metadata", "name"), "/")
			var rules []string
			for _, r := range o.get("rules").([]any) {
				r := object(r.(map[string]any))
				rules = append(rules, list(r.get("apiGroups"))+" "+list(r.get("resources"))+" "+list(r.get("verbs")))
			}
			if got := strings.Join(rules, "; "); got != want[name] {
				t.Errorf("%s: %s, want %s", name, got, want[name])
			}
			delete(want, name)
		}
		if len(want) != 0 {
			t.Errorf("missing: %v", want)
		}
	})
	t.Run("pod", func(t *testing.T) {
		c := object(pod.get("containers").([]any)[0].(map[string]any))
		if n := len(pod.get("containers").([]any)); n != 1 || pod.get("initContainers") != nil {
			t.Errorf("%d containers, want the agent alone", n)
		}
		if image := c.str("image"); !regexp.MustCompile(`^[^/]+/.+(:[^:/]+|@sha256:[0-9a-f]{64})$`).MatchString(image) || strings.HasSuffix(image, ":latest") {
			t.Errorf("image %q must name a registry and a version", image)
		}
		for path, want := range map[string]any{
			"privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsUser": 0, "runAsGroup": 0,
		} {
			if got := c.get("securityContext", path); got != want {
				t.Errorf("securityContext.%s: %v, want %v", path, got, want)
			}
		}
		// Each capability has its reason in daemonset.yaml; one more is one more line here.
		if drop, add := list(c.get("securityContext", "capabilities", "drop")), list(c.get("securityContext", "capabilities", "add")); drop != "[ALL]" || add != "[BPF PERFMON NET_ADMIN]" {
			t.Errorf("capabilities: drop %s, add %s", drop, add)
		}
		if got := pod.str("securityContext", "seccompProfile", "type"); got != "RuntimeDefault" {
			t.Errorf("seccomp: %s", got)
		}
		if c.get("resources", "requests", "cpu") == nil || c.get("resources", "requests", "memory") == nil || c.get("resources", "limits", "memory") == nil || c.get("resources", "limits", "cpu") != nil {
			t.Errorf("resources: %v", c.get("resources"))
		}
		for p, want := range map[string]string{"startupProbe": "/readyz", "livenessProbe": "/healthz"} {
			if path := c.str(p, "httpGet", "path"); path != want {
				t.Errorf("%s asks %s, want %s", p, path, want)
			}
		}
		for _, v := range c.get("volumeMounts").([]any) {
			v := object(v.(map[string]any))
			if v.get("readOnly") != true && v.str("mountPath") != "/run/nodedrift" {
				t.Errorf("%s is writable", v.str("mountPath"))
			}
			if v.str("name") == "host" && v.str("mountPropagation") != "HostToContainer" {
				t.Errorf("/host pins what the node unmounts")
			}
		}
		for _, v := range pod.get("volumes").([]any) {
			if path := object(v.(map[string]any)).str("hostPath", "path"); path != "" && path != "/" && path != "/run/nodedrift" {
				t.Errorf("host path %s", path)
			}
		}
	})
	t.Run("namespace", func(t *testing.T) {
		ns := find(t, objects, "Namespace", policytest.Namespace)
		for _, mode := range []string{"enforce", "audit", "warn"} {
			if got := ns.str("metadata", "labels", "pod-security.kubernetes.io/"+mode); got != "privileged" {
				t.Errorf("pod security %s: %q", mode, got)
			}
		}
	})
}

func list(v any) string {
	var words []string
	l, _ := v.([]any)
	for _, w := range l {
		words = append(words, w.(string))
	}
	return "[" + strings.Join(words, " ") + "]"
}

// TestPrivileged: the fallback is one field and what the API server refuses beside it.
func TestPrivileged(t *testing.T) {
	dir := t.TempDir()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(dir, here)
	if err != nil {
		t.Fatal(err)
	}
	k := "resources: [" + rel + "/base]\ncomponents: [" + rel + "/components/privileged]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(k), 0o600); err != nil {
		t.Fatal(err)
	}
	d := find(t, rendered(t, dir), "DaemonSet", "nodedrift")
	c := object(d.get("spec", "template", "spec", "containers").([]any)[0].(map[string]any))
	s := c.get("securityContext").(map[string]any)
	if s["privileged"] != true || s["allowPrivilegeEscalation"] != nil || s["capabilities"] != nil || s["readOnlyRootFilesystem"] != true {
		t.Errorf("securityContext: %v", s)
	}
}

// TestConfigs: each configuration is one the agent's strict reader may see.
func TestConfigs(t *testing.T) {
	for _, f := range []string{"base/nodedrift.yaml", "overlays/nodelab/nodedrift.yaml"} {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c := parse(t, b)[0]
		if c.str("apiVersion") != "nodedrift/v1" || c.str("kind") != "Config" || c.str("mode") != "conditions" {
			t.Errorf("%s: %v", f, c)
		}
	}
}
