package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

func TestConfigErrorsNameTheLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, yaml, want string }{
		{"unknown key", "mode: observe\nprobs: {}\n", `line 2: unknown key probs; did you mean "probes"?`},
		{"unknown key of a probe", "probes:\n  sysctl:\n    evry: 1s\n", `line 3: unknown key probes.sysctl.evry; did you mean "every"?`},
		{"unknown probe", "probes:\n  sysctls: {enabled: true}\n", `line 2: probes.sysctls: there is no such probe; did you mean "sysctl"?`},
		{"unknown reason", "reasons:\n  SysctlChangd: {severity: info}\n", `line 2: reasons.SysctlChangd: there is no such reason; did you mean "SysctlChanged"?`},
		{"severity", "reasons:\n  SysctlChanged:\n    severity: fatal\n", `line 3: reasons.SysctlChanged.severity: is "fatal"`},
		{"mode", "mode: condition\n", `line 1: mode: is "condition", want observe, events or conditions; did you mean "conditions"?`},
		{"duration", "probes:\n  reboot:\n    overdue: soon\n", `line 3: "soon" is not a duration such as 30s, 5m or 7d`},
		{"negative duration", "reasons:\n  SysctlChanged: {hold: -5s}\n", `line 2: "-5s" is not a duration`},
		{"a value that is none", "probes:\n  azurecni: {expect: crii}\n", `line 2: probes.azurecni.expect: is "crii", want cri or state-file`},
		{"an address elsewhere", "probes:\n  azurecni: {cns: \"http://10.0.0.1:10090\"}\n", `probes.azurecni.cns: "10.0.0.1:10090" is not on this node`},
		{"too often", "probes:\n  sysctl: {every: 1ms}\n", `probes.sysctl.every: is 1ms, want 100ms to 1h`},
		{"waiver without why", "waivers:\n- {reason: SysctlChanged}\n", `line 2: waivers.0: a waiver needs a why`},
		{"waiver of nothing", "waivers:\n- {reason: Sysctl, why: x}\n", `line 2: waivers.0.reason: there is no reason "Sysctl"`},
		{"date", "waivers:\n- {reason: SysctlChanged, why: x, until: tomorrow}\n", `line 2: "tomorrow" is not a date such as 2027-03-01`},
		{"version", "apiVersion: nodedrift/v2\nkind: Config\n", `line 1: apiVersion: is "nodedrift/v2", want nodedrift/v1`},
		{"kind", "apiVersion: nodedrift/v1\nkind: Confg\n", `line 2: kind: is "Confg", want Config`},
		{"not YAML", "mode: [\n", "line 1: did not find expected node content"},
		{"not a mapping", "- a\n", "line 1: the configuration is not a mapping"},
		{"a list for a mapping", "probes:\n  sysctl: []\n", "line 2: probes.sysctl is not a mapping"},
		{"wrong type", "probes:\n  sysctl: {enabled: maybe}\n", "line 2: cannot unmarshal !!str `maybe` into bool"},
		{"twice", "mode: observe\nmode: events\n", `line 2: mapping key "mode" already defined at line 1`},
		{"two documents", "mode: observe\n---\nmode: events\n", "more than one YAML document"},
		{"an alias", "probes: &a {sysctl: {}}\nreasons: *a\n", "line 2: aliases are not supported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := parseConfig([]byte(c.yaml))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v\nwant  %s", err, c.want)
			}
		})
	}
}

func TestConfigMeans(t *testing.T) {
	t.Parallel()
	c, err := parseConfig([]byte(`
probes:
  sysctl: {every: 5s, expect: {net.core.somaxconn: "16384"}}
  reboot: {enabled: false, overdue: 3d}
reasons:
  KernelOutdated: {severity: warning, hold: 1d}
  SysctlConflict: {severity: "off"}
waivers:
- {reason: SysctlChanged, subject: vm.max_map_count, until: 2027-03-01, why: Elasticsearch}
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.enabled("reboot") || !c.enabled("sysctl") || c.Mode != modeConditions {
		t.Errorf("reboot %v, sysctl %v, mode %q: want false, true, conditions", c.enabled("reboot"), c.enabled("sysctl"), c.Mode)
	}
	r := c.rules()
	if got := r.Reasons["KernelOutdated"]; got.Severity != probes.Warning || got.Hold == nil || *got.Hold != 24*time.Hour || got.Clear != nil {
		t.Errorf("KernelOutdated: %+v", got)
	}
	if !r.Reasons["SysctlConflict"].Off || r.Every["sysctl"] != 5*time.Second {
		t.Errorf("SysctlConflict %+v, every %v", r.Reasons["SysctlConflict"], r.Every)
	}
	want := agent.Waiver{Reason: "SysctlChanged", Subject: "vm.max_map_count", Until: time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC), Why: "Elasticsearch"}
	if len(r.Waivers) != 1 || r.Waivers[0] != want {
		t.Errorf("waivers %+v, want %+v", r.Waivers, want)
	}
}

func TestDefaultConfigIsTheDefault(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "# nothing\n", "---\n", defaultConfig} {
		c, err := parseConfig([]byte(text))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if c.Mode != modeConditions || !c.enabled("sysctl") || !c.enabled("reboot") || len(c.Reasons)+len(c.Waivers) > 0 {
			t.Errorf("%q means %+v", text, c)
		}
	}
	for _, s := range catalogue() {
		if !strings.Contains(defaultConfig, "\n  "+s.Name+":") {
			t.Errorf("default.yaml does not show probe %s", s.Name)
		}
	}
}

func TestConfigFileThatIsNone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 1<<30); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join(dir, "absent"), dir, big} {
		if _, err := loadConfig(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v, want one that names the file", name, err)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(defaultConfig))
	f.Add([]byte("probes: {sysctl: {every: 1d}}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parseConfig(b); err == nil {
			c.rules()
		}
	})
}
