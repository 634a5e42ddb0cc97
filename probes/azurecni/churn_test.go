package azurecni

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

// A churn makes and deletes pods, and confirms what stands for longer than a hold.
type churn struct {
	*lab
	p         *Probe
	runtime   *probetest.CRI // nil: the state file alone says which pods should work
	gone      []string       // sandboxes that have ended and are still listed
	first     map[probes.Ref]time.Time
	confirmed map[string]bool
	looks     int
	longest   time.Duration // that anything but the fault stood
}

const (
	churnHold = 2 * time.Second // for every finding: the catalogue's are 15 s and more
	spared    = "default/pod-0077"
)

// TestChurn makes and deletes five pods a second among 250, in both ways to know
// which should work: nothing is confirmed but the fault in the middle. It goes on
// for 10 s, or as long as AZURECNI_CHURN says ("2m").
func TestChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	long, err := time.ParseDuration(os.Getenv("AZURECNI_CHURN"))
	if err != nil {
		long = 10 * time.Second
	}
	for _, expect := range []string{expectStateFile, "cri"} {
		for _, mode := range []string{"transparent", "bridge"} {
			t.Run(expect+"/"+mode, func(t *testing.T) {
				t.Parallel()
				c := &churn{lab: newLab(t, mode, 250, false), first: map[probes.Ref]time.Time{}, confirmed: map[string]bool{}}
				c.p = c.probe(Config{Expect: expect})
				if expect == "cri" {
					c.runtime = probetest.ServeCRI(t, c.root, host.DefaultCRISocket, probetest.Runtime{Conditions: probetest.ReadyConditions(), Sandboxes: c.sandboxes().list})
					runtime := host.NewCRI(c.p.root.(host.Files), host.OpenProcesses(filepath.Join(c.root, "proc")))
					t.Cleanup(func() { runtime.Close() })
					c.p.cri = runtime
				}
				want := "T-ROUTE-MISSING " + spared
				if mode == "bridge" {
					want = "B-NEIGH-MISSING " + spared
				}
				pods := c.run(long)
				if len(c.confirmed) != 1 {
					t.Errorf("%d findings were confirmed, want one", len(c.confirmed))
				}
				for name := range c.confirmed {
					if !strings.HasPrefix(name, want+" ") {
						t.Errorf("confirmed %s, want %s", name, want)
					}
				}
				t.Logf("%d pods deleted and made in %v, %d looks; nothing lawful stood for longer than %v", pods, long, c.looks, c.longest)
			})
		}
	}
}

// run churns for a while, with a fault of the spared pod from half of it on. It
// returns how many pods it deleted and made.
func (c *churn) run(long time.Duration) (n int) {
	started, broken := time.Now(), false
	for ; time.Since(started) < long; n++ {
		begin := time.Now()
		if victim := rand.IntN(len(c.pods)); c.pods[victim].name != spared {
			c.end(c.pods[victim].container)
			c.del(victim)
			c.look()
			c.write()
			c.p.stale.Store(true) // as its watch would have it
			c.add()
			c.look()
			c.write()
			c.p.stale.Store(true)
			c.look()
			c.begin(&c.pods[len(c.pods)-1])
		}
		if !broken && time.Since(started) > long/2 {
			broken = true
			c.breakSpared()
		}
		c.look()
		time.Sleep(time.Until(begin.Add(200 * time.Millisecond)))
	}
	return n
}

func (c *churn) breakSpared() {
	p := &c.pods[slices.IndexFunc(c.pods, func(p labPod) bool { return p.name == spared })]
	if c.mode == "bridge" {
		c.must(c.node.NeighDel(c.neigh(p)))
	} else {
		c.must(c.node.RouteDel(c.route(p)))
	}
}

// end ends a sandbox, which stays listed until ten others have ended.
func (c *churn) end(id string) {
	if c.runtime == nil {
		return
	}
	c.runtime.Change(func(r *probetest.Runtime) {
		r.Sandboxes = slices.Clone(r.Sandboxes)
		r.Sandboxes[slices.IndexFunc(r.Sandboxes, func(b host.Sandbox) bool { return b.ID == id })].Ready = false
		if c.gone = append(c.gone, id); len(c.gone) > 10 {
			r.Sandboxes = slices.DeleteFunc(r.Sandboxes, func(b host.Sandbox) bool { return b.ID == c.gone[0] })
			c.gone = c.gone[1:]
		}
	})
}

// begin has the runtime say that a pod's sandbox is ready.
func (c *churn) begin(p *labPod) {
	if c.runtime == nil {
		return
	}
	c.runtime.Change(func(r *probetest.Runtime) {
		b := p.sandbox()
		b.Created = time.Now()
		r.Sandboxes = append(slices.Clone(r.Sandboxes), b)
	})
}

// look takes a look and confirms what has stood for the hold.
func (c *churn) look() {
	c.Helper()
	look, err := c.p.Check(c.Context())
	c.must(err)
	c.looks++
	now := map[probes.Ref]bool{}
	for _, f := range look.Findings {
		ref := probes.Ref{ID: f.ID, Subject: f.Subject}
		now[ref] = true
		if c.first[ref].IsZero() {
			c.first[ref] = time.Now()
		}
		stood := time.Since(c.first[ref])
		if stood >= churnHold {
			c.confirmed[f.ID+" "+f.Subject] = true
		}
		if podOf(f.Subject) != spared {
			c.longest = max(c.longest, stood)
		}
	}
	for ref := range c.first {
		if !now[ref] {
			delete(c.first, ref)
		}
	}
}
