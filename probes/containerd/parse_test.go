package containerd

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseNetwork(t *testing.T) {
	for _, c := range []struct {
		text string
		list bool
		want string
	}{
		{`{"type": "ptp", "ipam": {"type": "host-local"}}`, false, "ptp host-local"},
		{`{"plugins": [{"type": "a"}, {"type": "b", "ipam": {}}]}`, true, "a b"},
		{`{"plugins": []}`, true, "error: names no plugin"},
		{`{"type": "ptp"}`, true, "error: names no plugin"},
		{`{"plugins": [{"ipam": {"type": "x"}}]}`, true, "error: has a plugin without a type"},
		{`{}`, false, "error: has a plugin without a type"},
		{`{"plugins": 7}`, true, "error: is JSON, but no network configuration"},
		{`{"plugins": [`, true, "error: is not valid JSON (byte 13 of 13)"},
		{``, true, "error: is not valid JSON (byte 0 of 0)"},
	} {
		got, err := parseNetwork([]byte(c.text), c.list)
		text := strings.Join(got, " ")
		if err != nil {
			text = "error: " + err.Error()
		}
		if text != c.want {
			t.Errorf("%s: %s, want %s", c.text, text, c.want)
		}
	}
}

// TestAzureConflists reads the configurations that Azure CNI and AKS write.
func TestAzureConflists(t *testing.T) {
	names, _ := filepath.Glob("testdata/conflist/*.json")
	if len(names) == 0 {
		t.Fatal("no conflists")
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if plugins, err := parseNetwork(content, true); err != nil || len(plugins) < 2 {
			t.Errorf("%s: %v, %v", name, plugins, err)
		}
	}
}

func TestParseTOML(t *testing.T) {
	deep := strings.Repeat("[", 200)
	for text, want := range map[string]string{
		"a = 1":                             "",
		"a = = 1":                           "line 1 is not valid TOML",
		"\n\n[a":                            "line 3 is not valid TOML",
		"a = " + deep:                       errNested.Error(),
		strings.Repeat("a.", 100) + "a = 1": errNested.Error(),
		"a = '" + deep + "'\nb = \"\\\"" + deep + "\" # " + deep: "",
		"a = '''\n" + deep + "\n'''\n":                           "",
		"secret = \"password" + "\nb = 1":                        "line 1 is not valid TOML",
	} {
		_, err := parseTOML([]byte(text))
		if got := errText(err); got != want {
			t.Errorf("%.40q: %q, want %q", text, got, want)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestNormalTOML(t *testing.T) {
	a := normalTOML("", []byte("# x\nb = 1\na = [1,2]\n[t]\nk = 'v'\n"))
	b := normalTOML("", []byte("a = [ 1, 2 ]\nb=1\nt = {k = \"v\"}\n"))
	if string(a) != string(b) {
		t.Errorf("%s and %s differ", a, b)
	}
	if got := normalTOML("", []byte("= =")); string(got) != "= =" {
		t.Errorf("what is no TOML became %q", got)
	}
}

func TestCompare(t *testing.T) {
	const running = `{"containerd": {"snapshotter": "overlayfs", "runtimes": {"runc": {"runtimeType": "v2", "options": {"SystemdCgroup": true, "N": 3}, "PodAnnotations": null}}},
	  "cni": {"binDir": "", "binDirs": ["/opt/cni/bin", "/usr/lib/cni"], "maxConfNum": 1}, "streamIdleTimeout": "4h0m0s", "enableTLSStreaming": false, "maxContainerLogSize": 16384,
	  "statsCollectPeriod": 10, "empty": null, "cdiSpecDirs": ["/etc/cdi", "/var/run/cdi"], "defaultRuntime": {"x": 1}}`
	for toml, want := range map[string]string{
		"containerd.snapshotter = 'overlayfs'":                     "",
		"containerd.snapshotter = 'native'":                        "containerd.snapshotter",
		"stream_idle_timeout = '4h'":                               "",
		"stream_idle_timeout = '240m'":                             "",
		"stream_idle_timeout = '3h'":                               "stream_idle_timeout",
		"enable_tls_streaming = true":                              "enable_tls_streaming",
		"max_container_log_line_size = 16384":                      "",
		"max_container_log_line_size = -1":                         "max_container_log_line_size",
		"stats_collect_period = 10.0":                              "",
		"not_known = 7":                                            "",
		"empty = ''":                                               "",
		"empty = []":                                               "",
		"cdi_spec_dirs = ['/etc/cdi', '/var/run/cdi']":             "",
		"cdi_spec_dirs = ['/etc/cdi']":                             "cdi_spec_dirs",
		"cni.bin_dir = '/opt/cni/bin'":                             "",
		"cni.bin_dir = '/other'":                                   "cni.bin_dir",
		"containerd.runtimes.runc.options.SystemdCgroup = true":    "",
		"containerd.runtimes.runc.options.SystemdCgroup = false":   "containerd.runtimes.runc.options.SystemdCgroup",
		"containerd.runtimes.runc.options.New = false":             "containerd.runtimes.runc.options.New",
		"containerd.runtimes.runc.new_key = false":                 "",
		"containerd.runtimes.kata.runtime_type = 'x'":              "containerd.runtimes.kata",
		"containerd.runtimes.runc.pod_annotations = ['a']":         "containerd.runtimes.runc.pod_annotations",
		"containerd.runtimes.runc.runtime_root = 'a'":              "",
		"registry.configs.x.auth.password = 'secret'":              "",
		"containerd.untrusted_workload_runtime.runtime_type = 'x'": "",
		"containerd = 7":                                           "",
		"stats_collect_period = {a = 1}":                           "",
	} {
		want2, err := parseTOML([]byte(toml))
		if err != nil {
			t.Fatal(toml, err)
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(running), &got); err != nil {
			t.Fatal(err)
		}
		var keys []string
		compare(want2, got, "", &keys)
		if text := strings.Join(keys, " "); text != want {
			t.Errorf("%s: differs in %q, want %q", toml, text, want)
		}
	}
}

func TestSandboxIn(t *testing.T) {
	for args, want := range map[string]string{
		"/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id x -address /s":                    "x",
		"/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id start -address /s":                "start",
		"/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -address /s -publish-binary /c -id x": "x",
		"/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id x -address /s start":              "",
		"/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id x -bundle /b delete":              "",
		"/usr/bin/containerd-shim-runc-v2 -namespace moby -id x":                                  "",
		"/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id":                                  "",
		"/usr/bin/other -namespace k8s.io -id x":                                                  "",
		"":                                                                                        "",
	} {
		if got := sandboxIn(strings.Fields(args)); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}

func FuzzNetwork(f *testing.F) {
	f.Add([]byte(`{"plugins": [{"type": "azure-vnet", "ipam": {"type": "azure-cns"}}]}`), true)
	f.Add([]byte(`{"type": "ptp"}`), false)
	f.Fuzz(func(t *testing.T, b []byte, list bool) {
		if names, err := parseNetwork(b, list); err == nil && (len(names) == 0 || slices.Contains(names, "")) {
			t.Errorf("plugins %q without an error", names)
		}
	})
}

func FuzzTOML(f *testing.F) {
	f.Add([]byte("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"x\"\n"))
	f.Add([]byte("a = [[[{b = '''x'''}]]]\n[[t]]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseTOML(b)
		if err != nil {
			return
		}
		once := normalTOML("", b)
		if again := normalTOML("", b); string(once) != string(again) {
			t.Errorf("%q is not normal: %q, %q", b, once, again)
		}
		var keys []string
		compare(m, map[string]any{"a": 1.0, "containerd": map[string]any{"runtimes": map[string]any{}}}, "", &keys)
	})
}

func FuzzSettings(f *testing.F) {
	f.Add(`{"cni": {"binDir": "/opt/cni/bin", "maxConfNum": 1}, "registry": {"auths": {}}}`, `{"Networks": [{"Config": {"Plugins": [{"Network": {"type": "loopback"}}]}}]}`)
	f.Add(`{"cni": 7}`, `[]`)
	f.Fuzz(func(t *testing.T, config, network string) {
		s, ok := parseSettings(map[string]string{"config": config, "cniconfig": network})
		if _, has := s.config["registry"]; has || ok != s.known {
			t.Errorf("%q: %+v", config, s)
		}
	})
}

func FuzzPIDs(f *testing.F) {
	f.Add([]byte("1\n621\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if pids, ok := parsePIDs(b); ok && (len(pids) == 0 || slices.Min(pids) <= 0) {
			t.Errorf("%q: %v", b, pids)
		}
	})
}
