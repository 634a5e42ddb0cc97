package azurecni

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// neighLimits are the IPv4 neighbour table's (RTM_GETNEIGHTBL).
type neighLimits struct {
	thresh3 uint32
	fulls   uint64 // inserts refused since boot, of all network namespaces
}

// neighLimits implements [netstack].
func (k *kernel) neighLimits() (limits neighLimits, err error) {
	const (
		thresh = 4      // NDTA_THRESH3
		stats  = 7      // NDTA_STATS
		fulls  = 10 * 8 // ndts_table_fulls in struct ndt_stats
	)
	b := k.body(4)
	b[0] = unix.AF_INET
	err = k.dump("the neighbour table's limits", unix.RTM_GETNEIGHTBL, len(b), func() { limits = neighLimits{} }, func(_ uint16, b []byte) {
		if len(b) < 4 || b[0] != unix.AF_INET {
			return
		}
		for kind, v := range attrs(b[4:]) {
			switch {
			case kind == thresh && limits.thresh3 == 0:
				limits.thresh3 = u32(v)
			case kind == stats && len(v) >= fulls+8:
				limits.fulls = binary.NativeEndian.Uint64(v[fulls:])
			}
		}
	})
	return limits, err
}

// counters are those of the network namespace, from /proc/net.
type counters struct {
	rpf             uint64 // IPReversePathFilter
	rpfKnown        bool
	insertFailed    uint64
	drop            uint64
	known           bool // conntrack told
	conntrackRising bool
	leaseDNS        []string // the uplink's DNS servers as DHCP gave them
	leaseErr        error    // why they could not be read
}

// counters implements [netstack]. What is not there counts nothing.
func (k *kernel) counters() (c counters) {
	if b, err := os.ReadFile("/proc/thread-self/net/netstat"); err == nil {
		c.rpf, c.rpfKnown = parseNetstat(b, "IPReversePathFilter")
	}
	if b, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack"); err == nil {
		c.insertFailed, c.drop, c.known = parseConntrack(b)
	}
	return c
}

// parseNetstat finds a counter in pairs of lines, names above values.
func parseNetstat(b []byte, name string) (uint64, bool) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<16)
	for lines.Scan() {
		names := strings.Fields(lines.Text())
		if !lines.Scan() {
			return 0, false
		}
		values := strings.Fields(lines.Text())
		for i, n := range names {
			if n == name && i < len(values) {
				v, err := strconv.ParseUint(values[i], 10, 64)
				return v, err == nil
			}
		}
	}
	return 0, false
}

// parseConntrack sums two columns over all CPUs, a line each, in hexadecimal.
func parseConntrack(b []byte) (insertFailed, drop uint64, ok bool) {
	head, rest, _ := strings.Cut(string(b), "\n")
	names := strings.Fields(head)
	for line := range strings.Lines(rest) {
		for i, word := range strings.Fields(line) {
			if i >= len(names) {
				break
			}
			v, err := strconv.ParseUint(word, 16, 64)
			if err != nil {
				return 0, 0, false
			}
			switch names[i] {
			case "insert_failed":
				insertFailed += v
			case "drop":
				drop += v
			}
		}
		ok = true
	}
	return insertFailed, drop, ok
}

// readLease reads the DNS servers of the uplink's lease (systemd-networkd's
// /run/systemd/netif/leases/IFINDEX). Without networkd there is none.
func (c *counters) readLease(root tree) {
	const folder = "run/systemd/netif/leases"
	entries, err := root.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.leaseErr = err
	}
	for _, e := range entries {
		b, err := root.ReadFile(folder + "/" + e.Name())
		if err != nil {
			c.leaseErr = err
			continue
		}
		for line := range strings.Lines(string(b)) {
			if list, ok := strings.CutPrefix(strings.TrimSpace(line), "DNS="); ok && len(c.leaseDNS) == 0 {
				c.leaseDNS = strings.Fields(list)
			}
		}
	}
}

var metrics = []probes.Metric{
	{Name: "azurecni_pods", Help: "Pods whose host networking is verified."},
	{Name: "azurecni_neighbors", Help: "IPv4 neighbours in the node's network namespace."},
	{Name: "azurecni_conntrack_insert_failed_total", Help: "Connections that tracking failed to insert: on bridge nodes, late DNS answers.", Counter: true},
	{Name: "azurecni_conntrack_drop_total", Help: "Packets that connection tracking dropped.", Counter: true},
}

// samples are the look's numbers.
func (v *view) samples() []probes.Sample {
	neighbors := 0
	for _, n := range v.now.neighs {
		if n.ip.Is4() && n.state != neighNoARP {
			neighbors++
		}
	}
	list := []probes.Sample{{Name: "azurecni_pods", Value: float64(len(v.pods))}, {Name: "azurecni_neighbors", Value: float64(neighbors)}}
	if v.counters.known {
		list = append(list, probes.Sample{Name: "azurecni_conntrack_insert_failed_total", Value: float64(v.counters.insertFailed)},
			probes.Sample{Name: "azurecni_conntrack_drop_total", Value: float64(v.counters.drop)})
	}
	return list
}
