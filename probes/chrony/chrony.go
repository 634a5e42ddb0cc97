// Package chrony finds a node whose clock is wrong, or is about to be: chronyd not
// there, hung or without a source, a clock that is off, another one at work on it,
// a source or a PTP clock that nobody declared. It asks chronyd by its command
// protocol (UDP on loopback, for reading only), the kernel by adjtimex(2), systemd,
// and chrony's files.
package chrony

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// Config is what an operator may say.
type Config struct {
	// Unit is chrony's unit; "" means chrony.service, and chronyd.service where that is not.
	Unit string `yaml:"unit"`
	// Address is where chronyd takes questions; "" means 127.0.0.1 and its files' cmdport.
	Address string `yaml:"address"`
	// Files are the SHA-256 sums that unit files must have, by path, in place of what is first seen.
	Files map[string]string `yaml:"files"`
}

// tree is the node's root; host.Files satisfies it.
type tree interface {
	unit.Files
	ReadLink(name string) (string, error)
}

// Probe looks at the node's clock.
type Probe struct {
	config  Config
	root    tree
	procs   unit.Processes
	units   unit.Units
	checker *unit.Checker
	line    line
	kernel  func() (kernelClock, error)

	settings settings
	unread   error     // why settings are not known
	read     time.Time // when they were read
	names    map[string]string
	follows  following

	answered   []probes.Finding // what chronyd's last answer made
	answeredAt time.Time
	sourceless bool // NoTimeSource was among it

	others      []probes.Finding // time daemons, as of the last time they were asked for
	othersUnask string           // why that is not known
	asked       time.Time
	heard       atomic.Bool // another daemon's unit moved

	clocks       []probes.Finding
	clocksUnseen string

	frozen   atomic.Int64 // CLOCK_BOOTTIME of the last freeze, 0: none
	lastSeen witness      // of the clocks, kept while nobody listens; watchClock's
}

// New returns a probe of the node's clock.
func New(root tree, procs unit.Processes, systemd unit.Units, config Config) *Probe {
	p := &Probe{config: config, root: root, procs: procs, units: systemd, line: line{dial: host.DialUDP}, kernel: readKernel, names: map[string]string{}}
	o := options(config)
	o.Configs, o.Normal = p.configs, withoutComments
	p.checker = unit.New(root, procs, systemd, o)
	return p
}

// options is what is fixed of the unit's checker.
func options(c Config) unit.Options {
	names := []string{"chrony.service", "chronyd.service"}
	if c.Unit != "" {
		names = []string{c.Unit}
	}
	return unit.Options{Prefix: "Chrony", Metric: "chrony", Units: names, Owner: probes.Both, Declared: c.Files}
}

// Spec implements [probes.Probe].
func (p *Probe) Spec() probes.Spec {
	return probes.Spec{Name: "chrony", Condition: "TimeSyncDrift", Healthy: "ClockSynchronized",
		Every: 5 * time.Second, Timeout: time.Second, Reasons: reasons(p.config), Metrics: metrics(p.config)}
}

// Recall implements [probes.Rememberer].
func (p *Probe) Recall(kept map[string]string) { p.checker.Recall(kept) }

// Watch implements [probes.Watcher]: it hears the units, the files, and the clock
// being set or standing still.
func (p *Probe) Watch(ctx context.Context, h probes.Hearer) error {
	return p.checker.Watch(ctx, h, p.watchClock, p.watchOthers)
}

// configs are the files that chronyd reads when it starts.
func (p *Probe) configs(r unit.Run) []string {
	s, _ := readSettings(p.root, unit.Expand(r.Args, r.Env))
	return s.files
}

// readEach is how old settings may become where nothing is heard of files.
const readEach = time.Minute

// othersEach is how old what systemd says of other time daemons may become: their
// coming and going is heard, and an answer for each of them costs systemd, too.
const othersEach = 30 * time.Minute

// Check asks the unit, chronyd and the kernel. Files and other units are looked at
// when they moved, and each minute.
func (p *Probe) Check(ctx context.Context) (probes.Look, error) {
	if look, ok := p.checker.Rest(); ok {
		return look, nil
	}
	st, unitErr := p.checker.Look(ctx)
	noUnit := errors.Is(unitErr, probes.ErrNotApplicable)
	look := probes.Look{Findings: st.Findings, NotJudged: st.NotJudged, Samples: st.Samples, Keep: st.Keep}
	if age := time.Since(p.read); st.Fresh || p.read.IsZero() || age < 0 || age > readEach {
		p.readFiles(&st)
	}
	r, err := p.line.ask(ctx, p.address(), p.names)
	switch {
	case ctx.Err() != nil:
		return look, ctx.Err()
	case noUnit && err != nil && (refused(err) || !p.process(ctx)):
		return probes.Look{}, unitErr
	case err != nil:
		err = p.unanswered(&st, &look, err)
	default:
		// One that answers runs, whoever started it.
		look.Findings = slices.DeleteFunc(look.Findings, func(f probes.Finding) bool { return f.Reason == NotRunning })
		p.judge(&st, r, &look)
	}
	if k, kerr := p.kernel(); kerr != nil {
		err = errors.Join(err, kerr)
	} else {
		p.witness(&st, k, r, &look)
	}
	p.lookAtOthers(ctx, &st, r != nil, &look)
	look.Findings = append(look.Findings, p.clocks...)
	if p.clocksUnseen != "" {
		look.NotJudged = append(look.NotJudged, WrongPTPClock+": "+p.clocksUnseen)
	}
	if !noUnit {
		err = errors.Join(unitErr, err)
	}
	return p.checker.Seen(look, err)
}

func refused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

func silent(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

// address is where chronyd takes questions.
func (p *Probe) address() string {
	port := cmp.Or(p.settings.cmdport, commandPort)
	return cmp.Or(p.config.Address, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

// readFiles reads chrony's files, and what they say of PTP clocks.
func (p *Probe) readFiles(st *unit.State) {
	p.read = time.Now()
	p.settings, p.unread = readSettings(p.root, unit.Expand(st.Args, st.Env))
	clear(p.names)
	p.clocks, p.clocksUnseen = nil, ""
	if p.unread != nil {
		p.clocksUnseen = p.unread.Error()
		return
	}
	p.checker.Listen(slices.Concat(p.settings.files, p.settings.folders)...)
	p.clocks, p.clocksUnseen = wrongClock(p.root, &p.settings)
}

// process tells, on a node without the unit, whether something named chronyd runs.
func (p *Probe) process(context.Context) bool {
	lister, ok := p.procs.(interface {
		List() iter.Seq2[*host.Process, error]
	})
	if !ok {
		return true
	}
	for process, err := range lister.List() {
		if err != nil {
			continue
		}
		if comm, err := process.Comm(); err == nil && comm == "chronyd" {
			return true
		}
	}
	return false
}

// Reasons that only chronyd's answer can decide.
var fromAnswers = []string{Hung, NoTimeSource, ClockOffset, TimeSourceNotDeclared}

// unanswered decides what it means that chronyd gave no answer. An error is that
// nobody knows. A restart takes seconds, in which its last answer stands.
func (p *Probe) unanswered(st *unit.State, look *probes.Look, err error) error {
	not := func(why string, reasons []string) {
		for _, r := range reasons {
			look.NotJudged = append(look.NotJudged, r+": "+why)
		}
	}
	restarts := st.Unit.ActiveState != "" && !st.Running || refused(err) && st.Running && st.Since < justStarted
	switch {
	case restarts && len(p.answered) > 0 && time.Since(p.answeredAt).Abs() < justStarted:
		look.Findings = append(look.Findings, p.answered...)
	case st.Unit.ActiveState != "" && !st.Running:
		not("chronyd does not run", fromAnswers)
	case refused(err) && p.unread == nil && p.settings.cmdport == 0:
		not("chronyd takes no questions (cmdport 0)", fromAnswers)
	case refused(err) && st.Running && st.Since < justStarted:
		not("chronyd has just been started", fromAnswers)
	case silent(err) && st.Running:
		name := cmp.Or(st.Unit.Id, "chrony.service")
		look.Findings = append(look.Findings, probes.Finding{Reason: Hung, Subject: name, Trace: probes.Key{Domain: "unit", Name: name},
			Message: fmt.Sprintf("%s runs and does not answer on %s", name, p.address())})
		not("chronyd does not answer", fromAnswers[1:])
	default:
		return fmt.Errorf("ask chronyd on %s: %w", p.address(), err)
	}
	return nil
}

// judge decides what chronyd's answer means.
func (p *Probe) judge(st *unit.State, r *report, look *probes.Look) {
	now := time.Now()
	p.follows.look(r, now)
	others := len(look.Findings)
	defer func() { p.answered, p.answeredAt = slices.Clone(look.Findings[others:]), now }()
	not := func(reason, why string) { look.NotJudged = append(look.NotJudged, reason+": "+why) }
	why := p.follows.noSource(r, now)
	switch {
	case p.thawing(r):
		not(NoTimeSource, "the node has just stood still")
		not(ClockOffset, "the node has just stood still")
	case why != "" && young(st) && !p.sourceless:
		not(NoTimeSource, "chronyd has just been started")
	case why == "":
		p.sourceless = false
	default:
		p.sourceless = true
		look.Findings = append(look.Findings, probes.Finding{Reason: NoTimeSource, Subject: "chronyd", Message: why})
	}
	if f, ok := offset(r); ok && !p.thawing(r) {
		look.Findings = append(look.Findings, f)
	}
	switch {
	case p.unread != nil:
		not(TimeSourceNotDeclared, fmt.Sprintf("read chrony's files: %v", p.unread))
	default:
		list, unsure := undeclared(&p.settings, r)
		look.Findings = append(look.Findings, list...)
		if unsure != "" {
			not(TimeSourceNotDeclared, unsure)
		}
	}
	look.Samples = append(look.Samples, samples(r)...)
}

// young tells whether chronyd may not have had the time to find its sources.
func young(st *unit.State) bool { return st.Running && st.Since > 0 && st.Since < startingUp }

// thawing tells whether the node stood still less than three polls ago.
func (p *Probe) thawing(r *report) bool {
	at := time.Duration(p.frozen.Load())
	return at != 0 && clockOf(unix.CLOCK_BOOTTIME)-at < heldPolls*max(r.polling(), 5*time.Second)
}

// witness asks the kernel.
func (p *Probe) witness(st *unit.State, k kernelClock, r *report, look *probes.Look) {
	s := p.settings
	if p.unread != nil || st.Unit.ActiveState == "" {
		s.argsKnown = false
	}
	judgeKernel(&s, k, r, young(st), look)
	look.Samples = append(look.Samples, probes.Sample{Name: maxErrorSeconds, Value: k.maxError.Seconds()})
}

// Units of other programs that set a clock.
var otherDaemons = []string{"systemd-timesyncd.service", "ntp.service", "ntpd.service", "ntpsec.service", "openntpd.service", "phc2sys.service", "ptp4l.service"}

// askOthersWithin bounds the questions for all of them, which take 0.3 ms each.
const askOthersWithin = 150 * time.Millisecond

// lookAtOthers looks for a second time daemon.
func (p *Probe) lookAtOthers(ctx context.Context, st *unit.State, answers bool, look *probes.Look) {
	if age := time.Since(p.asked); p.heard.Swap(false) || p.asked.IsZero() || age < 0 || age > othersEach {
		ctx, cancel := context.WithTimeout(ctx, askOthersWithin)
		defer cancel()
		p.asked, p.others, p.othersUnask = time.Now(), nil, ""
		for _, name := range otherDaemons {
			u, err := p.units.Unit(ctx, name)
			if err != nil {
				p.othersUnask = strings.ReplaceAll(err.Error(), "\n", "; ")
				p.heard.Store(true)
				break
			}
			if u.ActiveState == "active" && u.MainPID != 0 {
				name = cmp.Or(u.Id, name)
				p.others = append(p.others, probes.Finding{Reason: TimeDaemonConflict, Subject: name, Trace: probes.Key{Domain: "unit", Name: name},
					Message: name + " runs beside chrony: both set the clock"})
			}
		}
	}
	switch {
	case p.othersUnask != "":
		look.NotJudged = append(look.NotJudged, TimeDaemonConflict+": "+p.othersUnask)
	case st.Running || answers:
		look.Findings = append(look.Findings, p.others...)
	}
}

// watchOthers hears other time daemons come and go.
func (p *Probe) watchOthers(ctx context.Context, h probes.Hearer) error {
	return p.units.WatchUnits(ctx, probes.Noting(h, func() { p.heard.Store(true) }), otherDaemons...)
}

// Explain implements [probes.Explainer].
func (p *Probe) Explain(list []probes.Finding) []probes.Finding { return explain(list) }

// explain names what follows from what: without chronyd or a source the kernel's
// clock is left to itself; a file that is not loaded declares what is not used; a
// second daemon is who disciplines the clock.
func explain(list []probes.Finding) []probes.Finding {
	list = unit.Explain("Chrony", list)
	for _, c := range []struct {
		cause   string
		follows []string
	}{
		{NotRunning, []string{ClockErrorGrowing, ClockUnsynchronized}},
		{Hung, []string{ClockErrorGrowing, ClockUnsynchronized}},
		{NoTimeSource, []string{ClockErrorGrowing, ClockUnsynchronized}},
		{ConfigNotLoaded, []string{TimeSourceNotDeclared}},
		{TimeDaemonConflict, []string{ClockDisciplinedByOther}},
	} {
		at := slices.IndexFunc(list, func(f probes.Finding) bool { return f.Reason == c.cause })
		if at >= 0 {
			list = unit.Fold(list, at, func(f probes.Finding) bool { return slices.Contains(c.follows, f.Reason) })
		}
	}
	return list
}

// samples are chronyd's numbers; those that say "never" are left out.
func samples(r *report) []probes.Sample {
	list := []probes.Sample{
		{Name: offsetSeconds, Value: ahead(r)},
		{Name: rmsSeconds, Value: r.RMSOffset},
		{Name: frequencyPPM, Value: r.FreqPPM},
		{Name: skewPPM, Value: r.SkewPPM},
		{Name: dispersionSeconds, Value: r.RootDispersion},
		{Name: stratum, Value: float64(r.Stratum)},
	}
	best := r.selected()
	for i := range r.sources {
		if s := &r.sources[i]; best == nil || r.selected() == nil && s.SinceSample < best.SinceSample {
			best = s
		}
	}
	if best == nil {
		return list
	}
	list = append(list, probes.Sample{Name: reachRatio, Value: float64(bits.OnesCount8(uint8(best.Reachability))) / 8})
	if best.SinceSample < neverSampled {
		list = append(list, probes.Sample{Name: sampleAge, Value: float64(best.SinceSample)})
	}
	return list
}
