package konnectivity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

const (
	// heardWithin is how long kubelet's connection may be silent: it renews its Lease every
	// 10 s and is answered.
	heardWithin = 25 * time.Second

	// How often the API server is asked: while nothing is heard from it; and when that
	// begins, or it did not answer. To ask whether it is ready costs it something, to
	// connect does not.
	forwardEach  = time.Minute
	forwardAgain = 10 * time.Second

	// Each step's own deadline, and that of all.
	stepWithin    = 2 * time.Second
	forwardWithin = 10 * time.Second
	maxAddresses  = 4 // of a name, that are tried
)

// Steps of the way to the API server.
const (
	stepResolve = "resolve"
	stepConnect = "connect"
	stepTLS     = "tls"
	stepReady   = "ready"
)

// A trip is one way to the API server and back.
type trip struct {
	to     string
	addrs  []netip.AddrPort
	took   map[string]time.Duration // by step, of those that succeeded
	failed *probes.Finding
}

// go to the API server as kubelet does: resolve, connect, TLS, and ask whether it is
// ready, each timed apart.
func (p *Probe) goThere(ctx context.Context, e *endpoint) (t trip) {
	t = trip{to: e.String(), took: map[string]time.Duration{}}
	conn, failed := p.connect(ctx, e, &t)
	if failed != nil {
		t.failed = failed
		return t
	}
	defer conn.Close()
	began := time.Now()
	var status int
	var body string
	within, cancel := context.WithTimeout(ctx, stepWithin)
	defer cancel()
	err := exchange(within, conn, p.request(e, "/readyz"), text(&status, &body))
	switch {
	case err != nil:
		t.failed = &probes.Finding{Reason: APIServerNotReady, Message: "the API server " + t.to + " takes connections and does not answer: " + why(err)}
	case status >= http.StatusInternalServerError:
		t.failed = &probes.Finding{Reason: APIServerNotReady, Message: fmt.Sprintf("the API server %s says that it is not ready (status %d)", t.to, status)}
	default:
		// One that refuses to say (401, 403, 429) has answered.
		t.took[stepReady] = time.Since(began)
	}
	return t
}

// connect makes a verified connection, or says what fails.
func (p *Probe) connect(ctx context.Context, e *endpoint, t *trip) (*tls.Conn, *probes.Finding) {
	began := time.Now()
	within, cancel := context.WithTimeout(ctx, stepWithin)
	addrs, err := p.lookup(within, e.host)
	cancel()
	if err != nil || len(addrs) == 0 {
		return nil, &probes.Finding{Reason: APIServerUnresolvable, Message: "the API server's name " + e.host + " does not resolve: " + whyUnresolved(err)}
	}
	t.took[stepResolve] = time.Since(began)
	for _, ip := range addrs {
		t.addrs = append(t.addrs, netip.AddrPortFrom(ip, e.port))
	}
	var conn net.Conn
	for _, ip := range addrs[:min(len(addrs), maxAddresses)] {
		began = time.Now()
		within, cancel := context.WithTimeout(ctx, stepWithin)
		conn, err = host.DialTCP(within, p.root, join(ip, e.port))
		cancel()
		if err == nil {
			break
		}
	}
	if err != nil {
		return nil, &probes.Finding{Reason: APIServerUnreachable, Trace: probes.Key{Domain: "peer", Name: t.addrs[0].String()},
			Message: "the API server " + t.to + " cannot be reached: " + why(err)}
	}
	t.took[stepConnect] = time.Since(began)
	began = time.Now()
	within, cancel = context.WithTimeout(ctx, stepWithin)
	defer cancel()
	link, err := overTLS(within, conn, &tls.Config{ServerName: e.name, RootCAs: e.ca, InsecureSkipVerify: e.unverified, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	if err != nil {
		conn.Close()
		return nil, tlsFinding(err, t.to)
	}
	t.took[stepTLS] = time.Since(began)
	return link, nil
}

func whyUnresolved(err error) string {
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		switch {
		case e.IsNotFound:
			return "no such name"
		case e.IsTimeout:
			return "no answer from the name servers"
		}
		return "the name servers give no address"
	}
	if err == nil {
		return "it has no address"
	}
	return why(err)
}

// tlsFinding tells somebody else's certificate from a line that is cut.
func tlsFinding(err error, to string) *probes.Finding {
	text := ""
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown):
		text = "its certificate is not of the cluster's authority"
		if unknown.Cert != nil && unknown.Cert.Issuer.CommonName != "" {
			text += fmt.Sprintf(" but of %.60q", unknown.Cert.Issuer.CommonName)
		}
	case errors.As(err, &name):
		text = "its certificate is for another name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		text = "its certificate is not valid at the node's time"
	case errors.As(err, &invalid):
		text = "its certificate is not acceptable"
	case errors.As(err, &record):
		text = "what answers does not speak TLS"
	default:
		return &probes.Finding{Reason: APIServerUnreachable, ID: stepTLS, Message: "the API server " + to + " takes connections, and TLS fails: " + why(err)}
	}
	return &probes.Finding{Reason: APIServerTLSIntercepted, Message: "somebody else answers for the API server " + to + ": " + text}
}

// request is one for the API server, with the agent's own credential when it has one.
func (p *Probe) request(e *endpoint, path string) string {
	head := "GET " + path + " HTTP/1.1\r\nHost: " + e.String() + "\r\nUser-Agent: nodedrift\r\nConnection: close\r\n"
	if token := p.token(e); token != "" {
		head += "Authorization: Bearer " + token + "\r\n"
	}
	return head + "\r\n"
}

// token is the agent's own; never given to who is not verified.
func (p *Probe) token(e *endpoint) string {
	if p.self.Token == nil || e.unverified {
		return ""
	}
	b, err := p.self.Token()
	if err != nil || !plausible(b) {
		return ""
	}
	return b
}

// plausible tells whether a text can stand in a request's head.
func plausible(token string) bool {
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return false
		}
	}
	return token != "" && len(token) < 8<<10
}

// forward looks whether kubelet's connection hears anything, and begins a trip when it
// does not. A trip that failed is true until another one succeeds.
func (p *Probe) forward(e *endpoint, look *probes.Look) {
	last, ended, under := p.trips.get()
	witnessed := false
	if len(last.addrs) > 0 && last.to == e.String() {
		// That the kernel does not tell is as good as nothing heard.
		if heard, ok, err := p.tcp.Received(last.addrs, p.owner(), heardWithin); ok && err == nil {
			look.Samples = append(look.Samples, probes.Sample{Name: silence, Value: heard.Seconds()})
			witnessed = heard < heardWithin && last.failed == nil
		}
	}
	again := forwardEach
	if p.heardLast && !witnessed || last.failed != nil && last.failed.Reason != APIServerNotReady {
		again = forwardAgain
	}
	if !under && (ended.IsZero() || last.to != e.String() || !witnessed && time.Since(ended) >= again) {
		p.heardLast = false
		p.trips.start(func(ctx context.Context) trip { return p.goThere(ctx, e) }, p.wake)
	}
	p.heardLast = p.heardLast || witnessed
}

// told says what the last trip found.
func (p *Probe) told(e *endpoint, look *probes.Look) error {
	last, ended, _ := p.trips.get()
	if ended.IsZero() || last.to != e.String() {
		return fmt.Errorf("ask the API server %s: no answer yet", e)
	}
	for _, step := range []string{stepResolve, stepConnect, stepTLS, stepReady} {
		if d, ok := last.took[step]; ok {
			look.Samples = append(look.Samples, probes.Sample{Name: tripSeconds, Labels: []string{step}, Value: d.Seconds()})
		}
	}
	if last.failed != nil {
		f := *last.failed
		f.Subject, f.Source = e.String(), e.source
		look.Findings = append(look.Findings, f)
	}
	return nil
}
