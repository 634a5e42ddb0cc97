package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const apiURL = "https://" + controlIP + ":443"

// URL is the API server's address. It is only reachable from within the lab: by DialContext.
func (l *Lab) URL() string { return apiURL }

// Credentials are the paths of the authority's certificate, and of the cluster admin's certificate and key.
func (l *Lab) Credentials() (ca, cert, key string) {
	return l.pki("ca.crt"), l.pki("admin.crt"), l.pki("admin.key")
}

// Kubeconfig is the path of the cluster admin's kubeconfig.
func (l *Lab) Kubeconfig() string { return l.pki("admin.conf") }

func (l *Lab) pki(file string) string { return filepath.Join(l.dir, "pki", file) }

// DialContext dials from where the API server is. It has the signature that http.Transport and rest.Config ask for.
func (l *Lab) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = onThread(func() error {
		if err := enterNetns(l.controlNetns()); err != nil {
			return err
		}
		// The socket belongs for ever to the namespace it was made in. An address that is a number is dialled on this very thread.
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Client speaks to the API server as cluster admin, from within this process.
func (l *Lab) Client() *http.Client { return l.client }

// Anonymous speaks to the API server with no identity of its own: a request brings its token.
func (l *Lab) Anonymous() *http.Client {
	t := l.client.Transport.(*http.Transport).Clone()
	t.TLSClientConfig.Certificates = nil
	return &http.Client{Transport: t}
}

func (l *Lab) newClient() (*http.Client, error) {
	ca, cert, key := l.Credentials()
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("read the lab's authority: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read the admin's certificate: %w", err)
	}
	return &http.Client{Transport: &http.Transport{
		DialContext: l.DialContext, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}},
	}}, nil
}

// Get reads an API path, such as /api/v1/nodes/node0, into a value (nil: only whether it answers). A test may call it often: it
// starts no process.
func (l *Lab) Get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, apiURL+path, nil)
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s: %.300s", path, resp.Status, b)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}

// Kubectl runs kubectl as cluster admin and returns what it prints.
func (l *Lab) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, l.bin("kubectl"), append([]string{"--kubeconfig", l.Kubeconfig()}, args...)...)
	cmd.Stdin = stdin
	out, err := output(cmd, func(start func() error) error {
		return onThread(func() error {
			if err := enterNetns(l.controlNetns()); err != nil {
				return err
			}
			return start()
		})
	})
	if err != nil {
		return out, fmt.Errorf("kubectl %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// KubectlExec replaces this process by kubectl; it returns only if that fails.
func (l *Lab) KubectlExec(args []string) error {
	return onThread(func() error {
		if err := enterNetns(l.controlNetns()); err != nil {
			return err
		}
		argv := append([]string{"kubectl", "--kubeconfig", l.Kubeconfig()}, args...)
		return fmt.Errorf("run kubectl: %w", syscall.Exec(l.bin("kubectl"), argv, os.Environ()))
	})
}

// output collects what a command prints; at the end of ctx it takes the command's children along. The error holds the end
// of stderr.
func output(cmd *exec.Cmd, around func(start func() error) error) (string, error) {
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err := around(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil && stderr.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, lastLines(stderr.String(), 10))
	}
	return out.String(), err
}

func direct(start func() error) error { return start() }
