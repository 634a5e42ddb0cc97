package web

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// limit returns a listener that keeps at most n connections: a new one closes
// the one that has been in its state the longest. So a thousand slow callers
// cost no memory and, as an honest request takes milliseconds, keep nobody out.
func limit(l net.Listener, n int) *limited {
	return &limited{Listener: l, max: n, open: map[*conn]time.Time{}}
}

type limited struct {
	net.Listener
	max int

	mu   sync.Mutex
	open map[*conn]time.Time // since when each is in its state
}

func (l *limited) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	mine := &conn{Conn: c, l: l}
	if old := l.admit(mine); old != nil {
		_ = old.Close()
	}
	return mine, nil
}

// admit takes in a connection and returns the one that has to go, if any.
func (l *limited) admit(c *conn) (old *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= l.max {
		for o, since := range l.open {
			if old == nil || since.Before(l.open[old]) {
				old = o
			}
		}
		delete(l.open, old)
	}
	l.open[c] = time.Now()
	return old
}

// changed is the server's ConnState hook.
func (l *limited) changed(nc net.Conn, _ http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := nc.(*conn); ok {
		if _, ok := l.open[c]; ok {
			l.open[c] = time.Now()
		}
	}
}

type conn struct {
	net.Conn
	l *limited
}

func (c *conn) Close() error {
	c.l.mu.Lock()
	delete(c.l.open, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}
