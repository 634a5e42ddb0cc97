package metrics

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

type fakeAPI struct{}

func (fakeAPI) Requests() map[string]uint64 {
	return map[string]uint64{"200": 7, "201": 2, "401": 0, "403": 0, "429": 1, "5xx": 0, "error": 0}
}
func (fakeAPI) Pending() bool          { return true }
func (fakeAPI) LastSuccess() time.Time { return time.Unix(1700000000, 0) }
func (fakeAPI) DroppedEvents() uint64  { return 3 }

// worst is a node of 8 probes with 6 reasons each, every one raised.
func worst() agent.Snapshot {
	s := agent.Snapshot{Document: agent.Document{Node: "node0", Conditions: []agent.Condition{{Type: agent.NodeDrift, Status: agent.True}}}}
	for i := range 8 {
		name := fmt.Sprint("probe", i)
		spec := probes.Spec{Name: name, Condition: fmt.Sprint("Drift", i), Metrics: []probes.Metric{
			{Name: name + "_offset_seconds", Help: "h"}, {Name: name + "_restarts_total", Help: "h", Counter: true}}}
		c := agent.Condition{Type: spec.Condition, Status: agent.True, Probe: name}
		for r := range 6 {
			reason := probes.Reason{Name: fmt.Sprintf("Reason%d%d", i, r), Severity: probes.Warning, Owner: probes.Customer}
			spec.Reasons = append(spec.Reasons, reason)
			for n := range 3 {
				c.Findings = append(c.Findings, agent.Finding{Reason: reason.Name, Severity: probes.Warning, Owner: probes.Customer, Subject: fmt.Sprint(n)})
			}
		}
		if i == 7 { // occurrences only
			spec.Condition = ""
		} else {
			s.Conditions = append(s.Conditions, c)
		}
		s.Probes = append(s.Probes, agent.ProbeStat{Spec: spec, Runs: map[string]uint64{"ok": 40, "failed": 0, "timeout": 0, "denied": 0},
			Duration: time.Second, LastSuccess: time.Unix(1700000000, 0), Samples: []probes.Sample{{Name: name + "_offset_seconds", Value: 0.5}, {Name: name + "_restarts_total", Value: 2}}})
		if i < 4 {
			s.Sources = append(s.Sources, agent.Source{Probe: name, Hearing: true})
			s.Probes[i].Fingerprints = map[string]string{name: "abc"}
		}
	}
	return s
}

func scrape(t testing.TB, m *Metrics) string {
	t.Helper()
	return get(t, m.Handler())
}

func get(t testing.TB, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	if is := w.Header().Get("Content-Type"); is != "text/plain; version=0.0.4; charset=utf-8; escaping=underscores" {
		t.Errorf("Content-Type: %s", is)
	}
	return w.Body.String()
}

func series(text string) (n int) {
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			n++
		}
	}
	return n
}

func TestSeriesWithEveryReasonRaised(t *testing.T) {
	t.Parallel()
	s := worst()
	m := New(Config{Source: func() agent.Snapshot { return s }, API: fakeAPI{}, Node: "node0"})
	for _, c := range s.Conditions {
		m.Publish([]agent.Happening{{Kind: agent.Raised, Condition: c.Type, From: agent.False, To: agent.True}})
	}
	m.Publish([]agent.Happening{{Kind: agent.Occurred, Reason: "Reason70"}})
	text := scrape(t, m)
	t.Logf("%d series, %d bytes", series(text), len(text))
	if n := series(text); n > 150 {
		t.Errorf("%d series, want at most 150:\n%s", n, text)
	}
	if strings.Contains(text, "go_") || strings.Contains(text, "process_") {
		t.Error("Go or process collectors are there")
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	s := worst()
	s.Conditions = s.Conditions[:2]
	s.Conditions[1].Findings = []agent.Finding{
		{Reason: "Reason00", Severity: probes.Critical, Owner: probes.AKS},
		{Reason: "Reason00", Severity: probes.Critical, Owner: probes.AKS},
		{Reason: "Reason01", Severity: probes.Critical, Owner: probes.AKS, Waived: true},
		{Reason: "Reason02", Severity: probes.Critical, Held: true},
		{Reason: "Reason03", Severity: probes.Info, Owner: probes.Both},
		{Reason: "hostile\"} 1", Severity: probes.Warning},
	}
	s.Probes = s.Probes[:1]
	s.Probes[0].Runs["failed"] = 2
	s.Sources[0].Lost = 5
	m := New(Config{Source: func() agent.Snapshot { return s }, API: fakeAPI{}, Node: "node0", Kernel: "6.8.0", Version: "v1", Revision: "abc"})
	m.SetLabels(map[string]string{"agentpool": "np1", "kubernetes.azure.com/os-sku": "Ubuntu", "node.kubernetes.io/instance-type": strings.Repeat("x", 200)})
	m.Publish([]agent.Happening{
		{Kind: agent.Raised, Condition: "Drift0", From: agent.False, To: agent.True},
		{Kind: agent.Raised, Condition: "Drift0", From: agent.True, To: agent.True}, // no change
		{Kind: agent.Restored, Condition: "Drift0", From: "", To: agent.False},      // the start
		{Kind: agent.Occurred, Reason: "OOMKilled"}, {Kind: agent.Occurred, Reason: "OOMKilled"}})
	m.Reloaded(errors.New("line 3: unknown key"))
	text := scrape(t, m)
	for _, want := range []string{
		`nodedrift_condition{condition="Drift0",status="True"} 1`,
		`nodedrift_condition{condition="Drift0",status="False"} 0`,
		`nodedrift_finding{owner="aks",probe="probe0",reason="Reason00",severity="critical"} 2`,
		`nodedrift_finding{owner="aks",probe="probe0",reason="Reason01",severity="waived"} 1`,
		`nodedrift_finding{owner="both",probe="probe0",reason="Reason03",severity="info"} 1`,
		`nodedrift_probe_duration_seconds_sum{probe="probe0"} 1`,
		`nodedrift_probe_duration_seconds_count{probe="probe0"} 42`,
		`nodedrift_probe_runs_total{probe="probe0",result="failed"} 2`,
		`nodedrift_probe_last_success_timestamp_seconds{probe="probe0"} 1.7e+09`,
		`nodedrift_occurrences_total{reason="OOMKilled"} 2`,
		`nodedrift_transitions_total{condition="Drift0",to="True"} 1`,
		`nodedrift_source_lost_total{source="probe0"} 5`,
		`nodedrift_publish_requests_total{code="200"} 7`,
		`nodedrift_publish_pending 1`,
		`nodedrift_publish_events_dropped_total 3`,
		`nodedrift_fingerprint_info{domain="probe0",hash="abc"} 1`,
		`nodedrift_node_info{kernel="6.8.0",node="node0",node_image_version="",nodepool="np1",os_sku="Ubuntu",vm_size="` + strings.Repeat("x", 128) + `"} 1`,
		`nodedrift_build_info{goversion="go`,
		`nodedrift_config_last_reload_successful 0`,
		`nodedrift_probe0_offset_seconds 0.5`,
		`nodedrift_probe0_restarts_total 2`,
		`nodedrift_metrics_dropped_total 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing", want)
		}
	}
	for _, not := range []string{"Reason02", "hostile", `to="False"`} {
		if strings.Contains(text, not) {
			t.Errorf("%s is there", not)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// Whatever a probe reports, a scrape succeeds and shows declared series only.
func TestHostileSamples(t *testing.T) {
	t.Parallel()
	spec := probes.Spec{Name: "p", Metrics: []probes.Metric{
		{Name: "peers", Labels: []probes.Label{{Name: "state", Values: []string{"up", "down"}}}},
		{Name: "condition"}, // taken by us
		{Name: "probe_duration_seconds_sum"},
		{Name: "Bad name"},
	}}
	s := agent.Snapshot{Probes: []agent.ProbeStat{{Spec: spec, Samples: []probes.Sample{
		{Name: "peers", Labels: []string{"up"}, Value: 1},
		{Name: "peers", Labels: []string{"up"}, Value: 2},
		{Name: "peers", Labels: []string{"down"}, Value: math.NaN()},
		{Name: "peers", Labels: []string{"down"}, Value: math.Inf(1)},
		{Name: "peers", Labels: []string{"10.0.0.1"}, Value: 1},
		{Name: "peers", Value: 1},
		{Name: "unknown", Value: 1},
		{Name: "condition", Value: 1},
		{Name: "Bad name", Value: 1},
		{Name: "probe_duration_seconds_sum", Value: 1},
		{Name: "peers", Labels: []string{"up\xffdown"}, Value: 1},
	}}, {Spec: spec, Samples: []probes.Sample{{Name: "peers", Labels: []string{"down"}, Value: 1}}}}}
	text := scrape(t, New(Config{Source: func() agent.Snapshot { return s }}))
	if got := regexp.MustCompile(`(?m)^nodedrift_peers.*$`).FindAllString(text, -1); len(got) != 1 || got[0] != `nodedrift_peers{state="up"} 1` {
		t.Errorf("peers: %q", got)
	}
	if !strings.Contains(text, "# TYPE nodedrift_peers gauge\n") {
		t.Errorf("what was refused took the head away:\n%s", text)
	}
	if !strings.Contains(text, "nodedrift_metrics_dropped_total 11\n") {
		t.Errorf("dropped numbers were not counted:\n%s", text)
	}
}

// Names are a contract with dashboards and alerts.
func TestNames(t *testing.T) {
	t.Parallel()
	want := "build_info condition config_last_reload_success_timestamp_seconds config_last_reload_successful finding fingerprint_info lock_holds metrics_dropped_total " +
		"node_info occurrences_total probe_duration_seconds probe_last_success_timestamp_seconds probe_runs_total publish_events_dropped_total " +
		"publish_last_success_timestamp_seconds publish_pending publish_requests_total source_hearing source_lost_total transitions_total"
	for name := range strings.FieldsSeq(want) {
		if !fixed[namespace+name] {
			t.Errorf("no metric is named %s", name)
		}
	}
	if n := len(strings.Fields(want)); n != len(fixed) {
		t.Errorf("%d fixed metrics, want %d", len(fixed), n)
	}
}

// What is kept from scrape to scrape shows in none where it is not: series come, go and
// come back, and each scrape is one that a registry would have made and Prometheus reads.
func TestSeriesComeAndGo(t *testing.T) {
	t.Parallel()
	all, now := worst(), agent.Snapshot{}
	m := func() *Metrics {
		return New(Config{Source: func() agent.Snapshot { return now }, API: fakeAPI{}, Node: "node0"})
	}
	kept := m().Handler()
	for step, n := range []int{8, 3, 3, 0, 8} {
		now = agent.Snapshot{Probes: all.Probes[:n]}
		now.Sources = all.Sources[:min(n, 2)]
		now.Conditions = slices.Clone(all.Conditions[:min(n+1, len(all.Conditions))])
		for i := range now.Conditions {
			now.Conditions[i].Findings = now.Conditions[i].Findings[:len(now.Conditions[i].Findings)/(step+1)]
		}
		got := get(t, kept)
		if again := registered(t, got); got != again {
			t.Errorf("%s\na registry shows\n%s", got, again)
		}
		at := regexp.MustCompile(`(?m)^(nodedrift_config_last_reload_success_timestamp_seconds).*$`)
		if a, b := at.ReplaceAllString(got, ""), at.ReplaceAllString(get(t, m().Handler()), ""); a != b {
			t.Errorf("with %d probes\n%s\nwant\n%s", n, a, b)
		}
	}
}

// registered is a scrape as Prometheus reads it and a registry would show it.
func registered(t *testing.T, scrape string) string {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(scrape))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families { // for the registry to sort
		slices.Reverse(f.Metric)
	}
	sorted, err := prometheus.Gatherers{prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		return slices.Collect(maps.Values(families)), nil
	})}.Gather()
	if err != nil {
		t.Errorf("a registry refuses it: %v", err)
	}
	var b strings.Builder
	for _, f := range sorted {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Error(err)
		}
	}
	return b.String()
}

// A third scrape is refused while two are under way, and none is once they ended.
func TestTwoScrapesAtATime(t *testing.T) {
	t.Parallel()
	come, answers := make(chan struct{}), make(chan struct{})
	h := New(Config{Source: func() agent.Snapshot { come <- struct{}{}; <-answers; return agent.Snapshot{} }}).Handler()
	codes := make(chan int)
	ask := func() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		codes <- w.Code
	}
	for range 2 {
		for range maxScrapes {
			go ask()
			<-come
		}
		go ask()
		if code := <-codes; code != 503 {
			t.Errorf("the third: %d", code)
		}
		for range maxScrapes {
			answers <- struct{}{}
			if code := <-codes; code != 200 {
				t.Errorf("of the first two: %d", code)
			}
		}
	}
}

// A scrape like the last one makes little that is not there already.
func TestAllocations(t *testing.T) {
	s := worst()
	h := New(Config{Source: func() agent.Snapshot { return s }, API: fakeAPI{}, Node: "node0"}).Handler()
	r := httptest.NewRequest("GET", "/metrics", nil)
	n := testing.AllocsPerRun(20, func() { h.ServeHTTP(nobody{}, r) })
	t.Logf("%.0f allocations", n)
	if n > 20 {
		t.Errorf("%.0f allocations for each scrape, want at most 20", n)
	}
}

// nobody reads an answer.
type nobody struct{}

func (nobody) Header() http.Header         { return http.Header{} }
func (nobody) WriteHeader(int)             {}
func (nobody) Write(b []byte) (int, error) { return len(b), nil }

func TestCountersAreBounded(t *testing.T) {
	t.Parallel()
	m := New(Config{Source: func() agent.Snapshot { return agent.Snapshot{} }})
	for i := range 10 * maxKeys {
		m.Publish([]agent.Happening{{Kind: agent.Occurred, Reason: fmt.Sprint("R", i)}})
	}
	if len(m.occurrences) != maxKeys || m.dropped == 0 {
		t.Errorf("%d reasons, %d dropped", len(m.occurrences), m.dropped)
	}
}

// BenchmarkScrape is one scrape of 150 series, text and all.
func BenchmarkScrape(b *testing.B) {
	s := worst()
	h := New(Config{Source: func() agent.Snapshot { return s }, API: fakeAPI{}, Node: "node0"}).Handler()
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	}
}
