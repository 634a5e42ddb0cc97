package kube

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/transport"
)

const (
	fieldManager = "nodedrift"

	deadline      = 10 * time.Second // of one request
	maxReply      = 4 << 20          // bytes; etcd refuses objects above 1.5 MiB
	maxRetryAfter = 10 * time.Minute // beyond it a server's word is taken for a mistake

	asJSON  = "application/json"
	asApply = "application/apply-patch+yaml" // of which JSON is a part

	// metadataOnly spares us the Node: 3 to 5 kB instead of 20.
	metadataOnly = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
)

// An API says where the API server is, and who we are.
type API struct {
	URL *url.URL // "https://10.0.0.1:443"
	// Transport trusts the cluster's authority and signs in with a token; files
	// are read again when they change.
	Transport transport.Config
}

// A client makes single requests: no retry, no throttle, no redirect. When to
// try again is the publisher's business. It uses client-go's transport alone:
// its REST client brings every serializer, 4 MB, for three requests.
type client struct {
	http  http.Client
	url   *url.URL
	node  string
	stats *stats
}

func newClient(api *API, node string, st *stats) (*client, error) {
	conf := api.Transport
	conf.UserAgent = cmp.Or(conf.UserAgent, "nodedrift")
	if conf.Transport == nil {
		conf.TLS.NextProtos = []string{"http/1.1"} // a request in 40 min needs no streams, and no pings
	}
	rt, err := transport.New(&conf)
	if err != nil {
		return nil, fmt.Errorf("make an API client: %w", err)
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client{http: http.Client{Transport: rt, CheckRedirect: stay}, url: api.URL, node: node, stats: st}, nil
}

// read gets the own Node. The API server may answer from its cache unless fresh
// is asked for: etcd need not be read for each of 5,000 agents that start.
func (c *client) read(ctx context.Context, fresh bool) (*node, error) {
	query := url.Values{}
	if !fresh {
		query.Set("resourceVersion", "0")
	}
	b, err := c.do(ctx, http.MethodGet, c.url.JoinPath("api/v1/nodes", c.node), query, http.Header{"Accept": {asJSON}}, nil)
	if err != nil {
		return nil, fmt.Errorf("read the own Node: %w", err)
	}
	return parseNode(b)
}

// apply replaces all our conditions by the given ones and returns the Node's UID.
func (c *client) apply(ctx context.Context, list []condition) (uid string, err error) {
	query := url.Values{"fieldManager": {fieldManager}, "force": {"true"}}
	b, err := c.do(ctx, http.MethodPatch, c.url.JoinPath("api/v1/nodes", c.node, "status"), query,
		http.Header{"Accept": {metadataOnly}, "Content-Type": {asApply}}, body(c.node, list))
	if err != nil {
		return "", fmt.Errorf("apply the conditions: %w", err)
	}
	n, err := parseNode(b)
	if err != nil {
		return "", err
	}
	return n.Metadata.UID, nil
}

// create posts an Event. That it exists already is the success of an earlier
// try whose reply was lost: names are never used twice.
func (c *client) create(ctx context.Context, e *event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode an Event: %w", err)
	}
	_, err = c.do(ctx, http.MethodPost, c.url.JoinPath("api/v1/namespaces", eventNamespace, "events"), nil,
		http.Header{"Accept": {metadataOnly}, "Content-Type": {asJSON}}, b)
	if err != nil && codeOf(err) != http.StatusConflict {
		return fmt.Errorf("create an Event: %w", err)
	}
	return nil
}

// do makes one request, counts it, and turns its reply into bytes or an *apiError.
func (c *client) do(ctx context.Context, method string, to *url.URL, query url.Values, header http.Header, content []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	to.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, to.String(), bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := c.http.Do(req)
	if err != nil {
		c.stats.count(0, err)
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(&limited{resp.Body, maxReply})
	c.stats.count(resp.StatusCode, err)
	if resp.StatusCode >= 300 {
		return nil, &apiError{code: resp.StatusCode, message: statusMessage(b), retryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())}
	}
	return b, err
}

// An apiError is an answer other than success.
type apiError struct {
	code       int
	message    string
	retryAfter time.Duration
}

func (e *apiError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%d %s: %s", e.code, http.StatusText(e.code), e.message))
}

// codeOf is the HTTP status behind an error, 0 when no answer came.
func codeOf(err error) int {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e.code
	}
	return 0
}

// final tells whether asking the same again can only help after somebody has
// changed rights, policies or this program.
func final(err error) bool {
	switch code := codeOf(err); code {
	case 0, http.StatusUnauthorized, http.StatusNotFound, http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return false
	default:
		return code < 500
	}
}

// statusMessage is the message of a metav1.Status, or the beginning of whatever
// a proxy put in its place.
func statusMessage(b []byte) string {
	var s struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(b, &s) == nil && s.Message != "" {
		return oneLine(s.Message, 256)
	}
	return oneLine(string(b[:min(len(b), 1024)]), 256)
}

// limited is an io.LimitedReader that fails instead of pretending an end.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errors.New("the reply is too long")
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// parseRetryAfter reads seconds or a date (RFC 9110, 10.2.3); 0 when neither.
func parseRetryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return min(time.Duration(n)*time.Second, maxRetryAfter)
	}
	if t, err := http.ParseTime(s); err == nil {
		return min(max(t.Sub(now), 0), maxRetryAfter)
	}
	return 0
}
