package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// A thread that waits in the kernel and cannot be interrupted (state D) for three
// looks, and has not run in between, hangs on a dead mount or disk. kubelet itself
// says so after five minutes, if at all.
const (
	threadsEach  = 10 * time.Second
	threadsLooks = 3
	// threadsIdle is between two looks while no thread waits: each costs three system calls
	// for each of two dozen threads.
	threadsIdle = 2 * threadsEach
)

// threads remembers threads in state D.
type threads struct {
	at    time.Time
	stuck map[int]stuck // by thread
	found []probes.Finding
	why   []string
}

type stuck struct {
	switches uint64
	looks    int
}

// look returns whether a thread hangs; it looks anew every ten seconds while one may.
func (t *threads) look(name string, st *unit.State) ([]probes.Finding, []string) {
	each := threadsIdle
	if len(t.stuck) > 0 || len(t.why) > 0 {
		each = threadsEach
	}
	if age := time.Since(t.at); !t.at.IsZero() && age >= 0 && age < each-time.Second {
		return t.found, t.why
	}
	t.at, t.found, t.why = time.Now(), nil, nil
	if st.Main == nil {
		t.stuck = nil
		return nil, nil
	}
	list, err := st.Main.Threads()
	if err != nil {
		t.stuck = nil
		if !errors.Is(err, fs.ErrNotExist) {
			t.why = []string{fmt.Sprintf("%s: %v", SyncLoopStuck, err)}
		}
		return nil, t.why
	}
	now := map[int]stuck{}
	hangs := false
	for _, th := range list {
		if th.State != 'D' {
			continue
		}
		s := stuck{switches: th.Switches, looks: 1}
		if old, ok := t.stuck[th.TID]; ok && old.switches == th.Switches {
			s.looks = old.looks + 1
		}
		now[th.TID] = s
		hangs = hangs || s.looks >= threadsLooks
	}
	if t.stuck = now; hangs {
		t.found = []probes.Finding{{Reason: SyncLoopStuck, Subject: name, Message: "a thread of " + name + " hangs in the kernel (state D): a dead mount or disk"}}
	}
	return t.found, nil
}
