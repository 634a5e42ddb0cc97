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
// as most are, with a real connection whose silence is asked of the kernel; and on one with an agent,
// whose side of the metrics (this process, too) is included. A look comes every 5 s.
func BenchmarkLook(b *testing.B) {
	recorded, err := os.ReadFile("testdata/connected.prom")
	if err != nil {
		b.Fatal(err)
	}
	for _, kind := range []string{"no agent", "agent"} {
		b.Run(kind, func(b *testing.B) {
			api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
			defer api.Close()
			p := realProbe(b, api)
			kernel := &host.TCP{}
			defer kernel.Close()
			p.tcp = kernel
			kubelets, err := net.Dial("tcp", api.Listener.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer kubelets.Close()
			if kind == "agent" {
				health := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(recorded) }))
				defer health.Close()
				p.root = dialed{p.root, func(address string) (net.Conn, error) {
					if address == "127.0.0.9:8093" {
						address = health.Listener.Addr().String()
					}
					return net.Dial("tcp", address)
				}}
				p.procs = onlyAgent{host.OpenProcesses("/proc"), os.Getpid()}
				process, err := p.procs.Process(os.Getpid())
				if err != nil {
					b.Fatal(err)
				}
				a := &agent{name: "a", process: process, flags: flags{"127.0.0.1", 1, 8093, time.Minute},
					sandbox: host.Sandbox{ID: "s", Ready: true, Known: true, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.9")}}}
				p.agents = []*agent{a}
				if p.endpoint, err = p.findEndpoint(b.Context()); err != nil {
					b.Fatal(err)
				}
				p.found, p.findEach = time.Now(), time.Hour
			}
			if _, err := look(b, p); err != nil {
				b.Fatal(err)
			}
			p.findEach = time.Hour
			b.ReportAllocs()
			began := cpu()
			for b.Loop() {
				if l, err := p.Check(context.Background()); err != nil || len(l.Findings) > 0 {
					b.Fatal(l, err)
				}
			}
			each := (cpu() - began) / time.Duration(b.N)
			b.ReportMetric(float64(each.Microseconds()), "cpu-us/look")
			if limit := 500 * time.Microsecond; each > limit {
				b.Errorf("a look takes %s of processor time, its budget is %s", each, limit)
			}
		})
	}
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
