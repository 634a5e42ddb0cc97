package chrony

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/facebook/time/ntp/chrony"

	"github.com/nodedrift/nodedrift/probes/host"
)

// counting counts the sockets that a line makes.
func counting(dials *atomic.Int32) dialer {
	return func(ctx context.Context, address string) (net.Conn, error) {
		dials.Add(1)
		return host.DialUDP(ctx, address)
	}
}

// One socket serves all looks, and follows chronyd's sources as they come and go.
func TestLineKept(t *testing.T) {
	t.Parallel()
	var d atomic.Pointer[chronyd]
	d.Store(&chronyd{})
	at := serve(t, func(q []byte) [][]byte { return [][]byte{d.Load().answer(q)} })
	var dials atomic.Int32
	l := line{dial: counting(&dials)}
	defer l.close()
	names := map[string]string{}
	all := strings.SplitAfter("source 10.0.0.1 name=a\nsource 10.0.0.2 name=b\nsource PHC0 mode=2\nsource 10.0.0.3\n", "\n")
	for _, n := range []int{0, 1, 4, 4, 2, 0, 3} {
		d.Store(parseStandIn(t, strings.Join(all[:n], "")))
		r, err := l.ask(t.Context(), at, names)
		if err != nil || len(r.sources) != n {
			t.Fatalf("%d sources: %+v %v", n, r, err)
		}
		for i, want := range []string{"10.0.0.1 a", "10.0.0.2 b", "PHC0 ", "10.0.0.3 10.0.0.3"}[:n] {
			if got := r.sources[i].name + " " + r.sources[i].given; got != want {
				t.Errorf("source %d of %d is %q, want %q", i, n, got, want)
			}
		}
	}
	if dials.Load() != 1 {
		t.Errorf("%d sockets, want one", dials.Load())
	}
}

// Answers that come twice, and those of an earlier look, are nobody's.
func TestLineLateAnswers(t *testing.T) {
	t.Parallel()
	d := recorded(t)
	var before [][]byte
	at := serve(t, func(q []byte) [][]byte {
		a := d.answer(q)
		again := append(slices.Clone(before), a, a)
		before = append(before, a)
		return again
	})
	var dials atomic.Int32
	l := line{dial: counting(&dials)}
	defer l.close()
	for range 4 {
		if r, err := l.ask(t.Context(), at, map[string]string{}); err != nil || r.Stratum != 4 || len(r.sources) != 1 {
			t.Fatalf("%+v %v", r, err)
		}
	}
	if dials.Load() != 1 {
		t.Errorf("%d sockets, want one", dials.Load())
	}
}

// What chronyd answers when it wakes finds nobody: who asks again does it over another socket.
func TestLineSilence(t *testing.T) {
	t.Parallel()
	now, old := recorded(t), parseStandIn(t, "tracking stratum=9\nsource 10.0.0.9")
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var silent atomic.Bool
	go func() {
		late := []func(){}
		for b := make([]byte, 2048); ; {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			q := slices.Clone(b[:n])
			if silent.Load() {
				late = append(late, func() { c.WriteTo(old.answer(q), from) })
				continue
			}
			for _, answer := range late {
				answer()
			}
			c.WriteTo(now.answer(q), from)
		}
	}()
	l := line{dial: host.DialUDP}
	defer l.close()
	for _, hung := range []bool{false, true, false, false} {
		silent.Store(hung)
		began := time.Now()
		r, err := l.ask(t.Context(), c.LocalAddr().String(), map[string]string{})
		switch {
		case hung && (!errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > 2*answerWithin):
			t.Errorf("hung: %+v %v after %s", r, err, time.Since(began))
		case !hung && (err != nil || r.Stratum != 4 || r.sources[0].name != "10.240.0.1"):
			t.Errorf("%+v %v", r, err)
		}
	}
}

// A chronyd that was restarted between two looks is not missed, and one that is not
// there is.
func TestLineRestart(t *testing.T) {
	t.Parallel()
	d := recorded(t)
	first, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := first.LocalAddr().String()
	answer := func(c net.PacketConn) {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(d.answer(slices.Clone(b[:n])), from)
		}
	}
	go answer(first)
	l := line{dial: host.DialUDP}
	defer l.close()
	names := map[string]string{}
	look := func() error {
		_, err := l.ask(t.Context(), at, names)
		return err
	}
	if err := look(); err != nil {
		t.Fatal(err)
	}
	first.Close()
	// Somebody asks while nobody is there, over the very socket that is kept: as a
	// question that was under way when chronyd ended.
	if _, err := l.conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	second, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Skip(err) // taken by another test
	}
	go answer(second)
	if err := look(); err != nil {
		t.Errorf("restarted: %v", err)
	}
	second.Close()
	for range 2 {
		if err := look(); !refused(err) {
			t.Errorf("no chronyd: %v", err)
		}
	}
}

// ofLibrary reads an answer with the library.
type ofLibrary struct{ answer []byte }

func (c ofLibrary) Write(b []byte) (int, error) { return len(b), nil }
func (c ofLibrary) Read(b []byte) (int, error)  { return copy(b, c.answer), nil }

// Answers are read as the library reads them.
func FuzzWire(f *testing.F) {
	f.Add(append(unhex(f, recordedTracking), unhex(f, recordedSource)...), []byte("ntp.example"))
	f.Add(bytes.Repeat([]byte{0xff}, 124), []byte{0})
	f.Add(bytes.Repeat([]byte{0x7f}, 124), []byte{})
	f.Fuzz(func(t *testing.T, b, name []byte) {
		b = append(b, make([]byte, 124)...)
		read := func(kind uint16, data []byte) wire.ResponsePacket {
			r, err := (&wire.Client{Connection: ofLibrary{reply(make([]byte, 24), kind, 0, data)}}).Communicate(wire.NewTrackingPacket())
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		if got, want := parseTracking(b[:76]), read(replyTracking, b[:76]).(*wire.ReplyTracking).Tracking; !reflect.DeepEqual(got, want) {
			t.Errorf("tracking\n%+v, the library\n%+v", got, want)
		}
		got, want := parseSource(b[76:124]), read(replySourceData, b[76:124]).(*wire.ReplySourceData).SourceData
		if !reflect.DeepEqual(got, want) {
			t.Errorf("source\n%+v, the library\n%+v", got, want)
		}
		if !bytes.Equal(addressOf(&got), b[76:96]) {
			t.Errorf("address %x, want %x", addressOf(&got), b[76:96])
		}
		if got, want := parseCount(b[:4]), read(replySources, b[:4]).(*wire.ReplySources).NSources; got != want {
			t.Errorf("%d sources, the library %d", got, want)
		}
		name = append(name, make([]byte, 256)...)[:256]
		if got, want := parseName(name), read(replyName, name).(*wire.ReplyNTPSourceName).Name; got != want {
			t.Errorf("name %q, the library %q", got, want)
		}
	})
}
