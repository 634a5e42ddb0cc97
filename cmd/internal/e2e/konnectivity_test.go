package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// What cannot be had on a lab node, which has no tunnel.
func init() {
	maps.Copy(fixtureOnly, map[string]string{
		"TunnelUnstable":          "the lab has no tunnel: a stand-in agent with real connections, in the probe's own tests",
		"TunnelAgentCrashLooping": "the lab has no tunnel: what the runtime tells of containers, typed",
		"TunnelRetransmitting":    "the lab has no tunnel: a typed table of sockets",
		"TunnelKeepaliveUnsafe":   "the lab has no tunnel: typed arguments",
		"TunnelNotRedundant":      "the lab has no tunnel: recorded metrics",
		"APIServerNotReady":       "the lab's API server says that it is ready until it ends: typed",
	})
	if os.Getenv("NODEDRIFT_INTERCEPT") != "" {
		fmt.Fprintln(os.Stderr, intercept())
		os.Exit(1)
	}
}

// intercept is a firewall that inspects TLS: this very program, copied into a node.
func intercept() error {
	pair, err := tls.LoadX509KeyPair("/root/intercept.crt", "/root/intercept.key")
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", ":9443", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func(c net.Conn) {
			defer c.Close()
			c.Read(make([]byte, 1))
		}(c)
	}
}

const (
	tunnelCondition = "KonnectivityUnavailable"
	unreachable     = "KubeletUnreachableFromAPIServer"
	toAPI           = " OUTPUT -p tcp -d 10.240.0.1 --dport 443 "
	fromAPI         = " INPUT -p tcp -s 10.240.0.1 --dport 10250 -j DROP"
	kubeconfig      = "/var/lib/kubelet/kubeconfig"
)

// What the API server says of the way back is a condition.
func TestKonnectivityWayBack(t *testing.T) {
	const node = "node0"
	alone(t, node)
	healthyTunnel(t, node)
	// kubelet's certificates are listened to: touched, they are a reason to ask.
	const ask = "touch /var/lib/kubelet/pki/kubelet.crt"
	// Its hold is what it is on a real node: other tests stop kubelet for seconds.
	tryAll(t, node, tunnelCondition, 30*time.Second, []fault{
		{name: "kubelet stopped", reason: unreachable, text: "the connection is refused", within: 35 * time.Second,
			breaks: "systemctl stop kubelet", repairs: "systemctl start kubelet"},
		{name: "packets to kubelet dropped", reason: unreachable, text: "no answer", within: 80 * time.Second, clear: 130 * time.Second,
			breaks: "iptables -I" + fromAPI + "; " + ask, repairs: "iptables -D" + fromAPI + "; " + ask},
		{name: "kubelet's serving certificate replaced", reason: unreachable, text: "does not accept kubelet's serving certificate", within: 45 * time.Second,
			breakBy: func(t *testing.T, node string) {
				sh(t, node, "cp "+kubeletPKI+"/kubelet.key "+kubeletPKI+"/kubelet.crt /root/")
				cert, key := keyPair(t, -time.Hour, time.Hour*1000)
				put(t, node, kubeletPKI+"/kubelet.key", key)
				put(t, node, kubeletPKI+"/kubelet.crt", cert)
				sh(t, node, "systemctl restart kubelet")
			},
			repairs: "cp /root/kubelet.key /root/kubelet.crt " + kubeletPKI + "; systemctl restart kubelet"},
	})
}

// healthyTunnel waits until a node is in order, and both ways have been judged: after
// a kubelet that was restarted the API server may have to be asked again.
func healthyTunnel(t *testing.T, node string) {
	t.Helper()
	until(t, node, tunnelCondition, time.Minute, isFalse)
	for began := time.Now(); ; time.Sleep(time.Second) {
		conditions := document(t, node).Conditions
		i := slices.IndexFunc(conditions, func(c judged) bool { return c.Type == tunnelCondition })
		if i >= 0 && len(conditions[i].NotJudged) == 0 && len(conditions[i].Findings) == 0 {
			return
		}
		if time.Since(began) > 90*time.Second {
			t.Fatalf("%s: %+v", node, conditions)
		}
	}
}

// An agent of the tunnel runs in a pod, in the pod's network, and its server on the node:
// both are the stand-ins of the probe's own tests, with real connections.
func TestTunnelOfAPod(t *testing.T) {
	const node, program, port = "node2", "/usr/local/bin/proxy-agent", "8132"
	l := alone(t, node)
	n := l.Node(node)
	healthyTunnel(t, node)
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", filepath.Join(n.Root(), program), "./probes/konnectivity")
	build.Dir, build.Env = filepath.Dir(bin), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const serve = "systemd-run --quiet --collect --unit=tunnel --setenv=NODEDRIFT_STANDIN=server " + program
	sh(t, node, serve)
	pod := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "konnectivity-agent-lab", "namespace": "kube-system"}, "spec": {"nodeName": %q, "terminationGracePeriodSeconds": 0,
	  "volumes": [{"name": "program", "hostPath": {"path": %q}}], "containers": [{"name": "agent", "image": "localhost/toolbox:1", "imagePullPolicy": "Never",
	  "command": ["/proxy-agent", "--proxy-server-host=%s", "--proxy-server-port=%s", "--keepalive-time=30s"],
	  "env": [{"name": "NODEDRIFT_STANDIN", "value": "agent"}], "volumeMounts": [{"name": "program", "mountPath": "/proxy-agent", "readOnly": true}]}]}}`, node, program, n.IP(), port)
	if out, err := l.Kubectl(t.Context(), strings.NewReader(pod), "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		_, _ = l.Kubectl(ctx, nil, "delete", "pod", "-n", "kube-system", "konnectivity-agent-lab", "--force", "--grace-period=0")
		_, _ = n.Exec(ctx, "sh", "-c", "systemctl kill -s KILL tunnel; rm "+program)
	})
	judged := func() bool { // an agent is young for 90 s
		out := inNode(t, node, "curl", "-sS", "--max-time", "5", "http://127.0.0.1:20258/metrics")
		return strings.Contains(out, "nodedrift_konnectivity_server_connections 1")
	}
	for began := time.Now(); !judged(); time.Sleep(time.Second) {
		if time.Since(began) > 3*time.Minute {
			t.Fatalf("the agent is not judged: %+v", document(t, node).Conditions)
		}
	}
	healthyTunnel(t, node)
	told := newEvents(t, node)
	began := time.Now()
	tryAll(t, node, tunnelCondition, 10*time.Second, []fault{
		{name: "server killed", reason: "TunnelDown", text: "is connected to no server", within: 5 * time.Second,
			breaks: "systemctl kill -s KILL tunnel", repairs: serve, clear: 20 * time.Second},
		{name: "server stopped", reason: "TunnelNotResponding", text: "no answer", within: 65 * time.Second,
			breaks: "systemctl kill -s STOP tunnel", repairs: "systemctl kill -s CONT tunnel", clear: 40 * time.Second},
		{name: "agent stopped", reason: "TunnelAgentHung", text: "stopped by a signal", within: 12 * time.Second,
			breaks: "pkill -STOP -x proxy-agent", repairs: "pkill -CONT -x proxy-agent", clear: 20 * time.Second},
	})
	refused := "the connection to " + n.IP() + ":" + port + " could not be made: connection refused"
	for !slices.ContainsFunc(told(), func(e event) bool { return e.Reason == "TunnelReset" && strings.Contains(e.Message, refused) }) {
		if time.Since(began) > 5*time.Minute {
			t.Fatalf("no Event says %q: %+v", refused, told())
		}
		time.Sleep(time.Second)
	}
}

// A connection to the API server that is reset is an Event. That kubelet is restarted,
// which ends all of its connections, is none.
func TestResetIsTold(t *testing.T) {
	need(t)
	const node = "node2"
	healthyTunnel(t, node)
	resets := func(now []event) (said []string) {
		for _, e := range now {
			if e.Reason == "TunnelReset" {
				said = append(said, e.Message)
			}
		}
		return said
	}
	told := newEvents(t, node)
	sh(t, node, "systemctl restart kubelet; sleep 10")
	if said := resets(told()); len(said) > 0 {
		t.Errorf("kubelet is restarted: %q", said)
	}
	told = newEvents(t, node)
	t.Cleanup(func() {
		_, _ = testLab.Node(node).Exec(context.WithoutCancel(t.Context()), "sh", "-c", "iptables -D"+toAPI+"-j REJECT --reject-with tcp-reset")
	})
	began := time.Now()
	sh(t, node, "iptables -I"+toAPI+"-j REJECT --reject-with tcp-reset; sleep 12; iptables -D"+toAPI+"-j REJECT --reject-with tcp-reset")
	var said []string
	for len(said) == 0 {
		if time.Since(began) > time.Minute {
			t.Fatalf("no Event tells that connections are reset: %+v", told())
		}
		time.Sleep(100 * time.Millisecond)
		said = resets(told())
	}
	took := time.Since(began)
	t.Logf("%.1f s: %q", took.Seconds(), said)
	if len(said) > 1 || !strings.Contains(said[0], "the connection to 10.240.0.1:443 was reset") {
		t.Errorf("it says %q", said)
	}
	record("TunnelReset", "Event", took, 0)
	until(t, node, tunnelCondition, 2*time.Minute, isFalse)
}

// A node whose way to the API server is cut cannot tell the API server: its own
// document has it.
func TestKonnectivityForward(t *testing.T) {
	const node = "node1"
	alone(t, node)
	cert, key := keyPair(t, -time.Hour, time.Hour)
	put(t, node, "/root/intercept.crt", cert)
	put(t, node, "/root/intercept.key", key)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(testLab.Node(node).Root(), "usr/local/bin/intercept"), self, 0o755); err != nil {
		t.Fatal(err)
	}
	const (
		redirect = toAPI + "-j REDIRECT --to-ports 9443"
		again    = "systemctl restart kubelet kube-proxy"
		byName   = "cp " + kubeconfig + " /root/; cp /etc/hosts /root/hosts; cp -L /etc/resolv.conf /root/resolv.conf; echo '10.240.0.1 kubernetes' >>/etc/hosts; " +
			"sed -i 's,https://10.240.0.1:443,https://kubernetes:443,' " + kubeconfig + "; systemctl restart kubelet; sleep 40; "
	)
	for _, f := range []fault{
		{name: "address black-holed", reason: "APIServerUnreachable", text: "10.240.0.1:443 cannot be reached: no answer", within: time.Minute,
			breaks: "iptables -I" + toAPI + "-j DROP", repairs: "iptables -D" + toAPI + "-j DROP"},
		{name: "TLS intercepted", reason: "APIServerTLSIntercepted", text: "somebody else answers for the API server", within: 75 * time.Second,
			breaks:  "systemd-run --unit=intercept --setenv=NODEDRIFT_INTERCEPT=1 /usr/local/bin/intercept; iptables -t nat -I" + redirect + "; " + again,
			repairs: "iptables -t nat -D" + redirect + "; systemctl stop intercept; " + again},
		{name: "DNS dead", reason: "APIServerUnresolvable", text: "the API server's name kubernetes does not resolve", within: 75 * time.Second,
			breaks:  byName + "cp /root/hosts /etc/hosts; echo 'nameserver 192.0.2.1' >/etc/resolv.conf; " + again,
			repairs: "cp /root/hosts /etc/hosts; cp /root/resolv.conf /etc/resolv.conf; cp /root/kubeconfig " + kubeconfig + "; " + again},
	} {
		t.Run(f.name, func(t *testing.T) { f.offline(t, node) })
	}
}

// offline breaks the way to the API server, waits for the word in the agent's own
// document, repairs it, and waits for the all-clear there and in the API.
func (f fault) offline(t *testing.T, node string) {
	until(t, node, tunnelCondition, 2*time.Minute, isFalse)
	t.Cleanup(func() {
		_, _ = testLab.Node(node).Exec(context.WithoutCancel(t.Context()), "sh", "-c", f.repairs)
	})
	sh(t, node, f.breaks)
	began := time.Now()
	says := func() (text string) {
		for _, c := range document(t, node).Conditions {
			for _, found := range c.Findings {
				if c.Type == tunnelCondition && found.Reason == f.reason && !found.Held {
					text = found.Message
				}
			}
		}
		return text
	}
	var text string
	for text == "" {
		if time.Since(began) > f.within {
			t.Fatalf("not raised after %s: %+v", f.within, document(t, node).Conditions)
		}
		time.Sleep(200 * time.Millisecond)
		text = says()
	}
	raised := time.Since(began)
	t.Logf("%s: %.1f s: %q", node, raised.Seconds(), text)
	if !strings.Contains(text, f.text) {
		t.Errorf("it says %q, want %q", text, f.text)
	}
	sh(t, node, f.repairs)
	began = time.Now()
	for says() != "" {
		if time.Since(began) > 45*time.Second {
			t.Fatal("not cleared after 45 s")
		}
		time.Sleep(200 * time.Millisecond)
	}
	record(f.reason, "document", raised, time.Since(began))
	until(t, node, tunnelCondition, 2*time.Minute, isFalse)
}
