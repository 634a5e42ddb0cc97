package azurecni

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// An ear hears as the agent does.
type ear struct {
	changed chan struct{}
	lost    chan string
}

func newEar() *ear { return &ear{make(chan struct{}, 1), make(chan string, 64)} }

func (e *ear) Changed() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

func (e *ear) Lost(source string, _ uint64) {
	select {
	case e.lost <- source:
	default:
	}
	e.Changed()
}

func (*ear) Saw(probes.Occurrence) {}

func (e *ear) hears(t *testing.T, what string) {
	t.Helper()
	select {
	case <-e.changed:
	case <-time.After(2 * time.Second):
		t.Errorf("%s was not heard", what)
	}
}

// newNeigh is an RTM_NEWNEIGH of 10.0.0.1 in a state.
func newNeigh(state byte) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN+unix.SizeofNdMsg+8)
	b[0], b[4], b[16], b[20], b[24] = byte(len(b)), unix.RTM_NEWNEIGH, unix.AF_INET, 1, state
	copy(b[unix.NLMSG_HDRLEN+unix.SizeofNdMsg:], []byte{8, 0, unix.NDA_DST, 0, 10, 0, 0, 1})
	return b
}

func (e *ear) quiet() {
	for {
		select {
		case <-e.changed:
		case <-time.After(100 * time.Millisecond):
			return
		}
	}
}

// TestWatch hears links, routes, rules and files, and no mere traffic.
func TestWatch(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 3, false)
	p := l.probe(stateOnly)
	ctx, cancel := context.WithCancel(t.Context())
	e := newEar()
	sub, err := listen() // this thread is in the lab; Watch's own subscription is tested by its files
	l.must(err)
	heard := make(chan error, 2)
	go func() { heard <- hear(sub, e) }()
	e.hears(t, "the subscription")
	e.quiet()
	r := l.route(&l.pods[0])
	l.must(l.node.RouteDel(r))
	e.hears(t, "a route")
	e.quiet()
	l.must(l.node.RuleAdd(l.rule(1000, 200)))
	e.hears(t, "a rule")
	e.quiet()
	l.must(l.node.LinkSetDown(l.link(l.pods[1].veth)))
	e.hears(t, "a link")
	e.quiet()
	n := l.neigh(&l.pods[2])
	if matters(newNeigh(unix.NUD_STALE)) || !matters(newNeigh(unix.NUD_PERMANENT)) {
		t.Error("mere traffic matters, or a permanent neighbour does not")
	}
	n.State = netlink.NUD_PERMANENT
	l.must(l.node.NeighSet(n))
	e.hears(t, "a permanent neighbour")
	sub.Close()
	if err := <-heard; err == nil {
		t.Error("hear ended without an error")
	}

	files := newEar()
	go func() { heard <- p.Watch(ctx, files) }()
	files.hears(t, "the subscription")
	files.quiet()
	p.stale.Store(false)
	l.write()
	select {
	case err := <-heard:
		if errors.Is(err, unix.EMFILE) {
			t.Skip("this machine has no inotify instance free: ", err)
		}
		t.Fatal(err)
	case <-time.After(100 * time.Millisecond):
	}
	files.hears(t, "the state file")
	if !p.stale.Load() {
		t.Error("the state file is not read again")
	}
	cancel()
	if err := <-heard; err != nil {
		t.Errorf("Watch ended with %v", err)
	}
}

// TestOverrun overruns the subscription: it is told, and it goes on.
func TestOverrun(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 3, false)
	sub, err := listen()
	l.must(err)
	defer sub.Close()
	r := l.route(&l.pods[0])
	for range 40_000 {
		l.must(l.node.RouteDel(r), l.node.RouteAdd(r))
	}
	e := newEar()
	go hear(sub, e)
	select {
	case source := <-e.lost:
		if source != "netlink" {
			t.Errorf("lost %q", source)
		}
	case <-time.After(3 * time.Second):
		t.Skip("40000 routes do not overrun this buffer")
	}
	e.quiet()
	l.must(l.node.RouteDel(r))
	e.hears(t, "a route after the overrun")
}

// TestChurn makes and deletes pods among 250 for as long as it is let, with the
// holds of a quick test: nothing is confirmed but the fault in the middle.
func TestChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 s")
	}
	t.Parallel()
	l := newLab(t, "transparent", 250, false)
	inside, err := netns.New() // the thread is moved into it
	l.must(err)
	defer inside.Close()
	l.inside, err = netlink.NewHandleAt(inside)
	l.must(err)
	l.enterNode()
	p := l.probe(stateOnly)
	const hold = 2 * time.Second // every hold; the real ones are 15 s and more
	confirmed := map[string]bool{}
	first := map[probes.Ref]time.Time{}
	end, broke := time.Now().Add(20*time.Second), time.Time{}
	for i := 0; time.Now().Before(end); i++ {
		begin := time.Now()
		if victim := rand.IntN(len(l.pods)); l.pods[victim].name != "default/pod-0077" {
			l.del(victim)
			l.look1(p, first, confirmed, hold)
			l.file(vnetState, l.state())
			p.stale.Store(true)
			l.add(inside)
			l.look1(p, first, confirmed, hold)
			l.file(vnetState, l.state())
			p.stale.Store(true)
		}
		if i == 30 {
			for j := range l.pods {
				if l.pods[j].name == "default/pod-0077" {
					l.must(l.node.RouteDel(l.route(&l.pods[j])))
					broke = time.Now()
				}
			}
		}
		l.look1(p, first, confirmed, hold)
		time.Sleep(time.Until(begin.Add(200 * time.Millisecond)))
	}
	if len(confirmed) != 1 || broke.IsZero() {
		t.Errorf("%d findings were confirmed, want one", len(confirmed))
	}
	for name := range confirmed {
		if !strings.HasPrefix(name, "T-ROUTE-MISSING default/pod-0077 ") {
			t.Errorf("confirmed %s", name)
		}
	}
}

// look1 takes a look and confirms what has stood for the hold.
func (l *lab) look1(p *Probe, first map[probes.Ref]time.Time, confirmed map[string]bool, hold time.Duration) {
	l.Helper()
	look, err := p.Check(l.Context())
	l.must(err)
	now := map[probes.Ref]bool{}
	for _, f := range look.Findings {
		ref := probes.Ref{ID: f.ID, Subject: f.Subject}
		now[ref] = true
		if first[ref].IsZero() {
			first[ref] = time.Now()
		}
		if time.Since(first[ref]) >= hold {
			confirmed[f.ID+" "+f.Subject] = true
		}
	}
	for ref := range first {
		if !now[ref] {
			delete(first, ref)
		}
	}
}
