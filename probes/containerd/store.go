package containerd

import (
	"context"
	"errors"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// store is what the last list of sandboxes told.
type store struct {
	at    time.Time // of the last list that was asked for
	took  time.Duration
	ready int
	other int
	hangs bool
	shims []probes.Finding
	why   string // why shims are not judged
}

// lookAtStore asks for the list of sandboxes, which takes the locks that every
// change of a pod takes, and compares it with the shims.
func (p *Probe) lookAtStore(ctx context.Context, s *sight) (found []probes.Finding, err error) {
	if now := time.Now(); p.store.due(now, p.shims.suspects()) {
		var all []host.Sandbox
		all, err = timed(ctx, &p.store.took, listWithin, p.cri.Sandboxes)
		p.store.at, p.store.hangs = now, errors.Is(err, host.ErrNoAnswer)
		if err == nil {
			p.store.count(all)
			p.store.shims, p.store.why = p.judgeShims(s, all)
		}
	}
	if p.store.hangs {
		s.unjudged(OrphanShims, "the list of sandboxes does not come")
		return []probes.Finding{p.storeHangs("the list of its sandboxes")}, nil
	}
	if err != nil {
		return nil, err
	}
	if p.store.why != "" {
		s.unjudged(OrphanShims, "%s", p.store.why)
	}
	return p.store.shims, nil
}

// due tells whether to ask: regularly, and sooner while something is wrong.
func (t *store) due(now time.Time, suspects bool) bool {
	age := now.Sub(t.at)
	return t.at.IsZero() || age < 0 || age >= storeEach || t.hangs || suspects && age >= listsApart
}

func (t *store) count(all []host.Sandbox) {
	t.ready, t.other = 0, 0
	for i := range all {
		if all[i].Ready {
			t.ready++
		} else {
			t.other++
		}
	}
}
