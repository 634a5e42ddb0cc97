package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

const (
	fieldManager = "nodedrift"

	deadline      = 10 * time.Second // of one request
	maxReply      = 4 << 20          // bytes; etcd refuses objects above 1.5 MiB
	maxRetryAfter = 10 * time.Minute // beyond it a server's word is taken for a mistake

	// metadataOnly spares us the Node: 3 to 5 kB instead of 20.
	metadataOnly = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
)

// A client makes single requests: no retry, no throttle, no redirect. When to
// try again is the publisher's business.
type client struct {
	rest  *rest.RESTClient
	node  string
	stats *stats
}

func newClient(cfg *rest.Config, node string, st *stats) (*client, error) {
	c := rest.CopyConfig(cfg)
	c.APIPath = "/api"
	c.ContentType, c.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	c.GroupVersion = &schema.GroupVersion{Version: "v1"}
	c.NegotiatedSerializer = serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
	c.QPS = -1
	c.RateLimiter = nil
	c.WarningHandlerWithContext = rest.NoWarnings{}
	if c.UserAgent == "" {
		c.UserAgent = "nodedrift"
	}
	c.Wrap(func(rt http.RoundTripper) http.RoundTripper { return bounded{rt} })
	rc, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("make an API client: %w", err)
	}
	if rc.Client != nil {
		rc.Client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return &client{rest: rc, node: node, stats: st}, nil
}

// read gets the own Node. The API server may answer from its cache unless fresh
// is asked for: etcd need not be read for each of 5,000 agents that start.
func (c *client) read(ctx context.Context, fresh bool) (*node, error) {
	req := c.rest.Get().Resource("nodes").Name(c.node)
	if !fresh {
		req = req.Param("resourceVersion", "0")
	}
	b, err := c.do(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("read the own Node: %w", err)
	}
	return parseNode(b)
}

// apply replaces all our conditions by the given ones and returns the Node's UID.
func (c *client) apply(ctx context.Context, list []condition) (uid string, err error) {
	req := c.rest.Patch(types.ApplyPatchType).Resource("nodes").Name(c.node).SubResource("status").
		Param("fieldManager", fieldManager).Param("force", "true").SetHeader("Accept", metadataOnly).Body(body(c.node, list))
	b, err := c.do(ctx, req)
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
	req := c.rest.Post().Namespace(eventNamespace).Resource("events").SetHeader("Accept", metadataOnly).Body(b)
	if _, err = c.do(ctx, req); err != nil && codeOf(err) != http.StatusConflict {
		return fmt.Errorf("create an Event: %w", err)
	}
	return nil
}

// do makes one request, counts it, and turns its reply into bytes or an *apiError.
func (c *client) do(ctx context.Context, req *rest.Request) ([]byte, error) {
	var r reply
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, replyKey{}, &r), deadline)
	defer cancel()
	b, err := req.MaxRetries(0).Timeout(deadline).DoRaw(ctx)
	if c.stats.count(r.code, err); err == nil && r.code < 300 {
		return b, nil
	}
	if r.code == 0 || r.code < 300 { // no reply, or its body did not arrive
		return nil, err
	}
	return nil, &apiError{code: r.code, message: statusMessage(b), retryAfter: r.retryAfter}
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

// A reply is what client-go does not hand out of an answer.
type reply struct {
	code       int
	retryAfter time.Duration
}

type replyKey struct{}

// bounded notes the status of each answer and bounds its body.
type bounded struct{ http.RoundTripper }

func (t bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if r, ok := req.Context().Value(replyKey{}).(*reply); ok {
		r.code, r.retryAfter = resp.StatusCode, parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{&limited{resp.Body, maxReply}, resp.Body}
	return resp, nil
}

// WrappedRoundTripper lets client-go look through.
func (t bounded) WrappedRoundTripper() http.RoundTripper { return t.RoundTripper }

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
