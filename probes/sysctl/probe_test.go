package sysctl

import (
	"context"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// A lab is a node in a folder: root/ and proc/sys/.
type lab struct {
	*Probe
	t       *testing.T
	dir     string
	refused map[string]bool // files and keys that may not be read
	tree
	keys
}

func newLab(t *testing.T, config Config, files map[string]string) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), refused: map[string]bool{}}
	l.write("proc/sys/kernel/osrelease", "6.1.0")
	l.write("root/etc/sysctl.d/README", "")
	for name, content := range files {
		l.write(name, content)
	}
	root, err := host.OpenRoot(filepath.Join(l.dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	sysctls, err := host.OpenSysctls(filepath.Join(l.dir, "proc/sys"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close(); sysctls.Close() })
	l.tree, l.keys = root, sysctls
	l.Probe = New(refusingTree{root, l.refused}, refusingKeys{sysctls, l.refused}, noProcesses{}, config)
	return l
}

// write writes in place, as the kernel's files change.
func (l *lab) write(name, content string) {
	l.t.Helper()
	name = filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content+"\n"), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// look returns the findings as "Reason subject".
func (l *lab) look() ([]string, error) {
	look, err := l.Check(l.t.Context())
	var found []string
	for _, f := range look.Findings {
		found = append(found, f.Reason+" "+f.Subject)
	}
	return found, err
}

// wants compares a look.
func (l *lab) wants(when string, want ...string) {
	l.t.Helper()
	got, err := l.look()
	if err != nil {
		l.t.Errorf("%s: %v", when, err)
	}
	if !slices.Equal(got, want) {
		l.t.Errorf("%s: found %q, want %q", when, got, want)
	}
}

type refusingTree struct {
	tree
	refused map[string]bool
}

func (r refusingTree) ReadFile(name string) ([]byte, error) {
	if r.refused[name] {
		return nil, &fs.PathError{Op: "read", Path: "/" + name, Err: fs.ErrPermission}
	}
	return r.tree.ReadFile(name)
}

type refusingKeys struct {
	keys
	refused map[string]bool
}

func (r refusingKeys) Read(key string, buf []byte) ([]byte, error) {
	if r.refused[key] {
		return nil, &fs.PathError{Op: "read", Path: key, Err: fs.ErrPermission}
	}
	return r.keys.Read(key, buf)
}

type noProcesses struct{}

func (noProcesses) List() iter.Seq2[*host.Process, error] {
	return func(func(*host.Process, error) bool) {}
}

func TestDriftComesAndGoes(t *testing.T) {
	l := newLab(t, Config{}, map[string]string{
		"root/etc/sysctl.d/60-site.conf":        "vm.swappiness = 10\nnet.ipv4.ip_forward = 1",
		"root/usr/lib/sysctl.d/50-default.conf": "kernel.sysrq = 16",
		"proc/sys/vm/swappiness":                "10",
		"proc/sys/net/ipv4/ip_forward":          "1",
		"proc/sys/kernel/sysrq":                 "16",
	})
	l.wants("in order")
	before := l.Probe.look.Fingerprints["sysctl"]
	l.write("proc/sys/vm/swappiness", "60")
	l.write("proc/sys/net/ipv4/ip_forward", "0")
	l.write("proc/sys/kernel/sysrq", "1")
	l.wants("drifted", "SysctlChanged net.ipv4.ip_forward", "SysctlChanged vm.swappiness", "SysctlChanged kernel.sysrq")
	want := []probes.Finding{
		{Reason: Changed, Severity: probes.Critical, Subject: "net.ipv4.ip_forward", Observed: "0", Wanted: "1", Source: "/etc/sysctl.d/60-site.conf", Trace: probes.Key{Domain: "sysctl", Name: "net.ipv4.ip_forward"}},
		{Reason: Changed, Severity: probes.Warning, Subject: "vm.swappiness", Observed: "60", Wanted: "10", Source: "/etc/sysctl.d/60-site.conf", Trace: probes.Key{Domain: "sysctl", Name: "vm.swappiness"}},
		{Reason: Changed, Severity: probes.Info, Subject: "kernel.sysrq", Observed: "1", Wanted: "16", Source: "/usr/lib/sysctl.d/50-default.conf", Trace: probes.Key{Domain: "sysctl", Name: "kernel.sysrq"}},
	}
	if diff := cmp.Diff(want, l.Probe.look.Findings); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	if l.Probe.look.Fingerprints["sysctl"] == before {
		t.Error("the fingerprint is the same")
	}
	first := &l.Probe.look.Findings[0]
	l.wants("still drifted", "SysctlChanged net.ipv4.ip_forward", "SysctlChanged vm.swappiness", "SysctlChanged kernel.sysrq")
	if &l.Probe.look.Findings[0] != first {
		t.Error("nothing changed, and the look was made anew")
	}
	for key, value := range map[string]string{"vm/swappiness": "10", "net/ipv4/ip_forward": "1", "kernel/sysrq": "16"} {
		l.write("proc/sys/"+key, value)
	}
	l.wants("put back")
	if l.Probe.look.Fingerprints["sysctl"] != before {
		t.Error("the fingerprint of the same node is another one")
	}
}

// TestDeclarationsAreReadAgain: when heard of, every minute while nobody listens, and
// every few minutes all the same.
func TestDeclarationsAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, map[string]string{"root/etc/sysctl.d/a.conf": "vm.swappiness = 10", "proc/sys/vm/swappiness": "10"})
		l.wants("in order")
		l.write("root/etc/sysctl.d/a.conf", "vm.swappiness = 20")
		l.wants("not heard of")
		time.Sleep(unheard)
		l.wants("a minute later", "SysctlChanged vm.swappiness")
		l.write("root/etc/sysctl.d/a.conf", "vm.swappiness = 10")
		l.note()
		l.wants("heard of")
		l.write("root/etc/sysctl.d/a.conf", "vm.swappiness = 20")
		time.Sleep(unheard)
		l.wants("it would have been heard of")
		time.Sleep(reread - unheard)
		l.wants("heard of or not", "SysctlChanged vm.swappiness")
	})
}

// TestHearsEachSecond: a value that is another one is heard of between looks, and no
// more once it was looked at.
func TestHearsEachSecond(t *testing.T) {
	t.Parallel()
	l := newLab(t, Config{}, map[string]string{"root/etc/sysctl.d/a.conf": "vm.swappiness = 10", "proc/sys/vm/swappiness": "10"})
	heard, ended := make(counter, 100), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- l.Probe.Watch(ctx, heard) }()
	<-heard // it listens
	l.wants("in order")
	l.write("proc/sys/vm/swappiness", "60")
	select {
	case <-heard:
	case <-time.After(10 * time.Second):
		t.Error("not heard")
	}
	l.wants("drifted", "SysctlChanged vm.swappiness")
	if l.differs() {
		t.Error("what was looked at is heard of again")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

type counter chan struct{}

func (c counter) Changed()            { c <- struct{}{} }
func (counter) Saw(probes.Occurrence) {}
func (counter) Lost(string, uint64)   {}

// TestNewInterface: a key that a pattern matches is found within a minute of its coming,
// whoever listens to files.
func TestNewInterface(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, map[string]string{"root/etc/sysctl.d/a.conf": "net.ipv4.conf.*.accept_redirects = 0", "proc/sys/net/ipv4/conf/eth0/accept_redirects": "0"})
		l.note()
		l.wants("in order")
		l.write("proc/sys/net/ipv4/conf/eth1/accept_redirects", "1")
		time.Sleep(reglob)
		l.wants("another one", "SysctlChanged net.ipv4.conf.eth1.accept_redirects")
	})
}

// TestUnreadableDeclarations: an error, the last reading stands, and the next
// look tries again.
func TestUnreadableDeclarations(t *testing.T) {
	l := newLab(t, Config{}, map[string]string{"root/etc/sysctl.d/a.conf": "vm.swappiness = 10", "proc/sys/vm/swappiness": "60"})
	l.wants("drifted", "SysctlChanged vm.swappiness")
	l.refused["etc/sysctl.d/a.conf"] = true
	l.stale.Store(true)
	for range 2 {
		if got, err := l.look(); err == nil || !slices.Equal(got, []string{"SysctlChanged vm.swappiness"}) {
			t.Errorf("refused: found %q, %v", got, err)
		}
	}
	delete(l.refused, "etc/sysctl.d/a.conf")
	l.wants("readable again", "SysctlChanged vm.swappiness")
}

// TestUnreadableKeys: a drift that was seen stands; what was not seen is told;
// a critical key makes the look fail.
func TestUnreadableKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, map[string]string{
			"root/etc/sysctl.d/a.conf": "vm.swappiness = 10\nvm.max_map_count = 1\nnet.ipv4.ip_forward = 1", "proc/sys/vm/swappiness": "60",
			"proc/sys/vm/max_map_count": "1", "proc/sys/net/ipv4/ip_forward": "1",
		})
		l.wants("drifted", "SysctlChanged vm.swappiness")
		l.refused["vm/swappiness"], l.refused["vm/max_map_count"] = true, true
		l.wants("refused", "SysctlChanged vm.swappiness", "SysctlUnreadable vm.max_map_count")
		l.refused["net/ipv4/ip_forward"] = true
		if _, err := l.look(); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("a critical key is refused: %v", err)
		}
		clear(l.refused)
		time.Sleep(retry)
		l.wants("readable again", "SysctlChanged vm.swappiness")
	})
}

// TestMissingKeyAppears: a module that is loaded later is found within seconds.
func TestMissingKeyAppears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Config{}, map[string]string{"root/etc/sysctl.d/a.conf": "net.bridge.bridge-nf-call-iptables = 1"})
		l.wants("no module", "SysctlKeyMissing net.bridge.bridge-nf-call-iptables")
		l.write("proc/sys/net/bridge/bridge-nf-call-iptables", "0")
		time.Sleep(retry)
		l.wants("loaded", "SysctlChanged net.bridge.bridge-nf-call-iptables")
		l.write("proc/sys/net/bridge/bridge-nf-call-iptables", "1")
		l.wants("in order")
	})
}

func TestExpected(t *testing.T) {
	l := newLab(t, Config{Expect: map[string]string{"vm.swappiness": "30", "net/ipv4/ip_forward": "0"}}, map[string]string{
		"root/etc/sysctl.d/a.conf": "vm.swappiness = 10", "proc/sys/vm/swappiness": "10", "proc/sys/net/ipv4/ip_forward": "1",
	})
	l.wants("not as expected", "SysctlChanged net.ipv4.ip_forward", "SysctlChanged vm.swappiness")
	if got := l.Probe.look.Findings[1].Source; got != "config" {
		t.Errorf("the source is %q", got)
	}
}

// TestHears watches real files.
func TestHears(t *testing.T) {
	l := newLab(t, Config{}, map[string]string{"proc/sys/vm/swappiness": "10"})
	l.wants("in order")
	ctx, cancel := context.WithCancel(t.Context())
	heard, done := make(bell, 100), make(chan error)
	go func() { done <- l.Probe.Watch(ctx, heard) }()
	<-heard // subscribed
	l.wants("in order")
	for len(heard) > 0 {
		<-heard
	}
	l.write("root/etc/sysctl.d/a.conf", "vm.swappiness = 20")
	select {
	case <-heard:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was heard of a new file")
	}
	for range 100 {
		if found, _ := l.look(); len(found) == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.wants("heard of", "SysctlChanged vm.swappiness")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("watching ended with %v", err)
	}
}

type bell chan struct{}

func (b bell) Changed() {
	select {
	case b <- struct{}{}:
	default:
	}
}
func (bell) Saw(probes.Occurrence) {}
func (bell) Lost(string, uint64)   {}

func TestExplain(t *testing.T) {
	changed := func(subject string) probes.Finding { return probes.Finding{Reason: Changed, Subject: subject} }
	missing := func(subject string, s probes.Severity) probes.Finding {
		return probes.Finding{Reason: KeyMissing, Subject: subject, Severity: s}
	}
	got := (&Probe{}).Explain([]probes.Finding{
		changed("net.ipv4.conf.all.accept_redirects"),
		changed("net.ipv4.conf.all.forwarding"),
		changed("net.ipv4.ip_forward"),
		changed("vm.swappiness"),
		missing("net.bridge.bridge-nf-call-arptables", probes.Info),
		missing("net.bridge.bridge-nf-call-iptables", 0),
		missing("net.bridge.bridge-nf-call-ip6tables", 0),
		missing("vm.a", 0),
		missing("vm.b", 0),
	})
	consequences := map[string][]string{}
	for _, f := range got {
		consequences[f.Subject] = nil
		for _, c := range f.Consequences {
			consequences[f.Subject] = append(consequences[f.Subject], c.Subject)
		}
	}
	want := map[string][]string{
		"net.ipv4.ip_forward":                {"net.ipv4.conf.all.accept_redirects", "net.ipv4.conf.all.forwarding"},
		"vm.swappiness":                      nil,
		"net.bridge.bridge-nf-call-iptables": {"net.bridge.bridge-nf-call-arptables", "net.bridge.bridge-nf-call-ip6tables"},
		"vm.a":                               nil,
		"vm.b":                               nil,
	}
	if diff := cmp.Diff(want, consequences); diff != "" {
		t.Errorf("causes and consequences (-want +got):\n%s", diff)
	}
	if subjects := slices.Collect(maps.Keys(consequences)); len(subjects) != len(got) {
		t.Errorf("%d findings about %d subjects", len(got), len(subjects))
	}
}
