package konnectivity

import (
	"slices"
	"testing"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

func TestNodes(t *testing.T) { probetest.Run(t, newProbe) }

// A crash loop shows in how containers ended, which no recorded runtime tells: see
// TestCrashLoops.
func TestCovered(t *testing.T) { probetest.Covers(t, (&Probe{}).Spec(), TunnelAgentCrashLooping) }

// One cause is one finding.
func TestExplain(t *testing.T) {
	f := func(reason, subject, id string) probes.Finding {
		return probes.Finding{Reason: reason, Subject: subject, ID: id}
	}
	for name, c := range map[string]struct {
		in   []probes.Finding
		want []string
	}{
		"the way there is cut": {[]probes.Finding{f(KubeletUnreachable, "kubelet", noAgent), f(TunnelDown, "a", ""), f(TunnelUnstable, "a", ""), f(APIServerUnreachable, "api", "")}, []string{APIServerUnreachable}},
		"the tunnel is down":   {[]probes.Finding{f(KubeletUnreachable, "kubelet", noAgent), f(TunnelDown, "a", ""), f(TunnelUnstable, "a", "")}, []string{TunnelDown}},
		"kubelet is down, too": {[]probes.Finding{f(KubeletUnreachable, "kubelet", refused), f(TunnelDown, "a", "")}, []string{KubeletUnreachable, TunnelDown}},
		"one of two agents":    {[]probes.Finding{f(TunnelDown, "a", ""), f(TunnelUnstable, "b", "")}, []string{TunnelDown, TunnelUnstable}},
		"it keeps ending":      {[]probes.Finding{f(TunnelDown, "a", ""), f(TunnelAgentCrashLooping, "a", "")}, []string{TunnelAgentCrashLooping}},
		"its keepalive stays":  {[]probes.Finding{f(TunnelDown, "a", ""), f(TunnelKeepaliveUnsafe, "a", "")}, []string{TunnelDown, TunnelKeepaliveUnsafe}},
	} {
		var got []string
		n := 0
		for _, f := range (&Probe{}).Explain(slices.Clone(c.in)) {
			got = append(got, f.Reason)
			n += len(f.Consequences)
		}
		if !slices.Equal(got, c.want) || n != len(c.in)-len(c.want) {
			t.Errorf("%s: %v with %d consequences, want %v", name, got, n, c.want)
		}
	}
}
