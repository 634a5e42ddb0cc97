package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the lab's certificates. It lives as long as Up: its key is never written.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

// newAuthority writes ca.crt, and the service account key as sa.key and sa.pub.
func newAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the lab's authority: %w", err)
	}
	a := &authority{key: key, dir: dir}
	a.cert = &x509.Certificate{Subject: pkix.Name{CommonName: "nodelab"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	if err := a.sign(a.cert, key.Public(), "ca"); err != nil {
		return nil, err
	}
	sa, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the service account key: %w", err)
	}
	if err := a.writeKey(sa, "sa"); err != nil {
		return nil, err
	}
	pub, err := x509.MarshalPKIXPublicKey(sa.Public())
	if err != nil {
		return nil, fmt.Errorf("make the service account key: %w", err)
	}
	return a, a.write("sa.pub", "PUBLIC KEY", pub)
}

// issue writes NAME.crt and NAME.key for a user (client and server at once); names are host names and addresses.
func (a *authority) issue(name, user, group string, names ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the key of %s: %w", name, err)
	}
	c := &x509.Certificate{Subject: pkix.Name{CommonName: user}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	if group != "" {
		c.Subject.Organization = []string{group}
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	if err := a.sign(c, key.Public(), name); err != nil {
		return err
	}
	return a.writeKey(key, name)
}

func (a *authority) sign(c *x509.Certificate, pub crypto.PublicKey, name string) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return fmt.Errorf("make a serial number: %w", err)
	}
	c.SerialNumber = serial
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(30*24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, pub, a.key)
	if err != nil {
		return fmt.Errorf("sign the certificate of %s: %w", name, err)
	}
	return a.write(name+".crt", "CERTIFICATE", der)
}

func (a *authority) writeKey(key *ecdsa.PrivateKey, name string) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key of %s: %w", name, err)
	}
	return a.write(name+".key", "EC PRIVATE KEY", der)
}

func (a *authority) write(file, kind string, der []byte) error {
	b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(filepath.Join(a.dir, file), b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

// kubeconfig writes NAME.conf, with everything in it, for a user who has a certificate.
func (a *authority) kubeconfig(name string) error {
	var pems [3][]byte
	for i, f := range []string{"ca.crt", name + ".crt", name + ".key"} {
		b, err := os.ReadFile(filepath.Join(a.dir, f))
		if err != nil {
			return fmt.Errorf("make the kubeconfig of %s: %w", name, err)
		}
		pems[i] = b
	}
	type entry map[string]any
	b, err := json.Marshal(entry{ // JSON is YAML, and bytes become base64
		"apiVersion": "v1", "kind": "Config", "current-context": "lab",
		"clusters": []entry{{"name": "lab", "cluster": entry{"server": apiURL, "certificate-authority-data": pems[0]}}},
		"users":    []entry{{"name": name, "user": entry{"client-certificate-data": pems[1], "client-key-data": pems[2]}}},
		"contexts": []entry{{"name": "lab", "context": entry{"cluster": "lab", "user": name}}},
	})
	if err != nil {
		return fmt.Errorf("make the kubeconfig of %s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(a.dir, name+".conf"), b, 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig of %s: %w", name, err)
	}
	return nil
}

// user issues a certificate and writes a kubeconfig with it.
func (a *authority) user(name, user, group string, names ...string) error {
	if err := a.issue(name, user, group, names...); err != nil {
		return err
	}
	return a.kubeconfig(name)
}
