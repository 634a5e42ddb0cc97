// Package policytest holds requests that a stolen token of nodedrift's service account might make, and those that the
// agent does make, each with what the API server must answer. It is data for tests on a real cluster.
package policytest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
)

// Types are the condition types that the policy lets the agent publish.
var Types = []string{
	"NodeDrift", "KubeletDrift", "ContainerdDrift", "TimeSyncDrift", "KonnectivityUnavailable",
	"RebootPending", "SysctlDrift", "CNIRouteDrift",
}

// Namespace and Account name the agent's identity.
const (
	Namespace = "nodedrift-system"
	Account   = "nodedrift"
)

// Answer is what becomes of a request.
type Answer string

// The answers. A refusal by the wrong guard is a failure too: it would hide that the right one is open.
const (
	Accepted Answer = "accepted"
	Policy   Answer = "refused by the admission policy"
	RBAC     Answer = "refused by RBAC"
	Invalid  Answer = "refused as malformed"
	Nothing  Answer = "accepted without effect" // the API server drops what the subresource does not own
)

// A Case is one request.
type Case struct {
	Name         string
	Method, Path string // path and query
	Type, Body   string // Content-Type and body; "": none
	Want         Answer
	Unbound      bool // by a token that is bound to no pod, and so names no node
}

// A Cluster is where the cases are tried: the manifests applied, two nodes, the agent's pod on Own.
type Cluster struct {
	URL        string
	Admin      *http.Client // cluster admin
	Client     *http.Client // trusts the API server and brings no identity
	Pod        string
	Own, Other string // node names
}

// Setup makes what some cases refer to: an Event of somebody else about the own node.
func (c Cluster) Setup(ctx context.Context) error {
	_, err := c.admin(ctx, "POST", "/api/v1/namespaces/default/events", event("policytest-foreign", "default", c.Own, `"source":{"component":"kubelet"}`))
	return err
}

// Cleanup removes what Setup and the accepted cases made.
func (c Cluster) Cleanup(ctx context.Context) error {
	var all error
	for _, name := range []string{"policytest-foreign", "policytest-own"} {
		_, err := c.admin(ctx, "DELETE", "/api/v1/namespaces/default/events/"+name, "")
		all = errors.Join(all, err)
	}
	return all
}

// Token asks for a token of a service account in Namespace, bound to a pod there ("": to none). Only a bound one names a node.
func (c Cluster) Token(ctx context.Context, account, pod string) (string, error) {
	bound := ""
	if pod != "" {
		b, err := c.admin(ctx, "GET", "/api/v1/namespaces/"+Namespace+"/pods/"+pod, "")
		if err != nil {
			return "", err
		}
		var p struct{ Metadata struct{ UID string } }
		if err := json.Unmarshal(b, &p); err != nil {
			return "", fmt.Errorf("read pod %s: %w", pod, err)
		}
		bound = fmt.Sprintf(`,"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":%q,"uid":%q}`, pod, p.Metadata.UID)
	}
	b, err := c.admin(ctx, "POST", "/api/v1/namespaces/"+Namespace+"/serviceaccounts/"+account+"/token",
		`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"expirationSeconds":600`+bound+`}}`)
	if err != nil {
		return "", err
	}
	var t struct{ Status struct{ Token string } }
	if err := json.Unmarshal(b, &t); err != nil {
		return "", fmt.Errorf("read the token of %s: %w", account, err)
	}
	return t.Status.Token, nil
}

// Try makes the request of a case with a token and says what differs from the wanted answer. Both nodes must be as they were:
// all but the agent's own conditions.
func (c Cluster) Try(ctx context.Context, token string, k Case) error {
	before, err := c.foreign(ctx)
	if err != nil {
		return err
	}
	code, body, err := c.Do(ctx, token, k)
	if err != nil {
		return err
	}
	got, byPolicy := Answer(fmt.Sprint("status ", code)), bytes.Contains(body, []byte("ValidatingAdmissionPolicy 'nodedrift-"))
	switch {
	case code < 300 && k.Want == Nothing:
		got = Nothing
	case code < 300:
		got = Accepted
	case code == http.StatusForbidden && byPolicy:
		got = Policy
	case code == http.StatusForbidden:
		got = RBAC
	case code == http.StatusBadRequest || code == http.StatusUnprocessableEntity:
		got = Invalid
	}
	if got != k.Want {
		return fmt.Errorf("%s: %s, want %s: %.600s", k.Name, got, k.Want, body)
	}
	after, err := c.foreign(ctx)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(before, after) {
		return fmt.Errorf("%s: changed what is not the agent's: before\n%v\nafter\n%v", k.Name, before, after)
	}
	return nil
}

// Do makes the request of a case with a token.
func (c Cluster) Do(ctx context.Context, token string, k Case) (code int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, k.Method, c.URL+k.Path, strings.NewReader(k.Body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if k.Type != "" {
		req.Header.Set("Content-Type", k.Type)
	}
	resp, err := c.Client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, body, err
}

func (c Cluster) admin(ctx context.Context, method, path, body string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Admin.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s as admin: %s: %.300s", method, path, resp.Status, b)
	}
	return b, err
}

// foreign is both nodes without what the agent or the kubelet's heartbeat may change at any time.
func (c Cluster) foreign(ctx context.Context) ([]map[string]any, error) {
	var nodes []map[string]any
	for _, name := range []string{c.Own, c.Other} {
		b, err := c.admin(ctx, "GET", "/api/v1/nodes/"+name, "")
		if err != nil {
			return nil, err
		}
		var n map[string]any
		if err := json.Unmarshal(b, &n); err != nil {
			return nil, fmt.Errorf("read node %s: %w", name, err)
		}
		meta, status := n["metadata"].(map[string]any), n["status"].(map[string]any)
		delete(meta, "managedFields")
		delete(meta, "resourceVersion")
		var others []any
		for _, v := range status["conditions"].([]any) {
			condition := v.(map[string]any)
			if !slices.Contains(Types, condition["type"].(string)) {
				delete(condition, "lastHeartbeatTime")
				others = append(others, condition)
			}
		}
		status["conditions"] = others
		nodes = append(nodes, n)
	}
	return nodes, nil
}
