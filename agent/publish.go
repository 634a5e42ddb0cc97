package agent

import "time"

// A Publisher tells somebody else what the agent knows. It is constructed with
// the agent's Snapshot method and pulls from it whenever it has something to
// say, so that the newest state is the only one there is.
type Publisher interface {
	// Publish says that the snapshot has changed in a way that a reader would
	// see, and what happened, each Happening once and in order. It returns at
	// once and may be called from several goroutines.
	Publish(happened []Happening)
}

// An Adopter takes over what an earlier run of the agent published.
type Adopter interface {
	// Adopt is called at most once for each condition type found on the Node
	// object, when that was written since this boot. A condition that has been
	// decided meanwhile keeps its status; where that is the same, it takes over
	// the transition time.
	Adopt(condition string, status Status, reason string, transition time.Time)
}

// Readiness is what the own Node object says, as far as somebody has read it.
type Readiness struct {
	UID        string    // of the Node object; a new one voids what was adopted
	ReadySince time.Time // zero: not Ready, or not known
	Labels     map[string]string
	BootID     string
	Kubelet    string    // kubelet's version, which it writes when it registers
	Patch      string    // what AKS's live patching puts in kubelet's place; "": nothing
	At         time.Time // when it was read
}
