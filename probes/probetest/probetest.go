// Package probetest runs a probe against recorded nodes.
//
// A recorded node is a txtar file (golang.org/x/tools/txtar) in the probe's
// testdata folder. Its comment says where the node came from, its files are the
// node's root, and its want entry is the outcome, written by hand:
//
//	AKS Ubuntu 22.04, the day after a libc6 update.
//	-- run/systemd/private --
//	-- run/reboot-required mtime=2026-11-20T06:12:00Z --
//	-- var/run link=/run --
//	-- want --
//	RebootRequired /run/reboot-required: a reboot is pending
//
// # Files
//
// Names are paths below the node's root, in one of the folders that a root has;
// any other top-level name is an error, so that a typo is no pass. After the
// name stand attributes:
//
//	mode=0640    permission bits; without 0400 a read is refused, to root too
//	mtime=…      RFC 3339; by default one hour before the case's now
//	ctime=…      RFC 3339; by default the mtime
//	link=/run    a symbolic link; the body is empty
//	fifo         a FIFO; likewise socket
//	size=2097152 the file is cut or extended (with a hole) to this size
//	base64       the body is base64
//	nonl         the body's last newline is left out
//
// A name that ends in "/" is an empty folder.
//
// # What is not a file
//
//	now                 RFC 3339: the time of the look; 2026-01-02T00:00:00Z by default
//	uname               the running kernel: release, and after a newline its version
//	proc/sys/KEY        a live sysctl
//	proc/PID/FILE       a process; proc/uptime and the like
//	systemd/UNIT        a unit's properties, one KEY=VALUE a line, as systemctl show prints them
//	systemd/state       the manager's SystemState: "running" by default; without any of these
//	                    two there is no systemd to ask
//	err/PATH            looking at PATH (a path of the root, proc/sys/KEY, proc/PID/FILE or
//	                    systemd/UNIT), or at anything below it, fails: "permission denied",
//	                    "input/output error" or "timeout"
//	cri/version         who the container runtime says it is: "containerd 1.6.20" by default; without
//	                    any cri/ entry there is none to ask
//	cri/status          its conditions: RuntimeReady=true, NetworkReady=false REASON MESSAGE, one a line
//	cri/info/KEY        what it says beside them when it is asked to be verbose
//	cri/sandboxes       ID NAMESPACE/NAME UID ready|notready [IP...|host], one a line
//	cri/cgroup-driver   systemd or cgroupfs; without it the runtime is too old to know the call
//	err/cri/CALL        a call, such as ListPodSandbox, fails; or "not supported"
//	clears              names of reasons that this case shows cleared
//	memory              what the probe kept in an earlier process of this boot, KEY=VALUE lines
//	http/ADDRESS/PATH   what a TCP service of the node answers: a status line ("200") and the body, or
//	                    "hangs"; an address without any refuses connections
//	tls/ADDRESS         the certificate that a TLS service shows, and its key; it answers what http/ADDRESS/… says
//
// # The outcome
//
// Each line of want is one of these, findings in the probe's order:
//
//	Reason subject: message
//	NotJudged Reason: why
//	NotApplicable text
//	Error text
//
// Text after Error and NotApplicable is part of the error's text; all else is
// compared whole. An empty want is a clean look. Reasons and samples must be
// among those that the probe's Spec lists.
//
// Each case runs in a synctest bubble whose clock shows the case's now. Real
// files and sockets are asked there; while they are, no time passes.
package probetest

import (
	"context"
	"errors"
	"fmt"
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

// Run takes one look at each recorded node in testdata, as a parallel subtest
// each, and compares the outcome with the wanted one.
func Run(t *testing.T, newProbe func(*host.Node) probes.Probe) {
	t.Helper()
	for _, r := range load(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := r.open(t)
				p := r.probe(newProbe, n)
				l, err := look(t, p)
				got := outcome(l, err)
				for _, wrong := range strays(p.Spec(), l) {
					t.Error(wrong)
				}
				if diff := r.differs(got); diff != "" {
					t.Errorf("%s\nthe look differs from the wanted one (-want +got):\n%s", r.comment, diff)
				}
			})
		})
	}
}

// probe makes a probe, which remembers what the case says.
func (r *recorded) probe(newProbe func(*host.Node) probes.Probe, n *host.Node) probes.Probe {
	p := newProbe(n)
	if m, ok := p.(probes.Rememberer); ok && r.memory != nil {
		m.Recall(r.memory)
	}
	return p
}

// look takes one look within the probe's deadline.
func look(t *testing.T, p probes.Probe) (probes.Look, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), p.Spec().Timeout)
	defer cancel()
	return p.Check(ctx)
}

// strays returns what a look tells outside of what its probe's Spec closes.
func strays(spec probes.Spec, l probes.Look) (wrong []string) {
	known := func(name string) bool {
		return slices.ContainsFunc(spec.Reasons, func(r probes.Reason) bool { return r.Name == name })
	}
	for _, f := range l.Findings {
		if !known(f.Reason) {
			wrong = append(wrong, fmt.Sprintf("finding %s: no reason of the probe", f.Reason))
		}
	}
	for _, n := range l.NotJudged {
		if name, why, ok := strings.Cut(n, ": "); !ok || !known(name) || why == "" {
			wrong = append(wrong, fmt.Sprintf("not judged %q: want a reason of the probe, a colon and why", n))
		}
	}
	for _, s := range l.Samples {
		i := slices.IndexFunc(spec.Metrics, func(m probes.Metric) bool { return m.Name == s.Name })
		if i < 0 || len(spec.Metrics[i].Labels) != len(s.Labels) {
			wrong = append(wrong, fmt.Sprintf("sample %s%q: no metric of the probe", s.Name, s.Labels))
			continue
		}
		for j, label := range spec.Metrics[i].Labels {
			if !slices.Contains(label.Values, s.Labels[j]) {
				wrong = append(wrong, fmt.Sprintf("sample %s: %s is %q, which the metric does not list", s.Name, label.Name, s.Labels[j]))
			}
		}
	}
	return wrong
}

// load reads all recorded nodes of the package under test.
func load(t *testing.T) []*recorded {
	t.Helper()
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no recorded nodes: testdata/*.txtar: %v", err)
	}
	var all []*recorded
	for _, name := range names {
		r, err := parseFile(name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, r)
	}
	return all
}

// outcome writes a look as the lines of a want entry.
func outcome(l probes.Look, err error) []string {
	var lines []string
	for _, f := range l.Findings {
		lines = append(lines, fmt.Sprintf("%s %s: %s", f.Reason, f.Subject, message(f)))
	}
	for _, n := range l.NotJudged {
		lines = append(lines, "NotJudged "+n)
	}
	switch {
	case errors.Is(err, probes.ErrNotApplicable):
		lines = append(lines, "NotApplicable "+oneLine(err.Error()))
	case err != nil:
		lines = append(lines, "Error "+oneLine(err.Error()))
	}
	return lines
}

func message(f probes.Finding) string {
	if f.Message != "" {
		return strings.TrimSpace(f.Message)
	}
	return fmt.Sprintf("%s is %s, want %s", f.Subject, f.Observed, f.Wanted)
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

// differs compares an outcome with the wanted one; "" is equal.
func (r *recorded) differs(got []string) string {
	got = slices.Clone(got)
	for i, line := range got {
		for _, word := range []string{"Error ", "NotApplicable "} {
			text, ok := strings.CutPrefix(line, word)
			if !ok {
				continue
			}
			for _, want := range r.want {
				if part, ok := strings.CutPrefix(want+" ", word); ok && strings.Contains(text, strings.TrimSpace(part)) {
					got[i] = want
				}
			}
		}
	}
	if slices.Equal(r.want, got) {
		return ""
	}
	return cmp.Diff(r.want, got)
}

// defaultNow is when a case without a now entry is looked at.
var defaultNow = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)

// setClock lets the bubble's clock, which begins in the year 2000, show the case's now.
func (r *recorded) setClock(t *testing.T) {
	t.Helper()
	wait := time.Until(r.now)
	if wait < 0 {
		t.Fatalf("now is %v: a case cannot be before %v", r.now, time.Now())
	}
	time.Sleep(wait)
}
