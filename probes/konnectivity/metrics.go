package konnectivity

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/nodedrift/nodedrift/probes/host"
)

const (
	prefix = "konnectivity_network_proxy_agent_"

	// An agent tells about 12 KiB, Go's own numbers included.
	maxMetrics = 1 << 20
	maxLine    = 16 << 10
)

// A tally is what an agent's metrics say (apiserver-network-proxy, pkg/agent/metrics).
// Each is absent in some version: -1 is not told. A counter with labels is absent
// until it has counted.
type tally struct {
	open    float64 // connections to servers
	known   float64 // servers that the agent tries to connect to
	failed  float64 // connections to servers that ended by themselves, by direction the larger
	packets float64 // that servers sent
}

// counts are those that belong to a tally.
func counts() tally { return tally{-1, -1, 0, 0} }

// parseMetrics reads the text format of Prometheus, as much of it as matters here,
// line by line. A text that is none, or longer than 1 MiB, is an error.
func parseMetrics(r io.Reader) (tally, error) {
	t := counts()
	buf := make([]byte, 0, maxLine)
	in := &countedReader{r: r}
	for {
		line, rest, err := nextLine(in, buf)
		switch {
		case in.n > maxMetrics:
			return t, fmt.Errorf("more than %d bytes of metrics: %w", maxMetrics, host.ErrTooLarge)
		case err == io.EOF && len(line) == 0:
			if !in.metrics {
				return t, fmt.Errorf("the answer holds no metrics")
			}
			return t, nil
		case err != nil && err != io.EOF:
			return t, err
		}
		if err := t.take(line, in); err != nil {
			return t, err
		}
		buf = rest
	}
}

// take reads one line.
func (t *tally) take(line []byte, in *countedReader) error {
	line = bytes.TrimRight(line, "\r")
	if len(line) == 0 {
		return nil
	}
	if line[0] == '#' {
		in.metrics = true
		return nil
	}
	name := line
	if i := bytes.IndexAny(line, "{ \t"); i > 0 {
		name = line[:i]
	}
	short, ours := bytes.CutPrefix(name, []byte(prefix))
	if !ours {
		// Somebody else's page has words here, a metric has a name and a number.
		if i := bytes.LastIndexByte(line, ' '); i <= 0 || !validName(name) {
			return fmt.Errorf("the answer holds no metrics: %.40q", line)
		}
		return nil
	}
	in.metrics = true
	value, ok := valueOf(line[len(name):])
	if !ok {
		return fmt.Errorf("the agent's metrics have the line %.80q", line)
	}
	labels := string(line[len(name):])
	switch string(short) {
	case "open_server_connections":
		t.open = value
	case "known_server_count":
		t.known = value
	case "server_connection_failure_count":
		t.failed = max(t.failed, value)
	case "stream_packets_total":
		if strings.Contains(labels, `segment="to_agent"`) {
			t.packets += value
		}
	}
	return nil
}

func validName(name []byte) bool {
	for _, c := range name {
		if c != '_' && c != ':' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return len(name) > 0
}

// valueOf reads what stands behind a metric's name: labels, a number that is
// counted in whole and not below zero, and perhaps a time.
func valueOf(rest []byte) (float64, bool) {
	if len(rest) > 0 && rest[0] == '{' {
		i := bytes.LastIndexByte(rest, '}')
		if i < 0 {
			return 0, false
		}
		rest = rest[i+1:]
	}
	text, _, _ := bytes.Cut(bytes.TrimSpace(rest), []byte(" "))
	v, err := strconv.ParseFloat(string(text), 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		return 0, false
	}
	return v, true
}

// countedReader counts what is read.
type countedReader struct {
	r       io.Reader
	n       int
	metrics bool // something of metrics' form was there
}

func (c *countedReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

// nextLine returns the next line of what was read into buf before and of r, and what
// is left behind it, in the same memory. At the end it is an [io.EOF] beside the
// last line.
func nextLine(r io.Reader, buf []byte) (line, rest []byte, err error) {
	for {
		if i := bytes.IndexByte(buf, '\n'); i >= 0 {
			return buf[:i], buf[i+1:], nil
		}
		if len(buf) >= maxLine {
			return nil, nil, fmt.Errorf("a line of more than %d bytes in the metrics: %w", maxLine, host.ErrTooLarge)
		}
		if cap(buf) < maxLine { // lines before it were taken from its beginning
			buf = append(make([]byte, 0, 2*maxLine), buf...)
		}
		n, err := r.Read(buf[len(buf):min(cap(buf), len(buf)+maxLine)])
		buf = buf[:len(buf)+n]
		if err != nil && (n == 0 || err != io.EOF) {
			return buf, nil, err
		}
	}
}
