package chrony

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// chronyd is a stand-in for chronyd's command port. Its answers have the form of
// those that were recorded from chronyd 4.3 on a lab node (recorded_test.go).
type chronyd struct {
	fail     error // instead of any answer
	tracking []byte
	sources  [][]byte // source data
	names    []string // "": no such request, as of chronyd 3
}

// answer answers one request.
func (d *chronyd) answer(q []byte) []byte {
	command := binary.BigEndian.Uint16(q[4:])
	index := 0
	if len(q) >= 24 {
		index = int(int32(binary.BigEndian.Uint32(q[20:])))
	}
	switch command {
	case 33:
		return reply(q, 5, 0, d.tracking)
	case 14:
		return reply(q, 2, 0, binary.BigEndian.AppendUint32(nil, uint32(len(d.sources))))
	case 15:
		if index >= 0 && index < len(d.sources) {
			return reply(q, 3, 0, d.sources[index])
		}
	case 65:
		for i, s := range d.sources {
			if bytes.Equal(s[:18], q[20:38]) && d.names[i] != "" {
				return reply(q, 19, 0, append([]byte(d.names[i]), make([]byte, 256-len(d.names[i]))...))
			}
		}
	}
	return reply(q, 1, 3, nil) // INVALID
}

// reply makes a reply to a request.
func reply(q []byte, kind, status uint16, data []byte) []byte {
	b := make([]byte, replyHead)
	b[0], b[1] = 6, 2
	copy(b[4:6], q[4:6])
	binary.BigEndian.PutUint16(b[6:], kind)
	binary.BigEndian.PutUint16(b[8:], status)
	copy(b[16:20], q[8:12])
	return append(b, data...)
}

// wireFloat writes chrony's 32-bit float: 7 bits of exponent, 25 of coefficient.
func wireFloat(f float64) uint32 {
	if f == 0 {
		return 0
	}
	frac, exp := math.Frexp(f)
	coef := int64(math.Round(frac * (1 << 24)))
	if coef == 1<<24 {
		coef, exp = coef/2, exp+1
	}
	return uint32(exp+1)<<25 | uint32(coef)&(1<<25-1)
}

// address writes an IPAddr: an address, or the four letters of a reference clock.
func address(text string) []byte {
	b := make([]byte, 20)
	if a, err := netip.ParseAddr(text); err == nil {
		copy(b, a.AsSlice())
		b[17] = 1
		if a.Is6() {
			b[17] = 2
		}
		return b
	}
	copy(b[:4], text)
	b[17] = 1
	return b
}

// fields reads "key=value" words over defaults.
func fields(t testing.TB, words []string, usual map[string]string) func(string) float64 {
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		if _, ok := usual[k]; !ok {
			t.Fatalf("stand-in: unknown %s", w)
		}
		usual[k] = v
	}
	return func(key string) float64 {
		f, err := strconv.ParseFloat(usual[key], 64)
		if err != nil {
			t.Fatalf("stand-in: %s=%s", key, usual[key])
		}
		return f
	}
}

func trackingOf(t testing.TB, words []string) []byte {
	usual := map[string]string{"ref": "10.240.0.1", "stratum": "4", "leap": "0", "age": "2", "correction": "0.000004", "frequency": "-0.011", "skew": "0.02", "dispersion": "0.000003"}
	n := fields(t, words, usual)
	b := append([]byte(nil), address(usual["ref"])[:4]...)
	b = append(b, address(usual["ref"])...)
	b = binary.BigEndian.AppendUint16(b, uint16(n("stratum")))
	b = binary.BigEndian.AppendUint16(b, uint16(n("leap")))
	at := time.Now().Add(-time.Duration(n("age") * float64(time.Second)))
	for _, v := range []uint32{uint32(at.Unix() >> 32), uint32(at.Unix()), uint32(at.Nanosecond()), wireFloat(n("correction")), wireFloat(-5e-8), wireFloat(1.7e-6),
		wireFloat(n("frequency")), wireFloat(-0.0004), wireFloat(n("skew")), wireFloat(1.25e-5), wireFloat(n("dispersion")), wireFloat(4.07)} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func sourceOf(t testing.TB, addr string, words []string) []byte {
	usual := map[string]string{"name": addr, "poll": "2", "stratum": "3", "state": "0", "mode": "0", "reach": "255", "since": "2", "measured": "0.000001", "error": "0.000008"}
	n := fields(t, words, usual)
	b := address(addr)
	for _, k := range []string{"poll", "stratum", "state", "mode"} {
		b = binary.BigEndian.AppendUint16(b, uint16(int16(n(k))))
	}
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(n("reach")))
	b = binary.BigEndian.AppendUint32(b, uint32(n("since")))
	for _, k := range []string{"measured", "measured", "error"} {
		b = binary.BigEndian.AppendUint32(b, wireFloat(n(k)))
	}
	return b
}

// parseStandIn reads what a stand-in is to say: "refused", "silent", or lines of
// tracking and source.
func parseStandIn(t testing.TB, text string) *chronyd {
	d := &chronyd{tracking: trackingOf(t, nil)}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "refused":
			d.fail = unix.ECONNREFUSED
		case words[0] == "silent":
			d.fail = os.ErrDeadlineExceeded
		case words[0] == "tracking":
			d.tracking = trackingOf(t, words[1:])
		case words[0] == "source" && len(words) > 1:
			d.sources = append(d.sources, sourceOf(t, words[1], words[2:]))
			name := words[1]
			for _, w := range words[2:] {
				if v, ok := strings.CutPrefix(w, "name="); ok {
					name = v
				}
			}
			d.names = append(d.names, name)
		default:
			t.Fatalf("stand-in: %s", line)
		}
	}
	return d
}

// conn is a socket to the stand-in; a real one cannot time out in a bubble.
type conn struct {
	net.Conn                 // nil: what is not used here is a fault
	is       func() *chronyd // as of now
	waiting  [][]byte
}

// to is a dialer of a stand-in.
func to(is func() *chronyd) dialer {
	return func(context.Context, string) (net.Conn, error) { return &conn{is: is}, nil }
}

func (c *conn) Write(b []byte) (int, error) {
	if d := c.is(); d.fail == nil {
		c.waiting = append(c.waiting, d.answer(b))
	}
	return len(b), nil
}

func (c *conn) Read(b []byte) (int, error) {
	if d := c.is(); d.fail != nil {
		return 0, fmt.Errorf("read udp 127.0.0.1:323: %w", d.fail)
	}
	if len(c.waiting) == 0 {
		return 0, fmt.Errorf("read udp 127.0.0.1:323: %w", os.ErrDeadlineExceeded)
	}
	n := copy(b, c.waiting[0])
	c.waiting = c.waiting[1:]
	return n, nil
}

func (c *conn) SetDeadline(time.Time) error { return nil }
func (c *conn) Close() error                { return nil }

// kernelText reads what a stand-in for adjtimex is to say; "" is a lab's kernel,
// which nobody disciplines.
func kernelText(t testing.TB, text string) (kernelClock, error) {
	if strings.TrimSpace(text) == "operation not permitted" {
		return kernelClock{}, fmt.Errorf("adjtimex: %w", unix.EPERM)
	}
	n := fields(t, strings.Fields(text), map[string]string{"status": "64", "maxerror": "16000000", "freq": "0", "tick": "10000"})
	return kernelOf(&unix.Timex{Status: int32(n("status")), Maxerror: int64(n("maxerror")), Freq: int64(n("freq")), Tick: int64(n("tick"))}), nil
}

// newProbe is a probe of a recorded node: tmp/chronyd is what chronyd says, and
// tmp/adjtimex what the kernel says. Without the first the port is refused.
func newProbe(t testing.TB) func(*host.Node) probes.Probe {
	return func(n *host.Node) probes.Probe {
		p := New(n.Root, n.Proc, n.Units, Config{})
		said := func(name string) string {
			b, err := fs.ReadFile(n.Root, name)
			if err != nil {
				return ""
			}
			return string(b)
		}
		p.line.dial = to(func() *chronyd {
			if text := said("tmp/chronyd"); text != "" {
				return parseStandIn(t, text)
			}
			return &chronyd{fail: unix.ECONNREFUSED}
		})
		p.kernel = func() (kernelClock, error) { return kernelText(t, said("tmp/adjtimex")) }
		return p
	}
}
