package konnectivity

import (
	"slices"
	"testing"
	"time"

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

// What passes by itself is not told: each hold is longer than that takes, and short
// enough for what is promised.
func TestHolds(t *testing.T) {
	t.Parallel()
	want := map[string]time.Duration{
		TunnelDown:              time.Second,     // a server's end within 3 s
		TunnelNotResponding:     5 * time.Second, // a silent server within the keepalive and 35 s, of which the agent takes 20
		TunnelAgentHung:         4 * time.Second, // within 12 s: a look each 5, an answer within 1
		TunnelAgentCrashLooping: 30 * time.Second,
		TunnelUnstable:          0, // three drops are no blip
		TunnelRetransmitting:    5 * time.Second,
		TunnelKeepaliveUnsafe:   0,
		TunnelNotRedundant:      time.Minute,
		APIServerUnresolvable:   10 * time.Second, // two trips that fail
		APIServerUnreachable:    10 * time.Second,
		APIServerTLSIntercepted: 10 * time.Second,
		APIServerNotReady:       90 * time.Second, // one of several that is shut down
		KubeletUnreachable:      15 * time.Second, // a restart of kubelet
	}
	for _, r := range reasons {
		if hold, ok := want[r.Name]; !ok || hold != r.Hold || r.Clear != 0 {
			t.Errorf("%s is held for %s, want %s", r.Name, r.Hold, hold)
		}
	}
	if len(want) != len(reasons) {
		t.Errorf("%d reasons, want %d", len(reasons), len(want))
	}
	p := &Probe{self: ownPod}
	p.back.answer, p.back.ended = judgeLine(500, "No agent available"), time.Now()
	var l probes.Look
	if p.toldBack(&l); len(l.Findings) != 1 || l.Findings[0].Hold != 5*time.Minute {
		t.Errorf("that no agent is connected is the cluster's, and held for five minutes: %+v", l)
	}
}

// What drops were seen is known after a restart of the agent, and what is kept of
// others is forgotten.
func TestRecall(t *testing.T) {
	t.Parallel()
	p := &Probe{}
	p.Recall(map[string]string{"drops 7/100": "5000 6000 x -1 7000 8000", "other": "1"})
	if got := p.drops["7/100"]; len(p.drops) != 1 || len(got) != drops || got[2] != 7*time.Second {
		t.Errorf("%v", p.drops)
	}
}
