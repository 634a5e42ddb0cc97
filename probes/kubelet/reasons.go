package kubelet

import (
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// The reasons of this probe.
const (
	NotRunning           = "Kubelet" + unit.NotRunning
	CrashLooping         = "Kubelet" + unit.CrashLooping
	ConfigNotLoaded      = "Kubelet" + unit.ConfigNotLoaded
	Unhealthy            = "KubeletUnhealthy"
	Hung                 = "KubeletHung"
	SyncLoopStuck        = "KubeletSyncLoopStuck"
	CertificateExpiring  = "KubeletCertificateExpiring"
	CertificateBroken    = "KubeletCertificateBroken"
	ServesOldCertificate = "KubeletServesOldCertificate"
	AlphaFeature         = "KubeletAlphaFeature"
)

// Metrics.
const (
	healthSeconds   = "kubelet_health_seconds"
	certificateLeft = "kubelet_certificate_left_seconds"
)

func metrics(c Config) []probes.Metric {
	return append(unit.Metrics(options(c)),
		probes.Metric{Name: healthSeconds, Help: "How long kubelet's health port took to answer at the last look; absent when it did not."},
		probes.Metric{Name: certificateLeft, Help: "Time until a certificate of kubelet's expires; negative when it has.",
			Labels: []probes.Label{{Name: "use", Values: []string{"client", "serving"}}}})
}

// holdHealth lets another look be taken: one bad answer is none.
const holdHealth = 4 * time.Second

const breaks = "No pod is started, stopped or probed; after about 40 s the node is NotReady, and after 5 min its pods are evicted."

func reasons(c Config) []probes.Reason { return append(unit.Reasons(options(c), breaks), own...) }

var own = []probes.Reason{
	{
		Name: Unhealthy, Severity: probes.Critical, Owner: probes.AKS, Hold: holdHealth,
		Meaning:        "kubelet runs and says itself that it is not healthy, or has refused connections to its health port for a minute since it was started.",
		Breaks:         breaks,
		Confirm:        "curl -sS 'http://127.0.0.1:10248/healthz?verbose'; journalctl -u kubelet -n 50",
		Mend:           "Read which check failed and kubelet's journal; systemctl restart kubelet as a last resort. On AKS the node is repaired after about ten minutes of NotReady.",
		FalsePositives: "A health port that another program has taken. While containerd is down, and for a minute after, this is not judged.",
		Links:          []string{"https://kubernetes.io/docs/reference/command-line-tools-reference/kubelet/", "https://learn.microsoft.com/azure/aks/node-auto-repair"},
	},
	{
		Name: Hung, Severity: probes.Critical, Owner: probes.AKS, Hold: holdHealth,
		Meaning:        "kubelet takes connections to its health port and does not answer: it is stopped by a signal, deadlocked, or starved of CPU or memory.",
		Breaks:         breaks,
		Confirm:        "curl -m 2 -sS http://127.0.0.1:10248/healthz; ps -o pid,stat,wchan:20,cmd -C kubelet",
		Mend:           "kill -CONT it where it is stopped (state T); otherwise take a goroutine dump (kill -ABRT, it is restarted) and look at CPU, memory and disk pressure.",
		FalsePositives: "A node so starved that no process gets CPU: that is true of the agent too, which then says AgentStarved.",
		Links:          []string{"https://learn.microsoft.com/azure/aks/node-auto-repair"},
	},
	{
		Name: SyncLoopStuck, Severity: probes.Critical, Owner: probes.AKS,
		Meaning: "kubelet's main loop does not turn. Either kubelet says so (healthz/syncloop, after five minutes, where it is offered on the health port), " +
			"or a thread of it has waited in the kernel (state D) without running for three looks, ten seconds apart.",
		Breaks:         "Pods on the node are not started, stopped or cleaned up; with a dead NFS or CIFS mount housekeeping hangs for ever, while healthz stays ok.",
		Confirm:        "ps -L -o tid,stat,wchan:30,comm -p $(pgrep -xo kubelet) | grep ' D'; curl -sS http://127.0.0.1:10248/healthz/syncloop",
		Mend:           "Find the dead mount (cat /proc/$(pgrep -xo kubelet)/mountinfo; dmesg | grep -e 'not responding' -e 'blocked for more'), umount -f -l it, or drain and reboot the node.",
		FalsePositives: "A disk that takes more than twenty seconds for one request and recovers.",
		Links:          []string{"https://github.com/kubernetes/kubernetes/issues/101622", "https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html"},
	},
	{
		Name: CertificateExpiring, Severity: probes.Warning, Owner: probes.AKS, Hold: time.Minute,
		Meaning: "A certificate of kubelet's has used up 92 % of its life and was not renewed, though kubelet renews at 70 to 90 %; " +
			"critical when it has expired, or is within the smaller of 72 h and 8 % of its life.",
		Breaks: "Nothing yet. Once the client certificate has expired kubelet can no longer talk to the API server and the node is NotReady for good; " +
			"once the serving one has, logs, exec and metrics fail.",
		Confirm:        "openssl x509 -noout -dates -in /var/lib/kubelet/pki/kubelet-client-current.pem; kubectl get csr",
		Mend:           "Find out why renewal fails (pending CSRs, kubelet's journal, the node's clock). On AKS: az aks rotate-certs, or recreate the node; a cluster that was stopped for long renews only its control plane.",
		FalsePositives: "A certificate that is renewed by other means and later than kubelet would. A clock that is ahead: see TimeSyncDrift.",
		Links:          []string{"https://learn.microsoft.com/azure/aks/certificate-rotation", "https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/"},
	},
	{
		Name: CertificateBroken, Severity: probes.Critical, Owner: probes.AKS, Hold: 10 * time.Second,
		Meaning:        "A certificate of kubelet's on disk cannot be used: a link to nothing, an empty or damaged file, a key that is another's, or not valid yet.",
		Breaks:         "The running kubelet may go on with what it has in memory; at its next start or renewal it fails, and the node is lost.",
		Confirm:        "ls -l /var/lib/kubelet/pki; openssl x509 -noout -dates -in the file named; date -u",
		Mend:           "Point kubelet-client-current.pem at the newest kubelet-client-*.pem that is whole, or remove it and restart kubelet so that it bootstraps anew. \"Not valid before\": set the clock right first.",
		FalsePositives: "A renewal that is caught half done: it takes milliseconds.",
		Links:          []string{"https://learn.microsoft.com/azure/aks/certificate-rotation", "https://github.com/kubernetes/kubernetes/issues/65991"},
	},
	{
		Name: ServesOldCertificate, Severity: probes.Warning, Owner: probes.AKS, Hold: 10 * time.Minute,
		Meaning:        "kubelet serves another certificate on its port (10250) than the one on its disk: it was renewed or replaced, and not loaded.",
		Breaks:         "Nothing until the old one expires or its authority is retired; then kubectl logs, exec, port-forward and metrics of this node fail.",
		Confirm:        "openssl s_client -connect 127.0.0.1:10250 </dev/null 2>/dev/null | openssl x509 -noout -serial -dates; compare with the file named",
		Mend:           "systemctl restart kubelet.",
		FalsePositives: "A proxy that listens on kubelet's port in its place.",
		Links:          []string{"https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/"},
	},
	{
		Name: AlphaFeature, Severity: probes.Info, Owner: probes.Customer,
		Meaning: "A feature gate of alpha stage is on in kubelet's flags or configuration, by the table of Kubernetes " + gatesOf + ".",
		Breaks:  "Nothing by itself. Alpha features are off by default, may break, and may be gone in the next release.",
		Confirm: "tr '\\0' '\\n' </proc/$(pgrep -xo kubelet)/cmdline | grep feature-gates; grep -A9 featureGates the configuration",
		Mend:    "Take the gate out, unless it is meant.",
		FalsePositives: "A kubelet newer than the table, in which the gate has been promoted. A gate whose stage depends on kubelet's version is not judged, " +
			"since nothing on the node tells that version to who may not run it.",
		Links: []string{"https://kubernetes.io/docs/reference/command-line-tools-reference/feature-gates/"},
	},
}
