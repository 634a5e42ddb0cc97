package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	unitFile   = "/etc/systemd/system/kubelet.service"
	kubeletPKI = "/var/lib/kubelet/pki"
	dropIns    = "/run/systemd/system/kubelet.service.d"
	config     = "/var/lib/kubelet/config.json"
)

// Downs are raised within 5 s, a hang within 12 s, what is pending within its hold
// (1 s in the lab) and 3 s.
var kubeletDown = []fault{
	{name: "stopped", reason: "KubeletNotRunning", text: "kubelet.service does not run: it was stopped", within: 5 * time.Second,
		breaks: "systemctl stop kubelet", repairs: "systemctl start kubelet"},
	{name: "masked", reason: "KubeletNotRunning", text: "masked", within: 5 * time.Second,
		breaks:  "mv " + unitFile + " /root/; ln -s /dev/null " + unitFile + "; systemctl daemon-reload; systemctl stop kubelet",
		repairs: "rm " + unitFile + "; mv /root/kubelet.service " + unitFile + "; systemctl daemon-reload; systemctl start kubelet"},
	{name: "killed", reason: "KubeletNotRunning", text: "killed by SIGKILL", within: 5 * time.Second,
		breaks:  "mkdir -p " + dropIns + "; printf '[Service]\\nRestart=no\\n' >" + dropIns + "/no.conf; systemctl daemon-reload; systemctl kill -s KILL kubelet",
		repairs: "rm -r " + dropIns + "; systemctl daemon-reload; systemctl start kubelet"},
	{name: "stopped by a signal", reason: "KubeletHung", text: "SIGSTOP", within: 12 * time.Second,
		breaks: "kill -STOP $(pidof kubelet)", repairs: "kill -CONT $(pidof kubelet)"},
	{name: "its health port refuses", reason: "KubeletUnhealthy", text: "refuses connections", within: 15 * time.Second,
		breaks:  "iptables -I INPUT -i lo -p tcp --dport 10248 -j REJECT --reject-with tcp-reset",
		repairs: "iptables -D INPUT -i lo -p tcp --dport 10248 -j REJECT --reject-with tcp-reset"},
}

var kubeletPending = []fault{
	{name: "configuration edited", reason: "KubeletConfigNotLoaded", text: config, within: 4 * time.Second,
		breaks: "cp " + config + " /root/; sed -i '1s/{/{\"maxPods\": 99,/' " + config, repairs: "cp /root/config.json " + config},
	{name: "drop-in in a new folder", reason: "KubeletDaemonReloadNeeded", text: "kubelet.service", within: 4 * time.Second,
		breaks: "mkdir -p " + dropIns + "; printf '[Service]\\nEnvironment=A=1\\n' >" + dropIns + "/10-a.conf", repairs: "rm -r " + dropIns},
	{name: "unit file edited", reason: "KubeletUnitChanged", text: unitFile, within: 4 * time.Second,
		breaks: "cp " + unitFile + " /root/; echo 'Environment=B=1' >>" + unitFile, repairs: "cp /root/kubelet.service " + unitFile + "; systemctl daemon-reload"},
	{name: "program replaced", reason: "KubeletBinaryReplaced", text: "/usr/local/bin/kubelet was replaced", within: 4 * time.Second,
		breaks: "cp /usr/local/bin/kubelet /usr/local/bin/new; mv /usr/local/bin/new /usr/local/bin/kubelet", repairs: "systemctl restart kubelet"},
	{name: "configuration broken", reason: "KubeletCrashLooping", text: "keeps dying", within: 30 * time.Second, clear: 6 * time.Minute,
		breaks:  "cp " + config + " /root/; echo '{' >" + config + "; systemctl kill -s KILL kubelet",
		repairs: "cp /root/config.json " + config},
}

var kubeletCertificates = []fault{
	{name: "an expiring pair", reason: "KubeletCertificateExpiring", text: "expires", within: 5 * time.Second,
		breakBy: func(t *testing.T, node string) {
			cert, key := keyPair(t, -99*24*time.Hour, 24*time.Hour)
			put(t, node, kubeletPKI+"/kubelet-client-current.pem", append(cert, key...))
		},
		repairs: "rm " + kubeletPKI + "/kubelet-client-current.pem"},
	{name: "a link to nothing", reason: "KubeletCertificateBroken", text: "link to nothing", within: 5 * time.Second,
		breaks: "ln -s kubelet-client-2026.pem " + kubeletPKI + "/kubelet-client-current.pem", repairs: "rm " + kubeletPKI + "/kubelet-client-current.pem"},
	{name: "another's key", reason: "KubeletCertificateBroken", text: "does not match its key", within: 5 * time.Second,
		breakBy: func(t *testing.T, node string) {
			sh(t, node, "cp "+kubeletPKI+"/kubelet.key /root/")
			_, key := keyPair(t, -time.Hour, time.Hour)
			put(t, node, kubeletPKI+"/kubelet.key", key)
		},
		repairs: "cp /root/kubelet.key " + kubeletPKI},
	// kubelet would load the new pair, but for this gate.
	{name: "another pair than the served one", reason: "KubeletServesOldCertificate", text: "serves another certificate", within: 5 * time.Second,
		breakBy: func(t *testing.T, node string) {
			sh(t, node, "cp "+config+" "+kubeletPKI+"/kubelet.key "+kubeletPKI+"/kubelet.crt /root/; "+
				"sed -i '1s/{/{\"featureGates\": {\"ReloadKubeletServerCertificateFile\": false},/' "+config+"; systemctl restart kubelet; sleep 4")
			cert, key := keyPair(t, -time.Hour, 1000*time.Hour)
			put(t, node, kubeletPKI+"/kubelet.key", key)
			put(t, node, kubeletPKI+"/kubelet.crt", cert)
		},
		repairs: "cp /root/config.json " + config + "; cp /root/kubelet.key /root/kubelet.crt " + kubeletPKI + "; systemctl restart kubelet"},
}

func TestKubelet(t *testing.T) {
	need(t)
	for node, list := range map[string][]fault{"node0": kubeletDown, "node1": kubeletPending, "node2": kubeletCertificates} {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			tryAll(t, node, "KubeletDrift", soonish, list)
			switch node {
			case "node0":
				t.Run("died and restarted", func(t *testing.T) { died(t, node, "Kubelet", "kubelet", 5*time.Second) })
				t.Run("systemd does not answer", func(t *testing.T) { kubeletUnknown(t, node) })
			case "node2":
				t.Run("an alpha feature", func(t *testing.T) {
					fault{reason: "KubeletAlphaFeature",
						breaks:  "cp " + config + " /root/; sed -i '1s/{/{\"featureGates\": {\"CPUManagerPolicyAlphaOptions\": true},/' " + config + "; systemctl restart kubelet",
						repairs: "cp /root/config.json " + config + "; systemctl restart kubelet"}.tryInfo(t, node)
				})
			}
		})
	}
}

// kubeletUnknown stops the node's systemd: nobody can say what kubelet's unit does.
func kubeletUnknown(t *testing.T, node string) {
	until(t, node, "KubeletDrift", time.Minute, isFalse)
	refill(t, node)
	pid, err := testLab.Node(node).Pid()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })
	began := time.Now()
	// It may have been asked a moment ago, and is asked again after 45 s.
	c, took := until(t, node, "KubeletDrift", 2*time.Minute+30*time.Second, func(c condition) bool { return c.Status != "False" })
	t.Logf("%s: %.1f s: %s %s %q", node, took.Seconds(), c.Status, c.Reason, c.Message)
	if c.Status != "Unknown" || time.Since(began) < time.Minute {
		t.Errorf("%s after %s, want Unknown after 60 s", c.Status, took)
	}
	syscall.Kill(pid, syscall.SIGCONT)
	_, cleared := until(t, node, "KubeletDrift", time.Minute, isFalse)
	t.Logf("%s: False again after %.1f s", node, cleared.Seconds())
}

// keyPair makes a certificate and its key that began and ends at times from now.
func keyPair(t *testing.T, from, to time.Duration) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "e2e"}, NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: b})
}

// put writes a file on a node.
func put(t *testing.T, node, name string, content []byte) {
	t.Helper()
	if _, err := testLab.Node(node).ExecInput(t.Context(), strings.NewReader(string(content)), "sh", "-c", fmt.Sprintf("cat >%s.new && mv %[1]s.new %[1]s", name)); err != nil {
		t.Fatal(err)
	}
}
