package chrony

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/facebook/time/ntp/chrony"
	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// needVM skips what sets the clock, which is done in a virtual machine alone.
func needVM(t *testing.T) {
	t.Helper()
	if os.Getenv("NODEDRIFT_VMTEST") != "1" {
		t.Skip("sets the clock: make vmtest")
	}
}

// told collects occurrences.
type told struct {
	deaf
	mu   sync.Mutex
	list []string
}

func (h *told) Saw(o probes.Occurrence) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, o.Reason+": "+o.Message)
}

func (h *told) take() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.list
	h.list = nil
	return list
}

// TestRealClockStepped sets a real clock, forward and back, and slews it.
func TestRealClockStepped(t *testing.T) {
	needVM(t)
	ctx, cancel := context.WithCancel(t.Context())
	h := &told{}
	ended := make(chan error, 1)
	go func() { ended <- (&Probe{}).watchClock(ctx, h) }()
	time.Sleep(2500 * time.Millisecond) // two beats
	step := func(by time.Duration) {
		now := clockOf(unix.CLOCK_REALTIME) + by
		at := unix.NsecToTimespec(int64(now))
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &at); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		by   time.Duration
		want string
	}{
		{2 * time.Second, ClockStepped + ": the clock was set forward by 2s"},
		{-500 * time.Millisecond, ClockStepped + ": the clock was set back by 500ms"},
		{time.Hour, ClockStepped + ": the clock was set forward by 1h0m0s"},
		{-time.Hour, ClockStepped + ": the clock was set back by 1h0m0s"},
		{10 * time.Millisecond, ""}, // as a slew might
	} {
		step(c.by)
		began, got := time.Now(), []string(nil)
		for len(got) == 0 && time.Since(began) < 3*time.Second {
			time.Sleep(10 * time.Millisecond)
			got = h.take()
		}
		if c.want == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || !near(got[0], c.want) {
			t.Errorf("set by %s: told %q, want %q", c.by, got, c.want)
		}
		t.Logf("set by %s: told %q after %s", c.by, got, time.Since(began).Round(time.Millisecond))
	}
	slew := unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: 100_000} // 100 ms, at 0.5 ms a second
	if _, err := unix.Adjtimex(&slew); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	if got := h.take(); len(got) > 0 {
		t.Errorf("slewed: told %q", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// near compares messages whose milliseconds may differ: setting takes its time.
func near(got, want string) bool {
	if got == want {
		return true
	}
	a, g, ok := strings.Cut(got, " by ")
	b, w, _ := strings.Cut(want, " by ")
	x, err1 := time.ParseDuration(g)
	y, err2 := time.ParseDuration(w)
	return ok && a == b && err1 == nil && err2 == nil && (x-y).Abs() <= 20*time.Millisecond
}

// TestRealKernelClock has the kernel say of its clock what chronyd would make it say,
// and what it would not.
func TestRealKernelClock(t *testing.T) {
	needVM(t)
	s := &settings{argsKnown: true, rtcsync: true}
	const freq = -12.5 // ppm: chronyd found the clock to be slow by it, and lets it run faster
	r := &report{Tracking: wire.Tracking{FreqPPM: freq, SkewPPM: 0.1}}
	set := func(modes uint32, change func(*unix.Timex)) {
		t.Helper()
		x := unix.Timex{Modes: modes}
		change(&x)
		if _, err := unix.Adjtimex(&x); err != nil {
			t.Fatal(err)
		}
	}
	says := func() []string {
		t.Helper()
		k, err := readKernel()
		if err != nil {
			t.Fatal(err)
		}
		var look probes.Look
		judgeKernel(s, k, r, false, &look)
		var got []string
		for _, f := range look.Findings {
			got = append(got, f.Reason)
		}
		return got
	}
	const ppm = 65536
	synced := func() {
		set(unix.ADJ_STATUS|unix.ADJ_FREQUENCY|unix.ADJ_MAXERROR|unix.ADJ_ESTERROR, func(x *unix.Timex) {
			x.Status, x.Freq, x.Maxerror, x.Esterror = unix.STA_PLL, int64(-freq*ppm), 2000, 1000
		})
	}
	synced()
	if got := says(); len(got) > 0 {
		t.Errorf("disciplined: %q", got)
	}
	for _, c := range []struct {
		what  string
		modes uint32
		makes func(*unix.Timex)
		want  string
	}{
		{"STA_UNSYNC", unix.ADJ_STATUS, func(x *unix.Timex) { x.Status = unix.STA_UNSYNC }, ClockUnsynchronized},
		{"an error of 200 ms", unix.ADJ_MAXERROR, func(x *unix.Timex) { x.Maxerror = 200_000 }, ClockErrorGrowing},
		{"another frequency, faster", unix.ADJ_FREQUENCY, func(x *unix.Timex) { x.Freq = 60 * ppm }, ClockDisciplinedByOther},
		{"another frequency, slower", unix.ADJ_FREQUENCY, func(x *unix.Timex) { x.Freq = -60 * ppm }, ClockDisciplinedByOther},
	} {
		set(c.modes, c.makes)
		if got := says(); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s: %q, want %s", c.what, got, c.want)
		}
		synced()
		if got := says(); len(got) > 0 {
			t.Errorf("after %s: %q", c.what, got)
		}
	}
	// Nobody tells it any more: the error grows by itself, until the kernel gives up.
	before, err := readKernel()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * time.Second)
	after, err := readKernel()
	if err != nil {
		t.Fatal(err)
	}
	if grew := after.maxError - before.maxError; grew < time.Millisecond || grew > 5*time.Millisecond {
		t.Errorf("maxerror grew by %s in 4 s, want 2 ms", grew)
	}
}
