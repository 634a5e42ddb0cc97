// Package metrics shows what the agent knows to Prometheus. Every label value
// comes from a closed set: condition types, reasons, and what a probe's Spec
// declares; subjects and messages are not shown.
package metrics

import (
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

const (
	namespace  = "nodedrift_"
	maxScrapes = 2   // at a time
	maxValue   = 128 // bytes of a label value that is not in a closed set
	maxKeys    = 256 // of one counter: bounds what closed sets bound already
)

// How names are written that an old Prometheus cannot read, and what it is told of the text.
const escaping = model.UnderscoreEscaping

var contentType = string(expfmt.NewFormat(expfmt.TypeTextPlain).WithEscapingScheme(escaping))

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

// Metrics shows the agent's snapshot, and is an [agent.Publisher] that counts what
// happened.
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

// Handler serves the metrics as text, two scrapes at a time, uncompressed.
func (m *Metrics) Handler() http.Handler {
	free := make([]*table, maxScrapes) // the last one used is the first to be used again
	for i := range free {
		free[i] = newTable()
	}
	var mu sync.Mutex // guards free
	take := func() (t *table) {
		mu.Lock()
		defer mu.Unlock()
		if last := len(free) - 1; last >= 0 {
			t, free = free[last], free[:last]
		}
		return t
	}
	giveBack := func(t *table) {
		mu.Lock()
		defer mu.Unlock()
		free = append(free, t)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		t := take()
		if t == nil {
			http.Error(w, fmt.Sprintf("%d scrapes are under way", maxScrapes), http.StatusServiceUnavailable)
			return
		}
		defer giveBack(t)
		m.collect(t)
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Length", strconv.Itoa(len(t.text))) // or it is sent in chunks
		_, _ = w.Write(t.text)                                      // the reader may have gone
	})
}

// collect makes a table show all there is.
func (m *Metrics) collect(t *table) {
	s := m.cfg.Source()
	t.begin()
	t.conditions(&s)
	t.findings(&s)
	t.work(&s)
	t.measured(&s)
	if m.cfg.API != nil {
		t.publishing(m.cfg.API)
	}
	if m.cfg.Locks != nil {
		for name, holds := range m.cfg.Locks() {
			t.put(lockHolds, number(holds), name)
		}
	}
	m.own(t)
	t.put(dropped, float64(m.total(t.dropped)))
	t.end()
}

// total adds what a scrape dropped to what was dropped before.
func (m *Metrics) total(n uint64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropped += n
	return m.dropped
}

// own collects what the metrics themselves keep.
func (m *Metrics) own(t *table) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, n := range m.transitions {
		t.put(transitions, float64(n), k[0], k[1])
	}
	for reason, n := range m.occurrences {
		t.put(occurrences, float64(n), reason)
	}
	t.put(reloadOK, number(m.reloadOK))
	t.put(reloadAt, seconds(m.reloadAt))
	label := func(names ...string) string {
		for _, n := range names {
			if v := m.labels[n]; v != "" {
				return bound(v)
			}
		}
		return ""
	}
	t.put(nodeInfo, 1, bound(m.cfg.Node), label("kubernetes.azure.com/agentpool", "agentpool"), label("kubernetes.azure.com/node-image-version"),
		label("kubernetes.azure.com/os-sku"), bound(m.cfg.Kernel), label("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type"))
	t.put(buildInfo, 1, bound(m.cfg.Version), bound(m.cfg.Revision), runtime.Version())
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

var _ agent.Publisher = (*Metrics)(nil)
