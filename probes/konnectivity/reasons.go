package konnectivity

import (
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// Reasons.
const (
	TunnelDown              = "TunnelDown"
	TunnelNotResponding     = "TunnelNotResponding"
	TunnelAgentHung         = "TunnelAgentHung"
	TunnelAgentCrashLooping = "TunnelAgentCrashLooping"
	TunnelUnstable          = "TunnelUnstable"
	TunnelRetransmitting    = "TunnelRetransmitting"
	TunnelKeepaliveUnsafe   = "TunnelKeepaliveUnsafe"
	TunnelNotRedundant      = "TunnelNotRedundant"
	APIServerUnresolvable   = "APIServerUnresolvable"
	APIServerUnreachable    = "APIServerUnreachable"
	APIServerTLSIntercepted = "APIServerTLSIntercepted"
	APIServerNotReady       = "APIServerNotReady"
	KubeletUnreachable      = "KubeletUnreachableFromAPIServer"
)

// Metrics.
const (
	agentsHere        = "konnectivity_agents"
	serverConnections = "konnectivity_server_connections"
	knownServers      = "konnectivity_known_servers"
	silence           = "apiserver_silence_seconds"
	tripSeconds       = "apiserver_step_seconds"
	backSeconds       = "apiserver_way_back_seconds"
)

var metrics = []probes.Metric{
	{Name: agentsHere, Help: "Konnectivity agents that run on this node."},
	{Name: serverConnections, Help: "Connections of this node's konnectivity agents to servers, as they say; absent where none runs."},
	{Name: knownServers, Help: "Servers that this node's konnectivity agents try to be connected to; absent where none runs."},
	{Name: silence, Help: "Time since data of the API server came to this node, by the connection that heard last."},
	{Name: tripSeconds, Help: "How long each step of the last own way to the API server took; one that failed is absent.",
		Labels: []probes.Label{{Name: "step", Values: []string{stepResolve, stepConnect, stepTLS, stepReady}}}},
	{Name: backSeconds, Help: "How long the API server took for a line of this agent's own log, which it fetches from this node's kubelet."},
}

const (
	// A look comes within a second of a connection's end; with its hold that is 3 s.
	holdDown = time.Second
	// holdTunnelElsewhere is for what the way back says of the tunnel as a whole.
	holdTunnelElsewhere = 5 * time.Minute

	breaksTunnel = "What the API server sends to nodes by this agent fails or hangs: kubectl logs, exec, port-forward, webhooks, aggregated APIs such as metrics. " +
		"With another agent that is connected only some of the requests fail."
	breaksForward = "kubelet cannot renew its Lease: after about 40 s the node is NotReady, and after 5 min its pods are evicted. Pods keep running."

	tunnelIssues = "https://learn.microsoft.com/troubleshoot/azure/azure-kubernetes/connectivity/tunnel-connectivity-issues"
	egress       = "https://learn.microsoft.com/azure/aks/outbound-rules-control-egress"
	upstream     = "https://github.com/kubernetes-sigs/apiserver-network-proxy"
	reachAPI     = "https://learn.microsoft.com/troubleshoot/azure/azure-kubernetes/connectivity/troubleshoot-cluster-connection-issues-api-server"

	theAgent = "kubectl -n kube-system get pods -o wide | grep konnectivity-agent; on the node: curl -sS http://POD_IP:PORT/metrics | grep -e open_server -e known_server " +
		"(port by --health-server-port: AKS 8082, otherwise 8093)"
)

var reasons = []probes.Reason{
	{
		Name: TunnelDown, Severity: probes.Critical, Owner: probes.AKS, Hold: holdDown,
		Meaning:        "The konnectivity-agent that runs on this node is connected to no server, and has no connection that could become one. Agents younger than 90 s are left out.",
		Breaks:         breaksTunnel,
		Confirm:        theAgent + "; kubectl -n kube-system logs -l app=konnectivity-agent --tail=20",
		Mend:           "See that the node may go out to the API server's name on TCP port 443 (firewall, NSG, route table, proxy). AKS restarts its agents; deleting the pod is harmless.",
		FalsePositives: "The API server's end being restarted: agents come back within ten seconds.",
		Links:          []string{tunnelIssues, egress},
	},
	{
		Name: TunnelNotResponding, Severity: probes.Critical, Owner: probes.AKS, Hold: 5 * time.Second,
		Meaning: "The konnectivity-agent on this node has TCP connections to its server and no working tunnel on them: the server, or something between, takes connections and says nothing. " +
			"The agent notices that within its --keepalive-time and 20 s; where that is longer than four minutes and nothing is sent, this is not judged.",
		Breaks:         breaksTunnel,
		Confirm:        theAgent + "; ss -tnio in the pod's network namespace",
		Mend:           "Look for firewalls that let TCP through and stop TLS or its ALPN (konnectivity). Otherwise it is AKS's: open a support request when it lasts.",
		FalsePositives: "An agent that is connecting at this moment, after its server was restarted.",
		Links:          []string{tunnelIssues, upstream},
	},
	{
		Name: TunnelAgentHung, Severity: probes.Critical, Owner: probes.AKS, Hold: 4 * time.Second,
		Meaning:        "The konnectivity-agent on this node takes connections to its health port and does not answer within a second: it is stopped by a signal, deadlocked, or starved.",
		Breaks:         breaksTunnel + " The server still counts it as ready and keeps sending it requests, which time out.",
		Confirm:        "curl -m 2 -sS http://POD_IP:PORT/readyz; ps -o pid,stat,wchan:20,cmd -C proxy-agent",
		Mend:           "Delete the pod: the Deployment makes another one. kill -CONT where it is stopped (state T).",
		FalsePositives: "A node so starved that no process gets CPU.",
		Links:          []string{tunnelIssues, upstream},
	},
	{
		Name: TunnelAgentCrashLooping, Severity: probes.Warning, Owner: probes.AKS, Hold: 30 * time.Second,
		Meaning:        "The konnectivity-agent on this node has ended at least three times, and its last lives were shorter than five minutes each. The message has the exit code.",
		Breaks:         breaksTunnel,
		Confirm:        "kubectl -n kube-system describe pods -l app=konnectivity-agent; kubectl -n kube-system logs --previous POD",
		Mend:           "OOMKilled: the cluster has outgrown the agent's memory limit, AKS sizes it. Otherwise read its last words: certificates, tokens, names that do not resolve.",
		FalsePositives: "Somebody who kills it again and again.",
		Links:          []string{tunnelIssues},
	},
	{
		Name: TunnelUnstable, Severity: probes.Warning, Owner: probes.AKS,
		Meaning:        "The konnectivity-agent on this node lost a connection to a server at least three times within ten minutes. It clears when that is ten minutes ago.",
		Breaks:         "Each loss ends the requests under way: kubectl exec and logs break off, webhooks fail once.",
		Confirm:        theAgent + "; curl -sS http://POD_IP:PORT/metrics | grep -e connection_failure -e stream_errors",
		Mend:           "Look for firewalls and NAT gateways that cut long connections, SNAT ports that run out, and nodes that freeze (TimeSyncDrift, NodeFrozen).",
		FalsePositives: "An upgrade of the control plane, whose servers are replaced one after the other.",
		Links:          []string{tunnelIssues, "https://learn.microsoft.com/azure/load-balancer/load-balancer-tcp-idle-timeout"},
	},
	{
		Name: TunnelRetransmitting, Severity: probes.Warning, Owner: probes.Both, Hold: 5 * time.Second,
		Meaning:        "What the konnectivity-agent on this node sends to its server is not acknowledged, and was sent again at least three times: packets are lost in one or both directions.",
		Breaks:         "Nothing yet. After about 20 s without an acknowledgement the kernel gives the connection up, and the tunnel is down.",
		Confirm:        "ss -tnio in the pod's network namespace (retrans, backoff, unacked); nstat -az TcpRetransSegs",
		Mend:           "Look at what changed on the way out: NSG, route table, firewall, MTU.",
		FalsePositives: "A short loss on a long way.",
		Links:          []string{tunnelIssues, "https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html"},
	},
	{
		Name: TunnelKeepaliveUnsafe, Severity: probes.Info, Owner: probes.AKS,
		Meaning: "The konnectivity-agent on this node was started with a --keepalive-time below 30 s, at which its server ends the connection after a while, or above 240 s (its default is 1 h), " +
			"after which Azure's load balancer has forgotten an idle connection.",
		Breaks:  "Nothing by itself. Too often: the tunnel breaks off every minute or so. Too seldom: a dead tunnel looks alive until the next question.",
		Confirm: "tr '\\0' '\\n' </proc/$(pgrep -xo proxy-agent)/cmdline | grep keepalive",
		Mend:    "On AKS it is not yours to set. Elsewhere: --keepalive-time=60s.",
		Links:   []string{upstream, "https://learn.microsoft.com/azure/load-balancer/load-balancer-tcp-idle-timeout"},
	},
	{
		Name: TunnelNotRedundant, Severity: probes.Info, Owner: probes.AKS, Hold: time.Minute,
		Meaning: "The konnectivity-agent on this node is connected to fewer servers than it knows of.",
		Breaks:  "Nothing yet. Requests of the API servers that have no agent fail, or go by another node's agent.",
		Confirm: theAgent,
		Mend:    "Wait; when it lasts it is a load balancer in front of the API servers that always chooses the same one, or a server that refuses the agent: read its log.",
		Links:   []string{upstream},
	},
	{
		Name: APIServerUnresolvable, Severity: probes.Critical, Owner: probes.Both, Hold: 10 * time.Second,
		Meaning:        "The API server's name in kubelet's kubeconfig has no address for this node, by its /etc/hosts and the servers of its /etc/resolv.conf, and kubelet's connection has been silent for 25 s or is not there.",
		Breaks:         breaksForward,
		Confirm:        "getent ahosts NAME; resolvectl query NAME; cat /etc/resolv.conf",
		Mend:           "Put the DNS servers of the virtual network right (custom DNS must forward to 168.63.129.16; a private cluster's zone must be linked to the network).",
		FalsePositives: "A name that only a search domain completes.",
		Links:          []string{reachAPI, egress},
	},
	{
		Name: APIServerUnreachable, Severity: probes.Critical, Owner: probes.Both, Hold: 10 * time.Second,
		Meaning: "No TCP connection from this node to the API server's address is taken, or TLS breaks off in the middle, and kubelet's own connection has been silent for 25 s or is not there. " +
			"Asked again every ten seconds until it works.",
		Breaks:         breaksForward,
		Confirm:        "curl -vk --max-time 5 https://ADDRESS/readyz; ip route get ADDRESS; ss -tnoi dst ADDRESS",
		Mend:           "Look at NSGs, route tables, firewalls, authorized IP ranges (the node's outbound address must be among them) and SNAT ports. Refused: the API server is down, or the cluster stopped.",
		FalsePositives: "A cluster that is stopped or being upgraded with one API server only.",
		Links:          []string{reachAPI, egress},
	},
	{
		Name: APIServerTLSIntercepted, Severity: probes.Critical, Owner: probes.Customer, Hold: 10 * time.Second,
		Meaning: "Who answers at the API server's address shows a certificate that the cluster's authority has not issued, that is for another name, or that is not valid at the node's time; or does not speak TLS. " +
			"The node's credentials are not sent there.",
		Breaks:         breaksForward,
		Confirm:        "openssl s_client -connect ADDRESS -servername NAME </dev/null | openssl x509 -noout -issuer -subject -dates; date -u",
		Mend:           "Take the API server's name out of the firewall's TLS inspection. Where the authority was rotated (az aks rotate-certs), the node's copy is old: reimage it. Not valid at the node's time: see TimeSyncDrift.",
		FalsePositives: "A rotation of the cluster's certificates that has not reached this node yet.",
		Links:          []string{egress, "https://learn.microsoft.com/azure/aks/certificate-rotation"},
	},
	{
		Name: APIServerNotReady, Severity: probes.Critical, Owner: probes.AKS, Hold: 90 * time.Second,
		Meaning:        "The API server takes this node's connections and says by /readyz that it is not ready, or does not answer at all, while kubelet's connection has been silent for 25 s.",
		Breaks:         breaksForward,
		Confirm:        "kubectl get --raw '/readyz?verbose'",
		Mend:           "On AKS the control plane is AKS's: see the cluster's resource health. Too many requests by one client show in the control plane's logs.",
		FalsePositives: "One API server of several that is shutting down lawfully.",
		Links:          []string{reachAPI, "https://kubernetes.io/docs/reference/using-api/health-checks/"},
	},
	{
		Name: KubeletUnreachable, Severity: probes.Critical, Owner: probes.Both, Hold: 15 * time.Second,
		Meaning: "The API server was asked for a line of this agent's own log and could not fetch it from this node's kubelet (TCP 10250), by the tunnel or directly; the message has its reason. " +
			"Asked once an hour, when kubelet's port or certificate changes, and every minute while it fails. That no agent is connected at all is the cluster's trouble and held for five minutes.",
		Breaks:         "kubectl logs, exec, port-forward and top for this node's pods.",
		Confirm:        "kubectl -n nodedrift-system logs --tail=1 POD; kubectl get --raw /api/v1/nodes/NODE/proxy/healthz; ss -ltn sport = :10250",
		Mend:           "Refused: start kubelet. No answer: open TCP 10250 from the tunnel's agents (packet filters on the node, NSG, ufw). Certificate: approve its CSR or restart kubelet. No agent: see kube-system's konnectivity-agent pods, AKS repairs them.",
		FalsePositives: "kubelet being restarted at that moment: it is asked again within seconds.",
		Links:          []string{tunnelIssues, "https://learn.microsoft.com/azure/aks/core-aks-concepts"},
	},
}
