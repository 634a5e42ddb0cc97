package metrics

import (
	"math"
	"slices"
	"strings"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

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
