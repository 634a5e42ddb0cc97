package probetest

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"
)

// A web is the recorded TCP services of a node: by address, what they answer.
type web struct {
	pages map[string]page            // "127.0.0.1:10248/healthz"
	certs map[string]tls.Certificate // by address: a service that speaks TLS

	mu    sync.Mutex
	conns []net.Conn
}

// A page is one recorded answer.
type page struct {
	status int // 0: none, for ever
	body   string
}

// take reads an http/ADDRESS/PATH entry, a status and the body, or "hangs"; or a
// tls/ADDRESS entry, a certificate and its key.
func (w *web) take(top, rest string, f txtar.File) (err error) {
	if w.pages == nil {
		w.pages, w.certs = map[string]page{}, map[string]tls.Certificate{}
	}
	address, _, isPage := strings.Cut(rest, "/")
	if _, _, err := net.SplitHostPort(address); err != nil || isPage == (top == "tls") {
		return errors.New("want http/ADDRESS:PORT/PATH or tls/ADDRESS:PORT")
	}
	if top == "tls" {
		w.certs[address], err = tls.X509KeyPair(f.Data, f.Data)
		return err
	}
	first, body, _ := strings.Cut(string(f.Data), "\n")
	if strings.TrimSpace(first) == "hangs" {
		w.pages[rest] = page{}
		return nil
	}
	status, err := strconv.Atoi(strings.TrimSpace(first))
	w.pages[rest] = page{status, body}
	return err
}

// serves tells whether anybody listens on an address.
func (w *web) serves(address string) bool {
	for name := range w.pages {
		if strings.HasPrefix(name, address+"/") {
			return true
		}
	}
	_, ok := w.certs[address]
	return ok
}

// dial connects to a recorded service: there, no time passes but what it takes
// itself.
func (w *web) dial(_ context.Context, address string) (net.Conn, error) {
	if !w.serves(address) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: unix.ECONNREFUSED}
	}
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.conns = append(w.conns, theirs)
	w.mu.Unlock()
	if cert, ok := w.certs[address]; ok {
		go func() {
			defer theirs.Close()
			link := tls.Server(theirs, &tls.Config{Certificates: []tls.Certificate{cert}})
			if link.Handshake() == nil {
				w.answer(link, ours, address)
			}
		}()
		return ours, nil
	}
	go w.answer(theirs, ours, address)
	return ours, nil
}

// pair is two ends of a connection. A pipe does not do: in a handshake that fails both
// ends write, and neither reads.
func pair() (ours, theirs net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		ends[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return ends[0], ends[1], nil
}

func (w *web) answer(conn, asker net.Conn, address string) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		p, ok := w.pages[address+r.URL.Path]
		switch {
		case !ok:
			p = page{http.StatusNotFound, "404 page not found\n"}
		case p.status == 0:
			// The asker's patience ends at once: in a bubble with real sockets no time passes.
			asker.SetReadDeadline(time.Unix(1, 0))
			in.ReadByte()
			return
		}
		if _, err := fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s",
			p.status, http.StatusText(p.status), len(p.body), p.body); err != nil {
			return
		}
	}
}

// close ends all connections.
func (w *web) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

// DialTCP connects to the recorded services.
func (f *faulty) DialTCP(ctx context.Context, address string) (net.Conn, error) {
	return f.tcp.dial(ctx, address)
}

// Locked asks for a file's lock.
func (f *faulty) Locked(name string) (bool, error) { return lockedBy(f.Files, name) }

// DialTCP notes nothing: an address is no path.
func (r *recorder) DialTCP(ctx context.Context, address string) (net.Conn, error) {
	if d, ok := r.Files.(interface {
		DialTCP(context.Context, string) (net.Conn, error)
	}); ok {
		return d.DialTCP(ctx, address)
	}
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: unix.ECONNREFUSED}
}

func (r *recorder) Locked(name string) (bool, error) { return lockedBy(r.Files, name) }

func lockedBy(files any, name string) (bool, error) {
	if l, ok := files.(interface {
		Locked(name string) (bool, error)
	}); ok {
		return l.Locked(name)
	}
	return false, errors.ErrUnsupported
}
