package konnectivity

import (
	"io/fs"
	"testing"
	"testing/fstest"
	"time"
)

// written is a node's root whose files are set by a test; reads are counted.
type written struct {
	tree
	files fstest.MapFS
	reads int
}

func (w *written) Stat(name string) (fs.FileInfo, error) { return w.files.Stat(name) }

func (w *written) ReadFile(name string) ([]byte, error) {
	w.reads++
	return w.files.ReadFile(name)
}

// An unchanged kubeconfig is not read again; one that is another, or whose authority is, or
// that has just been written, is.
func TestEndpointFollowsFiles(t *testing.T) {
	t.Parallel()
	const ca = "-----BEGIN CERTIFICATE-----\nMIIBdzCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAAMB4=\n-----END CERTIFICATE-----\n"
	at := time.Now().Add(-time.Hour)
	root := &written{files: fstest.MapFS{}}
	write := func(name, text string, at time.Time) {
		root.files[name] = &fstest.MapFile{Data: []byte(text), ModTime: at}
	}
	kubeconfig := func(server string) string {
		return "clusters:\n- cluster: {server: 'https://" + server + "', insecure-skip-tls-verify: true}\n"
	}
	p := &Probe{root: root, config: Config{Kubeconfig: "/etc/k"}}
	look := func(want string, reads int) {
		t.Helper()
		root.reads = 0
		p.endpoint, p.endpointErr = p.findEndpoint(t.Context())
		got := ""
		if p.endpoint != nil {
			got = p.endpoint.String()
		}
		if got != want || root.reads != reads {
			t.Errorf("%q (%v) after %d reads, want %q after %d", got, p.endpointErr, root.reads, want, reads)
		}
	}
	write("etc/k", kubeconfig("a:1"), at)
	look("a:1", 1)
	look("a:1", 0)
	write("etc/k", kubeconfig("b:1"), at.Add(time.Second))
	look("b:1", 1)
	look("b:1", 0)
	delete(root.files, "etc/k")
	look("", 1)
	write("etc/k", kubeconfig("c:1"), time.Now().Add(time.Hour)) // its next change may have the same time
	look("c:1", 1)
	look("c:1", 1)
	write("etc/k", "clusters:\n- cluster: {server: 'https://d:1', certificate-authority: /etc/ca}\n", at)
	write("etc/ca", ca, at)
	look("", 2) // it holds no certificate
	look("", 2)
}
