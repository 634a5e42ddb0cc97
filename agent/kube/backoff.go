package kube

import (
	"math/rand/v2"
	"time"
)

// A backoff says how long to wait after failures in a row: 1 s doubling to a
// limit. Below the limit half of the wait is random; at the limit a quarter, so
// that an outage of 10 min costs at most 20 requests (6 while doubling, in at
// least 31 s, then 13 at least 45 s apart) and the truth is told within 60 s of
// its end.
type backoff struct {
	limit time.Duration
	wait  time.Duration // the last one before jitter; 0 after a success
}

// next is the wait after one more failure, and never less than what the server
// asked for.
func (b *backoff) next(retryAfter time.Duration) time.Duration {
	b.wait = min(max(2*b.wait, time.Second), b.limit)
	share := b.wait / 2
	if b.wait == b.limit {
		share = b.wait / 4
	}
	if retryAfter > b.wait-share {
		return retryAfter + upTo(share)
	}
	return b.wait - share + upTo(share)
}

func (b *backoff) reset() { b.wait = 0 }

// A bucket is a token bucket: burst tokens, one more each period. It remembers
// only when it will be full again.
type bucket struct {
	every time.Duration
	burst int
	full  time.Time
}

// at is when there is a token: now, or later.
func (b *bucket) at(now time.Time) time.Time {
	if t := b.full.Add(-time.Duration(b.burst-1) * b.every); t.After(now) {
		return t
	}
	return now
}

func (b *bucket) take(now time.Time) {
	if b.full.Before(now) {
		b.full = now
	}
	b.full = b.full.Add(b.every)
}

// upTo is a random duration below d.
func upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}
