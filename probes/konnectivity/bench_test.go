package konnectivity

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes/host"
)

func cpu() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLook prints what a look costs in processor time: on a node without an agent,
// as most are, with a real connection whose silence is asked of the kernel; the same while
// that connection is not there; and on one with an agent, connected or not. A look comes every 5 s. Each is measured with
// connections that are traced, when no look may read a table, and is held to its budget; and
// with the kernel's tables, which the first looks read here, and one in two on a node whose
// tunnel is down.
func BenchmarkLook(b *testing.B) {
	for _, way := range []string{"traced", "tables"} {
		for _, kind := range []string{"no agent", "kubelet is silent", "agent", "agent is down"} {
			b.Run(way+"/"+kind, func(b *testing.B) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // as the agent
				p, wanted := benchProbe(b, kind)
				if way == "traced" {
					p.traced.tracer = trace(b)
				}
				if _, err := look(b, p); err != nil {
					b.Fatal(err)
				}
				p.findEach = time.Hour
				took := make([]time.Duration, 0, 1<<16)
				b.ReportAllocs()
				runtime.GC() // what loading left
				for b.Loop() {
					began := cpu()
					p.woken.Store(true) // a whole look each time
					l, err := p.Check(context.Background())
					took = append(took, cpu()-began)
					if err != nil || len(l.Findings) != len(wanted) || len(wanted) > 0 && l.Findings[0].Reason != wanted[0] {
						b.Fatal(l, err)
					}
				}
				var sum time.Duration
				for _, d := range took {
					sum += d
				}
				slices.Sort(took)
				each, dear := sum/time.Duration(len(took)), took[len(took)*99/100]
				b.ReportMetric(float64(each.Microseconds()), "cpu-us/look")
				b.ReportMetric(float64(dear.Microseconds()), "cpu-us/p99")
				if limit := 500 * time.Microsecond; way == "traced" && each > limit {
					b.Errorf("a look takes %s of processor time, its budget is %s", each, limit)
				}
				for _, a := range p.agents {
					if read := !a.tableAt.IsZero(); read != (way == "tables") {
						b.Errorf("it has read a table: %v", read)
					}
				}
			})
		}
	}
}

// benchProbe is a probe of a node of some kind, and what it finds.
func benchProbe(b *testing.B, kind string) (p *Probe, wanted []string) {
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	b.Cleanup(api.Close)
	p = realProbe(b, api)
	kernel := &host.TCP{Candidates: p.kubelets, Rest: tableMoved}
	b.Cleanup(func() { kernel.Close() })
	p.tcp = kernel
	called(b, kubelet)
	if kind != "kubelet is silent" {
		kubelets, err := net.Dial("tcp", api.Listener.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { kubelets.Close() })
	}
	recorded := "connected"
	switch kind {
	case "agent is down":
		recorded, wanted = "server-killed", []string{TunnelDown}
	case "agent":
	default:
		return p, nil
	}
	called(b, program)
	kernel.Candidates = nil // it has another name now
	const address = "127.0.0.9:8093"
	agents := exec.Command("/proc/self/exe", "testdata/"+recorded+".prom", address)
	agents.Env = []string{"NODEDRIFT_STANDIN=recorded"}
	if err := agents.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { agents.Process.Kill(); agents.Wait() })
	for range 100 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.procs = onlyAgent{host.OpenProcesses("/proc"), os.Getpid()}
	process, err := p.procs.Process(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	p.agents = []*agent{{name: "a", process: process, flags: flags{"127.0.0.1", 1, 8093, time.Minute},
		sandbox: host.Sandbox{ID: "s", Ready: true, Known: true, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.9")}}}}
	if p.endpoint, err = p.findEndpoint(b.Context()); err != nil {
		b.Fatal(err)
	}
	p.found, p.findEach = time.Now(), time.Hour
	return p, wanted
}

// called gives this process another name until the test ends.
func called(t testing.TB, name string) {
	t.Helper()
	const comm = "/proc/self/comm"
	old, err := os.ReadFile(comm)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(comm, []byte(name), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(comm, old, 0) })
}

func BenchmarkParseMetrics(b *testing.B) {
	recorded, err := os.ReadFile("testdata/connected.prom")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseMetrics(bytes.NewReader(recorded)); err != nil {
			b.Fatal(err)
		}
	}
}
