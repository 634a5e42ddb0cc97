// Package web serves what the agent knows over HTTP: metrics and health to the
// node's network, the page and the document to the node itself. It only answers
// GET and HEAD, and has no way to change anything.
package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/nodedrift/nodedrift/agent"
)

// Limits on what a caller may cost. A connection costs about 20 kB.
const (
	maxConns      = 32      // open at a time, on each address
	maxHeader     = 8 << 10 // bytes; net/http adds 4 KiB of slack
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 15 * time.Second
	idleTimeout   = 75 * time.Second // longer than a scrape interval
	graceful      = 2 * time.Second  // for requests under way when the agent ends
)

// Config is what a [Server] is made of. Source is needed.
type Config struct {
	// Listen are the addresses to serve on: "127.0.0.1:20258". On a loopback
	// address everything is served, on any other only metrics and health. Empty:
	// nothing is served.
	Listen []string
	// Everywhere serves the page and the document on every address.
	Everywhere bool

	Source  func() agent.Snapshot
	Metrics http.Handler // nil: none
	Self    func() any   // nil: none; what there is to tell of this process, as JSON
	Alive   func() error // nil: always; fails when a loop has stopped turning
	Ready   func() error // nil: always; fails before the first full pass
	Version string       // of this program, for the page
	Log     *slog.Logger // nil: silence
}

// Server serves on all its addresses.
type Server struct {
	cfg       Config
	listeners []*limited
}

// New opens all addresses, so that one that is taken is an error at start.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg}
	opener := net.ListenConfig{KeepAlive: -1} // the timeouts end what is dead; keep-alives are four system calls for each connection
	for _, addr := range cfg.Listen {
		l, err := opener.Listen(context.Background(), "tcp", addr)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("serve on %s: %w", addr, err)
		}
		s.listeners = append(s.listeners, limit(l, maxConns))
	}
	return s, nil
}

// Addrs are the addresses served on, in the order of Config.Listen.
func (s *Server) Addrs() []net.Addr {
	addrs := make([]net.Addr, len(s.listeners))
	for i, l := range s.listeners {
		addrs[i] = l.Addr()
	}
	return addrs
}

func (s *Server) close() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
}

// Run serves until ctx ends, then gives requests under way 2 s and returns nil.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make([]error, len(s.listeners))
	var serving sync.WaitGroup
	for i, l := range s.listeners {
		srv := s.server(s.cfg.Everywhere || loopback(l.Addr()))
		srv.ConnState = l.changed
		serving.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed[i] = fmt.Errorf("serve on %s: %w", l.Addr(), err)
				cancel()
			}
		})
		serving.Go(func() {
			<-ctx.Done()
			end, done := context.WithTimeout(context.WithoutCancel(ctx), graceful)
			defer done()
			if srv.Shutdown(end) != nil {
				_ = srv.Close()
			}
		})
	}
	<-ctx.Done()
	serving.Wait()
	return errors.Join(failed...)
}

func (s *Server) server(everything bool) *http.Server {
	srv := &http.Server{Handler: s.Handler(everything), ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)}
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	return srv
}

// Handler serves metrics and health and, where everything is asked for, the page
// and the document.
func (s *Server) Handler(everything bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", health(s.cfg.Alive))
	mux.HandleFunc("/readyz", health(s.cfg.Ready))
	if s.cfg.Metrics != nil {
		mux.Handle("/metrics", s.cfg.Metrics)
	}
	if everything {
		mux.HandleFunc("/{$}", s.page)
		mux.HandleFunc("/api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
			d := s.cfg.Source().Document
			s.document(w, &d)
		})
		if s.cfg.Self != nil {
			mux.HandleFunc("/api/v1/self", func(w http.ResponseWriter, _ *http.Request) { s.document(w, s.cfg.Self()) })
		}
	}
	return guard(mux)
}

// guard lets only reading through, without a body, and forbids browsers
// everything that the page does not need.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		r.Body = http.NoBody
		next.ServeHTTP(w, r)
	})
}

// health answers 200, or 503 and what is wrong.
func health(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if check != nil {
			if err := check(); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprintln(w, err)
				return
			}
		}
		fmt.Fprintln(w, "ok")
	}
}

// document serves d as JSON.
func (s *Server) document(w http.ResponseWriter, d any) {
	b, err := json.Marshal(d)
	if err != nil {
		s.cfg.Log.Error("encode the document", "error", err)
		http.Error(w, "the document cannot be encoded", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // the reader may have gone
}

// loopback tells whether an address can be reached from this node only.
func loopback(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}
