package probetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// sample is a probe that looks in every way.
type sample struct {
	n    *host.Node
	lazy bool // takes everything that it cannot read for absent
}

func (p *sample) Spec() probes.Spec {
	return probes.Spec{Name: "sample", Condition: "SampleDrift", Healthy: "AsSampled", Every: time.Minute, Timeout: time.Second,
		Reasons: []probes.Reason{{Name: "MarkerPresent"}, {Name: "ForwardOff"}, {Name: "UnitFailed"}, {Name: "Blink", Happens: true}}}
}

func (p *sample) Check(ctx context.Context) (l probes.Look, err error) {
	limits, err := p.n.Root.ReadFile("etc/limits.conf")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, fmt.Errorf("no limits: %w", probes.ErrNotApplicable)
	case err != nil && p.lazy:
		limits = []byte("forward 0")
	case err == nil && !strings.HasPrefix(string(limits), "forward "):
		return l, errors.New("limits that are none")
	}
	_, markerErr := p.n.Root.Stat("run/systemd")
	if markerErr == nil {
		var i fs.FileInfo
		i, markerErr = p.n.Root.Lstat("run/marker")
		if markerErr == nil {
			l.Findings = append(l.Findings, probes.Finding{Reason: "MarkerPresent", Subject: "/run/marker", Message: "since " + i.ModTime().UTC().Format(time.RFC3339)})
		}
		if errors.Is(markerErr, fs.ErrNotExist) {
			markerErr = nil
		}
	}
	if markerErr != nil {
		l.NotJudged = append(l.NotJudged, "MarkerPresent: "+markerErr.Error())
	}
	if err != nil && !p.lazy {
		return l, err
	}
	if string(limits) == "forward 1\n" {
		v, err := p.n.Sysctl.Read("net/ipv4/ip_forward", nil)
		if err != nil {
			return l, err
		}
		if string(v) != "1" {
			l.Findings = append(l.Findings, probes.Finding{Reason: "ForwardOff", Subject: "net.ipv4.ip_forward", Observed: string(v), Wanted: "1"})
		}
	}
	u, err := p.n.Units.Unit(ctx, "kubelet.service")
	if err == nil && u.ActiveState != "active" {
		l.Findings = append(l.Findings, probes.Finding{Reason: "UnitFailed", Subject: "kubelet.service", Observed: u.ActiveState, Wanted: "active"})
	}
	return l, err
}

func (p *sample) Watch(ctx context.Context, h probes.Hearer) error {
	return p.n.Root.Watch(ctx, h, "run/marker", "etc/limits.conf")
}

func newSample(n *host.Node) probes.Probe { return &sample{n: n} }

func TestRun(t *testing.T) { Run(t, newSample) }

func TestCovers(t *testing.T) { Covers(t, newSample(nil).Spec()) }

func TestHostile(t *testing.T) {
	Hostile(t, newSample, Lawful{
		Empty:  {"run/systemd"}, // the folder is what is asked for
		Folder: {"run/systemd"}, FIFO: {"run/systemd"}, Sparse: {"run/systemd"}, Noise: {"run/systemd"},
	})
}

// TestHostileFinds lets a probe that takes what it cannot read for absent meet
// the wrong things.
func TestHostileFinds(t *testing.T) {
	t.Parallel()
	r := named(t, "in-order")
	h := &hostile{newProbe: func(n *host.Node) probes.Probe { return &sample{n: n, lazy: true} },
		lawful: Lawful{Noise: {"etc/*"}}}
	for thing, wrong := range map[string]bool{
		Absent: false, Empty: false, Noise: false, Flapping: false,
		Folder: true, FIFO: true, Sparse: true, Unreadable: true, Broken: true, Hanging: true, Loop: true,
	} {
		h.tryAll(t, r, "etc/limits.conf", []string{thing}, func(_, got string) {
			if (got != "") != wrong {
				t.Errorf("%s: %q", thing, got)
			}
		})
	}
	if got := h.unused(); !slices.Equal(got, []string{"noise etc/*"}) {
		t.Errorf("unused: %q", got)
	}
}

func named(t *testing.T, name string) *recorded {
	t.Helper()
	for _, r := range load(t) {
		if r.name == name {
			return r
		}
	}
	t.Fatal("no case ", name)
	return nil
}

// TestRecorded sees that the node of a case is what the case says.
func TestRecorded(t *testing.T) {
	t.Parallel()
	r := named(t, "in-order")
	synctest.Test(t, func(t *testing.T) {
		n := r.open(t)
		if !time.Now().Equal(defaultNow) {
			t.Error(time.Now())
		}
		i, err := n.Root.Stat("etc/limits.conf")
		if err != nil || i.ModTime().UTC() != time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) {
			t.Error(i, err)
		}
		if st, ok := i.Sys().(*host.Stat); !ok || st.Change.UTC() != time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC) {
			t.Errorf("ctime: %+v", i.Sys())
		}
		if _, err := n.Root.Stat("var/run/systemd/private"); err != nil {
			t.Error(err)
		}
		if n.Kernel != (host.Kernel{Release: "6.1.0-28-amd64", Version: "#1 SMP"}) {
			t.Errorf("%+v", n.Kernel)
		}
		u, err := n.Units.Unit(t.Context(), "kubelet.service")
		if u.MainPID != 812 || u.LoadState != "loaded" || err != nil {
			t.Errorf("%+v, %v", u, err)
		}
	})
}

func TestFaultsBehindLinks(t *testing.T) {
	t.Parallel()
	r, err := parse(txtar.Parse([]byte("x\n-- var/run link=/run --\n-- run/a/b --\n-- err/run/a --\ntimeout\n-- proc/7/maps --\n-- proc/7/comm --\n-- err/proc/7/maps --\npermission denied\n-- want --\n")))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		n := r.open(t)
		for _, name := range []string{"run/a", "run/a/b", "var/run/a/b"} {
			if _, err := n.Root.ReadFile(name); err == nil || !strings.Contains(err.Error(), "no answer") {
				t.Errorf("%s: %v", name, err)
			}
		}
		p, err := n.Proc.Process(7)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.DeletedLibraries(); !errors.Is(err, fs.ErrPermission) {
			t.Error(err)
		}
	})
}

// TestTypos parses cases with a mistake each: none is taken.
func TestTypos(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"-- want --\n",                              // no comment
		"x\n-- etc/a --\n",                          // no want
		"x\n-- wnat --\n-- want --\n",               // a top-level name
		"x\n-- ect/passwd --\n-- want --\n",         // a folder
		"x\n-- etc --\n-- want --\n",                // a folder without a slash
		"x\n-- http/a --\n-- want --\n",             // reserved
		"x\n-- cri/a --\n-- want --\n",              // reserved
		"x\n-- etc/a mdoe=0644 --\n-- want --\n",    // an attribute
		"x\n-- etc/a mode=rw --\n-- want --\n",      // a mode
		"x\n-- etc/a mtime=now --\n-- want --\n",    // a time
		"x\n-- now --\ntomorrow\n-- want --\n",      // a time
		"x\n-- err/etc/a --\nno\n-- want --\n",      // a fault
		"x\n-- etc/a --\n-- etc/a --\n-- want --\n", // twice
		"x\n-- etc/a --\n-- etc/a mode=0600 --\n-- want --\n",
		"x\n-- ../a --\n-- want --\n",
		"x\n-- etc/../../a --\n-- want --\n",
		"x\n-- var/run link=/run --\n-- var/run/a --\n-- want --\n", // would be made on this machine
		"x\n-- etc/a link=b --\nbody\n-- want --\n",
		"x\n-- systemd/a.service --\nActivState=active\n-- want --\n",
		"x\n-- systemd/a.service --\nMainPID=x\n-- want --\n",
		"x\n-- etc/a base64 --\n?\n-- want --\n",
	} {
		if _, err := parse(txtar.Parse([]byte(text))); err == nil {
			t.Errorf("taken:\n%s", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("x\n-- etc/a mode=0600 mtime=2026-01-01T00:00:00Z --\nbody\n-- systemd/a.service --\nExecStart={ path=/a ; argv[]=/a -b ; ignore_errors=no }\n-- want --\nA b: c\n"))
	f.Add([]byte("x\n-- var/run link=/run --\n-- err/run --\ntimeout\n-- want --\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parse(txtar.Parse(b))
		if err != nil {
			return
		}
		for _, e := range append(r.files, r.proc...) {
			if !fs.ValidPath(e.name) {
				t.Errorf("%q is taken", e.name)
			}
		}
	})
}

func TestDiffers(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("read /etc/a: %w", fs.ErrPermission)
	look := probes.Look{Findings: []probes.Finding{{Reason: "A", Subject: "b", Observed: "1", Wanted: "2"}}, NotJudged: []string{"C: why"}}
	for _, test := range []struct {
		want  []string
		equal bool
	}{
		{[]string{"A b: b is 1, want 2", "NotJudged C: why", "Error permission denied"}, true},
		{[]string{"A b: b is 1, want 2", "NotJudged C: why", "Error"}, true},
		{[]string{"A b: b is 1, want 2", "NotJudged C: why", "Error input/output"}, false},
		{[]string{"A b: b is 1, want 2", "NotJudged C: why"}, false},
		{[]string{"A b: b is 1", "NotJudged C: why", "Error permission denied"}, false},
		{[]string{"NotJudged C: why", "A b: b is 1, want 2", "Error permission denied"}, false},
		{nil, false},
	} {
		r := &recorded{want: test.want}
		if got := r.differs(outcome(look, err)); (got == "") != test.equal {
			t.Errorf("%q: %s", test.want, got)
		}
	}
	if got := (&recorded{}).differs(outcome(probes.Look{}, nil)); got != "" {
		t.Error(got)
	}
	if got := outcome(probes.Look{}, fmt.Errorf("no CNI: %w", probes.ErrNotApplicable)); !slices.Equal(got, []string{"NotApplicable no CNI: not applicable"}) {
		t.Error(got)
	}
}

func TestKebab(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"KernelOutdated": "kernel-outdated", "CNIRouteMissing": "cni-route-missing", "NoDNS": "no-dns", "A": "a"} {
		if got := kebab(name); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestUnitRoundTrip sends every property through the stand-in's encoding and
// package host's decoding: see host's TestUnit. Here: from text.
func TestParseUnit(t *testing.T) {
	t.Parallel()
	u, err := parseUnit(`Id=kubelet.service
Type=notify
NeedDaemonReload=no
NRestarts=3
MainPID=812
DropInPaths=/etc/systemd/system/kubelet.service.d/10-a.conf /etc/systemd/system/kubelet.service.d/20-b.conf
ExecStart={ path=/usr/local/bin/kubelet ; argv[]=/usr/local/bin/kubelet --v=2 ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }
ActiveEnterTimestamp=Sat 2026-11-21 20:13:45 UTC
ActiveEnterTimestampMonotonic=17000000
ExecMainExitTimestamp=
InvocationID=0123456789abcdef0123456789abcdef
`)
	if err != nil {
		t.Fatal(err)
	}
	if u.NRestarts != 3 || len(u.DropInPaths) != 2 || u.ActiveEnterTimestampMonotonic != 17*time.Second ||
		!u.ActiveEnterTimestamp.Equal(time.Date(2026, 11, 21, 20, 13, 45, 0, time.UTC)) || !u.ExecMainExitTimestamp.IsZero() ||
		len(u.ExecStart) != 1 || !slices.Equal(u.ExecStart[0].Args, []string{"/usr/local/bin/kubelet", "--v=2"}) {
		t.Errorf("%+v", u)
	}
}

func TestStrays(t *testing.T) {
	t.Parallel()
	spec := probes.Spec{Reasons: []probes.Reason{{Name: "A"}}, Metrics: []probes.Metric{{Name: "m", Labels: []probes.Label{{Name: "l", Values: []string{"x"}}}}}}
	for _, test := range []struct {
		look probes.Look
		want int
	}{
		{probes.Look{Findings: []probes.Finding{{Reason: "A"}}, NotJudged: []string{"A: why"}, Samples: []probes.Sample{{Name: "m", Labels: []string{"x"}}}}, 0},
		{probes.Look{Findings: []probes.Finding{{Reason: "B"}}, NotJudged: []string{"A", "B: why", "A: "}}, 4},
		{probes.Look{Samples: []probes.Sample{{Name: "n"}, {Name: "m"}, {Name: "m", Labels: []string{"y"}}}}, 3},
	} {
		if got := strays(spec, test.look); len(got) != test.want {
			t.Errorf("%q", got)
		}
	}
}
