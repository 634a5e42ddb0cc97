package chrony

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

// cpu is what the process has used, chronyd's stand-in included.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLook takes light looks at a unit that a stand-in for systemd knows, and
// at a chronyd that answers with what a real one said, by UDP.
func BenchmarkLook(b *testing.B) {
	dir := b.TempDir()
	probetest.ServeSystemd(b, dir, "running", map[string]host.Unit{
		"chrony.service": {Id: "chrony.service", LoadState: "loaded", ActiveState: "active", SubState: "running"}}, probetest.PrivateSocket)
	root, err := host.OpenRoot(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	systemd := host.NewSystemd(root)
	defer systemd.Close()
	d := recorded(b)
	p := New(root, host.OpenProcesses("/proc"), systemd, Config{Address: serve(b, func(q []byte) [][]byte { return [][]byte{d.answer(q)} })})
	if _, err := p.Check(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu(b)
	for b.Loop() {
		if _, err := p.Check(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	each := (cpu(b) - before) / time.Duration(b.N)
	b.ReportMetric(float64(each.Nanoseconds()), "cpu-ns/op")
	if b.N > 100 && each > 500*time.Microsecond {
		b.Errorf("a look takes %s of CPU, want at most 500us", each)
	}
}
