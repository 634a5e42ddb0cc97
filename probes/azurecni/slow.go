package azurecni

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// neighLimits are the IPv4 neighbour table's (RTM_GETNEIGHTBL).
type neighLimits struct {
	thresh3 uint32
	fulls   uint64 // inserts refused since boot, of all network namespaces
	err     error  // why they could not be read
}

// neighLimits implements [netstack].
func (k *kernel) neighLimits() (limits neighLimits) {
	const (
		thresh = 4      // NDTA_THRESH3
		stats  = 7      // NDTA_STATS
		fulls  = 10 * 8 // ndts_table_fulls in struct ndt_stats
	)
	b := k.body(4)
	b[0] = unix.AF_INET
	err := k.dump("the neighbour table's limits", unix.RTM_GETNEIGHTBL, len(b), func() { limits = neighLimits{} }, func(_ uint16, b []byte) {
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
	if err == nil && limits.thresh3 == 0 {
		err = errors.New("the kernel tells no gc_thresh3")
	}
	limits.err = err
	return limits
}

// counters are those of the network namespace, from /proc/net.
type counters struct {
	rpf                uint64 // IPReversePathFilter
	rpfErr             error  // why it could not be read
	insertFailed, drop uint64
	conntrackErr       error    // why these two could not be read
	tracks             bool     // connection tracking is there at all
	leaseDNS           []string // the uplink's DNS servers as DHCP gave them
	leaseErr           error    // why they could not be read
}

// counters implements [netstack]. Without connection tracking none of it fails;
// a counter of a kernel that tracks and does not tell is not known. What it reads
// is of the agent's own thread, in whose network namespace it looks: no file of
// the node's.
func (k *kernel) counters() (c counters) {
	const (
		netstat = "thread-self/net/netstat"
		stat    = "thread-self/net/stat/nf_conntrack"
		count   = "sys/net/netfilter/nf_conntrack_count" // there with nf_conntrack
	)
	b, err := os.ReadFile(filepath.Join(k.proc, netstat))
	if c.rpfErr = err; err == nil {
		if c.rpf, err = parseNetstat(b, "IPReversePathFilter"); err != nil {
			c.rpfErr = fmt.Errorf("read /proc/%s: %w", netstat, err)
		}
	}
	b, err = os.ReadFile(filepath.Join(k.proc, stat))
	if errors.Is(err, fs.ErrNotExist) {
		if _, here := os.Stat(filepath.Join(k.proc, count)); errors.Is(here, fs.ErrNotExist) {
			return c
		}
	}
	c.tracks = true
	if c.conntrackErr = err; err == nil {
		if c.insertFailed, c.drop, err = parseConntrack(b); err != nil {
			c.conntrackErr = fmt.Errorf("read /proc/%s: %w", stat, err)
		}
	}
	return c
}

// A counter is one of the kernel's that rises when something goes wrong.
type counter struct {
	value  uint64
	known  bool   // it was read
	rising bool   // since the reading before
	doubt  string // why it is not known whether it rises; "" when it is
}

// take notes a reading. What is not zero at the first one may be old: the next
// reading tells.
func (c *counter) take(value uint64, err error) {
	switch {
	case err != nil:
		*c = counter{doubt: err.Error()}
		return
	case !c.known && value > 0:
		c.doubt = "whether its counter rises, the next sweep tells"
	default:
		c.doubt = ""
	}
	c.rising = c.known && value > c.value
	c.value, c.known = value, true
}

// parseNetstat finds a counter in pairs of lines, names above values.
func parseNetstat(b []byte, name string) (uint64, error) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<16)
	for lines.Scan() {
		names := strings.Fields(lines.Text())
		if !lines.Scan() {
			break
		}
		values := strings.Fields(lines.Text())
		for i, n := range names {
			if n == name && i < len(values) {
				return strconv.ParseUint(values[i], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("there is no %s", name)
}

// parseConntrack sums two columns over all CPUs, a line each, in hexadecimal.
func parseConntrack(b []byte) (insertFailed, drop uint64, err error) {
	head, rest, _ := strings.Cut(string(b), "\n")
	names := strings.Fields(head)
	if rest == "" || !slices.Contains(names, "insert_failed") || !slices.Contains(names, "drop") {
		return 0, 0, errors.New("there is no insert_failed or no drop")
	}
	for line := range strings.Lines(rest) {
		for i, word := range strings.Fields(line) {
			if i >= len(names) {
				break
			}
			v, err := strconv.ParseUint(word, 16, 64)
			if err != nil {
				return 0, 0, err
			}
			switch names[i] {
			case "insert_failed":
				insertFailed += v
			case "drop":
				drop += v
			}
		}
	}
	return insertFailed, drop, nil
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
	list := []probes.Sample{{Name: "azurecni_neighbors", Value: float64(neighbors)}}
	if v.unknown == "" {
		list = append(list, probes.Sample{Name: "azurecni_pods", Value: float64(len(v.pods))})
	}
	if v.counters.tracks && v.counters.conntrackErr == nil {
		list = append(list, probes.Sample{Name: "azurecni_conntrack_insert_failed_total", Value: float64(v.counters.insertFailed)},
			probes.Sample{Name: "azurecni_conntrack_drop_total", Value: float64(v.counters.drop)})
	}
	return list
}
