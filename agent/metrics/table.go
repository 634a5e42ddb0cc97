package metrics

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

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
