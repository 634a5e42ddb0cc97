package bpf

import (
	"cmp"
	"sync"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// A journal remembers, of a bounded number of keys, who last did something to
// each.
type journal struct {
	resolver Resolver

	mu   sync.Mutex
	acts map[probes.Key]act
}

// maxKeys bounds the journal: some 300 bytes each.
const maxKeys = 512

type act struct {
	mono time.Duration // CLOCK_MONOTONIC
	who  identity
	by   Actor
}

func newJournal(r Resolver) *journal {
	return &journal{resolver: r, acts: map[probes.Key]act{}}
}

// put notes who did something to key. An older act never replaces a newer one.
// The pod is named at once: a second later it may be gone.
func (j *journal) put(key probes.Key, a act) {
	j.name(&a)
	j.mu.Lock()
	defer j.mu.Unlock()
	old, known := j.acts[key]
	if known && old.mono > a.mono {
		return
	}
	if !known && len(j.acts) >= maxKeys {
		j.forget()
	}
	j.acts[key] = a
}

// forget drops the key that has been quiet for longest.
func (j *journal) forget() {
	var oldest probes.Key
	first := true
	for k, a := range j.acts {
		if first || a.mono < j.acts[oldest].mono {
			oldest, first = k, false
		}
	}
	delete(j.acts, oldest)
}

// name turns the identity into names, as far as they are known by now.
func (j *journal) name(a *act) {
	a.by.Unit, a.by.Pod = a.who.unit, a.who.pod
	if a.who.pod == "" || j.resolver == nil {
		return
	}
	pod, container := j.resolver.Name(a.who.pod, a.who.container)
	a.by.Pod = cmp.Or(pod, a.who.pod)
	a.by.Container = cmp.Or(container, a.by.Container)
}

// who returns who last did something to key, not earlier than since.
func (j *journal) who(key probes.Key, since time.Duration) (Actor, bool) {
	j.mu.Lock()
	a, ok := j.acts[key]
	j.mu.Unlock()
	if !ok || a.mono < since {
		return Actor{}, false
	}
	if a.who.pod != "" && (a.by.Pod == a.who.pod || a.by.Container == "") {
		j.name(&a)
		j.put(key, a)
	}
	return a.by, true
}
