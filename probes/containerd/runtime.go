package containerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// answered are the reasons that only the runtime's own answers can judge.
var answered = []string{Hung, RuntimeNotReady, NetworkPluginNotReady, StoreHung, Slow, OrphanShims}

// keepFrom is how long something must have been seen to be told again while the
// runtime cannot be asked. What was seen first a moment before a restart was the
// restart's beginning.
const keepFrom = 2 * time.Second

// startWithin is how long a runtime may take to read its state once its process
// was started: on a node of 250 pods that takes seconds.
const startWithin = time.Minute

// held is what was found of the runtime, and since when.
type held struct {
	probes.Finding
	since time.Time
}

// lookAtRuntime asks the runtime, unless its unit says why it cannot be asked.
func (p *Probe) lookAtRuntime(ctx context.Context, s *sight) error {
	var found []probes.Finding
	var err error
	asked := s.settled()
	if asked {
		if found, err = p.askRuntime(ctx, s); err != nil && !p.stillSettled(ctx, s) {
			asked = false // a restart has begun: what it says is no answer
		}
	}
	switch {
	case !asked:
		p.repeat(s)
		return nil
	case errors.Is(err, host.ErrNobodyListens):
		found = []probes.Finding{p.nobodyListens(ctx, s.blind)}
	case errors.Is(err, host.ErrStarting) && s.state.Since > 0 && s.state.Since < startWithin:
		s.starting = true
		p.repeat(s)
		return nil
	case errors.Is(err, host.ErrStarting) && s.state.Since > 0:
		f := p.finding(RuntimeNotReady, p.name, p.name+" still says, long after its start, that it is not initialized")
		f.ID = noPlugin
		found = []probes.Finding{f}
	case err != nil:
		p.repeat(s)
		return err
	}
	now := time.Now()
	next := make([]held, 0, len(found))
	for _, f := range found {
		h := held{f, now}
		if i := slices.IndexFunc(p.last, func(o held) bool { return o.Reason == f.Reason && o.Subject == f.Subject }); i >= 0 {
			h.since = p.last[i].since
		}
		next = append(next, h)
	}
	if slices.ContainsFunc(found, func(f probes.Finding) bool {
		return f.Reason == Hung || f.ID == noListener || f.ID == noPlugin
	}) {
		// It says nothing: what it said last stands beside.
		for _, o := range p.last {
			if !slices.ContainsFunc(next, func(h held) bool { return h.Reason == o.Reason }) && now.Sub(o.since) >= keepFrom && o.Reason != Hung && o.ID == "" {
				next, found = append(next, o), append(found, o.Finding)
			}
		}
		for _, reason := range answered {
			if !slices.ContainsFunc(found, func(f probes.Finding) bool { return f.Reason == reason }) {
				s.unjudged(reason, "containerd does not answer")
			}
		}
	}
	p.last = next
	s.findings = append(s.findings, found...)
	return nil
}

// repeat tells what stood when the runtime could be asked last, so that a restart
// does not clear it. While systemd is at work on the unit that is all; else the
// runtime's reasons are not judged.
func (p *Probe) repeat(s *sight) {
	now := time.Now()
	p.last = slices.DeleteFunc(p.last, func(h held) bool { return now.Sub(h.since) < keepFrom })
	told := map[string]bool{}
	for _, h := range p.last {
		s.findings = append(s.findings, h.Finding)
		told[h.Reason] = true
	}
	if s.moving() && !s.blind {
		return
	}
	for _, reason := range answered {
		if !told[reason] {
			s.unjudged(reason, "containerd cannot be asked")
		}
	}
}

// stillSettled asks systemd again: a restart may have begun since.
func (p *Probe) stillSettled(ctx context.Context, s *sight) bool {
	if s.blind {
		return true
	}
	p.unit.Refresh()
	again, err := p.unit.Look(ctx)
	if err != nil {
		return true
	}
	again.Fresh = again.Fresh || s.state.Fresh
	*s.state = again
	return s.settled()
}

// IDs that tell a runtime that cannot be reached, or lacks what kubelet asks for,
// from one that says that it is not ready.
const (
	noListener = "socket"
	noPlugin   = "plugin"
)

func (p *Probe) nobodyListens(ctx context.Context, blind bool) probes.Finding {
	socket := p.cri.Socket(ctx)
	message := "nobody listens on " + socket
	if _, err := p.root.Stat(socket[1:]); absent(err) {
		message = socket + " is gone"
	}
	if !blind {
		message += ", and " + p.name + " runs: kubelet cannot reach it"
	}
	f := p.finding(RuntimeNotReady, socket, message)
	f.ID = noListener
	return f
}

// askRuntime asks for the status, which proves that somebody answers, and, when
// it is time, for the list of sandboxes. Only when the status stays away is the
// version asked for: it tells a daemon that hangs from one whose store does.
func (p *Probe) askRuntime(ctx context.Context, s *sight) ([]probes.Finding, error) {
	if p.stands(Hung) { // the quicker question while it hangs
		if hung, err := p.hangs(ctx); hung != nil || err != nil {
			return hung, err
		}
	}
	status, err := timed(ctx, &p.speed.status, statusWithin, func(ctx context.Context) (host.RuntimeStatus, error) { return p.cri.Status(ctx, false) })
	if errors.Is(err, host.ErrNoAnswer) {
		if hung, err := p.hangs(ctx); hung != nil || err != nil {
			return hung, err
		}
		return []probes.Finding{p.storeHangs("a status")}, nil
	}
	if errors.Is(err, errors.ErrUnsupported) {
		f := p.finding(RuntimeNotReady, p.name, p.name+" runs without its CRI plugin: it failed to load, or is disabled")
		f.ID = noPlugin
		return []probes.Finding{f}, nil
	}
	if err != nil {
		return nil, err
	}
	p.learnSettings(ctx)
	found, err := p.judgeStatus(ctx, status)
	if err != nil {
		return nil, err
	}
	slow, why := p.speed.judge(p.speed.status)
	if slow {
		found = append(found, p.finding(Slow, p.name, p.name+" takes over ten times as long to answer as it used to"))
	} else if why != "" {
		s.unjudged(Slow, "%s", why)
	}
	list, err := p.lookAtStore(ctx, s)
	return append(found, list...), err
}

func (p *Probe) stands(reason string) bool {
	return slices.ContainsFunc(p.last, func(h held) bool { return h.Reason == reason })
}

// hangs asks for the version: no finding when it comes.
func (p *Probe) hangs(ctx context.Context) ([]probes.Finding, error) {
	_, err := timed(ctx, &p.speed.version, versionWithin, p.cri.Version)
	if errors.Is(err, host.ErrNoAnswer) {
		return []probes.Finding{p.finding(Hung, p.name, p.name+" runs and does not answer on its socket")}, nil
	}
	return nil, err
}

func (p *Probe) storeHangs(what string) probes.Finding {
	return p.finding(StoreHung, p.name, p.name+" answers for its version, but not for "+what)
}

// timed makes a call within a deadline and notes how long it took.
func timed[T any](ctx context.Context, took *time.Duration, within time.Duration, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	began := time.Now()
	v, err := ask(ctx)
	*took = time.Since(began)
	return v, err
}

// Conditions that a runtime has (k8s.io/cri-api, RuntimeCondition).
const (
	runtimeReady = "RuntimeReady"
	networkReady = "NetworkReady"
)

// judgeStatus makes the findings of the runtime's own conditions.
func (p *Probe) judgeStatus(ctx context.Context, status host.RuntimeStatus) (found []probes.Finding, err error) {
	seen := map[string]bool{}
	for _, c := range status.Conditions {
		seen[c.Type] = true
		switch {
		case c.Status:
		case c.Type == runtimeReady:
			found = append(found, p.finding(RuntimeNotReady, p.name, p.name+" says that it is not ready: "+said(c)))
		case c.Type == networkReady:
			found = append(found, p.networkNotReady(ctx, c))
		}
	}
	for _, kind := range []string{runtimeReady, networkReady} {
		if !seen[kind] {
			return nil, fmt.Errorf("ask the runtime for its status: the answer has no %s", kind)
		}
	}
	return found, nil
}

// said is what a condition says, in one line of a length that can be shown.
func said(c host.RuntimeCondition) string {
	if text := brief(c.Message); text != "" {
		return text
	}
	if text := brief(c.Reason); text != "" {
		return text
	}
	return "it does not say why"
}

func brief(s string) string {
	const most = 120
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// networkNotReady says why: by what is on disk where that explains it, else by
// the runtime's last try to load it, which its condition hides.
func (p *Probe) networkNotReady(ctx context.Context, c host.RuntimeCondition) probes.Finding {
	info, _ := timed(ctx, new(time.Duration), versionWithin, func(ctx context.Context) (host.RuntimeStatus, error) { return p.cri.Status(ctx, true) })
	p.learn(info.Info)
	why := p.readNetwork()
	p.cniAt = time.Time{}
	load := brief(info.Info["lastCNILoadStatus"])
	switch {
	case why != "":
	case p.cni.file != "" && (load == "" || load == "OK" || strings.Contains(load, "no network config found")):
		why = "/" + p.cni.file + " is in place and not loaded"
	case load != "" && load != "OK":
		why = "its last load failed: " + strings.TrimPrefix(load, "cni config load failed: ")
	default:
		why = said(c)
	}
	return p.finding(NetworkPluginNotReady, "/"+p.cni.folder, "the pod network is not ready: "+why)
}
