package metrics

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

// A table holds the series of one scrape and keeps them for the next, to which as a
// rule nothing but numbers is new: a series is made, checked and written by client_golang
// once. (A registry makes, hashes, sorts and writes all of them each time.)
type table struct {
	scrape   uint64 // counts scrapes: what a scrape did not put is not in it
	families map[*family]*rows
	shown    []*rows // as of the last scrape, by name
	dropped  uint64  // numbers, in this scrape
	text     []byte  // of the last scrape

	declares [][]probes.Metric    // by probe, what declared is made from
	declared []map[string]*family // by probe and name
	domains  map[string]bool      // of fingerprints, in this scrape
	key      []byte               // of a row, to look it up
}

// rows are the series of one family.
type rows struct {
	name     string
	head     string // HELP and TYPE
	byLabels map[string]*row
	sorted   []*row // as of the last scrape, by label values
	put      int    // rows, in this scrape
	anew     bool   // a row was not in the last scrape
}

// A row is one series, or the two of a summary.
type row struct {
	labels  []*dto.LabelPair // by name
	lines   []string         // up to their numbers
	numbers [2]float64       // as many as lines
	scrape  uint64           // that put it last
}

func newTable() *table {
	return &table{families: map[*family]*rows{}, domains: map[string]bool{}}
}

// begin starts a scrape.
func (t *table) begin() {
	t.scrape++
	t.dropped = 0
	clear(t.domains)
}

// put shows one number. What Prometheus would refuse, and what is there already, is
// counted instead: one bad series must not spoil a scrape.
func (t *table) put(f *family, v float64, labels ...string) {
	if r, first := t.row(f, labels); r != nil && first {
		r.numbers[0] = v
	} else {
		t.dropped++
	}
}

// add adds one to a number that starts at 0 in each scrape.
func (t *table) add(f *family, labels ...string) {
	r, first := t.row(f, labels)
	switch {
	case r == nil:
		t.dropped++
	case first:
		r.numbers[0] = 1
	default:
		r.numbers[0]++
	}
}

// row returns the row with these label values, nil where there cannot be one, and
// whether this scrape asks for it for the first time.
func (t *table) row(f *family, labels []string) (r *row, first bool) {
	if len(labels) != f.width {
		return nil, false
	}
	all := t.families[f]
	if all == nil {
		all = &rows{name: f.name, byLabels: map[string]*row{}}
		t.families[f] = all
	}
	t.key = t.key[:0]
	for _, l := range labels {
		t.key = append(append(t.key, l...), 0xff) // which is in no valid label
	}
	if r = all.byLabels[string(t.key)]; r == nil {
		var head string
		if head, r = f.newRow(slices.Clone(labels)); r == nil {
			return nil, false
		}
		all.head = head
		all.byLabels[string(t.key)] = r
		all.anew = true
	}
	if first = r.scrape != t.scrape; first {
		r.scrape = t.scrape
		all.put++
	}
	return r, first
}

// newRow makes a row, and checks all of it but its number. It returns nil for a row
// that may not be.
func (f *family) newRow(labels []string) (head string, r *row) {
	if f.labels != nil && !f.allows(labels) {
		return "", nil
	}
	var m prometheus.Metric
	var err error
	switch f.kind {
	case dto.MetricType_SUMMARY:
		m, err = prometheus.NewConstSummary(f.desc, 0, 0, nil, labels...)
	case dto.MetricType_COUNTER:
		m, err = prometheus.NewConstMetric(f.desc, prometheus.CounterValue, 0, labels...)
	default:
		m, err = prometheus.NewConstMetric(f.desc, prometheus.GaugeValue, 0, labels...)
	}
	if err != nil {
		return "", nil
	}
	var d dto.Metric
	var text strings.Builder
	if err := m.Write(&d); err != nil {
		return "", nil
	}
	alone := &dto.MetricFamily{Name: &f.name, Help: &f.help, Type: &f.kind, Metric: []*dto.Metric{&d}}
	if _, err := expfmt.MetricFamilyToText(&text, model.EscapeMetricFamily(alone, escaping)); err != nil {
		return "", nil
	}
	r = &row{labels: d.Label}
	for line := range strings.Lines(text.String()) {
		if strings.HasPrefix(line, "#") {
			head += line
		} else {
			r.lines = append(r.lines, strings.TrimSuffix(line, "0\n"))
		}
	}
	return head, r
}

// end ends a scrape: it writes all that was put, sorted, and forgets the rest.
func (t *table) end() {
	anew := false
	for f, all := range t.families {
		switch {
		case all.put == 0:
			delete(t.families, f)
			anew = true
		case all.anew || all.put != len(all.byLabels):
			anew = anew || all.sorted == nil
			all.sort(t.scrape)
		}
		all.put, all.anew = 0, false
	}
	if anew {
		t.shown = slices.SortedFunc(maps.Values(t.families), func(a, b *rows) int { return cmp.Compare(a.name, b.name) })
	}
	t.text = t.text[:0]
	for _, all := range t.shown {
		t.text = append(t.text, all.head...)
		for _, r := range all.sorted {
			for i, line := range r.lines {
				t.text = strconv.AppendFloat(append(t.text, line...), r.numbers[i], 'g', -1, 64)
				t.text = append(t.text, '\n')
			}
		}
	}
}

// sort forgets what this scrape did not put, and sorts the rest by label values.
func (all *rows) sort(scrape uint64) {
	maps.DeleteFunc(all.byLabels, func(_ string, r *row) bool { return r.scrape != scrape })
	all.sorted = slices.SortedFunc(maps.Values(all.byLabels), func(a, b *row) int {
		return slices.CompareFunc(a.labels, b.labels, func(a, b *dto.LabelPair) int { return cmp.Compare(a.GetValue(), b.GetValue()) })
	})
}

func (t *table) conditions(s *agent.Snapshot) {
	for i := range s.Conditions {
		c := &s.Conditions[i]
		if c.Status == "" {
			continue
		}
		for _, status := range [...]agent.Status{agent.True, agent.False, agent.Unknown} {
			t.put(conditionIs, number(c.Status == status), c.Type, string(status))
		}
	}
}

// findings counts what stands, by reason. What is still held is not there yet;
// what is waived has a severity of its own, so that no alert takes it for drift.
func (t *table) findings(s *agent.Snapshot) {
	for i := range s.Conditions {
		c := &s.Conditions[i]
		for j := range c.Findings {
			f := &c.Findings[j]
			switch {
			case f.Held:
			case !knows(s, c.Probe, f.Reason):
				t.dropped++
			case f.Waived:
				t.add(findingIs, c.Probe, f.Reason, "waived", ownerLabel(f.Owner))
			default:
				t.add(findingIs, c.Probe, f.Reason, f.Severity.String(), ownerLabel(f.Owner))
			}
		}
	}
}

// knows tells whether a probe has a reason in its catalogue.
func knows(s *agent.Snapshot, probe, reason string) bool {
	for i := range s.Probes {
		if spec := &s.Probes[i].Spec; spec.Name == probe {
			return slices.ContainsFunc(spec.Reasons, func(r probes.Reason) bool { return r.Name == reason })
		}
	}
	return false
}

// work is each probe's account. Results other than ok show once they happened.
func (t *table) work(s *agent.Snapshot) {
	for i := range s.Probes {
		p := &s.Probes[i]
		name := p.Spec.Name
		var looks uint64
		for result, n := range p.Runs {
			if looks += n; n > 0 || result == "ok" {
				t.put(runs, float64(n), name, result)
			}
		}
		if r, first := t.row(duration, []string{name}); r != nil && first {
			r.numbers = [2]float64{p.Duration.Seconds(), float64(looks)}
		}
		if !p.LastSuccess.IsZero() {
			t.put(lastSuccess, seconds(p.LastSuccess), name)
		}
		for domain, hash := range p.Fingerprints {
			if !t.domains[domain] {
				t.domains[domain] = true
				t.put(fingerprint, 1, bound(domain), bound(hash))
			}
		}
	}
	for i := range s.Sources {
		src := &s.Sources[i]
		t.put(sourceLost, float64(src.Lost), src.Probe)
		t.put(sourceHears, number(src.Hearing), src.Probe)
	}
}

func (t *table) publishing(api Publishing) {
	for code, n := range api.Requests() {
		if n > 0 || code == "200" || code == "error" {
			t.put(requests, float64(n), code)
		}
	}
	t.put(pending, number(api.Pending()))
	t.put(eventsDropped, float64(api.DroppedEvents()))
	if at := api.LastSuccess(); !at.IsZero() {
		t.put(published, seconds(at))
	}
}

// measured shows the probes' own numbers: only names and label values that
// their Spec declares, each series once, and only real numbers.
func (t *table) measured(s *agent.Snapshot) {
	t.declare(s)
	for i := range s.Probes {
		for j := range s.Probes[i].Samples {
			sample := &s.Probes[i].Samples[j]
			f := t.declared[i][sample.Name]
			if f == nil || math.IsNaN(sample.Value) || math.IsInf(sample.Value, 0) {
				t.dropped++
				continue
			}
			t.put(f, sample.Value, sample.Labels...)
		}
	}
}

// declare makes the families that the probes declare, unless they are those of the
// last scrape. A name is the first probe's that declares it.
func (t *table) declare(s *agent.Snapshot) {
	if slices.EqualFunc(t.declares, s.Probes, func(d []probes.Metric, p agent.ProbeStat) bool {
		return len(d) == len(p.Spec.Metrics) && (len(d) == 0 || &d[0] == &p.Spec.Metrics[0])
	}) {
		return
	}
	t.declares, t.declared = nil, nil
	taken := map[string]bool{}
	for i := range s.Probes {
		list := s.Probes[i].Spec.Metrics
		own := map[string]*family{}
		for j := range list {
			d := &list[j]
			name := namespace + d.Name
			if !taken[name] && valid(d.Name) && !fixed[name] && !strings.HasPrefix(name, duration.name+"_") {
				taken[name] = true
				own[d.Name] = familyOf(d)
			}
		}
		t.declares, t.declared = append(t.declares, list), append(t.declared, own)
	}
}
