package chrony

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	wire "github.com/facebook/time/ntp/chrony"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// Limits of a good clock.
const (
	offBy        = 0.050 // seconds
	farOffBy     = 0.500
	errorLimit   = 100 * time.Millisecond
	errorPerSec  = 500e-6 // by which the kernel lets maxerror grow between two updates
	disagreePPM  = 1.0
	stalePolls   = 4
	leastStale   = 32 * time.Second // four polls of AKS's clock: nothing faster is asked for
	startingUp   = time.Minute
	justStarted  = 10 * time.Second
	neverSampled = 1 << 31 // seconds; chronyd says 2^32-1
)

// selected is the source that chronyd follows; nil is none.
func (r *report) selected() *source {
	for i := range r.sources {
		if r.sources[i].State == wire.SourceStateSync {
			return &r.sources[i]
		}
	}
	return nil
}

// polling is the time between two samples of the selected source, or of the most
// often asked one.
func (r *report) polling() time.Duration {
	if s := r.selected(); s != nil {
		return s.polling()
	}
	least := time.Duration(0)
	for i := range r.sources {
		if d := r.sources[i].polling(); least == 0 || d < least {
			least = d
		}
	}
	return max(least, time.Second)
}

// following remembers since when chronyd has had no news; by the monotonic clock,
// since the other one is in question.
type following struct {
	reference time.Time // chronyd's, of its last update
	updated   time.Time // when that changed
	selected  time.Time // when a source was selected last
}

func (f *following) look(r *report, now time.Time) {
	if !r.RefTime.Equal(f.reference) || f.updated.IsZero() {
		f.reference, f.updated = r.RefTime, now
	}
	if r.selected() != nil || f.selected.IsZero() {
		f.selected = now
	}
}

// noSource says why chronyd has no time to follow; "" when it has.
func (f *following) noSource(r *report, now time.Time) string {
	stale := max(stalePolls*r.polling(), leastStale)
	s := r.selected()
	silent := !slices.ContainsFunc(r.sources, func(s source) bool { return s.Reachability != 0 })
	switch {
	case len(r.sources) == 0:
		return "chronyd has no time source"
	case silent && len(r.sources) == 1:
		return fmt.Sprintf("chronyd gets no time from its only source, %s", r.sources[0].name)
	case silent:
		return "chronyd gets no time from any of its sources"
	case s == nil && now.Sub(f.selected) > stale:
		return "chronyd has sources and trusts none of them"
	case s == nil:
		return ""
	case s.SinceSample < neverSampled && time.Duration(s.SinceSample)*time.Second > stale, now.Sub(f.updated) > stale:
		return fmt.Sprintf("chronyd has had no time from %s for more than %d polls", s.name, stalePolls)
	}
	return ""
}

// ahead is by how many seconds the node's clock is ahead of its source: what
// chronyd has yet to correct, and what the last sample says beyond its own error. A
// chronyd that may not set the clock (-x) takes a step for done and goes on
// measuring the same offset.
func ahead(r *report) float64 {
	off := -r.CurrentCorrection
	if s := r.selected(); s != nil && math.Abs(s.LatestMeas) > math.Abs(s.LatestMeasErr) {
		off += s.LatestMeas
	}
	return off
}

// offset makes the finding of a clock that is off, by chronyd.
func offset(r *report) (probes.Finding, bool) {
	off := ahead(r)
	way := "ahead"
	if off < 0 {
		way, off = "behind", -off
	}
	f := probes.Finding{Reason: ClockOffset, Subject: "clock", Wanted: "within 50 ms", Trace: probes.Key{Domain: clockTrace}}
	switch {
	case off > farOffBy:
		f.Severity, f.Observed = probes.Critical, "more than 500 ms "+way
	case off > offBy:
		f.Observed = "more than 50 ms " + way
	default:
		return f, false
	}
	f.Message = "the node's clock is " + f.Observed
	return f, true
}

// undeclared compares chronyd's sources with those of its files.
func undeclared(s *settings, r *report) (list []probes.Finding, unsure string) {
	if !s.found {
		return nil, "" // chronyd's own defaults, which its vendor declared
	}
	say := func(subject, text, file string) {
		if file != "" {
			file = "/" + file
		}
		list = append(list, probes.Finding{Reason: TimeSourceNotDeclared, Subject: subject, Message: text, Source: file})
	}
	if sel := r.selected(); sel != nil && !s.declares(sel) {
		text := fmt.Sprintf("chronyd follows %s, which its files do not name", sel.name)
		say(sel.name, text, first(s.files))
	}
	for _, d := range s.servers {
		known := true
		there := slices.ContainsFunc(r.sources, func(src source) bool {
			if src.Mode == wire.SourceModeRef {
				return false
			}
			is, sure := d.is(src.name, src.given)
			known = known && sure
			return is
		})
		switch {
		case there:
		case !known:
			unsure = "chronyd does not tell its sources' names"
		default:
			say(d.name, fmt.Sprintf("chronyd does not use %s, which its files name", d.name), d.file)
		}
	}
	for _, c := range s.clocks {
		if !slices.ContainsFunc(r.sources, func(src source) bool { return src.Mode == wire.SourceModeRef && src.name == c.id }) {
			say(c.id, fmt.Sprintf("chronyd does not use %s (%s), which its files name", c.id, c.device), c.file)
		}
	}
	return list, unsure
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// declares tells whether the files name a source. One whose name nobody knows may
// be any that is declared by name.
func (s *settings) declares(src *source) bool {
	if src.Mode == wire.SourceModeRef {
		return slices.ContainsFunc(s.clocks, func(c clock) bool { return c.id == src.name })
	}
	return slices.ContainsFunc(s.servers, func(d server) bool {
		is, sure := d.is(src.name, src.given)
		return is || !sure
	})
}

// judgeKernel compares what the kernel says with what chronyd does.
func judgeKernel(s *settings, k kernelClock, r *report, young bool, look *probes.Look) {
	not := func(why string, reasons ...string) {
		for _, reason := range reasons {
			look.NotJudged = append(look.NotJudged, reason+": "+why)
		}
	}
	switch {
	case !s.argsKnown:
		not("nobody knows chronyd's arguments", ClockErrorGrowing, ClockDisciplinedByOther, ClockUnsynchronized)
		return
	case s.noClock:
		not("chronyd runs with -x and leaves the clock alone", ClockErrorGrowing, ClockDisciplinedByOther, ClockUnsynchronized)
		return
	}
	add := func(reason, id, subject, text string) {
		look.Findings = append(look.Findings, probes.Finding{Reason: reason, ID: id, Subject: subject, Message: text, Trace: probes.Key{Domain: clockTrace}})
	}
	polls := time.Duration(0)
	if r != nil {
		polls = stalePolls * r.polling()
	}
	switch limit := errorLimit + time.Duration(float64(polls)*errorPerSec); {
	case young:
		not("chronyd has just been started", ClockErrorGrowing)
	case k.maxError > limit:
		add(ClockErrorGrowing, "", "kernel clock", "nobody has told the kernel clock's error for long: it may be over 100 ms")
	}
	switch {
	case r == nil:
		not("chronyd does not say", ClockDisciplinedByOther)
	case k.ppm+r.FreqPPM > disagreePPM+r.SkewPPM: // chronyd's is the clock's error, the kernel's what mends it
		add(ClockDisciplinedByOther, "fast", "kernel clock", "the kernel clock runs faster than chronyd has set it")
	case k.ppm+r.FreqPPM < -disagreePPM-r.SkewPPM:
		add(ClockDisciplinedByOther, "slow", "kernel clock", "the kernel clock runs slower than chronyd has set it")
	}
	switch {
	case !s.rtcsync:
		not("chrony's files have no rtcsync, without which the kernel always says so", ClockUnsynchronized)
	case young:
		not("chronyd has just been started", ClockUnsynchronized)
	case k.unsynchronized:
		add(ClockUnsynchronized, "", "kernel clock", "the kernel clock is not synchronized (STA_UNSYNC)")
	}
}

// Clocks that a hypervisor gives its guests (drivers/hv/hv_util.c, drivers/ptp/ptp_kvm_common.c, ptp_vmw.c, ptp_vmclock.c).
var hypervisorClocks = []string{"hyperv", "KVM virtual PTP", "ptp_vmw", "vmclock"}

// wrongClock looks at which clock the configured PTP devices are.
func wrongClock(root tree, s *settings) (list []probes.Finding, notJudged string) {
	for _, c := range s.clocks {
		if c.driver != "PHC" {
			continue
		}
		name, err := clockName(root, c.device)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			list = append(list, probes.Finding{Reason: WrongPTPClock, Subject: c.device, Source: "/" + c.file,
				Message: c.device + " is to be followed and is no PTP clock"})
		case err != nil:
			notJudged = fmt.Sprintf("see which clock %s is: %v", c.device, err)
		case slices.ContainsFunc(hypervisorClocks, func(h string) bool { return strings.HasPrefix(name, h) }):
		default:
			virtual, err := onHypervisor(root)
			if err != nil {
				notJudged = fmt.Sprintf("see the machine's vendor: %v", err)
			} else if virtual {
				list = append(list, probes.Finding{Reason: WrongPTPClock, Subject: c.device, Source: "/" + c.file, Observed: name, Wanted: "hyperv",
					Message: fmt.Sprintf("%s is the clock %s, not the hypervisor's", c.device, name)})
			}
		}
	}
	return list, notJudged
}

// clockName is what the kernel calls the clock of a device.
func clockName(root tree, device string) (string, error) {
	name, ok := unit.Path(device)
	if !ok {
		return "", fmt.Errorf("%s is no path", device)
	}
	if target, err := root.ReadLink(name); err == nil {
		name = target // /dev/ptp_hyperv is udev's link to ptp0
	} else if !strings.HasPrefix(path.Base(name), "ptp") || path.Base(name) == "ptp_hyperv" {
		return "", err
	}
	b, err := root.ReadFile("sys/class/ptp/" + path.Base(name) + "/clock_name")
	if err != nil {
		if _, seen := root.Stat("sys/class"); seen != nil {
			return "", errors.New("the node's /sys is not to be seen")
		}
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}

// onHypervisor tells whether a hypervisor gives this machine a clock: one is there,
// or the machine is Microsoft's, whose every guest has one.
func onHypervisor(root tree) (bool, error) {
	entries, err := root.ReadDir("sys/class/ptp")
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		b, err := root.ReadFile("sys/class/ptp/" + e.Name() + "/clock_name")
		if err == nil && slices.ContainsFunc(hypervisorClocks, func(h string) bool { return strings.HasPrefix(string(b), h) }) {
			return true, nil
		}
	}
	b, err := root.ReadFile("sys/class/dmi/id/sys_vendor")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return strings.HasPrefix(string(b), "Microsoft"), err
}
