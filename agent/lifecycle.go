package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// A Lifecycle tells where the node is between its set-up and its shutdown.
type Lifecycle interface {
	// Stopping tells whether the node is shutting down. It is asked before
	// anything bad is told, so it must be cheap.
	Stopping(context.Context) (bool, error)
	// Provisioning tells how far the node's set-up is.
	Provisioning(context.Context) (Provisioning, error)
	// Watch calls changed when Stopping may have changed. It returns nil only
	// when ctx ended.
	Watch(ctx context.Context, changed func()) error
}

// Provisioning is what a node says of its own set-up.
type Provisioning struct {
	AKS      bool          // the node is set up by AKS at all
	Complete bool          // /opt/azure/containers/provision.complete exists; also after a failure
	ExitCode string        // of /var/log/azure/aks/provision.json; "" when there is none
	Age      time.Duration // since boot
}

// Limits of the provisioning phase.
const (
	settleAfterReady = 2 * time.Minute
	settleAtMost     = 15 * time.Minute
)

// Beat is the period of the agent's own loop. Probes whose periods are multiples of
// it look together.
const Beat = 5 * time.Second

// phase is where the node is in its life, as far as it decides what is told.
type phase uint8

const (
	running phase = iota
	settingUp
)

// phaseOf tells whether a node is still being set up: on an AKS node, until
// provisioning is complete and the Node has been Ready for 2 minutes, and no
// longer than 15 minutes after boot.
func phaseOf(p Provisioning, ready Readiness, now time.Time) phase {
	aks := p.AKS || ready.Labels["kubernetes.azure.com/cluster"] != ""
	if !aks || p.Age >= settleAtMost {
		return running
	}
	if p.Complete && !ready.ReadySince.IsZero() && now.Sub(ready.ReadySince) >= settleAfterReady {
		return running
	}
	return settingUp
}

// provisioningFailure says why a finished set-up failed; "" when it did not.
func provisioningFailure(p Provisioning) string {
	if p.ExitCode == "" || p.ExitCode == "0" {
		return ""
	}
	return fmt.Sprintf("provisioning ended with exit code %s; provision.json; %s", clean(p.ExitCode, 32), acts(probes.Both))
}

// SetReadiness takes in what somebody read from the own Node object.
func (a *Agent) SetReadiness(r Readiness) {
	a.mu.Lock()
	recreated := a.ready.UID != "" && a.ready.UID != r.UID
	if recreated {
		clear(a.adopted)
	}
	a.ready = r
	a.mu.Unlock()
	if recreated {
		a.cfg.Log.Info("the Node object is a new one", "uid", r.UID)
	}
	a.poke()
}

// Provisioning tells whether the agent waits for the node to be set up, and so
// wants to know each half minute whether it is Ready.
func (a *Agent) Provisioning() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.phase == settingUp
}

func (a *Agent) poke() {
	select {
	case a.dirty <- struct{}{}:
	default:
	}
}

// live is the agent's own loop: it follows the node's life, writes the memory
// when something changed, and proves that the agent turns.
func (a *Agent) live(ctx context.Context) {
	if a.cfg.Lifecycle != nil {
		go a.listen(ctx)
	}
	beats := a.beats(ctx)
	tick := time.NewTimer(0)
	defer tick.Stop()
	first := true
	for ctx.Err() == nil {
		now := a.now().Mono
		a.heartbeat.Store(int64(now))
		if beats == nil {
			tick.Reset(toBeat(now, Beat))
		}
		a.follow(ctx, first)
		first = false
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-beats:
			a.wakeDue()
		case <-a.dirty:
			a.remember()
		}
	}
}

// beats are those of the configuration; nil where there are none.
func (a *Agent) beats(ctx context.Context) <-chan struct{} {
	if a.cfg.Beats == nil {
		return nil
	}
	beats, err := a.cfg.Beats(ctx)
	if err != nil {
		a.cfg.Log.Warn("loops have timers of their own", "error", err)
		return nil
	}
	a.beating.Store(true)
	return beats
}

// listen hears the announcement of a shutdown.
func (a *Agent) listen(ctx context.Context) {
	pause := time.Second
	for ctx.Err() == nil {
		err := guard(func() error {
			return a.cfg.Lifecycle.Watch(ctx, func() {
				pause = time.Second
				a.frozen(ctx)
			})
		})
		if err != nil && ctx.Err() == nil {
			a.cfg.Log.Debug("cannot hear shutdowns announced", "error", err)
		}
		wait(ctx, pause)
		pause = min(2*pause, time.Minute)
	}
}

// follow moves the agent along with the node's life.
func (a *Agent) follow(ctx context.Context, first bool) {
	if a.stopping.Load() {
		a.thaw(ctx)
	}
	a.mu.Lock()
	before, failed := a.phase, a.failed
	a.mu.Unlock()
	settled := !first && before == running // a node is set up once; why that failed may be mended
	if settled && failed == "" {
		return
	}
	p, err := a.provisioning(ctx)
	if err != nil && (failed != "" || before == settingUp && time.Since(a.start) < settleAtMost) {
		return // it said so before: ask again
	}
	a.mu.Lock()
	if !settled {
		a.phase = phaseOf(p, a.ready, time.Now())
	}
	a.failed = ""
	if a.phase == running && p.AKS {
		a.failed = provisioningFailure(p)
	}
	now, changed := a.phase, a.failed != failed
	a.mu.Unlock()
	if !settled && now == running {
		a.launch(ctx)
	}
	if first || now != before || changed {
		a.tell(nil)
	}
}

// provisioning asks the node how far it is; a node that cannot say is not
// waited for.
func (a *Agent) provisioning(ctx context.Context) (p Provisioning, err error) {
	if a.cfg.Lifecycle == nil {
		return p, nil
	}
	err = guard(func() (err error) {
		p, err = a.cfg.Lifecycle.Provisioning(ctx)
		return err
	})
	if err != nil {
		a.cfg.Log.Warn("cannot tell whether the node is still being set up", "error", clean(err.Error(), maxError))
	}
	return p, err
}

// askStopping bounds the question whether the node is shutting down.
const askStopping = 300 * time.Millisecond

// frozen tells whether the node is shutting down. From then on verdicts stand
// as they are: a node that stops breaks in every way, lawfully. It says so once.
func (a *Agent) frozen(ctx context.Context) bool {
	if a.stopping.Load() {
		return true
	}
	if !a.asksStopping(ctx) || a.stopping.Swap(true) {
		return a.stopping.Load()
	}
	a.tell([]Happening{{Time: time.Now(), Kind: Occurred, Reason: NodeShuttingDown, Severity: probes.Info,
		Message: "the node is shutting down; conditions stay as they are"}})
	return true
}

// Leave says a last time whether the node is shutting down: a service manager
// that stops everything stops the agent too, before it has heard of it.
func (a *Agent) Leave(ctx context.Context) { a.frozen(ctx) }

// thaw goes on when a shutdown was called off.
func (a *Agent) thaw(ctx context.Context) {
	if a.asksStopping(ctx) {
		return
	}
	a.stopping.Store(false)
	a.cfg.Log.Info("the shutdown was called off")
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.loops {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// asksStopping asks whether the node is shutting down. Who cannot be asked while
// it is known to be stopping has stopped.
func (a *Agent) asksStopping(ctx context.Context) (stopping bool) {
	if a.cfg.Lifecycle == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askStopping)
	defer cancel()
	err := guard(func() (err error) {
		stopping, err = a.cfg.Lifecycle.Stopping(ctx)
		return err
	})
	if err != nil {
		return a.stopping.Load()
	}
	return stopping
}

// A StrainReader tells how much the agent itself was held up, as totals.
type StrainReader interface {
	Strain() (Strain, error)
}

// Strain is what kept the agent from running: the sum of its threads' waits for
// a CPU and of its cgroup's throttling, and how long the machine itself stood
// still (CLOCK_BOOTTIME minus CLOCK_MONOTONIC).
type Strain struct{ Delayed, Paused time.Duration }

// strain reads the totals; they are not known when nobody can say.
func (a *Agent) strain() (s Strain, known bool) {
	if a.cfg.Strain == nil {
		return s, false
	}
	s, err := a.cfg.Strain.Strain()
	return s, err == nil
}
