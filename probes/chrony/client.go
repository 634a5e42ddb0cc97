package chrony

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	wire "github.com/facebook/time/ntp/chrony"
)

// A dialer makes a connected socket to chronyd.
type dialer func(ctx context.Context, address string) (net.Conn, error)

// dialUDP connects, so that only chronyd's own port is heard.
func dialUDP(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "udp", address)
}

const (
	answerWithin = 400 * time.Millisecond // of all questions; a look has a second, of which systemd may take as much
	maxSources   = 64                     // more are not asked for
)

// A report is what chronyd says of itself in one look.
type report struct {
	wire.Tracking
	sources []source
}

// A source is one of chronyd's.
type source struct {
	wire.SourceData
	name  string // an address, or the name of a reference clock
	given string // the name that the files gave it; "" is not known
}

// polling is the time between two samples.
func (s *source) polling() time.Duration {
	return time.Duration(math.Exp2(float64(min(max(s.Poll, 0), 17))) * float64(time.Second))
}

// ask asks chronyd for its state and its sources. The connection is of this look
// only: a late answer finds nobody.
//
// names are the names of sources by address, as far as they are known; what
// chronyd tells is added.
func ask(ctx context.Context, dial dialer, address string, names map[string]string) (*report, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	// A sequence number of its own for each look, as chronyc does.
	line := &exchange{conn: conn}
	client := &wire.Client{Connection: line, Sequence: uint32(time.Now().UnixNano())}
	var r report
	t, err := communicate[*wire.ReplyTracking](client, wire.NewTrackingPacket())
	if err != nil {
		return nil, fmt.Errorf("tracking: %w", err)
	}
	r.Tracking = t.Tracking
	if err := sane(&r.Tracking); err != nil {
		return nil, fmt.Errorf("tracking: %w", err)
	}
	n, err := communicate[*wire.ReplySources](client, wire.NewSourcesPacket())
	if err != nil {
		return nil, fmt.Errorf("sources: %w", err)
	}
	if n.NSources < 0 || n.NSources > maxSources {
		return nil, fmt.Errorf("%d sources", n.NSources)
	}
	for i := range n.NSources {
		s, err := communicate[*wire.ReplySourceData](client, wire.NewSourceDataPacket(int32(i)))
		if err != nil {
			return nil, fmt.Errorf("source %d: %w", i, err)
		}
		if !finite(s.LatestMeas, s.LatestMeasErr, s.OrigLatestMeas) || s.IPAddr == nil {
			return nil, fmt.Errorf("source %d: numbers that are none", i)
		}
		src := source{SourceData: s.SourceData, name: nameOf(&s.SourceData)}
		if src.Mode != wire.SourceModeRef {
			if src.given, err = givenName(client, line, &src, names); err != nil {
				return nil, fmt.Errorf("name of source %d: %w", i, err)
			}
		}
		r.sources = append(r.sources, src)
	}
	return &r, nil
}

// givenName asks for the name that a source has in the files. A chronyd older than
// 4.0 does not tell it.
func givenName(client *wire.Client, line *exchange, s *source, names map[string]string) (string, error) {
	if name, ok := names[s.name]; ok {
		return name, nil
	}
	r, err := communicate[*wire.ReplyNTPSourceName](client, wire.NewNTPSourceNamePacket(s.IPAddr))
	switch {
	case err == nil:
		names[s.name] = r.Name
	case line.status != 0:
		names[s.name] = ""
	default:
		return "", err
	}
	return names[s.name], nil
}

// communicate asks one question, and takes only its own kind of answer.
func communicate[T wire.ResponsePacket](c *wire.Client, q wire.RequestPacket) (T, error) {
	var none T
	r, err := c.Communicate(q)
	if err != nil {
		return none, err
	}
	t, ok := r.(T)
	if !ok {
		return none, fmt.Errorf("an answer of kind %d: %w", r.GetType(), errMalformed)
	}
	return t, nil
}

var errMalformed = errors.New("a malformed answer")

// exchange checks what the library does not: that an answer is one, to this very
// question, and whole (candm.h of chrony).
type exchange struct {
	conn     net.Conn
	command  uint16
	sequence uint32
	status   uint16 // of the last answer that was one
}

// Write sends a question and remembers what makes it unlike others.
func (e *exchange) Write(b []byte) (int, error) {
	if len(b) < 20 {
		return 0, errMalformed
	}
	e.status = 0
	e.command, e.sequence = binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint32(b[8:])
	return e.conn.Write(b)
}

// headLength is the length of a reply without its data; a longer one is of a kind
// that has this many bytes of data: sources, source data, tracking, source name.
const headLength = 28

var lengths = map[uint16]int{2: headLength + 4, 3: headLength + 48, 5: headLength + 76, 19: headLength + 256}

// Read takes one datagram.
func (e *exchange) Read(b []byte) (int, error) {
	n, err := e.conn.Read(b)
	if err != nil {
		return 0, err
	}
	if err := e.check(b[:n]); err != nil {
		return 0, err
	}
	return n, nil
}

func (e *exchange) check(b []byte) error {
	switch {
	case len(b) < headLength:
		return fmt.Errorf("%d bytes: %w", len(b), errMalformed)
	case b[0] != 6 || b[1] != 2:
		return fmt.Errorf("version %d, kind %d: %w", b[0], b[1], errMalformed)
	case binary.BigEndian.Uint16(b[4:]) != e.command:
		return fmt.Errorf("to another question: %w", errMalformed)
	case binary.BigEndian.Uint32(b[16:]) != e.sequence:
		return fmt.Errorf("another sequence number: %w", errMalformed)
	}
	e.status = binary.BigEndian.Uint16(b[8:])
	want, ok := lengths[binary.BigEndian.Uint16(b[6:])]
	if e.status == 0 && ok && len(b) != want {
		return fmt.Errorf("%d bytes, want %d: %w", len(b), want, errMalformed)
	}
	return nil
}

// sane refuses numbers that no clock has. The format has no NaN and no infinity,
// but a reply can be anything.
func sane(t *wire.Tracking) error {
	switch {
	case !finite(t.CurrentCorrection, t.LastOffset, t.RMSOffset, t.FreqPPM, t.ResidFreqPPM, t.SkewPPM, t.RootDelay, t.RootDispersion, t.LastUpdateInterval):
		return fmt.Errorf("numbers that are none: %w", errMalformed)
	case t.LeapStatus > 3:
		return fmt.Errorf("leap status %d: %w", t.LeapStatus, errMalformed)
	case t.Stratum > 16:
		return fmt.Errorf("stratum %d: %w", t.Stratum, errMalformed)
	case t.RMSOffset < 0 || t.SkewPPM < 0 || t.RootDispersion < 0 || t.LastUpdateInterval < 0:
		return fmt.Errorf("a negative age or error: %w", errMalformed)
	}
	return nil
}

func finite(all ...float64) bool {
	for _, f := range all {
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return false
		}
	}
	return true
}

// nameOf is a source as people know it: its address, or a reference clock's name.
func nameOf(s *wire.SourceData) string {
	if s.Mode != wire.SourceModeRef {
		return s.IPAddr.String()
	}
	id := uint32(s.IPAddr.IP[0])<<24 | uint32(s.IPAddr.IP[1])<<16 | uint32(s.IPAddr.IP[2])<<8 | uint32(s.IPAddr.IP[3])
	return wire.RefidToString(id)
}
