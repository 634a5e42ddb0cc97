package azurecni

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
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
	go func() {
		err := p.Watch(ctx, files)
		for errors.Is(err, unix.EMFILE) && ctx.Err() == nil { // other tests have all inotify instances: as the agent does, again
			time.Sleep(50 * time.Millisecond)
			err = p.Watch(ctx, files)
		}
		heard <- err
	}()
	files.hears(t, "the subscription")
	p.stale.Store(false)
	for tries := 0; !p.stale.Load(); tries++ { // it may not watch yet
		l.write()
		select {
		case err := <-heard:
			t.Fatal(err)
		case <-time.After(50 * time.Millisecond):
		}
		if tries == 400 {
			t.Fatal("the state file was not heard")
		}
	}
	files.hears(t, "the state file")
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
