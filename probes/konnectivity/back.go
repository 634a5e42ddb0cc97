package konnectivity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// Self is how the agent itself is known to the API server. The zero Self is that of an
// agent that runs in no pod.
type Self struct {
	Namespace, Pod string
	// Token reads the credential of the agent's service account, which changes.
	Token func() (string, error)
}

func (s Self) known() bool { return s.Namespace != "" && s.Pod != "" && s.Token != nil }

const (
	// backEach is the least time between two questions while all is well, and backJitter
	// what is added at random: a thousand agents do not ask at once, and none more than
	// once an hour.
	backEach   = time.Hour
	backJitter = 12 * time.Minute
	// After an answer that was no good the question is put again, the first time sooner.
	backAgain = 15 * time.Second
	backThen  = time.Minute
	// backLeast is between two questions that something local suggests.
	backLeast = 5 * time.Second

	// backWithin is longer than the API server takes to give up: 30 s to connect to a kubelet.
	backWithin = 40 * time.Second

	kubeletPort = 10250
)

// A line is the answer to the question for a line of the agent's own log, which goes
// API server, tunnel, this node's kubelet, and back.
type line struct {
	took   time.Duration // 0 unless it came
	id     string        // of what fails; "" when it came
	text   string
	unable string // why nothing can be said
}

// What fails on the way back, told apart by the API server's words.
const (
	noAgent     = "no-agent"
	agentSilent = "agent-silent"
	refused     = "refused"
	unreachable = "unreachable"
	certificate = "certificate"
	other       = "other"
)

// askLine asks for one line of the agent's own log.
func (p *Probe) askLine(ctx context.Context, e *endpoint) (l line) {
	conn, failed := p.connect(ctx, e, &trip{to: e.String(), took: map[string]time.Duration{}})
	if failed != nil {
		return line{unable: "the API server cannot be asked"}
	}
	defer conn.Close()
	if p.token(e) == "" {
		return line{unable: "the agent has no credential to ask with"}
	}
	began := time.Now()
	var status int
	var body string
	path := "/api/v1/namespaces/" + url.PathEscape(p.self.Namespace) + "/pods/" + url.PathEscape(p.self.Pod) + "/log?tailLines=1&limitBytes=256"
	err := exchange(ctx, conn, p.request(e, path), text(&status, &body))
	switch {
	case err != nil && isTimeout(err):
		return line{id: unreachable, text: "the API server gets no answer from it"}
	case err != nil:
		return line{unable: "the API server ends the connection: " + why(err)}
	}
	l = judgeLine(status, body)
	if l.id == "" && l.unable == "" {
		l.took = max(time.Since(began), time.Nanosecond)
	}
	return l
}

// judgeLine reads an answer. The words are those of k8s.io/apiserver, of Go's net and
// x509, and of apiserver-network-proxy's server ("No agent available", "dial timeout,
// backstop").
func judgeLine(status int, body string) line {
	if status == http.StatusOK {
		return line{}
	}
	words := strings.ToLower(messageOf(body))
	has := func(any ...string) bool {
		for _, s := range any {
			if strings.Contains(words, s) {
				return true
			}
		}
		return false
	}
	switch {
	case status < 500 && status != http.StatusBadRequest:
		// The API server itself refuses: 401 and 403 rights, 404 no such pod, 429 too busy.
		return line{unable: fmt.Sprintf("the API server answers with status %d", status)}
	case has("no agent available"):
		return line{id: noAgent, text: "no agent is connected to the API server's end of the tunnel"}
	case has("dial timeout, backstop"):
		return line{id: agentSilent, text: "an agent has the tunnel and does not answer"}
	case has("x509:", "tls: failed to verify", "certificate signed by unknown"):
		return line{id: certificate, text: "it does not accept kubelet's serving certificate"}
	case has("connection refused"):
		return line{id: refused, text: "the connection is refused"}
	case has("i/o timeout", "deadline exceeded", "no route to host", "network is unreachable", "timed out", "handshake timeout"):
		return line{id: unreachable, text: "no answer from kubelet's port"}
	case status == http.StatusBadRequest:
		return line{} // kubelet's own words, such as that a container is waiting to start
	case status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests:
		return line{unable: fmt.Sprintf("the API server answers with status %d", status)}
	}
	return line{id: other, text: fmt.Sprintf("it answers with status %d", status)}
}

// messageOf is the message of a metav1.Status, or what is in its place.
func messageOf(body string) string {
	var s struct {
		Message string `json:"message"`
	}
	if json.Unmarshal([]byte(body), &s) == nil && s.Message != "" {
		return s.Message
	}
	return body
}

// wayBack is what is known of the way back.
type wayBack struct {
	errand[line]

	next     time.Duration // after a good answer, until the next question
	failures int           // in a row
	judged   time.Time     // the answer that failures counts

	listener uint64 // kubelet's listening socket as of the last look; 0: none
	served   string // kubelet's serving certificates as of servedAt
	servedAt time.Time
	looked   bool
	moved    bool // one of them has changed since the question was put
}

// certificates are where kubelet's serving certificate may be: rotated, self-signed,
// AKS's without rotation.
var certificates = []string{"var/lib/kubelet/pki/kubelet-server-current.pem", "var/lib/kubelet/pki/kubelet.crt", "etc/kubernetes/certs/kubeletserver.crt"}

// suspect looks for what may have cut the way back on this side: kubelet's listening socket
// and its certificates.
func (p *Probe) suspect() {
	b := &p.back
	id, ok, err := p.tcp.Listens(kubeletPort)
	if err != nil {
		id = b.listener // not told: nothing moved
	} else if !ok {
		id = 0
	}
	served := b.served
	if age := time.Since(b.servedAt); p.certsHeard.Swap(false) || b.servedAt.IsZero() || age < 0 || age >= servedEach {
		b.servedAt = time.Now()
		served = p.servedNow()
	}
	if b.looked && (id != b.listener || served != b.served) {
		b.moved = true
	}
	b.listener, b.served, b.looked = id, served, true
}

// servedEach is how old what is known of kubelet's certificates may become where nothing
// is heard of them.
const servedEach = 30 * time.Second

// servedNow tells the certificates of one time from those of another.
func (p *Probe) servedNow() string {
	var served strings.Builder
	for _, name := range certificates {
		i, err := p.root.Stat(name)
		switch {
		case err == nil:
			served.WriteString(identity(i))
		case !errors.Is(err, fs.ErrNotExist):
			served.WriteString("?")
		}
		served.WriteByte(';')
	}
	return served.String()
}

// identity tells files apart.
func identity(i fs.FileInfo) string {
	if st, ok := i.Sys().(*host.Stat); ok {
		return fmt.Sprintf("%d:%d %d %d", st.Dev, st.Ino, i.Size(), st.Change.UnixNano())
	}
	return fmt.Sprintf("%d %d", i.Size(), i.ModTime().UnixNano())
}

// askBack puts the question when it is time to.
func (p *Probe) askBack(e *endpoint) {
	if !p.self.known() {
		return
	}
	p.suspect()
	b := &p.back
	last, ended, under := b.get()
	if ended != b.judged {
		b.judged = ended
		if b.failures++; last.id == "" && last.unable == "" {
			b.failures = 0
		}
		b.next = p.backEach + rand.N(p.backEach/(backEach/backJitter)+1)
	}
	if under {
		return
	}
	wait := b.next
	switch {
	case b.moved:
		wait = min(backLeast, p.backEach)
	case b.failures == 1:
		wait = min(backAgain, p.backEach)
	case b.failures > 1:
		wait = min(backThen, p.backEach)
	}
	if ended.IsZero() || time.Since(ended) >= wait {
		b.moved = false
		b.start(func(ctx context.Context) line { return p.askLine(ctx, e) }, p.wake)
	}
}

// toldBack says what the last answer was.
func (p *Probe) toldBack(look *probes.Look) {
	if !p.self.known() {
		look.NotJudged = append(look.NotJudged, KubeletUnreachable+": the agent runs in no pod, whose log could be asked for")
		return
	}
	last, ended, _ := p.back.get()
	switch {
	case ended.IsZero():
		look.NotJudged = append(look.NotJudged, KubeletUnreachable+": the API server has not answered yet")
	case last.unable != "":
		look.NotJudged = append(look.NotJudged, KubeletUnreachable+": "+last.unable)
	case last.id != "" && p.back.moved: // such as a kubelet that was restarted
		look.NotJudged = append(look.NotJudged, KubeletUnreachable+": kubelet's socket or certificate has changed since the API server was asked")
	case last.id != "":
		f := probes.Finding{Reason: KubeletUnreachable, ID: last.id, Subject: "kubelet",
			Message: "the API server cannot reach this node's kubelet: " + last.text}
		if last.id == noAgent || last.id == agentSilent {
			f.Hold = holdTunnelElsewhere // the cluster's, not this node's
		}
		look.Findings = append(look.Findings, f)
	default:
		look.Samples = append(look.Samples, probes.Sample{Name: backSeconds, Value: last.took.Seconds()})
	}
}
