// Package metrics shows what the agent knows to Prometheus. Every label value
// comes from a closed set: condition types, reasons, and what a probe's Spec
// declares; subjects and messages are not shown.
package metrics

import (
	"maps"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

const (
	namespace  = "nodedrift_"
	maxScrapes = 2   // at a time
	maxValue   = 128 // bytes of a label value that is not in a closed set
	maxKeys    = 256 // of one counter: bounds what closed sets bound already
)

// Publishing is the account of a publisher to the API server.
type Publishing interface {
	Requests() map[string]uint64 // by result
	Pending() bool
	LastSuccess() time.Time // zero: never
	DroppedEvents() uint64
}

// Config is what [Metrics] are made of. Source is needed.
type Config struct {
	Source   func() agent.Snapshot
	API      Publishing             // nil: nothing is published to the API server
	Locks    func() map[string]bool // nil: none; what this process has locked itself out of, by lock
	Node     string
	Kernel   string // release, as in uname -r
	Version  string // of this program
	Revision string
}

// Metrics is a [prometheus.Collector] over the agent's snapshot, and an
// [agent.Publisher] that counts what happened.
type Metrics struct {
	cfg Config

	mu          sync.Mutex // guards the fields below
	labels      map[string]string
	transitions map[[2]string]uint64 // by condition and new status
	occurrences map[string]uint64    // by reason
	dropped     uint64
	reloadOK    bool
	reloadAt    time.Time
}

// New returns metrics whose counters are zero.
func New(cfg Config) *Metrics {
	return &Metrics{cfg: cfg, transitions: map[[2]string]uint64{}, occurrences: map[string]uint64{}, reloadOK: true, reloadAt: time.Now()}
}

// Publish implements [agent.Publisher].
func (m *Metrics) Publish(happened []agent.Happening) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range happened {
		h := &happened[i]
		if h.From != h.To && h.From != "" && h.To != "" && h.Condition != "" {
			m.count(len(m.transitions), func() { m.transitions[[2]string{h.Condition, string(h.To)}]++ })
		}
		if h.Kind == agent.Occurred {
			m.count(len(m.occurrences), func() { m.occurrences[h.Reason]++ })
		}
	}
}

func (m *Metrics) count(keys int, add func()) {
	if keys >= maxKeys {
		m.dropped++
		return
	}
	add()
}

// SetLabels tells the labels of the own Node object, once they are known.
func (m *Metrics) SetLabels(labels map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.labels = maps.Clone(labels)
}

// Reloaded tells how reading a changed configuration ended.
func (m *Metrics) Reloaded(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reloadOK = err == nil; m.reloadOK {
		m.reloadAt = time.Now()
	}
}

// Handler serves the metrics from a registry of their own, two scrapes at a
// time, uncompressed.
func (m *Metrics) Handler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(m)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes,
		DisableCompression: true})
}

// Describe implements [prometheus.Collector]. It describes nothing: what probes
// measure depends on the configuration.
func (m *Metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	s := m.cfg.Source()
	c := &collection{out: out, seen: map[string]bool{}}
	c.conditions(&s)
	c.findings(&s)
	c.work(&s)
	c.measured(&s)
	if m.cfg.API != nil {
		c.publishing(m.cfg.API)
	}
	if m.cfg.Locks != nil {
		for name, holds := range m.cfg.Locks() {
			c.put(lockHolds, number(holds), name)
		}
	}
	m.own(c)
	c.put(dropped, float64(m.total(c.dropped)))
}

// total adds what a scrape dropped to what was dropped before.
func (m *Metrics) total(n uint64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropped += n
	return m.dropped
}

// own collects what the metrics themselves keep.
func (m *Metrics) own(c *collection) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, n := range m.transitions {
		c.put(transitions, float64(n), k[0], k[1])
	}
	for reason, n := range m.occurrences {
		c.put(occurrences, float64(n), reason)
	}
	c.put(reloadOK, number(m.reloadOK))
	c.put(reloadAt, seconds(m.reloadAt))
	label := func(names ...string) string {
		for _, n := range names {
			if v := m.labels[n]; v != "" {
				return bound(v)
			}
		}
		return ""
	}
	c.put(nodeInfo, 1, bound(m.cfg.Node), label("kubernetes.azure.com/agentpool", "agentpool"), label("kubernetes.azure.com/node-image-version"),
		label("kubernetes.azure.com/os-sku"), bound(m.cfg.Kernel), label("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type"))
	c.put(buildInfo, 1, bound(m.cfg.Version), bound(m.cfg.Revision), runtime.Version())
}

// A collection is one scrape.
type collection struct {
	out     chan<- prometheus.Metric
	seen    map[string]bool // series whose uniqueness is the probes' business
	dropped uint64
}

// put sends one number. What Prometheus would refuse is counted instead: one bad
// series must not spoil a scrape.
func (c *collection) put(f *family, v float64, labels ...string) {
	metric, err := prometheus.NewConstMetric(f.desc, f.kind, v, labels...)
	if err != nil {
		c.dropped++
		return
	}
	c.out <- metric
}

func (c *collection) conditions(s *agent.Snapshot) {
	for i := range s.Conditions {
		cond := &s.Conditions[i]
		if cond.Status == "" {
			continue
		}
		for _, status := range []agent.Status{agent.True, agent.False, agent.Unknown} {
			c.put(conditionIs, number(cond.Status == status), cond.Type, string(status))
		}
	}
}

// findings counts what stands, by reason. What is still held is not there yet;
// what is waived has a severity of its own, so that no alert takes it for drift.
func (c *collection) findings(s *agent.Snapshot) {
	known := map[string]*probes.Spec{}
	for i := range s.Probes {
		known[s.Probes[i].Spec.Name] = &s.Probes[i].Spec
	}
	type key struct{ probe, reason, severity, owner string }
	count := map[key]int{}
	for i := range s.Conditions {
		cond := &s.Conditions[i]
		spec := known[cond.Probe]
		for j := range cond.Findings {
			f := &cond.Findings[j]
			switch {
			case f.Held:
			case spec == nil || !slices.ContainsFunc(spec.Reasons, func(r probes.Reason) bool { return r.Name == f.Reason }):
				c.dropped++
			case f.Waived:
				count[key{cond.Probe, f.Reason, "waived", ownerLabel(f.Owner)}]++
			default:
				count[key{cond.Probe, f.Reason, f.Severity.String(), ownerLabel(f.Owner)}]++
			}
		}
	}
	for k, n := range count {
		c.put(findingIs, float64(n), k.probe, k.reason, k.severity, k.owner)
	}
}

// work is each probe's account. Results other than ok show once they happened.
func (c *collection) work(s *agent.Snapshot) {
	for i := range s.Probes {
		p := &s.Probes[i]
		name := p.Spec.Name
		var looks uint64
		for result, n := range p.Runs {
			if looks += n; n > 0 || result == "ok" {
				c.put(runs, float64(n), name, result)
			}
		}
		if d, err := prometheus.NewConstSummary(duration.desc, looks, p.Duration.Seconds(), nil, name); err == nil {
			c.out <- d
		}
		if !p.LastSuccess.IsZero() {
			c.put(lastSuccess, seconds(p.LastSuccess), name)
		}
		for domain, hash := range p.Fingerprints {
			if series := "fingerprint\x00" + domain; !c.seen[series] {
				c.seen[series] = true
				c.put(fingerprint, 1, bound(domain), bound(hash))
			}
		}
	}
	for _, src := range s.Sources {
		c.put(sourceLost, float64(src.Lost), src.Probe)
		c.put(sourceHears, number(src.Hearing), src.Probe)
	}
}

func (c *collection) publishing(api Publishing) {
	for code, n := range api.Requests() {
		if n > 0 || code == "200" || code == "error" {
			c.put(requests, float64(n), code)
		}
	}
	c.put(pending, number(api.Pending()))
	c.put(eventsDropped, float64(api.DroppedEvents()))
	if t := api.LastSuccess(); !t.IsZero() {
		c.put(published, seconds(t))
	}
}

// measured shows the probes' own numbers: only names and label values that
// their Spec declares, each series once, and only real numbers.
func (c *collection) measured(s *agent.Snapshot) {
	declared := map[string]string{} // metric name: the probe that declared it
	for i := range s.Probes {
		p := &s.Probes[i]
		families := map[string]*family{}
		for j := range p.Spec.Metrics {
			d := &p.Spec.Metrics[j]
			if _, taken := declared[d.Name]; !taken && valid(d.Name) && !fixed[namespace+d.Name] {
				declared[d.Name] = p.Spec.Name
				families[d.Name] = familyOf(d)
			}
		}
		for _, sample := range p.Samples {
			f := families[sample.Name]
			series := sample.Name + "\x00" + strings.Join(sample.Labels, "\x00")
			if f == nil || !f.allows(sample.Labels) || c.seen[series] || math.IsNaN(sample.Value) || math.IsInf(sample.Value, 0) {
				c.dropped++
				continue
			}
			c.seen[series] = true
			c.put(f, sample.Value, sample.Labels...)
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// bound makes a value fit for a label: valid UTF-8 of at most 128 bytes.
func bound(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= maxValue {
		return s
	}
	cut := maxValue
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}

func ownerLabel(o probes.Owner) string {
	switch o {
	case probes.AKS, probes.Customer:
		return string(o)
	}
	return string(probes.Both)
}

var (
	_ prometheus.Collector = (*Metrics)(nil)
	_ agent.Publisher      = (*Metrics)(nil)
)
