package chrony

import (
	"slices"
	"strings"
	"testing"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

func TestNodes(t *testing.T) { probetest.Run(t, newProbe(t)) }

func TestCovered(t *testing.T) { probetest.Covers(t, (&Probe{}).Spec()) }

// One cause is one finding.
func TestExplain(t *testing.T) {
	f := func(reason string) probes.Finding { return probes.Finding{Reason: reason, Subject: reason} }
	for _, c := range []struct{ in, want []string }{
		{[]string{ClockErrorGrowing, ClockUnsynchronized, NotRunning}, []string{NotRunning}},
		{[]string{ClockErrorGrowing, Hung}, []string{Hung}},
		{[]string{ClockErrorGrowing, ClockUnsynchronized, NoTimeSource, ClockOffset}, []string{NoTimeSource, ClockOffset}},
		{[]string{ConfigNotLoaded, TimeSourceNotDeclared}, []string{ConfigNotLoaded}},
		{[]string{ClockDisciplinedByOther, TimeDaemonConflict}, []string{TimeDaemonConflict}},
		{[]string{ClockDisciplinedByOther, ClockOffset}, []string{ClockDisciplinedByOther, ClockOffset}},
	} {
		var list []probes.Finding
		for _, reason := range c.in {
			list = append(list, f(reason))
		}
		var got []string
		consequences := 0
		for _, f := range explain(list) {
			got = append(got, f.Reason)
			consequences += len(f.Consequences)
		}
		if !slices.Equal(got, c.want) || consequences != len(c.in)-len(c.want) {
			t.Errorf("%v is explained as %v with %d consequences, want %v", c.in, got, consequences, c.want)
		}
	}
}

// chronyd's options are getopt's, and what is left over are directives.
func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args       string
		file       string
		noClock    bool
		directives int
	}{
		{"chronyd", "", false, 0},
		{"chronyd -F 1", "", false, 0},
		{"chronyd -x", "", true, 0},
		{"chronyd -dxF 1", "", true, 0},
		{"chronyd -Fx", "", false, 0},
		{"chronyd -u x -f /etc/a.conf", "/etc/a.conf", false, 0},
		{"chronyd -f/etc/a.conf -x", "/etc/a.conf", true, 0},
		{"chronyd -q pool", "", false, 1},
		{"chronyd -- -x", "", false, 1},
		{"chronyd -f", "", false, 0},
	} {
		var s settings
		file, directives := s.arguments(strings.Fields(c.args))
		if file != c.file || s.noClock != c.noClock || len(directives) != c.directives {
			t.Errorf("%s: %q %v %q", c.args, file, s.noClock, directives)
		}
	}
}

func TestParse(t *testing.T) {
	var s settings
	if err := s.parse(emptyTree{}, "etc/chrony.conf", []byte("# a\n! b\n; c\n% d\n\n  SERVER  a.b  iburst\npool c maxsources 4\npeer d\nrefclock PHC /dev/ptp0:extpps poll 3\n"+
		"refclock SHM 0 refid GPS\nrefclock SOCK /run/x\nrtcsync\ncmdport 0\nserver\n"), 0); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range s.servers {
		got = append(got, d.name)
	}
	for _, c := range s.clocks {
		got = append(got, c.id+" "+c.device)
	}
	if want := []string{"a.b", "c", "d", "PHC0 /dev/ptp0", "GPS 0", "SOC2 /run/x"}; !slices.Equal(got, want) || !s.rtcsync || s.cmdport != 0 {
		t.Errorf("%q %+v, want %q", got, s, want)
	}
}
