package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// auditPolicy has each request once: when it is answered, or, for a watch, when the answer begins. What the lab's admin
// only reads is not in it: a test polls many times a second.
const auditPolicy = `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
  {"level": "None", "users": ["admin"], "verbs": ["get", "list"]}, {"level": "Metadata"}]}`

// Request is one request that the API server answered, from its audit log.
type Request struct {
	Time        time.Time // when it arrived
	Verb        string    // get, list, watch, create, patch, ...
	Path        string    // without the query
	Query       string
	User        string // system:serviceaccount:NAMESPACE:NAME, system:node:NAME, ...
	UserAgent   string
	Code        int // HTTP status; 0 while a watch goes on
	Annotations map[string]string
}

// AuditLog is the path of the API server's audit log (audit.k8s.io/v1, one event a line, level Metadata).
func (l *Lab) AuditLog() string { return filepath.Join(l.dir, "audit.log") }

// Audit lists the requests that arrived at or after a time and were made by a user, or by a client whose user agent
// begins with the given text; "" is everybody. What the API server has answered is in it, even after it was killed; what
// the lab's admin only read is not.
func (l *Lab) Audit(ctx context.Context, since time.Time, who string) ([]Request, error) {
	f, err := os.Open(l.AuditLog())
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	defer f.Close()
	return parseAudit(ctx, f, since, who)
}

// AuditCount counts the requests that Audit lists, by verb and path: "patch /api/v1/nodes/node0/status".
func (l *Lab) AuditCount(ctx context.Context, since time.Time, who string) (map[string]int, error) {
	all, err := l.Audit(ctx, since, who)
	count := map[string]int{}
	for _, r := range all {
		count[r.Verb+" "+r.Path]++
	}
	return count, err
}

func parseAudit(ctx context.Context, r io.Reader, since time.Time, who string) ([]Request, error) {
	var all []Request
	at := map[string]int{} // by audit id: a watch has a second event when it ends
	for b := bufio.NewReader(r); ctx.Err() == nil; {
		line, err := b.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return all, fmt.Errorf("read the audit log: %w", err)
		}
		if err != nil {
			return all, nil // a line without its end is still being written
		}
		if !bytes.Contains(line, []byte(who)) {
			continue // most of a long log is somebody else's
		}
		var e struct {
			AuditID, Verb, RequestURI, UserAgent string
			User                                 struct{ Username string }
			ResponseStatus                       struct{ Code int }
			RequestReceivedTimestamp             time.Time
			Annotations                          map[string]string
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return all, fmt.Errorf("read the audit log: %w", err)
		}
		if e.RequestReceivedTimestamp.Before(since) || who != "" && e.User.Username != who && !strings.HasPrefix(e.UserAgent, who) {
			continue
		}
		path, query, _ := strings.Cut(e.RequestURI, "?")
		req := Request{e.RequestReceivedTimestamp, e.Verb, path, query, e.User.Username, e.UserAgent, e.ResponseStatus.Code, e.Annotations}
		if i, ok := at[e.AuditID]; ok {
			all[i] = req
			continue
		}
		at[e.AuditID] = len(all)
		all = append(all, req)
	}
	return all, ctx.Err()
}
