package kube

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nodedrift/nodedrift/agent"
)

// Limits of text on the API. The agent has bounded it already; these hold
// whoever built the snapshot.
const (
	maxMessage      = 160  // of a condition: one line of kubectl describe
	maxEventMessage = 1024 // what events.k8s.io allows in a note
)

// A condition is a NodeCondition as the API server wants it.
type condition struct {
	Type               string       `json:"type"`
	Status             agent.Status `json:"status"`
	Reason             string       `json:"reason"`
	Message            string       `json:"message"`
	LastHeartbeatTime  time.Time    `json:"lastHeartbeatTime,omitzero"`
	LastTransitionTime time.Time    `json:"lastTransitionTime,omitzero"`

	// stands names all that a reader would see change at once: the standing
	// findings with their severity and who did them.
	stands string
}

// sameText tells whether a reader of the Node would see no difference but the
// heartbeat.
func (c *condition) sameText(o *condition) bool {
	return c.Type == o.Type && c.Status == o.Status && c.Reason == o.Reason && c.Message == o.Message &&
		c.LastTransitionTime.Equal(o.LastTransitionTime)
}

// sameVerdict tells whether the difference, if any, can wait.
func (c *condition) sameVerdict(o *condition) bool {
	return c.Type == o.Type && c.Status == o.Status && c.Reason == o.Reason && c.stands == o.stands
}

// sameTexts compares two lists, each with every type once, in any order.
func sameTexts(a, b []condition) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(c condition) bool {
		return !slices.ContainsFunc(b, func(o condition) bool { return c.sameText(&o) })
	})
}

// conditionsOf lists what a snapshot says, and for types that it has not decided
// yet what the server says already: a condition left out of an apply is removed.
func conditionsOf(s *agent.Snapshot, server map[string]condition) []condition {
	list := make([]condition, 0, len(s.Conditions))
	for i := range s.Conditions {
		from := &s.Conditions[i]
		c, ok := conditionOf(from)
		if !ok {
			if c, ok = server[from.Type]; !ok {
				continue
			}
		}
		if !slices.ContainsFunc(list, func(o condition) bool { return o.Type == c.Type }) {
			list = append(list, c)
		}
	}
	return list
}

// conditionOf turns the agent's condition into the API's. Times lose what the
// API server would cut off, so that both sides compare equal.
func conditionOf(from *agent.Condition) (condition, bool) {
	if from.Status == "" || from.Type == "" {
		return condition{}, false
	}
	c := condition{Type: from.Type, Status: from.Status, Reason: from.Reason, Message: oneLine(from.Message, maxMessage),
		LastTransitionTime: from.LastTransitionTime.UTC().Truncate(time.Second), LastHeartbeatTime: from.LastCheckTime.UTC().Truncate(time.Second)}
	if from.LastCheckTime.IsZero() {
		c.LastHeartbeatTime = c.LastTransitionTime
	}
	var stands []string
	for i := range from.Findings {
		f := &from.Findings[i]
		if !f.Stands() {
			continue
		}
		actor := ""
		if f.Actor != nil {
			actor = cmp.Or(f.Actor.Pod, f.Actor.Unit, f.Actor.Comm)
		}
		stands = append(stands, strings.Join([]string{f.Reason, f.ID, f.Subject, f.Severity.String(), actor}, "\x1f"))
	}
	slices.Sort(stands)
	c.stands = strings.Join(stands, "\x1e")
	return c, true
}

// Body is the server-side apply that the publisher sends for a snapshot when
// the server has nothing to keep: the body of
// PATCH /api/v1/nodes/NAME/status?fieldManager=nodedrift&force=true.
func Body(s agent.Snapshot) []byte { return body(s.Node, conditionsOf(&s, nil)) }

func body(node string, list []condition) []byte {
	type metadata struct {
		Name string `json:"name"`
	}
	type status struct {
		Conditions []condition `json:"conditions"`
	}
	b, err := json.Marshal(struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Metadata   metadata `json:"metadata"`
		Status     status   `json:"status"`
	}{"v1", "Node", metadata{node}, status{list}})
	if err != nil { // only a time beyond the year 9999 gets here
		return nil
	}
	return b
}

// oneLine makes text fit for one line of kubectl describe: valid UTF-8, nothing
// that moves the cursor, at most limit bytes.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) <= limit {
		return s
	}
	cut := limit - len("...")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}
