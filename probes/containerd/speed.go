package containerd

import (
	"slices"
	"time"
)

// A look on a busy machine is slow because the machine is. So the fastest of a
// minute's answers is what counts: a machine is never busy for every one of them,
// while a runtime that is slow is so each time. And the measure is its own past.
const (
	window    = 6                     // looks: a minute while all is well
	learned   = 5                     // windows that make a baseline
	remembers = 60                    // windows, the latest
	times     = 10                    // as long as usual is slow
	floor     = 20 * time.Millisecond // and nothing below is
)

// speed is how long the runtime takes to answer.
type speed struct {
	status, version time.Duration // the last answers

	recent []time.Duration // of the last looks, the newest last
	count  int             // looks in the present window
	past   []time.Duration // the fastest of each window before, while it was not slow
}

// judge takes one more answer, and says whether the runtime is slow, or why that
// is not known: one quick answer is enough to know that it is not.
func (s *speed) judge(took time.Duration) (slow bool, why string) {
	s.recent = append(s.recent, took)
	s.recent = s.recent[max(0, len(s.recent)-window):]
	fastest := slices.Min(s.recent)
	switch full := len(s.recent) == window; {
	case fastest <= floor:
	case len(s.past) < learned:
		why = "its usual speed is known after five minutes"
	case fastest <= times*s.usual():
	case !full:
		why = "a minute's answers will tell"
	default:
		slow = true
	}
	if s.count++; s.count >= window {
		s.count = 0
		if !slow {
			s.past = append(s.past, fastest)
			s.past = s.past[max(0, len(s.past)-remembers):]
		}
	}
	return slow, why
}

// usual is the median of past windows.
func (s *speed) usual() time.Duration {
	sorted := slices.Sorted(slices.Values(s.past))
	return sorted[len(sorted)/2]
}
