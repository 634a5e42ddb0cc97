package kubelet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

const (
	// healthDeadline is how long one answer may take. It takes well under 1 ms; a
	// starved node needs more, and then the hold's second look.
	healthDeadline = 400 * time.Millisecond
	// startTime is how long kubelet may take until it opens its health port: it first
	// asks for a certificate.
	startTime = time.Minute
	// loopEach is how often the sync loop's own health is asked for.
	loopEach = 10 * time.Second

	maxAnswer = 4 << 10
)

// health asks kubelet's health port (k8s.io/kubernetes cmd/kubelet/app/server.go:
// no credential, loopback) over one kept connection, and follows nothing.
type health struct {
	root tree
	conn net.Conn
	in   *bufio.Reader
	at   string // what conn is connected to

	given string // the address as it is configured
	url   *url.URL

	took   time.Duration // of the last answer
	asked  time.Time     // when the sync loop was asked for last
	loop   []probes.Finding
	noLoop bool // there is no such question here
}

// look returns what the health port says.
func (h *health) look(ctx context.Context, address, name string, st *unit.State) (found []probes.Finding, notJudged []string) {
	h.took = 0
	if h.url == nil || h.given != address {
		h.given, h.url = address, parseAddress(address)
	}
	at := h.url
	if at == nil {
		why := "kubelet's health port is turned off"
		if address != "" {
			why = "probes.kubelet.healthz is no address such as http://127.0.0.1:10248/healthz"
		}
		return nil, []string{Unhealthy + ": " + why, Hung + ": " + why}
	}
	began := time.Now()
	status, body, err := h.get(ctx, at.Host, at.Path+"?verbose")
	switch {
	case err == nil && status == http.StatusOK:
		h.took = max(time.Since(began), time.Nanosecond)
		return h.syncLoop(ctx, at, name), nil
	case err == nil:
		return []probes.Finding{{Reason: Unhealthy, Subject: name, Message: fmt.Sprintf("%s says that it is not healthy: %s", name, failed(status, body)), Source: address}}, nil
	case errors.Is(err, syscall.ECONNREFUSED):
		hold := max(startTime-st.Since, holdHealth)
		return []probes.Finding{{Reason: Unhealthy, Subject: name, Message: name + " runs and refuses connections to its health port", Source: address, Hold: hold}}, nil
	case errors.Is(err, context.DeadlineExceeded) || isTimeout(err):
		text := name + " takes connections and does not answer"
		if stopped(st) {
			text = name + " does not answer: it is stopped by a signal (SIGSTOP)"
		}
		return []probes.Finding{{Reason: Hung, Subject: name, Message: text, Source: address}}, nil
	}
	return nil, []string{Unhealthy + ": ask for its health: " + err.Error(), Hung + ": ask for its health: " + err.Error()}
}

// parseAddress reads an address such as http://127.0.0.1:10248/healthz; nil is none.
func parseAddress(text string) *url.URL {
	at, err := url.Parse(text)
	if err != nil || at.Scheme != "http" || at.Port() == "" {
		return nil
	}
	return at
}

// syncLoop asks for the sync loop's own health, where kubelet tells it on this port.
func (h *health) syncLoop(ctx context.Context, at *url.URL, name string) []probes.Finding {
	if h.noLoop || !h.asked.IsZero() && time.Since(h.asked) < loopEach && time.Since(h.asked) >= 0 {
		return h.loop
	}
	h.asked, h.loop = time.Now(), nil
	status, _, err := h.get(ctx, at.Host, strings.TrimSuffix(at.Path, "/")+"/syncloop")
	switch {
	case err != nil || status == http.StatusNotFound:
		h.noLoop = err == nil
	case status != http.StatusOK:
		h.loop = []probes.Finding{{Reason: SyncLoopStuck, Subject: name, Message: name + " says that its sync loop takes too long"}}
	}
	return h.loop
}

// stopped tells whether all of kubelet's threads are stopped.
func stopped(st *unit.State) bool {
	if st.Main == nil {
		return false
	}
	list, err := st.Main.Threads()
	return err == nil && len(list) > 0 && (list[0].State == 'T' || list[0].State == 't')
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// failed names the checks that failed, by a verbose answer: "[-]syncloop failed: …".
func failed(status int, body string) string {
	var names []string
	for line := range strings.Lines(body) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "[-]"); ok {
			name, _, _ = strings.Cut(name, " ")
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return fmt.Sprintf("status %d", status)
	}
	return strings.Join(names[:min(len(names), 4)], ", ") + " failed"
}

// get asks over the kept connection; when that has ended, over a new one.
func (h *health) get(ctx context.Context, address, path string) (status int, body string, err error) {
	deadline := time.Now().Add(healthDeadline)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if h.conn != nil && h.at == address {
		if status, body, err = h.ask(deadline, path); err == nil || isTimeout(err) {
			return status, body, err
		}
	}
	h.close()
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if h.conn, err = host.DialTCP(ctx, h.root, address); err != nil {
		h.conn = nil
		return 0, "", err
	}
	h.at, h.in = address, bufio.NewReaderSize(h.conn, maxAnswer)
	return h.ask(deadline, path)
}

func (h *health) close() {
	if h.conn != nil {
		h.conn.Close()
	}
	h.conn = nil
}

func (h *health) ask(deadline time.Time, path string) (status int, body string, err error) {
	whole := false
	defer func() {
		if !whole {
			h.close()
		}
	}()
	h.conn.SetDeadline(deadline)
	if _, err := io.WriteString(h.conn, "GET "+path+" HTTP/1.1\r\nHost: "+h.at+"\r\nUser-Agent: nodedrift\r\n\r\n"); err != nil {
		return 0, "", err
	}
	answer, err := http.ReadResponse(h.in, nil)
	if err != nil {
		return 0, "", err
	}
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return 0, "", err
	}
	whole = len(b) < maxAnswer && !answer.Close && h.in.Buffered() == 0
	return answer.StatusCode, string(b), nil
}
