package kubelet

import (
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// registry is an API server's word, and how often a newer one was asked for.
type registry struct {
	says  host.Registration
	asked int
}

func (r *registry) Registration() host.Registration { return r.says }
func (r *registry) Reread()                         { r.asked++ }

// TestAlphaByVersion judges gates by the version that registered, and not before
// this run of kubelet has.
func TestAlphaByVersion(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	gates := settings{file: fields{FeatureGates: map[string]bool{"SELinuxMount": true}}} // alpha in 1.30 to 1.32
	for _, c := range []struct {
		name, version string
		at            time.Duration // after the start
		found, unsure int
	}{
		{"alpha", "v1.30.4", time.Minute, 1, 0},
		{"before there was such a gate", "v1.29.9", time.Minute, 0, 0},
		{"beta", "v1.33.0-beta.1", time.Minute, 0, 0},
		{"read before this run registered", "v1.30.4", time.Second, 0, 1},
		{"no version", "", time.Minute, 0, 1},
		{"nonsense", "v1.999.1", time.Minute, 0, 1},
		{"a Kubernetes 2", "v2.30.1", time.Minute, 0, 1},
	} {
		api := &registry{says: host.Registration{Kubelet: c.version, At: start.Add(c.at)}}
		p := New(nil, nil, nil, api, Config{})
		found, unsure := alpha(gates, func() uint8 { return p.minor(unit.Run{Start: start}) })
		if len(found) != c.found || len(unsure) != c.unsure {
			t.Errorf("%s: found %v, unsure %v", c.name, found, unsure)
		}
		if (api.asked > 0) != (c.at < registers) {
			t.Errorf("%s: asked for a newer one %d times", c.name, api.asked)
		}
	}
	if _, unsure := alpha(gates, func() uint8 { return New(nil, nil, nil, nil, Config{}).minor(unit.Run{Start: start}) }); len(unsure) != 1 {
		t.Errorf("nobody asks the API server: %v", unsure)
	}
}

// TestPatched is AKS's live patching, which replaces kubelet and starts it again.
func TestPatched(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		runs, patch string
		want        bool
	}{{"v1.33.2", "1.33.3", true}, {"v1.33.2", "v1.33.3", true}, {"v1.33.3", "1.33.3", false}, {"v1.33.2", "", false}} {
		api := &registry{says: host.Registration{Kubelet: c.runs, Patch: c.patch}}
		if got := New(nil, nil, nil, api, Config{}).patched(t.Context()); got != c.want || api.asked == 0 {
			t.Errorf("%+v: %v, asked %d times", c, got, api.asked)
		}
	}
	if New(nil, nil, nil, nil, Config{}).patched(t.Context()) {
		t.Error("nobody asks the API server, and it is lawful")
	}
}
