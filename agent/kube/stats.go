package kube

import (
	"strconv"
	"sync/atomic"
	"time"
)

// Codes are all values of the code label under which requests are counted.
var Codes = []string{"200", "201", "401", "403", "404", "409", "422", "429", "5xx", "other", "error"}

// codeLabel puts a request into one of Codes.
func codeLabel(code int, err error) string {
	switch {
	case code == 0 || code < 300 && err != nil:
		return "error"
	case code >= 500 && code < 600:
		return "5xx"
	}
	switch code {
	case 200, 201, 401, 403, 404, 409, 422, 429:
		return strconv.Itoa(code)
	}
	return "other"
}

// stats are the publisher's counters, for anybody to read.
type stats struct {
	requests map[string]*atomic.Uint64 // complete from the start
	pending  atomic.Bool
	success  atomic.Int64 // Unix nanoseconds; 0: never
	dropped  atomic.Uint64
}

func newStats() *stats {
	s := &stats{requests: make(map[string]*atomic.Uint64, len(Codes))}
	for _, c := range Codes {
		s.requests[c] = new(atomic.Uint64)
	}
	return s
}

func (s *stats) count(code int, err error) {
	s.requests[codeLabel(code, err)].Add(1)
	if err == nil && code < 300 {
		s.success.Store(time.Now().UnixNano())
	}
}

// Requests counts all requests to the API server by result: one of [Codes].
func (p *Publisher) Requests() map[string]uint64 {
	m := make(map[string]uint64, len(p.stats.requests))
	for code, n := range p.stats.requests {
		m[code] = n.Load()
	}
	return m
}

// Pending tells whether the API server has yet to be told something.
func (p *Publisher) Pending() bool { return p.stats.pending.Load() || p.events.waiting() }

// LastSuccess is when a request last succeeded; zero before the first.
func (p *Publisher) LastSuccess() time.Time {
	if t := p.stats.success.Load(); t != 0 {
		return time.Unix(0, t)
	}
	return time.Time{}
}

// DroppedEvents counts Events that were never sent: pushed out of a full queue
// or refused by the API server. Those folded into a summary are not among them.
func (p *Publisher) DroppedEvents() uint64 { return p.stats.dropped.Load() }
