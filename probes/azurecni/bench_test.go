package azurecni

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// naive is the look that this package does not take: a library dump for each invariant.
func (l *lab) naive() (n int) {
	for range 16 { // of the invariants of transparent mode
		links, _ := l.node.LinkList()
		routes, _ := l.node.RouteList(nil, unix.AF_INET)
		n += len(links) + len(routes)
	}
	neighs, _ := l.node.NeighList(0, unix.AF_INET)
	rules, _ := l.node.RuleList(unix.AF_INET)
	addrs, _ := l.node.AddrList(nil, unix.AF_INET)
	return n + len(neighs) + len(rules) + len(addrs)
}

// full takes a look that judges everything anew.
func full(p *Probe) {
	p.err = errInterrupted
	_, _ = p.Check(context.Background())
}

func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median(n int, do func()) time.Duration {
	took := make([]time.Duration, n)
	for i := range took {
		start := time.Now()
		do()
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[n/2]
}

// rss is the process's resident memory in KiB.
func rss() int {
	runtime.GC()
	b, _ := os.ReadFile("/proc/self/statm")
	pages, _ := strconv.Atoi(strings.Fields(string(b))[1])
	return pages * os.Getpagesize() / 1024
}

// TestSteadyLookAllocatesNothing holds a look at which nothing changed, and the
// verification of the routes alone, to no allocation.
func TestSteadyLookAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	p, v := verified(t)
	p.slowAt, p.readAt = time.Now().Add(time.Hour), time.Now().Add(time.Hour)
	if got := testing.AllocsPerRun(50, func() { _, _ = p.Check(t.Context()) }); got != 0 {
		t.Errorf("a steady look allocates %v times", got)
	}
	k := p.kernel.(*kernel)
	say := func(f probes.Finding) { t.Errorf("found %+v", f) }
	judge := func() { v.judgeRoutes(say) }
	if got := testing.AllocsPerRun(50, judge); got != 0 {
		t.Errorf("verifying the routes allocates %v times", got)
	}
	ask := func() {
		k.now = p.now
		k.now.routes = k.now.routes[:0]
		if err := k.routes(unix.AF_INET); err != nil || !slices.Equal(p.now.routes, p.was.routes) {
			t.Error("the routes differ")
		}
	}
	if got := testing.AllocsPerRun(50, ask); got != 0 {
		t.Errorf("asking for the routes allocates %v times", got)
	}
	t.Logf("250 routes asked for in %v, verified in %v; a steady look takes %v", median(200, ask), median(200, judge), median(200, func() { _, _ = p.Check(t.Context()) }))
}

// TestCost prints what a full look costs beside the naive loop, and what more
// pods cost in memory.
func TestCost(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures")
	}
	sizes := []int{30, 250, 1000}
	var memory []int
	for _, n := range sizes {
		t.Run(fmt.Sprintf("pods=%d", n), func(t *testing.T) {
			l := newLab(t, "transparent", n, false)
			p := l.probe(stateOnly)
			if _, err := p.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := cpu()
			const looks = 30
			for range looks {
				full(p)
			}
			took := (cpu() - before) / looks
			wall, loop := median(30, func() { full(p) }), median(5, func() { l.naive() })
			memory = append(memory, rss())
			t.Logf("full look %v (CPU %v), naive loop %v, %.1f times; RSS %d KiB", wall, took, loop, float64(loop)/float64(wall), memory[len(memory)-1])
			if n == 250 && took > 6*time.Millisecond {
				t.Errorf("a full look takes %v of CPU, the goal is 3 ms", took)
			}
		})
	}
}

// TestEventToFinding holds the time from a route's deletion to the finding to 10 ms.
func TestEventToFinding(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures")
	}
	p50, p99 := newLab(t, "transparent", 250, false).eventToFinding(200)
	t.Logf("event to finding at 250 pods: p50 %v, p99 %v", p50, p99)
	if p50 > 10*time.Millisecond {
		t.Errorf("p50 is %v, want 10 ms", p50)
	}
}

func BenchmarkEventToFinding(b *testing.B) {
	for _, n := range []int{30, 250, 1000} {
		b.Run(fmt.Sprintf("pods=%d", n), func(b *testing.B) {
			p50, p99 := newLab(b, "transparent", n, false).eventToFinding(max(b.N, 200))
			b.ReportMetric(float64(p50.Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(p99.Microseconds())/1000, "p99-ms")
		})
	}
}

// eventToFinding measures n times the time from a route's deletion, the call
// included, to the look that finds it.
func (l *lab) eventToFinding(n int) (p50, p99 time.Duration) {
	p := l.probe(stateOnly)
	if found := l.again(p); len(found) > 0 {
		l.Fatal(found)
	}
	ear, err := listen()
	l.must(err)
	heard := newEar()
	go hear(ear, heard)
	defer ear.Close()
	<-heard.changed
	r := l.route(&l.pods[7])
	took := make([]time.Duration, n)
	for i := range took {
		start := time.Now()
		l.must(l.node.RouteDel(r))
		for {
			<-heard.changed
			if look, err := p.Check(l.Context()); err == nil && len(look.Findings) > 0 {
				break
			}
		}
		took[i] = time.Since(start)
		l.must(l.node.RouteAdd(r))
		<-heard.changed
		_, _ = p.Check(l.Context())
	}
	slices.Sort(took)
	return took[n/2], took[n*99/100]
}

func BenchmarkLook(b *testing.B) {
	for _, n := range []int{30, 250, 1000} {
		b.Run(fmt.Sprintf("pods=%d", n), func(b *testing.B) {
			l := newLab(b, "transparent", n, false)
			p := l.probe(stateOnly)
			full(p)
			b.ReportAllocs()
			for b.Loop() {
				full(p)
			}
			look, loop := median(11, func() { full(p) }), median(3, func() { l.naive() })
			b.ReportMetric(float64(loop)/float64(look), "times-naive")
		})
	}
}

// verified returns a probe that has looked at a lab of 250 pods, and its view.
func verified(t testing.TB) (*Probe, *view) {
	p := newLab(t, "transparent", 250, false).probe(stateOnly)
	full(p)
	v := &view{expectation: p.expected, conf: &p.files.conf, state: &p.files.state, config: &p.config, memory: &p.memory, now: p.now, lookups: p.lookups}
	v.index()
	return p, v
}

// judgeRoutes holds the routes of all pods to all that is said of routes.
func (v *view) judgeRoutes(say func(probes.Finding)) {
	for i := range invariants {
		if strings.HasPrefix(invariants[i].id, "T-ROUTE-") {
			invariants[i].check(v, say)
		}
	}
}

// BenchmarkVerifyRoutes holds the routes of 250 pods to the five invariants of routes.
func BenchmarkVerifyRoutes(b *testing.B) {
	_, v := verified(b)
	found := 0
	say := func(probes.Finding) { found++ }
	b.ReportAllocs()
	for b.Loop() {
		v.judgeRoutes(say)
	}
	if found > 0 {
		b.Error(found)
	}
}

// BenchmarkDumpRoutes asks the kernel for the routes of 250 pods, and prints how
// much of that is the kernel's own part.
func BenchmarkDumpRoutes(b *testing.B) {
	p, _ := verified(b)
	k := p.kernel.(*kernel)
	raw := func() {
		k.body(unix.SizeofRtMsg)[0] = unix.AF_INET
		err := k.request(unix.RTM_GETROUTE, unix.NLM_F_DUMP, unix.SizeofRtMsg)
		for n := 0; err == nil && (n == 0 || u16(k.buf[4:]) != unix.NLMSG_DONE); {
			n, err = unix.Read(k.fd, k.buf)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	dump := func() {
		k.now.routes = k.now.routes[:0]
		if err := k.routes(unix.AF_INET); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		dump()
	}
	b.ReportMetric(float64(median(501, raw))/float64(median(501, dump)), "kernel's-part")
	if len(k.now.routes) < 250 {
		b.Error(len(k.now.routes))
	}
}
