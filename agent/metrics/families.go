package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/nodedrift/nodedrift/probes"
)

// A family is one metric name with its kind and labels.
type family struct {
	desc       *prometheus.Desc
	name, help string
	kind       dto.MetricType
	width      int            // labels
	labels     []probes.Label // of a probe's own metric: all values there may be
}

// The families that are the same on every node: a contract with dashboards and
// alerts (DESIGN section 6).
var (
	fixed = map[string]bool{} // their names

	conditionIs   = gauge("condition", "1 for the status that the condition has; True means drift.", "condition", "status")
	findingIs     = gauge("finding", "How many findings of a reason are present.", "probe", "reason", "severity", "owner")
	duration      = newFamily("probe_duration_seconds", "Time spent in looks.", dto.MetricType_SUMMARY, []string{"probe"})
	runs          = counter("probe_runs_total", "Looks by result.", "probe", "result")
	lastSuccess   = gauge("probe_last_success_timestamp_seconds", "When a look last succeeded.", "probe")
	occurrences   = counter("occurrences_total", "Things that happened and left no state.", "reason")
	transitions   = counter("transitions_total", "Changes of a condition's status.", "condition", "to")
	sourceLost    = counter("source_lost_total", "Events lost by what a probe listens to; each loss is answered by a full look.", "source")
	sourceHears   = gauge("source_hearing", "1 while a probe hears changes; otherwise its sweep alone sees them.", "source")
	requests      = counter("publish_requests_total", "Requests to the API server by result.", "code")
	pending       = gauge("publish_pending", "1 while the API server has yet to be told something.")
	published     = gauge("publish_last_success_timestamp_seconds", "When a request to the API server last succeeded.")
	eventsDropped = counter("publish_events_dropped_total", "Events that were never sent.")
	fingerprint   = gauge("fingerprint_info", "Hash of a part of the node's configuration.", "domain", "hash")
	nodeInfo      = gauge("node_info", "What kind of node this is.", "node", "nodepool", "node_image_version", "os_sku", "kernel", "vm_size")
	buildInfo     = gauge("build_info", "What is running.", "version", "revision", "goversion")
	reloadOK      = gauge("config_last_reload_successful", "0 while a changed configuration is refused and the last good one is kept.")
	reloadAt      = gauge("config_last_reload_success_timestamp_seconds", "When the configuration was last taken over.")
	lockHolds     = gauge("lock_holds", "1 while this process cannot change the host: capabilities dropped, writing closed by landlock, other ways by a filter of syscalls.", "lock")
	dropped       = counter("metrics_dropped_total", "Numbers that were not shown because name, label or value is not one that may be.")
)

func gauge(name, help string, labels ...string) *family {
	return newFamily(name, help, dto.MetricType_GAUGE, labels)
}

func counter(name, help string, labels ...string) *family {
	return newFamily(name, help, dto.MetricType_COUNTER, labels)
}

// newFamily is a family that is the same on every node.
func newFamily(name, help string, kind dto.MetricType, labels []string) *family {
	fixed[namespace+name] = true
	return describe(name, help, kind, labels)
}

func describe(name, help string, kind dto.MetricType, labels []string) *family {
	name = namespace + name
	return &family{desc: prometheus.NewDesc(name, help, labels, nil), name: name, help: help, kind: kind, width: len(labels)}
}

// familyOf is the family of a probe's own metric.
func familyOf(m *probes.Metric) *family {
	kind := dto.MetricType_GAUGE
	if m.Counter {
		kind = dto.MetricType_COUNTER
	}
	names := make([]string, len(m.Labels))
	for i, l := range m.Labels {
		names[i] = l.Name
	}
	f := describe(m.Name, m.Help, kind, names)
	f.labels = m.Labels
	return f
}

// allows tells whether all label values, one for each label, are declared.
func (f *family) allows(values []string) bool {
	for i, l := range f.labels {
		if !slices.Contains(l.Values, values[i]) {
			return false
		}
	}
	return true
}

// valid tells whether a name is one of ours: lower case, digits, underscores.
func valid(name string) bool {
	for i, r := range name {
		if !(r >= 'a' && r <= 'z' || i > 0 && (r == '_' || r >= '0' && r <= '9')) {
			return false
		}
	}
	return name != ""
}
