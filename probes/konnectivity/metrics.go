package konnectivity

import (
	"bytes"
	"errors"
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
	usualLine  = 4 << 10 // and shorter
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
	in := &lines{r: r, buf: make([]byte, usualLine)}
	for {
		line, err := in.next()
		switch {
		case in.read > maxMetrics:
			return t, fmt.Errorf("more than %d bytes of metrics: %w", maxMetrics, host.ErrTooLarge)
		case err == io.EOF && len(line) == 0:
			if !in.metrics {
				return t, errors.New("the answer holds no metrics")
			}
			return t, nil
		case err != nil && err != io.EOF:
			return t, err
		}
		if err := t.take(line, in); err != nil {
			return t, err
		}
	}
}

// take reads one line.
func (t *tally) take(line []byte, in *lines) error {
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

// lines reads lines of at most maxLine.
type lines struct {
	r          io.Reader
	buf        []byte
	begin, end int  // of what was read and not taken
	read       int  // bytes in all
	metrics    bool // something of metrics' form was there
}

// next returns the next line, which is good until the next call; at the end
// [io.EOF] beside what has no line end.
func (l *lines) next() ([]byte, error) {
	for {
		if i := bytes.IndexByte(l.buf[l.begin:l.end], '\n'); i >= 0 {
			line := l.buf[l.begin : l.begin+i]
			l.begin += i + 1
			return line, nil
		}
		l.end = copy(l.buf, l.buf[l.begin:l.end])
		l.begin = 0
		if l.end == len(l.buf) && l.end < maxLine {
			l.buf = append(l.buf, make([]byte, len(l.buf))...)
		}
		if l.end == len(l.buf) {
			return nil, fmt.Errorf("a line of more than %d bytes in the metrics: %w", maxLine, host.ErrTooLarge)
		}
		n, err := l.r.Read(l.buf[l.end:])
		l.end, l.read = l.end+n, l.read+n
		if err != nil && n == 0 {
			rest := l.buf[:l.end]
			l.end = 0
			return rest, err
		}
	}
}
