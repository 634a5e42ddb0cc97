package containerd

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/probetest"
)

// pods are the sandboxes of a node of 250 pods.
func pods() (all []host.Sandbox) {
	for i := range 250 {
		all = append(all, host.Sandbox{ID: fmt.Sprintf("%064x", i), Namespace: "default", Name: fmt.Sprint("web-5d78c9869d-", i),
			UID: fmt.Sprint("4e3f3cd6-3ef9-4816-bda8-", i), Ready: true, Created: time.Now()})
	}
	return all
}

// standInAt names the folder in which the stand-in of a benchmark serves.
const standInAt = "NODEDRIFT_BENCH_STAND_IN"

// TestStandIn is the other process of the benchmarks.
func TestStandIn(t *testing.T) {
	dir := os.Getenv(standInAt)
	if dir == "" {
		t.Skip("it is for benchmarks")
	}
	probetest.ServeCRI(t, dir, host.DefaultCRISocket, probetest.Runtime{Conditions: probetest.ReadyConditions(), Sandboxes: pods(), Info: newWorld(t).cri.info})
	io.Copy(io.Discard, os.Stdin) // until the benchmark ends
}

// big is a node of 250 pods whose runtime is a stand-in in another process, so
// that what is measured is the agent's part alone.
func big(t testing.TB) (p *Probe, cri *host.CRI) {
	t.Helper()
	w := newWorld(t)
	dir := t.TempDir()
	pids := []int{621}
	for i, s := range pods() {
		w.process(t, 1000+i, shimArgs(s.ID)...)
		pids = append(pids, 1000+i)
	}
	w.unit.ExecMainStartTimestamp = time.Now().Add(time.Minute) // after the files below were made
	for name, f := range w.root.MapFS {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if f.Mode.IsRegular() {
			if err := os.WriteFile(at, f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(at, 0o644|f.Mode.Perm()); err != nil {
				t.Fatal(err)
			}
		}
	}
	procs := filepath.Join(dir, "sys/fs/cgroup/system.slice/containerd.service/cgroup.procs")
	if err := os.WriteFile(procs, []byte(strings.Trim(strings.ReplaceAll(fmt.Sprint(pids), " ", "\n"), "[]")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, host.DefaultCRISocket))
	other := exec.Command(os.Args[0], "-test.run=^TestStandIn$", "-test.v")
	other.Env = append(os.Environ(), standInAt+"="+dir)
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); other.Wait() })
	for range 500 {
		if _, err := os.Stat(filepath.Join(dir, host.DefaultCRISocket)); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	proc := host.OpenProcesses(w.proc)
	cri = host.NewCRI(root, proc)
	t.Cleanup(func() { cri.Close(); root.Close() })
	return New(root, proc, units{&w.unit}, cri, Config{}), cri
}

func look(t testing.TB, p *Probe) {
	t.Helper()
	if l, err := p.Check(t.Context()); err != nil || len(l.Findings) > 0 {
		t.Fatalf("look is %+v, %v", l, err)
	}
}

// cpu is what this process has used.
func cpu(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLightLook is the look of every five seconds: one question.
func BenchmarkLightLook(b *testing.B) {
	p, _ := big(b)
	look(b, p)
	b.ReportAllocs()
	began := cpu(b)
	n := 0
	for b.Loop() {
		p.store.at = time.Now()
		look(b, p)
		n++
	}
	b.ReportMetric(float64((cpu(b)-began).Microseconds())/float64(n), "cpu-us/op")
}

// BenchmarkHeavyLook is the look of every half minute: all files, the list of 250
// sandboxes and their shims.
func BenchmarkHeavyLook(b *testing.B) {
	p, _ := big(b)
	look(b, p)
	b.ReportAllocs()
	began := cpu(b)
	n := 0
	for b.Loop() {
		p.store.at, p.cniAt = time.Time{}, time.Time{}
		p.unit.Refresh()
		look(b, p)
		n++
	}
	b.ReportMetric(float64((cpu(b)-began).Microseconds())/float64(n), "cpu-us/op")
}

// BenchmarkList is the list alone.
func BenchmarkList(b *testing.B) {
	_, cri := big(b)
	b.ReportAllocs()
	began := cpu(b)
	n := 0
	for b.Loop() {
		if all, err := cri.Sandboxes(b.Context()); err != nil || len(all) != 250 {
			b.Fatal(len(all), err)
		}
		n++
	}
	b.ReportMetric(float64((cpu(b)-began).Microseconds())/float64(n), "cpu-us/op")
}

// TestAllocations holds what the looks at a node of 250 pods allocate, grpc's part
// included: about 160 and 2000.
func TestAllocations(t *testing.T) {
	p, _ := big(t)
	look(t, p)
	light := testing.AllocsPerRun(20, func() {
		p.store.at = time.Now()
		look(t, p)
	})
	heavy := testing.AllocsPerRun(5, func() {
		p.store.at, p.cniAt = time.Time{}, time.Time{}
		p.unit.Refresh()
		look(t, p)
	})
	t.Logf("a light look allocates %.0f times, a heavy one %.0f times", light, heavy)
	if light > 300 || heavy > 4000 {
		t.Errorf("a light look allocates %.0f times, a heavy one %.0f times; want at most 300 and 4000", light, heavy)
	}
}
