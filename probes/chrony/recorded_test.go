package chrony

import (
	"context"
	"encoding/hex"
	"errors"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// Data of replies recorded on 2026-11-21 from chronyd 4.3 (-x) of a lab node.
const (
	recordedTracking = "0af000010af000010000000000000000000000000001000000040000000000006b021750373807d5e17d39dbd331e483dce6342df74ee407ed38e0daf8a24976e2d280f4decf2f9308824d26"
	recordedSource   = "0af00001000000000000000000000000000100000002000300000000000000ff00000002dca46aaedcaadb89e28035b9"
)

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func recorded(t testing.TB) *chronyd {
	return &chronyd{tracking: unhex(t, recordedTracking), sources: [][]byte{unhex(t, recordedSource)}, names: []string{"10.240.0.1"}}
}

// serve lets a function answer requests on a UDP port; nil is no answer.
func serve(t testing.TB, answer func([]byte) [][]byte) string {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			for _, r := range answer(slices.Clone(b[:n])) {
				c.WriteTo(r, from)
			}
		}
	})
	t.Cleanup(func() { c.Close(); serving.Wait() })
	return c.LocalAddr().String()
}

// ask asks once, over a socket of its own.
func ask(t testing.TB, address string, names map[string]string) (*report, error) {
	l := &line{dial: host.DialUDP}
	defer l.close()
	return l.ask(t.Context(), address, names)
}

func TestAskRecorded(t *testing.T) {
	d := recorded(t)
	at := serve(t, func(q []byte) [][]byte { return [][]byte{d.answer(q)} })
	names := map[string]string{}
	r, err := ask(t, at, names)
	if err != nil {
		t.Fatal(err)
	}
	s := r.selected()
	switch {
	case r.Stratum != 4 || math.Abs(r.CurrentCorrection+3.897e-6) > 1e-9 || r.RefTime.UTC().Format(time.DateTime) != "2026-11-21 22:12:32":
		t.Errorf("tracking: %+v", r.Tracking)
	case s == nil || s.name != "10.240.0.1" || s.given != "10.240.0.1" || s.Reachability != 0o377 || s.polling() != 4*time.Second:
		t.Errorf("sources: %+v", r.sources)
	}
}

func TestFloats(t *testing.T) {
	for _, f := range []float64{0, 1, -1, 0.2, -2.00003, 1e-9, -4.07, 16} {
		b := trackingOf(t, nil)
		c := &chronyd{tracking: slices.Concat(b[:40], []byte{byte(wireFloat(f) >> 24), byte(wireFloat(f) >> 16), byte(wireFloat(f) >> 8), byte(wireFloat(f))}, b[44:])}
		r, err := (&line{dial: to(func() *chronyd { return c })}).ask(t.Context(), "", nil)
		if err != nil || math.Abs(r.CurrentCorrection-f) > math.Abs(f)*1e-6 {
			t.Errorf("%v is read as %v (%v)", f, r, err)
		}
	}
}

// Each malformed answer is an error within the deadline, and never a number.
func TestAskMalformed(t *testing.T) {
	d := recorded(t)
	set := func(at int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { return append(append(slices.Clone(b[:at]), v...), b[at+len(v):]...) }
	}
	const data = replyHead
	for name, change := range map[string]func([]byte) []byte{
		"empty":              func([]byte) []byte { return []byte{} },
		"short head":         func(b []byte) []byte { return b[:20] },
		"no data":            func(b []byte) []byte { return b[:replyHead] },
		"one byte short":     func(b []byte) []byte { return b[:len(b)-1] },
		"one byte long":      func(b []byte) []byte { return append(slices.Clone(b), 0) },
		"long":               func(b []byte) []byte { return append(slices.Clone(b), make([]byte, 1000)...) },
		"wrong version":      set(0, 5),
		"a request":          set(1, 1),
		"another command":    set(5, 15),
		"wrong sequence":     set(16, 0xff, 0xff, 0xff, 0xff),
		"unknown reply":      set(6, 0, 99),
		"another reply":      set(6, 0, 12),
		"unauthorized":       set(8, 0, 2),
		"stratum 17":         set(data+24, 0, 17),
		"leap status 9":      set(data+26, 0, 9),
		"negative RMS":       set(data+48, 0xff, 0xff, 0xff, 0xff),
		"negative age":       set(data+72, 0x09, 0x80, 0, 0),
		"negative dispersal": set(data+68, 0xdf, 0x80, 0, 0),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := serve(t, func(q []byte) [][]byte {
				if q[5] == requestTracking {
					return [][]byte{change(d.answer(q))}
				}
				return [][]byte{d.answer(q)}
			})
			if r, err := ask(t, at, map[string]string{}); err == nil {
				t.Errorf("taken for an answer: %+v", r)
			} else if silent(err) || refused(err) {
				t.Errorf("taken for no answer: %v", err)
			}
		})
	}
	t.Run("from another port", func(t *testing.T) {
		t.Parallel()
		other, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			b := make([]byte, 2048)
			if n, from, err := c.ReadFrom(b); err == nil {
				other.WriteTo(d.answer(b[:n]), from)
			}
		}()
		if _, err := ask(t, c.LocalAddr().String(), nil); !silent(err) {
			t.Errorf("an answer from another port: %v", err)
		}
	})
	t.Run("too many sources", func(t *testing.T) {
		t.Parallel()
		at := serve(t, func(q []byte) [][]byte {
			if q[5] == 14 {
				return [][]byte{reply(q, 2, 0, []byte{0xff, 0xff, 0xff, 0xff})}
			}
			return [][]byte{d.answer(q)}
		})
		if _, err := ask(t, at, nil); err == nil {
			t.Error("four thousand million sources are none too many")
		}
	})
}

func TestAskNobody(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := c.LocalAddr().String()
	began := time.Now()
	if _, err := ask(t, at, nil); !silent(err) || time.Since(began) > time.Second {
		t.Errorf("a hung chronyd: %v after %s", err, time.Since(began))
	}
	c.Close()
	if _, err := ask(t, at, nil); !refused(err) {
		t.Errorf("no chronyd: %v", err)
	}
}

// No answer makes a look fail by other than an error, or a number that is none.
func FuzzAsk(f *testing.F) {
	f.Add(unhex(f, recordedTracking), unhex(f, recordedSource))
	f.Add(make([]byte, 76), make([]byte, 48))
	f.Add([]byte{}, []byte{0xff})
	f.Fuzz(func(t *testing.T, tracking, src []byte) {
		d := &chronyd{tracking: tracking, sources: [][]byte{append(src, make([]byte, max(0, 18-len(src)))...)}, names: []string{"a"}}
		r, err := (&line{dial: to(func() *chronyd { return d })}).ask(t.Context(), "", map[string]string{})
		if err != nil {
			return
		}
		for _, s := range samples(r) {
			if math.IsNaN(s.Value) || math.IsInf(s.Value, 0) {
				t.Errorf("%s is %v", s.Name, s.Value)
			}
		}
		var fo following
		fo.look(r, time.Now())
		texts := []string{fo.noSource(r, time.Now())}
		list, _ := undeclared(&settings{found: true}, r)
		if o, ok := offset(r); ok {
			list = append(list, o)
		}
		for _, f := range list {
			texts = append(texts, f.Message)
		}
		for _, text := range texts {
			if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
				t.Error(text)
			}
		}
	})
}

// No file of chrony's makes the reader fail.
func FuzzSettings(f *testing.F) {
	f.Add("server a\nrefclock PHC /dev/ptp0:x refid ABCDE\nconfdir /\ninclude /etc/*\nsourcedir\nrtcsync\ncmdport 99999\n", "-dxf")
	f.Fuzz(func(t *testing.T, text, args string) {
		var s settings
		_ = s.parse(emptyTree{}, "etc/chrony.conf", []byte(text), 0)
		s.arguments(strings.Fields(args))
	})
}

// Clocks as they are when the clock is set, when the node or the agent stands still.
func TestWitness(t *testing.T) {
	const s = time.Second
	at := func(real, mono, boot time.Duration, delayed time.Duration) reading {
		return reading{real, mono, boot, host.Strain{Delayed: delayed}}
	}
	first := at(1000*s, 100*s, 100*s, 0)
	for name, c := range map[string]struct {
		then []reading
		want []string
	}{
		"nothing":               {[]reading{at(1001*s, 101*s, 101*s, 0)}, nil},
		"slewed":                {[]reading{at(1001*s+40*time.Millisecond, 101*s, 101*s, 0)}, nil},
		"set forward":           {[]reading{at(1004*s, 101*s, 101*s, 0)}, []string{"ClockStepped: the clock was set forward by 3s"}},
		"set back":              {[]reading{at(1000*s+800*time.Millisecond, 101*s, 101*s, 0)}, []string{"ClockStepped: the clock was set back by 200ms"}},
		"VM paused":             {[]reading{at(1021*s, 121*s, 121*s, 0)}, []string{"NodeFrozen: the node stood still for 20s"}},
		"starved":               {[]reading{at(1021*s, 121*s, 121*s, 15*s)}, nil},
		"suspended":             {[]reading{at(1031*s, 101*s, 131*s, 0)}, []string{"NodeFrozen: the node stood still for 30s"}},
		"frozen, then set":      {[]reading{at(1021*s, 121*s, 121*s, 0), at(1031*s, 122*s, 122*s, 0)}, []string{"NodeFrozen: the node stood still for 20s"}},
		"set later than frozen": {[]reading{at(1021*s, 121*s, 121*s, 0), at(1082*s, 182*s, 182*s, 60*s), at(1090*s, 183*s, 183*s, 60*s)}, []string{"NodeFrozen: the node stood still for 20s", "ClockStepped: the clock was set forward by 7s"}},
	} {
		t.Run(name, func(t *testing.T) {
			var w witness
			w.hear(first)
			var got []string
			for _, r := range c.then {
				before := w.last.mono
				what, _ := w.hear(r)
				for _, o := range what {
					if o.Reason == ClockStepped && o.Since != before {
						t.Errorf("%s: set since %s, want %s: the reading before", o.Message, o.Since, before)
					}
					got = append(got, o.Reason+": "+o.Message)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// Nobody listened for a minute: that is no freeze, and a clock set in it is told.
func TestWitnessResumes(t *testing.T) {
	t.Parallel()
	const s = time.Second
	for _, c := range []struct {
		real time.Duration // when it listens again, 60 s of boot time later
		want string
	}{
		{1060 * s, ""},
		{1063 * s, "the clock was set forward by 3s"},
	} {
		var w witness
		w.resume(99 * s)
		w.hear(reading{real: 1000 * s, mono: 100 * s, boot: 100 * s})
		w.resume(160 * s)
		what, froze := w.hear(reading{real: c.real, mono: 160 * s, boot: 160 * s})
		var got strings.Builder
		for _, o := range what {
			got.WriteString(o.Message)
		}
		if got.String() != c.want || froze {
			t.Errorf("%q, froze %v, want %q", got.String(), froze, c.want)
		}
	}
}

// For three polls after the node stood still nothing is said of sources and offset.
func TestThaw(t *testing.T) {
	p := &Probe{settings: settings{}, names: map[string]string{}}
	d := parseStandIn(t, "tracking correction=3\nsource 10.240.0.1 reach=0")
	r, err := (&line{dial: to(func() *chronyd { return d })}).ask(t.Context(), "", map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	for since, held := range map[time.Duration]bool{time.Second: true, 14 * time.Second: true, 16 * time.Second: false} {
		p.frozen.Store(int64(clockOf(unix.CLOCK_BOOTTIME) - since))
		var look probes.Look
		p.judge(&unitState, r, &look)
		if got := len(look.Findings) == 0; got != held {
			t.Errorf("%s after: %+v", since, look)
		}
	}
}

// The timer that hears the clock being set works here, and ends.
func TestWatchClockEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
	defer cancel()
	if err := (&Probe{}).watchClock(ctx, deaf{}); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// The kernel answers here, without any right.
func TestReadKernel(t *testing.T) {
	if k, err := readKernel(); err != nil || k.maxError < 0 {
		t.Errorf("%+v %v", k, err)
	}
}

// While chronyd is restarted its last answer stands, and is taken back by the next.
func TestRestart(t *testing.T) {
	text := "tracking correction=0.2\nsource 10.240.0.1"
	p := &Probe{names: map[string]string{}, settings: settings{cmdport: 323}}
	p.line.dial = to(func() *chronyd { return parseStandIn(t, text) })
	look := func(st *unit.State) (l probes.Look) {
		if r, err := p.line.ask(t.Context(), "", p.names); err != nil {
			if err = p.unanswered(st, &l, err); err != nil {
				t.Fatal(err)
			}
		} else {
			p.judge(st, r, &l)
		}
		return l
	}
	down := unit.State{Run: unit.Run{Unit: host.Unit{ActiveState: "inactive"}}}
	fresh := unit.State{Run: unit.Run{Unit: host.Unit{ActiveState: "active"}, Since: time.Second}, Running: true}
	if l := look(&unitState); len(l.Findings) != 1 || l.Findings[0].Reason != ClockOffset {
		t.Fatalf("%+v", l)
	}
	text = "refused"
	for _, st := range []*unit.State{&down, &fresh} {
		if l := look(st); len(l.Findings) != 1 || len(l.NotJudged) != 0 {
			t.Errorf("in a restart: %+v", l)
		}
	}
	text = "source 10.240.0.1"
	if l := look(&fresh); len(l.Findings) != 0 {
		t.Errorf("after it: %+v", l)
	}
	p.answeredAt = time.Time{}
	text = "refused"
	if l := look(&down); len(l.Findings) != 0 || len(l.NotJudged) != len(fromAnswers) {
		t.Errorf("long down: %+v", l)
	}
}
