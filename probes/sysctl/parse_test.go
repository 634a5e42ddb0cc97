package sysctl

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodedrift/nodedrift/probes/host"
)

func TestParse(t *testing.T) {
	all := cmp.AllowUnexported(assignment{}, flaw{})
	for name, c := range map[string]struct {
		content string
		want    []assignment
		flaws   []flaw
	}{
		"forms of a key": {
			"net.ipv4.ip_forward=1\n net/ipv4/conf/eth0.100/rp_filter = 2 \nnet.ipv4.conf.eth0/100.rp_filter\t=\t0\n/vm//swappiness/ = 1",
			[]assignment{
				{key: "net/ipv4/ip_forward", value: "1", line: 1},
				{key: "net/ipv4/conf/eth0.100/rp_filter", value: "2", line: 2},
				{key: "net/ipv4/conf/eth0.100/rp_filter", value: "0", line: 3},
				{key: "vm/swappiness", value: "1", line: 4},
			}, nil,
		},
		"comments and blanks": {"# a = 1\n; b = 2\n\n   \t\n  # c = 3\nvm.swappiness = 1 # stays\n",
			[]assignment{{key: "vm/swappiness", value: "1 # stays", line: 6}}, nil},
		"dashes": {"-kernel.x = 1\n- kernel.y = 2\n-net.ipv4.conf.eth0.rp_filter\n",
			[]assignment{
				{key: "kernel/x", value: "1", silent: true, line: 1},
				{key: "kernel/y", value: "2", silent: true, line: 2},
				{key: "net/ipv4/conf/eth0/rp_filter", except: true, line: 3},
			}, nil},
		"values": {"kernel.core_pattern = |/bin/x -p%p=%u\nkernel.domainname =\nnet.ipv4.tcp_rmem = 4096\t1  2\n",
			[]assignment{
				{key: "kernel/core_pattern", value: "|/bin/x -p%p=%u", line: 1},
				{key: "kernel/domainname", line: 2},
				{key: "net/ipv4/tcp_rmem", value: "4096\t1  2", line: 3},
			}, nil},
		"ends of lines": {"a.b=1\r\nc.d=2\n\n\re.f=3\x00g.h=4",
			[]assignment{
				{key: "a/b", value: "1", line: 1}, {key: "c/d", value: "2", line: 2},
				{key: "e/f", value: "3", line: 4}, {key: "g/h", value: "4", line: 5},
			}, nil},
		"rejected": {"vm.swappiness 10\n= 1\n-\nnet/../kernel/panic = 5\n/../x = 1\n", nil,
			[]flaw{{1, "is not an assignment"}, {2, "names no key"}, {3, "names no key"}, {4, "names a key outside /proc/sys"}, {5, "names a key outside /proc/sys"}}},
		"nothing": {"", nil, nil},
	} {
		got, flaws := parse([]byte(c.content))
		if diff := cmp.Diff(c.want, got, all) + cmp.Diff(c.flaws, flaws, all); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSame(t *testing.T) {
	for _, c := range []struct {
		key, live, want string
		same            bool
	}{
		{"", "1", "1", true},
		{"", "0", "1", false},
		{"", "4096\t131072\t6291456", "4096 131072  6291456", true},
		{"", "4096\t131072\t6291456", "4096 131072 6291457", false},
		{"", "3\t4\t1\t7", "3", true}, // the rest stays
		{"", "3\t4\t1\t7", "4", false},
		{"", "1", "1 # yes", true}, // the kernel stops at the first field
		{"", "8", "010", true},
		{"", "7", "0x7", true},
		{"", "8", "0o10", false},
		{"", "1000", "1_000", false},
		{"", "-1", "-1", true},
		{"", "", "", true},
		{"", "", "1", false},
		{"", "1", "", false},
		{"", "|/bin/x -p", "|/bin/x", false},
		{"", "cubic", "bbr", false},
		{"", "18446744073709551615", "18446744073709551615", true},
		{"net/ipv4/ip_local_reserved_ports", "30000-30002,65330", "65330,30002,30000-30001", true},
		{"net/ipv4/ip_local_reserved_ports", "30000", "30000,65330", false},
		{"net/ipv4/ip_local_reserved_ports", "", "", true},
		{"net/ipv4/ip_local_reserved_ports", "", "65330", false},
		{"net/ipv4/ip_local_reserved_ports", "0-65535", "0-65534,65535", true},
	} {
		if got := sameFor(c.key, c.live, c.want); got != c.same {
			t.Errorf("%s: %q is %q: %v, want %v", c.key, c.live, c.want, got, c.same)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("net.ipv4.ip_forward = 1\n-a.b\n;\n/x/=\r\n\x00../y=1"))
	f.Fuzz(func(t *testing.T, content []byte) {
		assignments, flaws := parse(content)
		last := 0
		for _, a := range assignments {
			if unwritable(a.key) != "" || strings.HasPrefix(a.key, "/") || a.line <= last {
				t.Errorf("assignment %+v after line %d", a, last)
			}
			last = a.line
			if !strings.HasPrefix(a.key, ".") && !strings.Contains(a.key, "/.") && !strings.HasPrefix(a.key, "proc/sys/") &&
				normalize(dotted(a.key)) != a.key && strings.Contains(a.key, "/") {
				t.Errorf("%q is written %q, which is %q", a.key, dotted(a.key), normalize(dotted(a.key)))
			}
		}
		if n := strings.Count(string(content), "\n") + strings.Count(string(content), "\r") + strings.Count(string(content), "\x00") + 1; len(assignments)+len(flaws) > n {
			t.Errorf("%d assignments and %d flaws in %d lines", len(assignments), len(flaws), n)
		}
	})
}

func FuzzSame(f *testing.F) {
	f.Add("4096\t1 2", "4096 1 2 #")
	f.Add("1-3", "1,2,3")
	f.Fuzz(func(t *testing.T, live, want string) {
		if !sameFor("net/ipv4/ip_local_reserved_ports", live, live) || !same(live, live) {
			t.Errorf("%q is not itself", live)
		}
		sameFor("net/ipv4/ip_local_reserved_ports", live, want)
		atLeast(live, want)
		if p := printed(want); len(p) > 80 || strings.ContainsAny(p, "\n\t") {
			t.Errorf("%q is printed %q", want, p)
		}
	})
}

func FuzzProtectIn(f *testing.F) {
	f.Add([]byte(`{"protectKernelDefaults": true}`))
	f.Add([]byte("kind: KubeletConfiguration\nprotectKernelDefaults: false\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		protectIn(content)
		args := flagsIn(string(content))
		boolFlag(args, "protect-kernel-defaults")
		flag(args, "config")
	})
}

func TestProtect(t *testing.T) {
	for env, want := range map[string]bool{
		"KUBELET_FLAGS=--x=1 --protect-kernel-defaults=true\n":                            true,
		"KUBELET_FLAGS=--protect-kernel-defaults=true":                                    true,
		"KUBELET_FLAGS=\"--protect-kernel-defaults --x\"":                                 true,
		"KUBELET_FLAGS=--protect-kernel-defaults=false":                                   false,
		"KUBELET_FLAGS=--protect-kernel-defaults=true\nA=--protect-kernel-defaults=false": false,
		"KUBELET_FLAGS=": false,
	} {
		if on, _ := boolFlag(flagsIn(env), "protect-kernel-defaults"); on != want {
			t.Errorf("%q protects: %v, want %v", env, on, want)
		}
	}
	for config, want := range map[string]bool{
		`{"kind":"x","protectKernelDefaults":true}`:                 true,
		`{ "protectKernelDefaults" : true }`:                        true,
		"kind: KubeletConfiguration\nprotectKernelDefaults: true\n": true,
		"protectKernelDefaults: true":                               true,
		"#protectKernelDefaults: true":                              false,
		"xprotectKernelDefaults: true":                              false,
		"protectKernelDefaults: false":                              false,
		"protectKernelDefaults: truely":                             false,
	} {
		if on, _ := protectIn([]byte(config)); on != want {
			t.Errorf("%q protects: %v, want %v", config, on, want)
		}
	}
}

// TestKeyForms holds our reading of a key to the node's.
func TestKeyForms(t *testing.T) {
	for _, name := range []string{"net.ipv4.ip_forward", "net/ipv4/conf/eth0.100/rp_filter", "net.ipv4.conf.eth0/100.rp_filter", "vm.swappiness", "/vm/swappiness"} {
		if got, want := normalize(name), host.SysctlKey(name); got != want {
			t.Errorf("%s is %s, and to package host %s", name, got, want)
		}
	}
}
