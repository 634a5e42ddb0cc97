package sysctl

import (
	"maps"
	"path"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// kernel names the keys of a kernel that has two links.
var kernel = []string{
	"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter", "net/ipv4/conf/eth0/rp_filter", "net/ipv4/conf/lxc1/rp_filter",
	"net/ipv4/conf/all/forwarding", "net/ipv4/ip_forward", "vm/swappiness",
}

func globKernel(pattern string) ([]string, error) { return globIn(kernel, pattern) }

func globIn(keys []string, pattern string) ([]string, error) {
	var found []string
	for _, k := range keys {
		ok, err := path.Match(pattern, k)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, k)
		}
	}
	return found, nil
}

// readAs makes a declaration file.
func readAs(name, content string) file {
	f := file{path: name}
	f.assignments, f.flaws = parse([]byte(content))
	return f
}

func TestEffective(t *testing.T) {
	const dist, site = "usr/lib/sysctl.d/50-default.conf", "etc/sysctl.d/60-site.conf"
	for name, c := range map[string]struct {
		dist, site string
		want       map[string]string // key: value
	}{
		"the last wins":                   {"vm.swappiness=1", "vm.swappiness=2\nvm/swappiness=3", map[string]string{"vm/swappiness": "3"}},
		"a named key beats a later glob":  {"net.ipv4.conf.eth0.rp_filter=1", "net.ipv4.conf.e*.rp_filter=2", map[string]string{"net/ipv4/conf/eth0/rp_filter": "1"}},
		"a later glob beats an earlier":   {"net.ipv4.conf.e*.rp_filter=1", "net.ipv4.conf.?th0.rp_filter=2", map[string]string{"net/ipv4/conf/eth0/rp_filter": "2"}},
		"an exclusion":                    {"net.ipv4.conf.[a-e]*.rp_filter=1", "-net.ipv4.conf.all.rp_filter", map[string]string{"net/ipv4/conf/default/rp_filter": "1", "net/ipv4/conf/eth0/rp_filter": "1"}},
		"a negated class":                 {"net.ipv4.conf.[!ad]*.rp_filter=1", "", map[string]string{"net/ipv4/conf/eth0/rp_filter": "1", "net/ipv4/conf/lxc1/rp_filter": "1"}},
		"an exclusion takes a value back": {"vm.swappiness=1", "-vm.swappiness", map[string]string{}},
		"a value after an exclusion":      {"-vm.swappiness", "vm.swappiness=1", map[string]string{"vm/swappiness": "1"}},
		"a glob that cannot be":           {"net.ipv4.conf.[.rp_filter=1", "", map[string]string{}},
		"a glob of nothing":               {"net.ipv4.conf.wg*.rp_filter=1", "", map[string]string{}},
		"twins: the last written wins":    {"net.ipv4.ip_forward=1", "net.ipv4.conf.all.forwarding=0", map[string]string{"net/ipv4/ip_forward": "0", "net/ipv4/conf/all/forwarding": "0"}},
	} {
		settings, err := effective([]file{readAs(dist, c.dist), readAs(site, c.site)}, globKernel)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, values(settings)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func values(settings []setting) map[string]string {
	got := map[string]string{}
	for _, s := range settings {
		got[s.key] = s.value
	}
	return got
}

func TestAuthority(t *testing.T) {
	settings, err := effective([]file{
		readAs("usr/lib/sysctl.d/50-default.conf", "vm.swappiness=1\nkernel.a=1\n-kernel.b=1\nnet.ipv4.conf.e*.rp_filter=1"),
		readAs("etc/sysctl.d/60-site.conf", "vm.swappiness=2"),
		readAs("usr/lib/sysctl.d/99-dist.conf", "vm.swappiness=3"),
	}, globKernel)
	if err != nil {
		t.Fatal(err)
	}
	settings = withExpected(settings, map[string]string{"kernel.c": "7"})
	got := map[string]setting{}
	for _, s := range settings {
		got[s.key] = s
	}
	want := map[string]setting{
		"vm/swappiness":                {key: "vm/swappiness", value: "3", source: "/usr/lib/sysctl.d/99-dist.conf", local: true},
		"kernel/a":                     {key: "kernel/a", value: "1", source: "/usr/lib/sysctl.d/50-default.conf"},
		"kernel/b":                     {key: "kernel/b", value: "1", source: "/usr/lib/sysctl.d/50-default.conf", quiet: true},
		"kernel/c":                     {key: "kernel/c", value: "7", source: "config", local: true},
		"net/ipv4/conf/eth0/rp_filter": {key: "net/ipv4/conf/eth0/rp_filter", value: "1", source: "/usr/lib/sysctl.d/50-default.conf", quiet: true, globbed: true},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(setting{})); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

// TestBaseline counts what AKS writes: 29 lines, 4 lines, 3 that no node pool
// can change (the source is named in aks.tsv).
func TestBaseline(t *testing.T) {
	got := map[string]int{}
	for name, lines := range aksBaseline {
		got[name] = len(lines)
	}
	if want := map[string]int{"60-CIS.conf": 29, "99-force-bridge-forward.conf": 4, aksNodePool: 3}; !maps.Equal(got, want) {
		t.Errorf("the baseline has %v lines, want %v", got, want)
	}
	for _, lines := range aksBaseline {
		if i := slices.IndexFunc(lines, func(a assignment) bool { return unwritable(a.key) != "" || a.value == "" || a.line != 0 }); i >= 0 {
			t.Errorf("line %+v", lines[i])
		}
	}
}
