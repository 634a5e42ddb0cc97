package konnectivity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

const (
	// askWithin is how long an agent may take for its metrics: it takes under 1 ms.
	askWithin = time.Second

	// A table of sockets costs the kernel a walk through its whole hash, 10 ms on a large node.
	// Where connections are not traced it is read once a minute; when something moved, or the
	// tunnel is down, every 10 s; and when it goes down at once, since it tells why, and
	// again when connections that were about to end have ended.
	tableEach    = time.Minute
	tableMoved   = 10 * time.Second
	tableAtOnce  = time.Second
	tableSettles = time.Second

	// drops within window are an unstable tunnel.
	window = 10 * time.Minute
	drops  = 3

	manyRetransmits = 3

	// Limits of --keepalive-time: below the first the server ends the connection
	// (its MinTime), above the second Azure's load balancer forgets it.
	leastKeepalive = 30 * time.Second
	mostKeepalive  = 240 * time.Second
)

// memory is what is known of an agent from look to look.
type memory struct {
	seen     bool
	last     tally
	dropped  []time.Duration // since boot, the last drops
	packetAt time.Duration   // since boot: when a packet of the server was counted last

	table    []host.TCPSocket // nil: not read, or of the node's network
	tableAt  time.Time
	counters host.TCPCounters
	up, fell bool // as of this look: it is connected; it was until then
	fellAt   time.Time

	netns uint32           // inode; 0: not known
	peers []netip.AddrPort // servers that it was connected to, or tried to be, last
}

// A state is what one look saw of an agent's tunnel.
type state struct {
	open, known float64 // -1: not told
	up, judged  bool
}

// lookAt judges one agent.
func (p *Probe) lookAt(ctx context.Context, a *agent, up time.Duration, look *probes.Look) (state, error) {
	s := state{open: -1, known: -1}
	if a.age(up) < young {
		for _, reason := range []string{TunnelDown, TunnelNotResponding, TunnelAgentHung} {
			look.NotJudged = append(look.NotJudged, fmt.Sprintf("%s: %s was started less than %s ago", reason, a.name, young))
		}
		return s, nil
	}
	p.keepaliveOf(a, look)
	a.fell = false
	p.readSockets(a)
	address, ok := a.address(a.table)
	if !ok {
		return s, fmt.Errorf("ask %s: its address is not known", a.name)
	}
	t, err := p.askMetrics(ctx, address)
	ready := false
	if err == nil && t.open < 0 {
		// An old agent, or one that never was connected, does not tell the number.
		ready, err = p.askReady(ctx, address)
	}
	if err != nil {
		return s, p.silent(a, address, err, look)
	}
	s.open, s.known, s.judged = t.open, t.known, true
	s.up = t.open > 0 || ready
	a.count(t, up)
	a.seen, a.last = true, t
	a.fell, a.up = a.up && !s.up, s.up
	if a.fell {
		a.fellAt = time.Now()
		p.traced.asked = false // it was connected when it was asked for them
	}
	if !s.up {
		p.readSockets(a)
	}
	p.judge(a, &s, up, look)
	return s, nil
}

// askMetrics asks an agent's health port for its metrics.
func (p *Probe) askMetrics(ctx context.Context, address string) (t tally, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	err = get(ctx, p.root, address, "/metrics", func(status int, body io.Reader) (err error) {
		if status != http.StatusOK {
			return fmt.Errorf("the answer has status %d", status)
		}
		t, err = parseMetrics(body)
		return err
	})
	return t, err
}

// askReady asks whether the agent is connected to any server. A no lets it log
// four lines.
func (p *Probe) askReady(ctx context.Context, address string) (ready bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	var status int
	var body string
	if err := get(ctx, p.root, address, "/readyz", text(&status, &body)); err != nil {
		return false, err
	}
	switch status {
	case http.StatusOK, http.StatusServiceUnavailable:
		return status == http.StatusOK, nil
	}
	return false, fmt.Errorf("/readyz has status %d", status)
}

// silent decides what it means that an agent gave no answer. Packets to its port that
// are dropped say nothing of it (a network policy may do that); a connection that it
// does not serve does.
func (p *Probe) silent(a *agent, address string, err error, look *probes.Look) error {
	if p.beganToEnd(a) {
		return nil
	}
	if isTimeout(err) && !errors.Is(err, errNotAccepted) {
		text := a.name + " takes connections and does not answer"
		if stopped(a.process) {
			text = a.name + " does not answer: it is stopped by a signal (SIGSTOP)"
		}
		look.Findings = append(look.Findings, probes.Finding{Reason: TunnelAgentHung, Subject: a.name, Message: text, Source: "http://" + address})
		return nil
	}
	switch {
	case errors.Is(err, errNotAccepted):
		err = fmt.Errorf("its health port does not take connections: %s", why(err))
	case errors.Is(err, syscall.ECONNREFUSED):
		err = errors.New("its health port refuses connections")
	}
	return fmt.Errorf("ask %s: %w", a.name, err)
}

// beganToEnd tells whether the process is gone, or ends.
func (p *Probe) beganToEnd(a *agent) bool { return a.process.Alive() != nil }

// stopped tells whether all threads of a process are stopped.
func stopped(p *host.Process) bool {
	list, err := p.Threads()
	return err == nil && len(list) > 0 && (list[0].State == 'T' || list[0].State == 't')
}

// moved tells whether connections of the agent's network ended or were sent again since
// the last look.
func (p *Probe) moved(a *agent) bool {
	if a.sandbox.HostNetwork {
		return false // they are the whole node's
	}
	now, err := a.process.TCPCounters()
	if err != nil {
		return false
	}
	old := a.counters
	a.counters = now
	return worse(old, now)
}

func worse(old, now host.TCPCounters) bool {
	return now.Established < old.Established || now.Failed > old.Failed || now.Reset > old.Reset || now.Retransmitted > old.Retransmitted
}

// readSockets takes in the agent's connections to its server: as they are traced, or else
// by a table, which is not read at every look.
func (p *Probe) readSockets(a *agent) {
	traced := p.readTrace(a)
	if a.sandbox.HostNetwork {
		a.table = nil // whose a socket is cannot be told there without a trace, and is not judged with one
		return
	}
	if traced {
		return
	}
	each := tableEach
	switch {
	case a.fell:
		each = tableAtOnce
		time.AfterFunc(tableSettles, p.wake)
	case !a.up && a.tableAt.Sub(a.fellAt) < tableSettles:
		each = tableSettles / 2
	case p.moved(a) || a.retransmits() > 0 || !a.up:
		each = tableMoved
	}
	if age := time.Since(a.tableAt); !a.tableAt.IsZero() && age >= 0 && age < each {
		return
	}
	a.tableAt = time.Now()
	all, err := a.process.TCP()
	if err != nil {
		a.table = nil
		return
	}
	a.table = slices.DeleteFunc(all, func(s host.TCPSocket) bool { return !a.serves(s.Remote) })
	if a.table == nil {
		a.table = []host.TCPSocket{}
	}
}

// retransmits is how often what a server has not acknowledged was sent again, at most.
func (m *memory) retransmits() (n uint32) {
	for _, s := range m.table {
		if s.State == host.TCPEstablished {
			n = max(n, s.Retransmits)
		}
	}
	return n
}

// count takes in what the agent's counters say beside the last look.
func (a *agent) count(t tally, up time.Duration) {
	defer func() {
		a.dropped = slices.DeleteFunc(a.dropped, func(at time.Duration) bool { return up-at > window })
		a.dropped = a.dropped[max(0, len(a.dropped)-drops):]
	}()
	if !a.seen {
		a.packetAt = up
		return
	}
	n := max(t.failed-a.last.failed, a.last.open-t.open, 0)
	if a.last.open < 0 || t.open < 0 {
		n = max(t.failed-a.last.failed, 0)
	}
	for range min(int(n), drops) {
		a.dropped = append(a.dropped, up)
	}
	if t.packets != a.last.packets {
		a.packetAt = up
	}
}

// judge says what is wrong with an agent's tunnel.
func (p *Probe) judge(a *agent, s *state, up time.Duration, look *probes.Look) {
	add := func(f probes.Finding) {
		f.Subject = a.name
		look.Findings = append(look.Findings, f)
	}
	server := a.flags.server + ":" + strconv.Itoa(int(a.flags.serverPort))
	switch {
	case s.up:
		if s.known > s.open && s.open > 0 {
			add(probes.Finding{Reason: TunnelNotRedundant, Message: fmt.Sprintf("%s is connected to %.0f of %.0f servers", a.name, s.open, s.known),
				Observed: strconv.Itoa(int(s.open)), Wanted: strconv.Itoa(int(s.known))})
		}
		if quiet := up - a.packetAt; a.flags.keepalive > mostKeepalive && quiet > mostKeepalive {
			look.NotJudged = append(look.NotJudged, fmt.Sprintf("%s: %s asks an idle server only once in %s (--keepalive-time)", TunnelNotResponding, a.name, a.flags.keepalive))
		}
	case a.table == nil:
		add(probes.Finding{Reason: TunnelDown, Message: a.name + " is connected to no server", Wanted: "a connection to " + server})
	default:
		f := probes.Finding{Reason: TunnelDown, Message: a.name + " is connected to no server: " + server + " takes no connection", Wanted: "a connection to " + server}
		for _, c := range a.table {
			switch c.State {
			case host.TCPEstablished, tcpFinWait1, tcpFinWait2:
				f.Reason, f.Message = TunnelNotResponding, a.name+" has connections to "+server+" and no answer on them"
			case host.TCPSynSent:
				if f.Reason == TunnelDown && c.Retransmits > 0 {
					f.Message = a.name + " is connected to no server: no answer from " + server
				}
			}
			f.Trace = probes.Key{Domain: "peer", Name: c.Remote.String()}
		}
		add(f)
	}
	if a.retransmits() >= manyRetransmits {
		add(probes.Finding{Reason: TunnelRetransmitting, Message: fmt.Sprintf("%s sends to %s again and again: nothing is acknowledged", a.name, server)})
	}
	if len(a.dropped) >= drops {
		add(probes.Finding{Reason: TunnelUnstable, Message: fmt.Sprintf("%s lost its server %d times within %s", a.name, drops, strings.TrimSuffix(window.String(), "0s"))})
	}
}

// States of sockets that the agent closed and whose server says nothing.
const (
	tcpFinWait1 = 4
	tcpFinWait2 = 5
)

// keepaliveOf judges how often the agent asks an idle server whether it is there.
func (p *Probe) keepaliveOf(a *agent, look *probes.Look) {
	text := ""
	switch k := a.flags.keepalive; {
	case k < leastKeepalive:
		text = "a server ends a connection that asks so often"
	case k > mostKeepalive:
		text = "a load balancer forgets it before, and nobody notices"
	default:
		return
	}
	look.Findings = append(look.Findings, probes.Finding{Reason: TunnelKeepaliveUnsafe, Subject: a.name, Source: "--keepalive-time",
		Message:  fmt.Sprintf("%s asks an idle server every %s: %s", a.name, a.flags.keepalive, text),
		Observed: a.flags.keepalive.String(), Wanted: fmt.Sprintf("%s to %s", leastKeepalive, mostKeepalive)})
}
