package chrony

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	wire "github.com/facebook/time/ntp/chrony"
)

// A line is a socket to chronyd that is kept from look to look, and the questions that
// were put over it and are under way. One that a question stayed unanswered on, or that
// failed, is not used again.
type line struct {
	dial dialer

	conn    net.Conn // nil: none
	address string   // what conn is connected to
	first   uint32   // sequence number of the first question over conn
	base    uint32   // and of asked[0]

	sources int // as many as chronyd had last
	asked   []*question
	spare   []*question // of earlier looks
	failed  error       // of what could not be put
	buf     [1024]byte
}

// A question is one, and what came of it.
type question struct {
	command      uint16
	answered     bool
	kind, status uint16
	data         []byte
}

var errMalformed = errors.New("a malformed answer")

// Requests, and the replies to them (candm.h of chrony, whose protocol has version 6).
const (
	protocol  = 6
	isRequest = 1
	isReply   = 2

	requestSources    = 14
	requestSourceData = 15
	requestTracking   = 33
	requestName       = 65

	replySources    = 2
	replySourceData = 3
	replyTracking   = 5
	replyName       = 19

	// What is before the data.
	requestHead = 20
	replyHead   = 28
	// requestLength is that of any request here: chronyd takes none that is shorter than
	// its answer, which a question with somebody else's address would be sent to.
	requestLength = requestHead + 404
)

// lengths of the data, by the kind of reply.
var lengths = map[uint16]int{replySources: 4, replySourceData: 48, replyTracking: 76, replyName: 256}

// open makes the line ready for questions that are to be answered by a time.
func (l *line) open(ctx context.Context, address string, deadline time.Time) error {
	l.spare, l.asked, l.failed = append(l.spare, l.asked...), l.asked[:0], nil
	if l.conn != nil && l.address != address {
		l.close()
	}
	if l.conn == nil {
		conn, err := l.dial(ctx, address)
		if err != nil {
			return err
		}
		// Numbers of its own for each socket, as chronyc has.
		l.conn, l.address, l.first = conn, address, uint32(time.Now().UnixNano())
		l.base = l.first
	}
	if err := l.conn.SetDeadline(deadline); err != nil {
		l.close()
		return err
	}
	return nil
}

// rest keeps the line for the next look, unless it failed.
func (l *line) rest(err error) {
	if err != nil {
		l.close()
	}
	l.base += uint32(len(l.asked))
}

func (l *line) close() {
	if l.conn != nil {
		l.conn.Close()
	}
	l.conn = nil
}

// put sends a question.
func (l *line) put(command uint16, data []byte) *question {
	q := &question{}
	if n := len(l.spare); n > 0 {
		q, l.spare = l.spare[n-1], l.spare[:n-1]
	}
	*q = question{command: command, data: q.data[:0]}
	b := l.buf[:requestLength]
	clear(b)
	b[0], b[1] = protocol, isRequest
	binary.BigEndian.PutUint16(b[4:], command)
	binary.BigEndian.PutUint32(b[8:], l.base+uint32(len(l.asked)))
	copy(b[requestHead:], data)
	l.asked = append(l.asked, q)
	if l.failed == nil {
		_, l.failed = l.conn.Write(b)
	}
	return q
}

// putSource asks for a source.
func (l *line) putSource(i int) {
	var index [4]byte
	binary.BigEndian.PutUint32(index[:], uint32(i))
	l.put(requestSourceData, index[:])
}

// await waits for the answers to all questions.
func (l *line) await() error {
	if l.failed != nil {
		return l.failed
	}
	for slices.ContainsFunc(l.asked, func(q *question) bool { return !q.answered }) {
		n, err := l.conn.Read(l.buf[:])
		if err != nil {
			return err
		}
		if err := l.take(l.buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// take takes one datagram: an answer to one of the questions, and whole. One to a
// question of an earlier look, or that came before, is nobody's.
func (l *line) take(b []byte) error {
	switch {
	case len(b) < replyHead:
		return fmt.Errorf("%d bytes: %w", len(b), errMalformed)
	case b[0] != protocol || b[1] != isReply:
		return fmt.Errorf("version %d, kind %d: %w", b[0], b[1], errMalformed)
	}
	number := binary.BigEndian.Uint32(b[16:])
	i := number - l.base
	switch {
	case number-l.first < l.base-l.first:
		return nil
	case i >= uint32(len(l.asked)):
		return fmt.Errorf("another sequence number: %w", errMalformed)
	}
	q := l.asked[i]
	if q.answered {
		return nil
	}
	if binary.BigEndian.Uint16(b[4:]) != q.command {
		return fmt.Errorf("to another question: %w", errMalformed)
	}
	q.kind, q.status = binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint16(b[8:])
	want, ok := lengths[q.kind]
	if q.status == 0 && ok && len(b) != replyHead+want {
		return fmt.Errorf("%d bytes, want %d: %w", len(b), replyHead+want, errMalformed)
	}
	q.data, q.answered = append(q.data, b[replyHead:]...), true
	return nil
}

// answer is the data of a good answer of a kind, which are as long as they have to be.
func (q *question) answer(kind uint16) ([]byte, error) {
	switch {
	case q.status != 0:
		return nil, fmt.Errorf("chronyd answers with status %s (%d)", wire.ResponseStatusType(q.status), q.status)
	case q.kind != kind:
		return nil, fmt.Errorf("an answer of kind %d: %w", q.kind, errMalformed)
	}
	return q.data, nil
}
