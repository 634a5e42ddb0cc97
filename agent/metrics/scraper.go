package metrics

import (
	"bytes"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// A scraper answers one scrape at a time and keeps what the next will need again. It is
// the [http.ResponseWriter] of promhttp too: the text is sent at once, when it is whole.
// (What is written to net/http piece by piece goes through three buffers, and out in
// pieces.)
type scraper struct {
	text   bytes.Buffer
	to     http.ResponseWriter
	code   int
	table  *table
	m      *Metrics
	encode http.Handler
}

func (m *Metrics) newScraper() *scraper {
	s := &scraper{m: m, table: newTable()}
	s.encode = promhttp.HandlerFor(s, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, DisableCompression: true})
	return s
}

func (s *scraper) serve(w http.ResponseWriter, r *http.Request) {
	s.text.Reset()
	s.to, s.code = w, http.StatusOK
	defer func() { s.to = nil }()
	s.encode.ServeHTTP(s, r)
	w.Header().Set("Content-Length", strconv.Itoa(s.text.Len()))
	w.WriteHeader(s.code)
	_, _ = w.Write(s.text.Bytes()) // the reader may have gone
}

// Gather implements [prometheus.Gatherer]. What it returns stays as it is until the next
// scrape.
func (s *scraper) Gather() ([]*dto.MetricFamily, error) {
	s.table.begin()
	s.m.collect(s.table)
	return s.table.end(), nil
}

// Header implements [http.ResponseWriter].
func (s *scraper) Header() http.Header { return s.to.Header() }

// WriteHeader implements [http.ResponseWriter].
func (s *scraper) WriteHeader(code int) { s.code = code }

// Write implements [http.ResponseWriter]. To what has the three methods below too, the
// text is written without one more buffer.
func (s *scraper) Write(b []byte) (int, error) { return s.text.Write(b) }

// WriteByte implements [io.ByteWriter].
func (s *scraper) WriteByte(c byte) error { return s.text.WriteByte(c) }

// WriteRune writes a letter.
func (s *scraper) WriteRune(r rune) (int, error) { return s.text.WriteRune(r) }

// WriteString implements [io.StringWriter].
func (s *scraper) WriteString(t string) (int, error) { return s.text.WriteString(t) }
