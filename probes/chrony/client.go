package chrony

import (
	"context"
	"fmt"
	"math"
	"net"
	"time"

	wire "github.com/facebook/time/ntp/chrony"
)

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

// A dialer makes a connected socket to chronyd, so that only chronyd's own port is heard.
type dialer func(ctx context.Context, address string) (net.Conn, error)

// ask asks chronyd for its state and its sources, over the socket that was kept.
//
// names are the names of sources by address, as far as they are known; what
// chronyd tells is added.
func (l *line) ask(ctx context.Context, address string, names map[string]string) (*report, error) {
	deadline := time.Now().Add(answerWithin)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	kept := l.conn != nil && l.address == address
	r, err := l.report(ctx, address, deadline, names)
	if kept && err != nil && !silent(err) && ctx.Err() == nil {
		// It may be about an older question: that nobody was there, when chronyd was restarted.
		r, err = l.report(ctx, address, deadline, names)
	}
	return r, err
}

// report asks all questions at once, since each wait costs more than a question: as many
// sources as there were last are asked for before chronyd has told how many there are.
func (l *line) report(ctx context.Context, address string, deadline time.Time, names map[string]string) (r *report, err error) {
	if err := l.open(ctx, address, deadline); err != nil {
		return nil, err
	}
	defer func() { l.rest(err) }()
	r = &report{}
	tracking, sources := l.put(requestTracking, nil), l.put(requestSources, nil)
	guess := l.sources
	for i := range guess {
		l.putSource(i)
	}
	if err := l.await(); err != nil {
		return nil, err
	}
	data, err := tracking.answer(replyTracking)
	if err == nil {
		r.Tracking = parseTracking(data)
		err = sane(&r.Tracking)
	}
	if err != nil {
		return nil, fmt.Errorf("tracking: %w", err)
	}
	if data, err = sources.answer(replySources); err != nil {
		return nil, fmt.Errorf("sources: %w", err)
	}
	n := parseCount(data)
	if n > maxSources {
		return nil, fmt.Errorf("%d sources", n)
	}
	for i := guess; i < n; i++ {
		l.putSource(i)
	}
	if err := l.await(); err != nil {
		return nil, err
	}
	r.sources = make([]source, n)
	for i := range r.sources {
		if err := l.source(i, &r.sources[i]); err != nil {
			return nil, fmt.Errorf("source %d: %w", i, err)
		}
	}
	l.sources = n
	return r, l.giveNames(r, names)
}

// source reads the answer to the question for one source.
func (l *line) source(i int, s *source) error {
	data, err := l.asked[2+i].answer(replySourceData)
	if err != nil {
		return err
	}
	s.SourceData = parseSource(data)
	s.name = nameOf(&s.SourceData)
	if !finite(s.LatestMeas, s.LatestMeasErr, s.OrigLatestMeas) {
		return fmt.Errorf("numbers that are none: %w", errMalformed)
	}
	return nil
}

// giveNames asks for the names that sources have in the files. A chronyd older than 4.0
// does not tell them.
func (l *line) giveNames(r *report, names map[string]string) error {
	asked := map[string]*question{}
	for i := range r.sources {
		s := &r.sources[i]
		if _, known := names[s.name]; !known && s.Mode != wire.SourceModeRef {
			asked[s.name] = l.put(requestName, addressOf(&s.SourceData))
		}
	}
	if len(asked) > 0 {
		if err := l.await(); err != nil {
			return err
		}
	}
	for name, q := range asked {
		data, err := q.answer(replyName)
		switch {
		case err == nil:
			names[name] = parseName(data)
		case q.status != 0:
			names[name] = ""
		default:
			return fmt.Errorf("name of %s: %w", name, err)
		}
	}
	for i := range r.sources {
		if s := &r.sources[i]; s.Mode != wire.SourceModeRef {
			s.given = names[s.name]
		}
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
