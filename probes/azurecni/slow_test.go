package azurecni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
)

// A slowFault breaks an invariant of what is asked for once in a sweep: counters,
// limits and the lease.
type slowFault struct {
	mode, id, name string
	breaks         func(l *lab, k *counting) // after a sweep in order
	repairs        func(l *lab, k *counting)
}

// A counting kernel has the counters and limits that it is told.
type counting struct {
	*kernel
	limits                   neighLimits
	rpf, insertFailed, drops int
}

func (k *counting) neighLimits() neighLimits { return k.limits }

func (k *counting) counters() counters {
	files := map[string]string{"thread-self/net/netstat": fmt.Sprintf("TcpExt: A IPReversePathFilter\nTcpExt: 1 %d\n", k.rpf),
		// Two CPUs; in hexadecimal.
		"thread-self/net/stat/nf_conntrack": fmt.Sprintf("entries insert_failed drop\n00000010 %08x %08x\n00000010 00000001 00000001\n", k.insertFailed, k.drops)}
	for name, content := range files {
		at := filepath.Join(k.proc, name)
		if os.MkdirAll(filepath.Dir(at), 0o755) != nil || os.WriteFile(at, []byte(content), 0o600) != nil {
			return counters{}
		}
	}
	return k.kernel.counters()
}

func strict(key string) func(*lab, *counting) {
	return func(l *lab, k *counting) {
		l.sysctl("net/ipv4/conf/"+key+"/rp_filter", "1")
		k.rpf += 10
	}
}

func lease(servers string) func(*lab, *counting) {
	return func(l *lab, _ *counting) {
		l.file("run/systemd/netif/leases/2", "ADDRESS=10.240.0.4\nDNS="+servers+"\n")
	}
}

// neighbors makes some on eth0 that count.
func neighbors(n int) func(*lab, *counting) {
	return func(l *lab, k *counting) {
		k.limits.thresh3 = 100
		for i := range n {
			ip := netip.AddrFrom4([4]byte{10, 242, 0, byte(i)})
			l.must(l.node.NeighSet(&netlink.Neigh{LinkIndex: l.link("eth0").Attrs().Index, IP: ip.AsSlice(), HardwareAddr: wrongMAC(), State: netlink.NUD_STALE}))
		}
	}
}

func nothingMore(*lab, *counting) {} // what rose does not rise any more

var slowFaults = []slowFault{
	{"transparent", "N-RPF", "all", strict("all"), nothingMore},
	{"transparent", "N-RPF", "uplink", strict("eth0"), nothingMore},
	{"bridge", "N-RPF", "bridge", strict("azure0"), nothingMore},
	{"transparent", "N-NEIGH-CAP", "nearly full", neighbors(90), func(_ *lab, k *counting) { k.limits.thresh3 = 1000 }},
	{"bridge", "N-NEIGH-CAP", "refusals", func(_ *lab, k *counting) { k.limits.fulls++ }, nothingMore},
	{"bridge", "B-CONNTRACK", "inserts fail", func(_ *lab, k *counting) { k.insertFailed++ }, nothingMore},
	{"bridge", "B-CONNTRACK", "drops", func(_ *lab, k *counting) { k.drops += 20 }, nothingMore},
	{"bridge", "B-DNS", "two servers", lease("168.63.129.16 10.0.0.10"), lease("168.63.129.16")},
	{"bridge", "B-DNS", "three servers", lease("168.63.129.16 10.0.0.10 10.0.0.11"), lease("168.63.129.16")},
}

// TestSlowFaults breaks what a sweep finds, which clears with a later one.
func TestSlowFaults(t *testing.T) {
	for _, f := range slowFaults {
		t.Run(f.id+"/"+f.mode+"/"+f.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, f.mode, 2, false)
			p := l.probe(stateOnly)
			k := &counting{kernel: p.kernel.(*kernel), limits: neighLimits{thresh3: 1024, fulls: 7}, rpf: 3, insertFailed: 5}
			k.proc, p.kernel = t.TempDir(), k
			t.Cleanup(func() { p.kernel = k.kernel })
			lease("168.63.129.16")(l, k)
			sweepFor := func(when string, want ...string) {
				t.Helper()
				p.slowAt = p.slowAt.Add(-sweep)
				if roots, _ := ids(l.again(p)); !slices.Equal(roots, want) {
					t.Errorf("%s: found %v, want %v", when, roots, want)
				}
			}
			sweepFor("in order")
			sweepFor("still in order")
			f.breaks(l, k)
			sweepFor("broken", f.id)
			f.repairs(l, k)
			sweepFor("repaired")
		})
	}
}

// TestCounters reads the kernel's tables of counters.
func TestCounters(t *testing.T) {
	t.Parallel()
	failed, drop, err := parseConntrack([]byte("entries  clashres found insert_failed drop\n00000010  00000000 00000000 0000000a 00000001\n00000010  00000000 00000000 00000001 00000001\n"))
	if failed != 11 || drop != 2 || err != nil {
		t.Errorf("parsed %d, %d, %v", failed, drop, err)
	}
	for _, content := range []string{"", "entries insert_failed drop\n", "entries insert_failed drop\nzz zz zz\n", "entries drop\n0 0\n"} {
		if _, _, err := parseConntrack([]byte(content)); err == nil {
			t.Errorf("parsed %q", content)
		}
	}
	if v, err := parseNetstat([]byte("TcpExt: A IPReversePathFilter\nTcpExt: 1 42\n"), "IPReversePathFilter"); v != 42 || err != nil {
		t.Errorf("parsed %d, %v", v, err)
	}
}

// FuzzCounters reads any table of counters, and any answer of azure-cns.
func FuzzCounters(f *testing.F) {
	f.Add([]byte("entries insert_failed drop\n00000010 0000000a 00000001\n"))
	f.Add([]byte("TcpExt: A IPReversePathFilter\nTcpExt: 1 42\n"))
	f.Add([]byte(`[{"IPAddress": "10.240.0.11"}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if failed, drop, err := parseConntrack(b); err != nil && failed+drop > 0 {
			t.Errorf("counters %d and %d beside %v", failed, drop, err)
		}
		if n, err := parseNetstat(b, "IPReversePathFilter"); err != nil && n > 0 && !errors.Is(err, strconv.ErrRange) {
			t.Errorf("a counter %d beside %v", n, err)
		}
		ips, err := parseCNSAddresses(b)
		if err != nil && len(ips) > 0 || slices.ContainsFunc(ips, func(ip netip.Addr) bool { return !ip.IsValid() }) {
			t.Errorf("addresses %v, %v", ips, err)
		}
	})
}
