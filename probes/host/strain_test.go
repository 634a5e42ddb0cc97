package host

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestStrain(t *testing.T) {
	g := NewStrainGauge()
	defer g.Close()
	before, err := g.Read()
	if err != nil {
		t.Fatal(err)
	}
	// A thread that waits for its turn and then ends stays in the sum.
	done := make(chan struct{})
	for range 4 * runtime.NumCPU() {
		go func() {
			runtime.LockOSThread() // and does not unlock: the thread ends with it
			for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); {
			}
			done <- struct{}{}
		}()
	}
	for range 4 * runtime.NumCPU() {
		<-done
		g.Read()
	}
	after, err := g.Read()
	if err != nil {
		t.Fatal(err)
	}
	d := after.Sub(before)
	if d.Delayed <= 0 || d.Throttled < 0 || d.Paused.Abs() > time.Millisecond {
		t.Errorf("%+v", d)
	}
	for range 10 {
		next, err := g.Read()
		if next.Delayed < after.Delayed || err != nil {
			t.Errorf("the sum falls: %v, %v, %v", after, next, err)
		}
		after = next
	}
	once, err := ReadStrain()
	if once.Delayed <= 0 || err != nil {
		t.Errorf("%+v, %v", once, err)
	}
	t.Logf("%+v; cpu.stat in %v", d, cpuStats())
}

func TestParseThrottled(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{
		"usage_usec 100\nnr_throttled 3\nthrottled_usec 1500\n":            1500 * time.Microsecond,
		"nr_periods 10\nnr_throttled 3\nthrottled_time 1500\nwait_sum 7\n": 1500,
		"usage_usec 100\n": 0,
		"":                 0,
	} {
		if got, err := parseThrottled([]byte(in)); got != want || err != nil {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"throttled_usec -1\n", "throttled_usec x\n", "throttled_usec 9223372036854775807\n"} {
		if got, err := parseThrottled([]byte(in)); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestBelowMount(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ cgroup, root, want string }{
		{"/system.slice/x.service", "/", "/system.slice/x.service"},
		{"/kubepods/pod1/c", "/kubepods/pod1/c", ""},
		{"/kubepods/pod1/c/sub", "/kubepods/pod1/c", "/sub"},
		{"/kubepods/pod10", "/kubepods/pod1", "/"},
		{"/", "/", "/"},
		{"/../x", "/", "/"},
	} {
		if got := belowMount(test.cgroup, test.root); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

func FuzzParseStrain(f *testing.F) {
	b, _ := os.ReadFile("/proc/self/schedstat")
	f.Add(string(b))
	f.Add("throttled_usec 12\n")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := parseSchedstat([]byte(s)); err == nil && d < 0 {
			t.Error(d)
		}
		if d, err := parseThrottled([]byte(s)); err == nil && (d < 0 || d > 0 && !strings.Contains(s, "throttled")) {
			t.Error(d)
		}
	})
}

func BenchmarkStrain(b *testing.B) {
	g := NewStrainGauge()
	defer g.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Read(); err != nil {
			b.Fatal(err)
		}
	}
}
