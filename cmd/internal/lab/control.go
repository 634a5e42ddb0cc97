package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// startControlPlane starts everything that is not a node. Nothing waits here but for files: each part waits for the one it
// needs by itself.
func (l *Lab) startControlPlane(ctx context.Context) (*authority, error) {
	if err := l.addControlNetns(ctx); err != nil {
		return nil, err
	}
	if err := l.startEtcd(); err != nil {
		return nil, err
	}
	a, err := l.identities()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(l.dir, "audit-policy.json"), []byte(auditPolicy), 0o600); err != nil {
		return nil, fmt.Errorf("write the audit policy: %w", err)
	}
	if err := l.startAPIServer(); err != nil {
		return nil, err
	}
	return a, l.startTimeServer()
}

// identities makes one user per component, as kubeadm does, so that the audit log and RBAC can tell them apart.
func (l *Lab) identities() (*authority, error) {
	a, err := newAuthority(filepath.Join(l.dir, "pki"))
	if err != nil {
		return nil, err
	}
	if err := a.issue("apiserver", "kube-apiserver", "", controlIP, "127.0.0.1", serviceIP, "localhost", "kubernetes", "kubernetes.default.svc"); err != nil {
		return nil, err
	}
	if err := a.issue("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters"); err != nil {
		return nil, err
	}
	if err := a.user("admin", "admin", "system:masters"); err != nil {
		return nil, err
	}
	for _, c := range []string{"kube-controller-manager", "kube-scheduler", "kube-proxy"} {
		if err := a.user(c, "system:"+c, ""); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (l *Lab) startEtcd() error {
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	return l.start("etcd", l.bin("etcd"), "--data-dir="+filepath.Join(l.dir, "etcd"), "--log-level=error", "--unsafe-no-fsync",
		"--listen-client-urls="+client, "--advertise-client-urls="+client, "--listen-peer-urls="+peer)
}

func (l *Lab) startAPIServer() error {
	return l.start("apiserver", append([]string{l.bin("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379", "--bind-address=" + controlIP, "--secure-port=443",
		"--tls-cert-file=" + l.pki("apiserver.crt"), "--tls-private-key-file=" + l.pki("apiserver.key"), "--client-ca-file=" + l.pki("ca.crt"),
		"--kubelet-client-certificate=" + l.pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + l.pki("apiserver-kubelet.key"),
		"--kubelet-certificate-authority=" + l.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-key-file=" + l.pki("sa.pub"), "--service-account-signing-key-file=" + l.pki("sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--service-cluster-ip-range=" + serviceCIDR,
		"--audit-log-path=" + l.AuditLog(), "--audit-log-maxsize=4096", "--audit-policy-file=" + filepath.Join(l.dir, "audit-policy.json"),
	}, l.state.APIServer...)...)
}

// startControllers comes when the API server is ready: both end when they cannot reach it, so a shell starts them again, as
// a kubelet does with the static pods of a real control plane.
func (l *Lab) startControllers() error {
	const again = `while :; do "$@"; sleep 0.2; done`
	kcm, sched := l.pki("kube-controller-manager.conf"), l.pki("kube-scheduler.conf")
	err := l.start("controllers", "/bin/sh", "-c", again, "sh", l.bin("kube-controller-manager"),
		"--kubeconfig="+kcm, "--authentication-kubeconfig="+kcm, "--authorization-kubeconfig="+kcm,
		"--service-account-private-key-file="+l.pki("sa.key"), "--root-ca-file="+l.pki("ca.crt"),
		"--use-service-account-credentials", "--leader-elect=false", "--bind-address=127.0.0.1",
		"--kube-api-qps=1000", "--kube-api-burst=1000") // with the default of 20 a second it takes 4 s to start
	if err != nil {
		return err
	}
	return l.start("scheduler", "/bin/sh", "-c", again, "sh", l.bin("kube-scheduler"),
		"--kubeconfig="+sched, "--authentication-kubeconfig="+sched, "--authorization-kubeconfig="+sched,
		"--leader-elect=false", "--bind-address=127.0.0.1")
}

// startTimeServer gives the nodes an NTP server. -x: this machine's clock is never set.
func (l *Lab) startTimeServer() error {
	dir := filepath.Join(l.dir, "chrony")
	conf := fmt.Sprintf("local stratum 3\nallow %s\nbindaddress %s\ncmdport 0\nbindcmdaddress /\npidfile %s/pid\ndriftfile %[3]s/drift\nuser root\n",
		network, controlIP, dir)
	if err := os.WriteFile(dir+".conf", []byte(conf), 0o644); err != nil {
		return fmt.Errorf("write the time server's configuration: %w", err)
	}
	return l.start("timeserver", "chronyd", "-x", "-d", "-f", dir+".conf")
}

// start starts a part of the control plane and remembers it.
func (l *Lab) start(name string, argv ...string) error {
	p, err := l.spawn(name, l.controlNetns(), nil, argv...)
	if err != nil {
		return err
	}
	return l.remember(name, p)
}

// APIServerStop kills the API server at once, as a crash would: clients see their connections end, and later ones refused.
func (l *Lab) APIServerStop(ctx context.Context) error {
	if err := l.state.Cgroups.kill(ctx, "apiserver"); err != nil {
		return fmt.Errorf("stop the API server: %w", err)
	}
	return nil
}

// APIServerStart starts a stopped API server and returns when it is ready.
func (l *Lab) APIServerStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, upTimeout, errTooLong)
	defer cancel()
	if l.process("apiserver").alive() {
		return l.apiReady(ctx)
	}
	if err := l.startAPIServer(); err != nil {
		return err
	}
	return l.apiReady(ctx)
}

func (l *Lab) apiReady(ctx context.Context) error {
	p := l.process("apiserver")
	err := poll(ctx, func(ctx context.Context) error {
		if !p.alive() {
			return errEnded
		}
		return l.Get(ctx, "/readyz", nil)
	})
	if err != nil {
		return fmt.Errorf("wait for the API server: %w; %s", err, tail(l.logFile("apiserver"), 8))
	}
	return nil
}

// usable waits for what the controllers make and every pod needs.
func (l *Lab) usable(ctx context.Context) error {
	err := poll(ctx, func(ctx context.Context) error {
		return l.Get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
	})
	if err != nil {
		return fmt.Errorf("wait for the controllers: %w; %s", err, tail(l.logFile("controllers"), 8))
	}
	return nil
}
