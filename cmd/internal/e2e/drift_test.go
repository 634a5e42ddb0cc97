package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDrift(t *testing.T) {
	need(t)
	const fin = "net.ipv4.tcp_fin_timeout"
	faults := []fault{
		{name: "a sysctl written from another pod", reason: "SysctlChanged", condition: "SysctlDrift", text: "net.ipv4.ip_forward is 0, want 1",
			breakBy: func(t *testing.T, node string) {
				toolbox(t, node, "writer", "write", "/proc/sys/net/ipv4/ip_forward", "0")
			},
			repairs: "sysctl -w net.ipv4.ip_forward=1"},
		{name: "a sysctl written on the host", reason: "SysctlChanged", condition: "SysctlDrift", text: fin + " is 30, want 60",
			breaks: "sysctl -w " + fin + "=30", repairs: "sysctl -w " + fin + "=60"},
		{name: "a new declaration", reason: "SysctlChanged", condition: "SysctlDrift", text: "net.ipv4.tcp_max_syn_backlog",
			breaks: "echo net.ipv4.tcp_max_syn_backlog=4711 >/etc/sysctl.d/70-new.conf", repairs: "rm /etc/sysctl.d/70-new.conf"},
		{name: "an overridden file", reason: "SysctlChanged", condition: "SysctlDrift", text: "net.ipv4.tcp_keepalive_time is 7200, want 600",
			breaks: "echo net.ipv4.tcp_keepalive_time=600 >/etc/sysctl.d/61-over.conf", repairs: "rm /etc/sysctl.d/61-over.conf"},
		{name: "a masked file unmasked", reason: "SysctlChanged", condition: "SysctlDrift", text: "net.ipv4.tcp_syn_retries",
			breaks:  "echo net.ipv4.tcp_syn_retries=4 >/run/sysctl.d/80-masked.conf; ln -s /dev/null /etc/sysctl.d/80-masked.conf; sleep 0.3; rm /etc/sysctl.d/80-masked.conf",
			repairs: "ln -s /dev/null /etc/sysctl.d/80-masked.conf"},
	}
	t.Run("node0", func(t *testing.T) {
		t.Parallel()
		sh(t, "node0", "mkdir -p /run/sysctl.d")
		for _, f := range faults {
			t.Run(f.name, func(t *testing.T) { f.try(t, "node0") })
		}
	})
	t.Run("node1", func(t *testing.T) {
		t.Parallel()
		for _, f := range rebootFaults {
			t.Run(f.name, func(t *testing.T) { f.try(t, "node1") })
		}
	})
	t.Run("node2", func(t *testing.T) {
		t.Parallel()
		for _, f := range slices.Concat(aksFaults, fileFaults) {
			t.Run(f.name, func(t *testing.T) { f.try(t, "node2") })
		}
	})
}

var fileFaults = []fault{
	{name: "an invalid line", reason: "SysctlFileInvalid", condition: "SysctlDrift", text: "70-bad.conf",
		breaks: "echo this is no setting >/etc/sysctl.d/70-bad.conf", repairs: "rm /etc/sysctl.d/70-bad.conf"},
	{name: "a key that is not there, in a file of AKS's", reason: "SysctlKeyMissing", condition: "SysctlDrift", text: "net.ipv4.no_such_key",
		breaks: "echo net.ipv4.no_such_key=1 >/etc/sysctl.d/60-CIS.conf", repairs: "rm /etc/sysctl.d/60-CIS.conf"},
	{name: "a key that cannot be read", reason: "SysctlUnreadable", condition: "SysctlDrift", info: true,
		breaks: "echo net.ipv6.conf.lo.stable_secret=::1 >/etc/sysctl.d/70-secret.conf", repairs: "rm /etc/sysctl.d/70-secret.conf"},
}

var rebootFaults = []fault{
	{name: "a marker with packages", reason: "RebootRequired", condition: "RebootPending", text: "libc6",
		breaks: "printf 'libc6\\nlinux-image-azure\\nlibc6\\n' >/run/reboot-required.pkgs; touch /run/reboot-required", repairs: "rm /run/reboot-required /run/reboot-required.pkgs"},
	{name: "a marker through /var/run", reason: "RebootRequired", condition: "RebootPending", text: "reboot",
		breaks: "touch /var/run/reboot-required", repairs: "rm /var/run/reboot-required"},
	// kubelet has written these keys itself, when it started without the flag. They are the machine's: each is put back.
	{name: "a key that kubelet refuses to start on", reason: "SysctlBlocksKubeletStart", condition: "SysctlDrift", text: "kernel.panic_on_oops is 0",
		breaks:  "sed -i '1s/{/{\"protectKernelDefaults\": true,/' /var/lib/kubelet/config.json && systemctl restart kubelet && sleep 3 && touch /etc/sysctl.d/60-e2e.conf && sleep 0.5 && sysctl -w kernel.panic_on_oops=0",
		repairs: "sysctl -w kernel.panic_on_oops=1; sed -i 's/\"protectKernelDefaults\": true,//' /var/lib/kubelet/config.json; systemctl restart kubelet"},
	{name: "a newer kernel installed", reason: "KernelOutdated", condition: "RebootPending", info: true,
		breaks:  `k=$(uname -r); n=$(echo $k | sed 's/^\([0-9]*\)\./9\1./'); touch /boot/vmlinuz-$k /boot/vmlinuz-$n`,
		repairs: `k=$(uname -r); n=$(echo $k | sed 's/^\([0-9]*\)\./9\1./'); rm /boot/vmlinuz-$n`},
}

// An AKS node is one with azure.json, and set up once provision.complete is there.
// The files that AKS writes are not.
const beAKS = "mkdir -p /etc/kubernetes /opt/azure/containers; touch /opt/azure/containers/provision.complete /etc/kubernetes/azure.json"

var aksFaults = []fault{
	{name: "AKS's own files are gone", reason: "SysctlFileTampered", condition: "SysctlDrift",
		beside: true, // what they declare is not so either
		breaks: beAKS + "; sleep 0.1; touch /etc/sysctl.d/edited; rm /etc/sysctl.d/edited", repairs: "rm /etc/kubernetes/azure.json"},
	{name: "a customer's file beats AKS's", reason: "SysctlConflict", condition: "SysctlDrift", info: true,
		breaks:  beAKS + "; echo net.ipv4.tcp_fin_timeout=60 >/etc/sysctl.d/zz-mine.conf; echo net.ipv4.tcp_fin_timeout=61 >/etc/sysctl.d/999-sysctl-aks.conf",
		repairs: "rm /etc/sysctl.d/zz-mine.conf /etc/sysctl.d/999-sysctl-aks.conf /etc/kubernetes/azure.json"},
}

// ServiceRestartRequired needs rights that the pod goes without on most kernels:
// there it is not judged; check as root on the node sees it.
func TestServiceRestartRequired(t *testing.T) {
	const node = "node2"
	l := alone(t, node)
	judged := false
	for _, c := range document(t, node).Conditions {
		for _, s := range c.NotJudged {
			judged = judged || strings.HasPrefix(s, "ServiceRestartRequired:")
		}
	}
	// Since Linux 6.15 CAP_PERFMON, which the pod has, is enough to read another process's maps.
	t.Logf("in the pod: not judged %v", judged)
	program, err := os.ReadFile(filepath.Join(bin, "nodedrift"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Node(node).Root(), "usr/local/bin/nodedrift"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	lib := strings.TrimSpace(sh(t, node, `awk '/libnettle|libseccomp|libcap/ && /r-xp/ {print $6; exit}' /proc/$(pidof chronyd | cut -d' ' -f1)/maps`))
	if lib == "" {
		t.Fatal("chronyd maps no library to replace")
	}
	check := func() bool {
		out, _ := l.Node(node).SystemdRun(t.Context(), "/usr/local/bin/nodedrift", "check", "reboot", "-o", "wide")
		return strings.Contains(out, "ServiceRestartRequired") && strings.Contains(out, "chrony")
	}
	if check() {
		t.Fatal("ServiceRestartRequired before anything was replaced")
	}
	sh(t, node, fmt.Sprintf("cp %s %s.new && mv %s.new %s", lib, lib, lib, lib))
	began := time.Now()
	if !check() {
		t.Fatalf("chronyd maps %s, which is deleted, and check does not say so", lib)
	}
	raised := time.Since(began)
	sh(t, node, "systemctl restart chrony")
	began = time.Now()
	if check() {
		t.Error("chronyd was restarted, and check still names it")
	}
	record("ServiceRestartRequired", "check as root (info)", raised, time.Since(began))
}
