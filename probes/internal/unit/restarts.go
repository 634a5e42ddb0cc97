package unit

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// A unit keeps dying when systemd had to start it again loopStarts times within
// loopWithin, and until it has gone loopCalm without.
const (
	loopStarts = 3
	loopWithin = 10 * time.Minute
	loopCalm   = 5 * time.Minute
)

// restarts counts the starts that nobody asked for. systemd counts them in
// NRestarts and begins anew with each start that somebody did ask for
// (systemctl restart, a boot): so those never count.
type restarts struct {
	first  bool // a look was taken
	run    uint32
	told   bool // the death that systemd is about to mend was told of
	total  uint64
	starts []time.Duration // since boot, the latest last
	how    string          // how the last run ended
	moved  bool            // since it was kept
}

// restarted takes a look at the counter. When it cannot be told how long ago
// restarts were, they are left for the next look.
func (c *Checker) restarted(u host.Unit, notJudged *[]string) []probes.Finding {
	l := &c.loop
	again := strings.HasPrefix(u.SubState, "auto-restart")
	died := u.Result != "" && u.Result != "success"
	if died {
		l.how = ended(u)
	}
	more := uint64(0)
	switch {
	case !l.first:
	case u.NRestarts > l.run:
		more = uint64(u.NRestarts - l.run)
	case u.NRestarts < l.run:
		more = uint64(u.NRestarts) // a new start by somebody, and since then these
	}
	// Each death is told once: while systemd waits to start it, else afterwards.
	tell := l.first && !l.told && (again || more > 0)
	now, counted := time.Duration(0), c.excuse == "" && (len(l.starts) > 0 || more > 0 || tell)
	if counted {
		var err error
		if now, err = c.procs.Uptime(); err != nil {
			*notJudged = append(*notJudged, c.reason(CrashLooping)+": tell when it was restarted: "+err.Error())
			return nil
		}
	}
	l.moved = l.moved || !l.first || l.run != u.NRestarts || died
	l.told = again
	l.first, l.run = true, u.NRestarts
	if !counted {
		return nil
	}
	for range min(more, loopStarts+1) {
		l.starts = append(l.starts, now)
	}
	l.total += more
	l.starts = slices.DeleteFunc(l.starts, func(at time.Duration) bool { return now-at > loopWithin || at > now })
	l.starts = l.starts[max(0, len(l.starts)-16):]
	name := c.name(u)
	looping := len(l.starts) >= loopStarts && now-l.starts[len(l.starts)-1] < loopCalm
	if !looping {
		if tell {
			c.saw(name, l.how)
		}
		return nil
	}
	text := name + " keeps dying and is started again"
	if l.how != "" {
		text += ": " + l.how
	}
	return []probes.Finding{{Reason: c.reason(CrashLooping), Subject: name, Message: text, Trace: probes.Key{Domain: "unit", Name: name}}}
}

// saw tells of a death that systemd mends.
func (c *Checker) saw(name, how string) {
	h := c.hearer.Load()
	if h == nil {
		return
	}
	if how == "" {
		how = "it ended by itself"
	}
	(*h).Saw(probes.Occurrence{Reason: c.reason(Died), Subject: name, Message: name + " died: " + how + "; systemd starts it again",
		Trace: probes.Key{Domain: "unit", Name: name}})
}

// Keys of what is kept.
const (
	keptStarts = "starts" // seconds since boot
	keptRun    = "restarts"
	keptHow    = "ended"
)

func (l *restarts) keep(into map[string]string) {
	if !l.first {
		return
	}
	into[keptRun] = strconv.FormatUint(uint64(l.run), 10)
	if len(l.starts) == 0 {
		return
	}
	var all []string
	for _, at := range l.starts {
		all = append(all, strconv.FormatInt(int64(at/time.Second), 10))
	}
	into[keptStarts], into[keptHow] = strings.Join(all, " "), l.how
}

func (l *restarts) recall(kept map[string]string) {
	n, err := strconv.ParseUint(kept[keptRun], 10, 32)
	if err != nil {
		return
	}
	l.first, l.run, l.how = true, uint32(n), kept[keptHow]
	for f := range strings.FieldsSeq(kept[keptStarts]) {
		if s, err := strconv.ParseInt(f, 10, 32); err == nil && s >= 0 && len(l.starts) < 16 {
			l.starts = append(l.starts, time.Duration(s)*time.Second)
		}
	}
	slices.Sort(l.starts)
}
