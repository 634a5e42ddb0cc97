package kubelet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// kubelet renews what it rotates between 70 and 90 % of a certificate's life
// (k8s.io/client-go util/certificate, nextRotationDeadline). Later than this,
// renewal does not work.
const (
	lateAt    = 92 // percent
	lastHours = 72 * time.Hour
)

// Where a certificate and its key are.
type pair struct {
	use       string // "client" or "serving"
	cert, key string // files; the same where one holds both
	inline    bool   // in the kubeconfig that cert names
	wanted    bool   // its absence is a fault
	served    bool   // kubelet serves it
}

// certs are kubelet's certificates.
type certs struct {
	root  tree
	pairs []pair
	known map[string]*certificate // by the pair's cert file

	served served
	found  []probes.Finding
	why    []string
	left   []probes.Sample
}

// A certificate is a leaf that was read, or why none was.
type certificate struct {
	id     string // of the files that it was read from
	leaf   *x509.Certificate
	broken string
}

// find tells where kubelet has its certificates, and which paths to listen to.
// The error says why the client's could not be found.
func (c *certs) find(s settings) (listen []string, err error) {
	c.pairs = nil
	add := func(p pair) {
		for _, have := range c.pairs {
			if have.cert == p.cert && have.inline == p.inline {
				return
			}
		}
		c.pairs = append(c.pairs, p)
		listen = append(listen, p.cert, p.key)
	}
	dir := s.certDir()
	listen = append(listen, dir)
	if name, ok := s.kubeconfig(); ok {
		var p pair
		if p, err = c.clientOf(name); err == nil && p.use != "" {
			add(p)
		}
		listen = append(listen, name)
	}
	current := path.Join(dir, "kubelet-client-current.pem")
	if _, err := c.root.Lstat(current); err == nil {
		add(pair{use: "client", cert: current, key: current})
	}
	cert, hasCert := unit.Path(s.text("tls-cert-file", s.file.TLSCertFile, ""))
	key, hasKey := unit.Path(s.text("tls-private-key-file", s.file.TLSPrivateKeyFile, ""))
	server := path.Join(dir, "kubelet-server-current.pem")
	switch {
	case hasCert && hasKey:
		add(pair{use: "serving", cert: cert, key: key, wanted: true, served: true})
	case s.bootstrap():
		add(pair{use: "serving", cert: server, key: server, served: true})
	default:
		add(pair{use: "serving", cert: path.Join(dir, "kubelet.crt"), key: path.Join(dir, "kubelet.key"), served: true})
	}
	if _, err := c.root.Lstat(server); err == nil {
		add(pair{use: "serving", cert: server, key: server})
	}
	return listen, err
}

// clientOf finds the client certificate in a kubeconfig; none where another kind
// of credential is in it.
func (c *certs) clientOf(name string) (pair, error) {
	b, err := c.root.ReadFile(name)
	if err != nil {
		return pair{}, err
	}
	u := parseKubeconfig(b)
	cert, hasCert := unit.Path(u.Cert)
	key, hasKey := unit.Path(u.Key)
	switch {
	case u.CertData != "" && u.KeyData != "":
		return pair{use: "client", cert: name, key: name, inline: true}, nil
	case hasCert && hasKey:
		return pair{use: "client", cert: cert, key: key, wanted: true}, nil
	case u.Token != "" || u.TokenFile != "" || u.Exec != nil:
		return pair{}, nil
	}
	return pair{}, fmt.Errorf("/%s names no credential", name)
}

// user is the credential in a kubeconfig.
type user struct {
	Cert     string `yaml:"client-certificate"`
	Key      string `yaml:"client-key"`
	CertData string `yaml:"client-certificate-data"`
	KeyData  string `yaml:"client-key-data"`

	Token     string `yaml:"token"`
	TokenFile string `yaml:"tokenFile"`
	Exec      any    `yaml:"exec"`
}

// parseKubeconfig returns the credential of the current context; that of the only
// user where the context names none.
func parseKubeconfig(b []byte) user {
	var k struct {
		Current  string `yaml:"current-context"`
		Contexts []struct {
			Name    string `yaml:"name"`
			Context struct {
				User string `yaml:"user"`
			} `yaml:"context"`
		} `yaml:"contexts"`
		Users []struct {
			Name string `yaml:"name"`
			User user   `yaml:"user"`
		} `yaml:"users"`
	}
	if yaml.Unmarshal(b, &k) != nil {
		return user{}
	}
	name := ""
	for _, c := range k.Contexts {
		if c.Name == k.Current {
			name = c.Context.User
		}
	}
	for _, u := range k.Users {
		if u.Name == name || len(k.Users) == 1 {
			return u.User
		}
	}
	return user{}
}

// lookAtCertificates judges the certificates anew after a fresh look at files.
func (p *Probe) lookAtCertificates(ctx context.Context, st *unit.State, look *probes.Look) {
	c := &p.certs
	if st.Fresh {
		c.judge(time.Now(), st.Running)
		c.compareServed(ctx, p.own.serving(), st)
	}
	look.Findings = append(look.Findings, c.found...)
	look.NotJudged = append(look.NotJudged, c.why...)
	look.Samples = append(look.Samples, c.left...)
}

// judge reads all certificates, those that stand still from memory.
func (c *certs) judge(now time.Time, running bool) {
	c.found, c.why, c.left = nil, nil, nil
	for _, p := range c.pairs {
		cert, err := c.read(p)
		switch {
		case err != nil:
			c.why = append(c.why, notJudged(err, CertificateExpiring, CertificateBroken, ServesOldCertificate)...)
			continue
		case cert == nil:
			if p.served && running {
				c.why = append(c.why, fmt.Sprintf("%s: /%s is not there", ServesOldCertificate, p.cert))
			}
			continue
		}
		subject := "/" + p.cert
		switch text := cert.wrong(now); {
		case text != "":
			c.found = append(c.found, probes.Finding{Reason: CertificateBroken, Subject: subject, ID: p.use, Message: subject + " " + text, Source: subject})
			continue
		case cert.late(now) != 0:
			c.found = append(c.found, probes.Finding{Reason: CertificateExpiring, Subject: subject, ID: p.use, Severity: cert.late(now), Source: subject,
				Message: subject + " " + cert.end(now)})
		}
		c.sample(p.use, cert.leaf.NotAfter.Sub(now).Seconds())
	}
}

// sample keeps the shortest of each use.
func (c *certs) sample(use string, left float64) {
	for i, s := range c.left {
		if s.Labels[0] == use {
			c.left[i].Value = min(s.Value, left)
			return
		}
	}
	c.left = append(c.left, probes.Sample{Name: certificateLeft, Labels: []string{use}, Value: left})
}

// read reads a pair. An absent one that nothing asks for is nil.
func (c *certs) read(p pair) (*certificate, error) {
	link, linkErr := c.root.Lstat(p.cert)
	certInfo, err := c.root.Stat(p.cert)
	if errors.Is(err, fs.ErrNotExist) {
		switch {
		case linkErr == nil && link.Mode().Type() == fs.ModeSymlink:
			target, _ := c.root.ReadLink(p.cert)
			return &certificate{broken: "is a link to nothing: " + target}, nil
		case p.wanted:
			return &certificate{broken: "is not there"}, nil
		}
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	keyInfo, err := c.root.Stat(p.key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &certificate{broken: "has no key: /" + p.key + " is not there"}, nil
	case err != nil:
		return nil, err
	}
	id := identity(certInfo) + identity(keyInfo)
	if had := c.known[p.cert]; had != nil && had.id == id {
		return had, nil
	}
	certPEM, keyPEM, err := c.contents(p)
	if err != nil {
		return nil, err
	}
	got := parsePair(certPEM, keyPEM)
	got.id = id
	c.known[p.cert] = got
	return got, nil
}

// contents reads the PEM blocks of a pair.
func (c *certs) contents(p pair) (cert, key []byte, err error) {
	if cert, err = c.root.ReadFile(p.cert); err != nil {
		return nil, nil, err
	}
	if p.inline {
		u := parseKubeconfig(cert)
		cert, _ = base64.StdEncoding.DecodeString(u.CertData)
		key, _ = base64.StdEncoding.DecodeString(u.KeyData)
		return cert, key, nil
	}
	key, err = c.root.ReadFile(p.key)
	return cert, key, err
}

// parsePair parses a certificate and its key. No error of the library's is passed
// on: keys stay where they are.
func parsePair(certPEM, keyPEM []byte) *certificate {
	leaf := firstCertificate(certPEM)
	switch {
	case len(bytes.TrimSpace(certPEM)) == 0:
		return &certificate{broken: "is empty"}
	case leaf == nil:
		return &certificate{broken: "holds no certificate"}
	}
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return &certificate{leaf: leaf, broken: "does not match its key"}
	}
	return &certificate{leaf: leaf}
}

// firstCertificate is the leaf of a chain.
func firstCertificate(b []byte) *x509.Certificate {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil
		}
		return cert
	}
}

const minutes = "2006-01-02 15:04 UTC"

// wrong says what is wrong with a certificate, but for its age.
func (c *certificate) wrong(now time.Time) string {
	switch {
	case c.broken != "":
		return c.broken
	case now.Before(c.leaf.NotBefore):
		return "is not valid before " + c.leaf.NotBefore.UTC().Format(minutes)
	}
	return ""
}

// late tells how badly a certificate is overdue: 0 is not at all.
func (c *certificate) late(now time.Time) probes.Severity {
	life, left := c.leaf.NotAfter.Sub(c.leaf.NotBefore), c.leaf.NotAfter.Sub(now)
	tail := life / 100 * (100 - lateAt)
	switch {
	case left < min(lastHours, tail):
		return probes.Critical
	case left < tail:
		return probes.Warning
	}
	return 0
}

func (c *certificate) end(now time.Time) string {
	at := c.leaf.NotAfter.UTC().Format(minutes)
	if now.After(c.leaf.NotAfter) {
		return "expired " + at
	}
	return "expires " + at + " and was not renewed"
}

// served is the leaf that kubelet serves.
type served struct {
	at   time.Time
	leaf []byte
	run  string // InvocationID
	file []byte // the leaf that it was compared with
}

// How often kubelet's own certificate is asked for: a handshake costs it and us a
// millisecond.
const (
	servedEach   = 10 * time.Minute
	servedWithin = 250 * time.Millisecond
)

// compareServed compares the certificate that kubelet serves with its file.
func (c *certs) compareServed(ctx context.Context, address string, st *unit.State) {
	var file *certificate
	name := ""
	for _, p := range c.pairs {
		if p.served {
			file, name = c.known[p.cert], "/"+p.cert
		}
	}
	if address == "" || file == nil || file.broken != "" || file.leaf == nil || !st.Running {
		return
	}
	v := &c.served
	same := bytes.Equal(v.leaf, file.leaf.Raw)
	age := time.Since(v.at)
	if v.at.IsZero() || v.run != st.Unit.InvocationID || !bytes.Equal(v.file, file.leaf.Raw) || !same || age < 0 || age >= servedEach {
		leaf, err := c.handshake(ctx, address)
		if err != nil {
			if st.Since > startTime {
				c.why = append(c.why, fmt.Sprintf("%s: ask %s for its certificate: %v", ServesOldCertificate, address, plain(err)))
			}
			return
		}
		*v = served{at: time.Now(), leaf: leaf, run: st.Unit.InvocationID, file: file.leaf.Raw}
		same = bytes.Equal(leaf, file.leaf.Raw)
	}
	if !same {
		c.found = append(c.found, probes.Finding{Reason: ServesOldCertificate, Subject: name, Source: name,
			Message: fmt.Sprintf("kubelet serves another certificate than %s", name)})
	}
}

// plain is an error without what differs from look to look, such as ports.
func plain(err error) string {
	if e, ok := errors.AsType[interface {
		error
		Unwrap() error
	}](err); ok && errors.Unwrap(e) != nil {
		return plain(errors.Unwrap(e))
	}
	return err.Error()
}

// handshake asks for a server's leaf and verifies nothing: which certificate it is
// is the question.
func (c *certs) handshake(ctx context.Context, address string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, servedWithin)
	defer cancel()
	conn, err := host.DialTCP(ctx, c.root, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	link := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	if err := link.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return link.ConnectionState().PeerCertificates[0].Raw, nil
}

// identity tells files apart; see host.Stat.
func identity(i fs.FileInfo) string {
	if st, ok := i.Sys().(*host.Stat); ok {
		return fmt.Sprintf("%d:%d %d %d;", st.Dev, st.Ino, i.Size(), st.Change.UnixNano())
	}
	return fmt.Sprintf("%d %d;", i.Size(), i.ModTime().UnixNano())
}

// changed is when a file got what it holds, at the latest.
func changed(i fs.FileInfo) time.Time {
	if st, ok := i.Sys().(*host.Stat); ok && st.Change.After(i.ModTime()) {
		return st.Change
	}
	return i.ModTime()
}
