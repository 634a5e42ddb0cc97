package agent

import (
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// SchemaVersion names the shape of [Document].
const SchemaVersion = "nodedrift/v1"

// Status is a NodeCondition status. The empty Status means that nothing has
// been decided and nothing is to be published.
type Status string

// The statuses of a condition. True means drift.
const (
	True    Status = "True"
	False   Status = "False"
	Unknown Status = "Unknown"
)

// Reasons of the engine itself: why a condition is Unknown, and the summary's.
const (
	NotCheckedYet    = "NotCheckedYet"    // before the first look; never published
	ProbeFailed      = "ProbeFailed"      // the look returned an error or panicked
	ProbeTimedOut    = "ProbeTimedOut"    // the look did not end within its deadline
	PermissionDenied = "PermissionDenied" // a right is missing
	AgentStarved     = "AgentStarved"     // the agent itself got no CPU for a minute
	NodeProvisioning = "NodeProvisioning" // the node is still being set up

	NodeDrift          = "NodeDrift"          // the summary's condition type
	NoDrift            = "NoDrift"            // the summary's healthy reason
	ProvisioningFailed = "ProvisioningFailed" // AKS's provisioning ended with an exit code other than 0
	NodeShuttingDown   = "NodeShuttingDown"   // an Event, once, when the node begins to stop
)

// A Document is what the agent knows, in the shape that check -o json, status
// -o json and /api/v1/status share.
type Document struct {
	SchemaVersion string          `json:"schemaVersion"`
	Node          string          `json:"node"`
	Time          time.Time       `json:"time"`
	Conditions    []Condition     `json:"conditions"`
	NotApplicable []NotApplicable `json:"notApplicable"`
	Occurrences   []Occurrence    `json:"occurrences"`
	Sources       []Source        `json:"sources"`
}

// A Condition is one NodeCondition with all that stands behind it.
type Condition struct {
	Type    string `json:"type"`
	Status  Status `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Error   string `json:"error"` // why the last look failed; "" when it did not

	LastTransitionTime time.Time `json:"lastTransitionTime"` // of Status
	LastCheckTime      time.Time `json:"lastCheckTime"`      // of the last look that succeeded; zero before it

	Probe     string    `json:"probe"` // "" for the summary
	NotJudged []string  `json:"notJudged"`
	Findings  []Finding `json:"findings"`
}

// A Finding is a [probes.Finding] as the agent holds it.
type Finding struct {
	Reason       string          `json:"reason"`
	ID           string          `json:"id"`
	Severity     probes.Severity `json:"severity"`
	Routine      bool            `json:"routine,omitempty"`
	Owner        probes.Owner    `json:"owner"`
	Subject      string          `json:"subject"`
	Observed     string          `json:"observed"`
	Wanted       string          `json:"wanted"`
	Source       string          `json:"source"`
	Message      string          `json:"message"`
	Held         bool            `json:"held"`             // seen, but not yet for long enough
	Waived       bool            `json:"waived"`           // allowed by the configuration
	Since        time.Time       `json:"since"`            // first seen
	Unseen       bool            `json:"unseen,omitempty"` // it stood, and the last looks could not see whether it still does
	Consequences []probes.Ref    `json:"consequences"`
	Actor        *Actor          `json:"actor,omitempty"`

	trace              probes.Key
	first, clean, seen time.Duration // monotonic: as in standing
	gone               bool          // in its clear time
	known              bool          // told as raised, and not taken back
}

// Stands tells whether the finding turns its condition True.
func (f *Finding) Stands() bool {
	return f.drifts() && !f.Unseen
}

// drifts tells whether the finding would stand if it were seen.
func (f *Finding) drifts() bool { return !f.Held && !f.Waived && f.Severity >= probes.Warning }

func (f *Finding) same(g *Finding) bool {
	return f.Reason == g.Reason && f.ID == g.ID && f.Subject == g.Subject
}

// An Actor is who did something, as the journal knows it. Its text came from
// outside and has been bounded and escaped.
type Actor struct {
	PID       int       `json:"pid"`
	Comm      string    `json:"comm"`
	Unit      string    `json:"unit"`
	Pod       string    `json:"pod"` // namespace/name
	Container string    `json:"container"`
	Time      time.Time `json:"time"`
}

// NotApplicable names a probe that has nothing to look at on this node.
type NotApplicable struct {
	Probe string `json:"probe"`
	Why   string `json:"why"`
}

// An Occurrence is one thing that happened and left no state.
type Occurrence struct {
	Time     time.Time       `json:"time"`
	Probe    string          `json:"probe"`
	Reason   string          `json:"reason"`
	Severity probes.Severity `json:"severity"`
	Subject  string          `json:"subject"`
	Message  string          `json:"message"`
	Actor    *Actor          `json:"actor,omitempty"`
}

// A Source is something a probe listens to.
type Source struct {
	Probe   string `json:"probe"`
	Hearing bool   `json:"hearing"` // subscribed; otherwise the sweep alone sees changes
	Error   string `json:"error"`   // why it does not hear; of a probe without a condition, what it hears no more than in part
	Lost    uint64 `json:"lost"`    // events lost, each answered by a full look
}

// A Happening is told once: a finding raised or cleared, a probe gone blind, an
// occurrence. It becomes an Event, a log line and a counter.
type Happening struct {
	Time      time.Time
	Kind      Kind
	Probe     string
	Condition string // "" for what belongs to no condition
	From, To  Status // of the condition; equal when it did not change
	Reason    string
	Severity  probes.Severity
	Subject   string
	Message   string // one line, bounded, with who did it and who acts
	Actor     *Actor
}

// Kind tells what a [Happening] is.
type Kind uint8

// The kinds of happenings.
const (
	Raised   Kind = iota + 1 // a finding stands
	Cleared                  // it is gone, or no longer counts
	Blinded                  // the condition turned Unknown
	Restored                 // it turned False from Unknown, or for the first time
	Occurred                 // something happened that leaves no state
)

// String returns the kind in lower case.
func (k Kind) String() string {
	return [...]string{"", "raised", "cleared", "blinded", "restored", "occurred"}[k]
}

// A Snapshot is a [Document] with what only metrics show.
type Snapshot struct {
	Document
	// Complete says that every probe has looked in this process: until then
	// applying the conditions would take away those of probes still to come.
	Complete bool
	Probes   []ProbeStat
}

// A ProbeStat is the account of one probe's work.
type ProbeStat struct {
	Spec         probes.Spec
	Runs         map[string]uint64 // by result: ok, failed, timeout, denied, starved, notapplicable
	Duration     time.Duration     // of all looks
	LastSuccess  time.Time         // zero before the first
	Samples      []probes.Sample
	Fingerprints map[string]string
	Lost         uint64
}
