package manifests_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/nodedrift/nodedrift/manifests/policytest"
)

// TestPolicy tries every request of policytest on a real API server: NODEDRIFT_KUBECONFIG names a cluster admin's kubeconfig with
// certificates inside, of a cluster of two nodes with the manifests applied. For instance in a lab:
//
//	ip netns exec cp env NODEDRIFT_KUBECONFIG=/var/tmp/nodelab/run/admin.conf go test -v -run TestPolicy ./manifests
func TestPolicy(t *testing.T) {
	path := os.Getenv("NODEDRIFT_KUBECONFIG")
	if path == "" {
		t.Skip("NODEDRIFT_KUBECONFIG is not set")
	}
	c := cluster(t, path)
	ctx := t.Context()
	if err := c.Setup(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Cleanup(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	bound, err := c.Token(ctx, policytest.Account, c.Pod)
	if err != nil {
		t.Fatal(err)
	}
	unbound, err := c.Token(ctx, policytest.Account, "")
	if err != nil {
		t.Fatal(err)
	}
	// The same rights under another name, which the policy does not know: what it may do shows what the policy is for.
	peer := peer(t, c)
	count := map[policytest.Answer]int{}
	for _, k := range c.Cases() {
		t.Run(k.Name, func(t *testing.T) {
			token := bound
			if k.Unbound {
				token = unbound
			}
			if err := c.Try(ctx, token, k); err != nil {
				t.Fatal(err)
			}
			count[k.Want]++
			if k.Want != policytest.Policy {
				return
			}
			// Nothing is kept of it.
			sep := "?"
			if strings.Contains(k.Path, "?") {
				sep = "&"
			}
			k.Path += sep + "dryRun=All"
			if code, body, err := c.Do(ctx, peer, k); err != nil || code >= 300 {
				t.Errorf("refused without the policy, too, so it proves nothing: %d %v %.300s", code, err, body)
			}
		})
	}
	t.Logf("%v", count)
}

// peer is a token of a service account with the agent's roles.
func peer(t *testing.T, c policytest.Cluster) string {
	t.Helper()
	const account = "policytest-peer"
	send := func(method, path, body string) {
		req, err := http.NewRequest(method, c.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := c.Admin.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode >= 300 && resp.StatusCode != http.StatusConflict {
			t.Fatalf("%s %s: %s: %s", method, path, resp.Status, b)
		}
	}
	make := func(path, body string) {
		send("POST", path, body)
		t.Cleanup(func() { send("DELETE", path+"/"+account, "") })
	}
	const rbac = "/apis/rbac.authorization.k8s.io/v1"
	binding := func(kind, role string) string {
		return fmt.Sprintf(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"%sBinding","metadata":{"name":%q},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":%q,"name":%q},
			"subjects":[{"kind":"ServiceAccount","name":%q,"namespace":%q}]}`, kind, account, kind, role, account, policytest.Namespace)
	}
	make("/api/v1/namespaces/"+policytest.Namespace+"/serviceaccounts", fmt.Sprintf(`{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":%q}}`, account))
	make(rbac+"/clusterrolebindings", binding("ClusterRole", "nodedrift"))
	make(rbac+"/namespaces/default/rolebindings", binding("Role", "nodedrift-events"))
	token, err := c.Token(t.Context(), account, "")
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// cluster reads a kubeconfig and finds the agent's pod and two nodes.
func cluster(t *testing.T, kubeconfig string) policytest.Cluster {
	t.Helper()
	b, err := os.ReadFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	var k struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     string `yaml:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Cert string `yaml:"client-certificate-data"`
				Key  string `yaml:"client-key-data"`
			}
		}
	}
	if err := yaml.Unmarshal(b, &k); err != nil {
		t.Fatal(err)
	}
	decode := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(decode(k.Clusters[0].Cluster.CA))
	pair, err := tls.X509KeyPair(decode(k.Users[0].User.Cert), decode(k.Users[0].User.Key))
	if err != nil {
		t.Fatal(err)
	}
	client := func(certs ...tls.Certificate) *http.Client {
		return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs}}}
	}
	c := policytest.Cluster{URL: k.Clusters[0].Cluster.Server, Admin: client(pair), Client: client()}
	var nodes, pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ NodeName string }
		}
	}
	for path, into := range map[string]any{"/api/v1/nodes": &nodes, "/api/v1/namespaces/" + policytest.Namespace + "/pods?labelSelector=app.kubernetes.io/name=nodedrift": &pods} {
		resp, err := c.Admin.Get(c.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	if len(pods.Items) == 0 || len(nodes.Items) < 2 {
		t.Fatalf("%d nodes and %d pods of nodedrift, want 2 and 1", len(nodes.Items), len(pods.Items))
	}
	c.Pod, c.Own = pods.Items[0].Metadata.Name, pods.Items[0].Spec.NodeName
	for _, n := range nodes.Items {
		if n.Metadata.Name != c.Own {
			c.Other = n.Metadata.Name
		}
	}
	return c
}
