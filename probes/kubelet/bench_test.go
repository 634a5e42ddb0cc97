package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

type deaf struct{}

func (deaf) Changed()              {}
func (deaf) Saw(probes.Occurrence) {}
func (deaf) Lost(string, uint64)   {}

type benchRoot struct {
	*host.Root
	to string
}

func (r benchRoot) DialTCP(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", r.to)
}

// steadyProbe looks at this very process as if it were kubelet, with a real health
// port and real files.
func steadyProbe(b *testing.B) *Probe {
	b.Helper()
	dir := b.TempDir()
	for name, text := range map[string]string{
		"etc/systemd/system/kubelet.service":          "[Service]\nExecStart=/opt/bin/kubelet\nEnvironmentFile=/etc/default/kubelet\n",
		"etc/systemd/system/kubelet.service.d/1.conf": "[Service]\nNice=1\n",
		"etc/default/kubelet":                         "KUBELET_FLAGS=--config=/etc/default/kubeletconfig.json\n",
		"etc/default/kubeletconfig.json":              `{"kind": "KubeletConfiguration", "maxPods": 250}`,
		"opt/bin/kubelet":                             "ELF",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("[+]ping ok\nhealthz check passed\n")) }))
	b.Cleanup(server.Close)
	root, err := host.OpenRoot(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { root.Close() })
	kubelet := host.Unit{Id: "kubelet.service", LoadState: "loaded", ActiveState: "active", SubState: "running", InvocationID: "0123456789abcdef0123456789abcdef",
		FragmentPath: "/etc/systemd/system/kubelet.service", DropInPaths: []string{"/etc/systemd/system/kubelet.service.d/1.conf"}, MainPID: uint32(os.Getpid()),
		ExecStart: []host.Command{{Path: "/opt/bin/kubelet", Args: []string{"/opt/bin/kubelet", "--config=/etc/default/kubeletconfig.json"}}}}
	probetest.ServeSystemd(b, dir, "running", map[string]host.Unit{"kubelet.service": kubelet, "containerd.service": {Id: "containerd.service", LoadState: "loaded",
		ActiveState: "active", SubState: "running", InvocationID: "0123456789abcdef0123456789abcdef", MainPID: uint32(os.Getpid())}}, probetest.PrivateSocket, probetest.BusSocket)
	systemd := host.NewSystemd(root)
	b.Cleanup(func() { systemd.Close() })
	p := New(benchRoot{root, server.Listener.Addr().String()}, host.OpenProcesses("/proc"), systemd, nil, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(cancel)
	go p.Watch(ctx, deaf{})
	for range 50 {
		if look, err := p.Check(b.Context()); err != nil {
			b.Fatal(err, look)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return p
}

// cpu is the processor time of this thread's process so far.
func cpu() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLook prints what a look costs in processor time, the answering side of
// the health port and of systemd (this process, too) included: light looks come every 10 s, the
// last one given again in between, and heavy ones twice a minute.
func BenchmarkLook(b *testing.B) {
	for _, kind := range []string{"again", "light", "heavy"} {
		b.Run(kind, func(b *testing.B) {
			p := steadyProbe(b)
			b.ReportAllocs()
			began := cpu()
			for b.Loop() {
				switch kind {
				case "light":
					_, _ = p.checker.Seen(probes.Look{}, errors.New("not to be given again"))
				case "heavy":
					p.checker.Refresh()
					p.runtime.Heard()
					p.threads.at, p.health.asked = time.Time{}, time.Time{}
				}
				if _, err := p.Check(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			each := (cpu() - began) / time.Duration(b.N)
			b.ReportMetric(float64(each.Microseconds()), "cpu-us/look")
			limit := map[string]time.Duration{"again": 200 * time.Microsecond, "light": 200 * time.Microsecond, "heavy": 3 * time.Millisecond}[kind]
			if each > limit {
				fmt.Printf("a %s look takes %s of processor time, its budget is %s\n", kind, each, limit)
			}
		})
	}
}
