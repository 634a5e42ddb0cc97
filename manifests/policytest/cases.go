package policytest

import (
	"fmt"
	"slices"
	"strings"
)

const (
	applyPatch     = "application/apply-patch+yaml"
	jsonPatch      = "application/json-patch+json"
	mergePatch     = "application/merge-patch+json"
	strategicPatch = "application/strategic-merge-patch+json"
	plainJSON      = "application/json"
	asUs           = "?fieldManager=nodedrift"
	force          = asUs + "&force=true"
)

// Cases are the requests. The order matters to the accepted ones only.
func (c Cluster) Cases() []Case {
	return slices.Concat(c.accepted(), c.status(), c.events(), c.elsewhere())
}

// accepted is what the agent does.
func (c Cluster) accepted() []Case {
	status, events := "/api/v1/nodes/"+c.Own+"/status", "/api/v1/namespaces/default/events"
	apply := func(name string, conditions ...string) Case {
		return Case{Name: name, Method: "PATCH", Path: status + force, Type: applyPatch, Want: Accepted, Body: node(c.Own, conditions, "", "")}
	}
	var all, later []string
	for _, t := range Types {
		all, later = append(all, condition(t)), append(later, strings.Replace(condition(t), "00:00Z", "40:00Z", 1))
	}
	return []Case{
		{Name: "get the own node", Method: "GET", Path: "/api/v1/nodes/" + c.Own, Want: Accepted},
		apply("apply all conditions", all...),
		apply("apply a heartbeat", later...),
		apply("apply fewer: a retired one goes", all[0], all[6]),
		apply("apply none"),
		apply("apply all again", all...),
		{Name: "create an event", Method: "POST", Path: events + asUs, Type: plainJSON, Want: Accepted,
			Body: event("policytest-own", "default", c.Own, `"source":{"component":"nodedrift"},"reportingComponent":"nodedrift"`)},
		{Name: "count an event", Method: "PATCH", Path: events + "/policytest-own" + asUs, Type: mergePatch, Want: Accepted, Body: `{"count":2}`},
		{Name: "read a line of the own log", Method: "GET", Path: "/api/v1/namespaces/" + Namespace + "/pods/" + c.Pod + "/log?tailLines=1&limitBytes=100", Want: Accepted},
	}
}

// status is what the right to patch nodes/status would allow, were it not for the policy.
func (c Cluster) status() []Case {
	path := "/api/v1/nodes/" + c.Own + "/status"
	drift := []string{condition("SysctlDrift")}
	as := func(want Answer, name, query, kind, body string) Case {
		return Case{Name: name, Method: "PATCH", Path: path + query, Type: kind, Body: body, Want: want}
	}
	foreign := func(conditionType string) Case {
		return as(Policy, "apply condition "+conditionType, force, applyPatch, node(c.Own, []string{condition(conditionType)}, "", ""))
	}
	field := func(want Answer, name, statusJSON string) Case {
		return as(want, "apply status "+name, force, applyPatch, node(c.Own, drift, "", statusJSON))
	}
	text := func(name, old, text string) Case {
		return as(Policy, name, force, applyPatch, node(c.Own, []string{strings.Replace(drift[0], old, text, 1)}, "", ""))
	}
	patch := func(name, kind, body string) Case { return as(Policy, name, asUs, kind, body) }
	meta := func(name, metaJSON string) Case {
		return as(Policy, "apply metadata "+name, force, applyPatch, node(c.Own, drift, metaJSON, ""))
	}
	spec := func(name, specJSON string) Case {
		return as(Nothing, "spec by way of status: "+name, asUs, mergePatch, `{"spec":`+specJSON+`}`)
	}
	other := as(Policy, "apply another node's conditions", force, applyPatch, node(c.Other, drift, "", ""))
	other.Path = strings.Replace(other.Path, c.Own, c.Other, 1)
	unbound := as(Policy, "apply by a token that names no node", force, applyPatch, node(c.Own, drift, "", ""))
	unbound.Unbound = true
	return []Case{
		other, unbound,
		foreign("Ready"), foreign("MemoryPressure"), foreign("NetworkUnavailable"), foreign("KubeletProblem"), foreign("kubernetes.azure.com/NodeHealthy"),
		foreign("PreemptionScheduled"), foreign("HostDrift"), foreign("KubeProxyDrift"), foreign("sysctldrift"), foreign("SysctlDrift "), foreign("x"),
		patch("mark Ready False by strategic merge", strategicPatch, `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`),
		patch("refresh the heartbeat of Ready", strategicPatch, `{"status":{"conditions":[{"type":"Ready","lastHeartbeatTime":"2099-01-01T00:00:00Z"}]}}`),
		patch("delete Ready by strategic merge", strategicPatch, `{"status":{"conditions":[{"$patch":"delete","type":"Ready"}]}}`),
		patch("replace the whole list by merge patch", mergePatch, `{"status":{"conditions":[`+drift[0]+`]}}`),
		patch("remove all conditions", mergePatch, `{"status":{"conditions":null}}`),
		patch("remove the first condition", jsonPatch, `[{"op":"remove","path":"/status/conditions/0"}]`),
		patch("turn a foreign condition into ours", jsonPatch, `[{"op":"replace","path":"/status/conditions/0/type","value":"NodeDrift"}]`),
		patch("put a foreign condition elsewhere in the list", jsonPatch, `[{"op":"move","from":"/status/conditions/0","path":"/status/conditions/1"}]`),
		patch("state one of ours twice", jsonPatch, `[{"op":"add","path":"/status/conditions/-","value":`+condition("CNIRouteDrift")+`},{"op":"add","path":"/status/conditions/-","value":`+condition("CNIRouteDrift")+`}]`),
		patch("remove the whole status", mergePatch, `{"status":null}`),
		text("a status that is none", `"True"`, `"Maybe"`),
		text("no reason", `"Changed"`, `""`),
		text("a reason of two words", `"Changed"`, `"Changed by you"`),
		text("a message of two lines", `"tried"`, `"tried\n  Ready  True"`),
		text("a message with an escape sequence", `"tried"`, `"tried\u001b[31m"`),
		text("a message of 1025 characters", `"tried"`, `"`+strings.Repeat("x", 1025)+`"`),
		as(Policy, "apply as another field manager", "?fieldManager=kubelet&force=true", applyPatch, node(c.Own, drift, "", "")),
		as(Policy, "patch under no field manager", "", strategicPatch, `{"status":{"conditions":[`+drift[0]+`]}}`),
		as(Invalid, "another name in the body", force, applyPatch, node(c.Other, drift, "", "")),
		meta("label", `"labels":{"example.org/x":"y"}`), meta("role label", `"labels":{"node-role.kubernetes.io/control-plane":""}`),
		meta("annotation", `"annotations":{"example.org/x":"y"}`), meta("finalizer", `"finalizers":["example.org/x"]`),
		meta("owner", `"ownerReferences":[{"apiVersion":"v1","kind":"Namespace","name":"default","uid":"0"}]`),
		patch("remove the labels", mergePatch, `{"metadata":{"labels":null}}`),
		patch("change one label", mergePatch, `{"metadata":{"labels":{"kubernetes.io/os":"windows"}}}`),
		field(Policy, "capacity", `"capacity":{"cpu":"4096"}`), field(Policy, "allocatable", `"allocatable":{"memory":"1Ki"}`),
		field(Policy, "extended resource", `"capacity":{"nvidia.com/gpu":"8"},"allocatable":{"nvidia.com/gpu":"8"}`),
		field(Policy, "address", `"addresses":[{"type":"ExternalIP","address":"203.0.113.9"}]`),
		patch("replace an address", jsonPatch, `[{"op":"replace","path":"/status/addresses/0/address","value":"203.0.113.9"}]`),
		field(Policy, "image", `"images":[{"names":["example.org/x:1"],"sizeBytes":1}]`),
		field(Policy, "nodeInfo", `"nodeInfo":{"kubeletVersion":"v9.9.9"}`),
		field(Policy, "daemonEndpoints", `"daemonEndpoints":{"kubeletEndpoint":{"Port":1}}`),
		field(Policy, "volumesInUse", `"volumesInUse":["x"]`),
		field(Policy, "volumesAttached", `"volumesAttached":[{"name":"x","devicePath":"y"}]`),
		field(Policy, "runtimeHandlers", `"runtimeHandlers":[{"name":"x"}]`),
		field(Policy, "features", `"features":{"supplementalGroupsPolicy":true}`),
		field(Policy, "phase", `"phase":"Terminated"`),
		field(Nothing, "config", `"config":{"error":"x"}`),
		spec("unschedulable", `{"unschedulable":true}`), spec("taint", `{"taints":[{"key":"x","effect":"NoExecute"}]}`),
		spec("providerID", `{"providerID":"azure:///x"}`), spec("podCIDR", `{"podCIDR":"10.9.0.0/24","podCIDRs":["10.9.0.0/24"]}`),
	}
}

// events is what the right to create and patch Events would allow.
func (c Cluster) events() []Case {
	const ours = `"source":{"component":"nodedrift"}`
	path := "/api/v1/namespaces/default/events"
	create := func(name, body string) Case {
		return Case{Name: "event " + name, Method: "POST", Path: path + asUs, Type: plainJSON, Body: body, Want: Policy}
	}
	unbound := create("by a token that names no node", event("policytest-x", "default", c.Own, ours))
	unbound.Unbound = true
	return []Case{
		unbound,
		create("about another node", event("policytest-x", "default", c.Other, ours)),
		create("about a pod", strings.Replace(event("policytest-x", "default", c.Own, ours), `"Node"`, `"Pod"`, 1)),
		create("about a namespaced object", strings.Replace(event("policytest-x", "default", c.Own, ours), `"kind":"Node"`, `"kind":"Node","namespace":"default"`, 1)),
		create("about nothing", strings.Replace(event("policytest-x", "default", c.Own, ours), fmt.Sprintf(`"name":%q`, c.Own), `"name":""`, 1)),
		create("in the kubelet's name", event("policytest-x", "default", c.Own, `"source":{"component":"kubelet"}`)),
		create("half in the kubelet's name", event("policytest-x", "default", c.Own, `"source":{"component":"kubelet"},"reportingComponent":"nodedrift"`)),
		create("in nobody's name", event("policytest-x", "default", c.Own, `"source":{}`)),
		create("of two lines", strings.Replace(event("policytest-x", "default", c.Own, ours), `"tried"`, `"a\nb"`, 1)),
		{Name: "event by the newer API", Method: "POST", Path: "/apis/events.k8s.io/v1/namespaces/default/events" + asUs, Type: plainJSON, Want: RBAC,
			Body: fmt.Sprintf(`{"apiVersion":"events.k8s.io/v1","kind":"Event","metadata":{"name":"policytest-x","namespace":"default"},"eventTime":"2026-01-01T00:00:00.000000Z",
				"type":"Normal","reason":"Tried","action":"Look","note":"tried","reportingController":"nodedrift","reportingInstance":"x","regarding":{"kind":"Node","name":%q}}`, c.Other)},
		{Name: "change an event of the kubelet", Method: "PATCH", Path: path + "/policytest-foreign" + asUs, Type: mergePatch, Body: `{"message":"all is well"}`, Want: Policy},
		{Name: "take over an event of the kubelet", Method: "PATCH", Path: path + "/policytest-foreign" + asUs, Type: mergePatch, Body: `{"source":{"component":"nodedrift"}}`, Want: Policy},
		{Name: "event in another namespace", Method: "POST", Path: "/api/v1/namespaces/kube-system/events" + asUs, Type: plainJSON, Body: event("policytest-x", "kube-system", c.Own, ours), Want: RBAC},
		{Name: "delete an event", Method: "DELETE", Path: path + "/policytest-foreign", Want: RBAC},
		{Name: "list events", Method: "GET", Path: path, Want: RBAC},
	}
}

// elsewhere is what no right is given for.
func (c Cluster) elsewhere() []Case {
	own, ns := "/api/v1/nodes/"+c.Own, "/api/v1/namespaces/"+Namespace
	rbac := func(name, method, path, kind, body string) Case {
		return Case{Name: name, Method: method, Path: path, Type: kind, Body: body, Want: RBAC}
	}
	return []Case{
		rbac("taint the node", "PATCH", own+asUs, mergePatch, `{"spec":{"taints":[{"key":"x","effect":"NoExecute"}]}}`),
		rbac("cordon the node", "PATCH", own+asUs, mergePatch, `{"spec":{"unschedulable":true}}`),
		rbac("label the node", "PATCH", own+asUs, mergePatch, `{"metadata":{"labels":{"x":"y"}}}`),
		rbac("apply to the node itself", "PATCH", own+force, applyPatch, node(c.Own, nil, `"annotations":{"x":"y"}`, "")),
		rbac("update the node", "PUT", own, plainJSON, node(c.Own, nil, "", "")),
		rbac("update the node's status", "PUT", own+"/status", plainJSON, node(c.Own, nil, "", "")),
		rbac("create a node", "POST", "/api/v1/nodes", plainJSON, node("policytest-x", nil, "", "")),
		rbac("delete the node", "DELETE", own+"?dryRun=All", "", ""),
		rbac("delete the other node", "DELETE", "/api/v1/nodes/"+c.Other+"?dryRun=All", "", ""),
		rbac("delete all nodes", "DELETE", "/api/v1/nodes?dryRun=All", "", ""),
		rbac("list nodes", "GET", "/api/v1/nodes", "", ""),
		rbac("watch nodes", "GET", "/api/v1/nodes?watch=1&timeoutSeconds=1", "", ""),
		rbac("reach the kubelet by proxy", "GET", own+"/proxy/pods", "", ""),
		rbac("run by the kubelet's proxy", "POST", own+"/proxy/run/a/b/c", "", ""),
		rbac("get a secret", "GET", "/api/v1/namespaces/kube-system/secrets/x", "", ""),
		rbac("list secrets", "GET", "/api/v1/secrets", "", ""),
		rbac("list secrets of its namespace", "GET", ns+"/secrets", "", ""),
		rbac("get its ConfigMap", "GET", ns+"/configmaps/nodedrift", "", ""),
		rbac("change its ConfigMap", "PATCH", ns+"/configmaps/nodedrift", mergePatch, `{"data":{"x":"y"}}`),
		rbac("change its DaemonSet", "PATCH", "/apis/apps/v1/namespaces/"+Namespace+"/daemonsets/nodedrift", mergePatch, `{"metadata":{"labels":{"x":"y"}}}`),
		rbac("list pods", "GET", "/api/v1/pods", "", ""),
		rbac("get its own pod", "GET", ns+"/pods/"+c.Pod, "", ""),
		rbac("delete its own pod", "DELETE", ns+"/pods/"+c.Pod+"?dryRun=All", "", ""),
		rbac("exec into its own pod", "POST", ns+"/pods/"+c.Pod+"/exec?command=x", "", ""),
		rbac("read a log elsewhere", "GET", "/api/v1/namespaces/kube-system/pods/x/log", "", ""),
		rbac("create a pod", "POST", ns+"/pods?dryRun=All", plainJSON, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"x","image":"x"}]}}`),
		rbac("evict a pod", "POST", ns+"/pods/"+c.Pod+"/eviction?dryRun=All", plainJSON, `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"x"}}`),
		rbac("renew the node's lease", "PATCH", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"+c.Own, mergePatch, `{"spec":{"holderIdentity":"x"}}`),
		rbac("make itself a token", "POST", ns+"/serviceaccounts/"+Account+"/token", plainJSON, `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`),
		rbac("ask for a certificate", "POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests?dryRun=All", plainJSON, `{"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","metadata":{"name":"x"},"spec":{"request":"","signerName":"kubernetes.io/kube-apiserver-client-kubelet","usages":["client auth"]}}`),
		rbac("remove the policy", "DELETE", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/nodedrift-nodes?dryRun=All", "", ""),
		rbac("remove its binding", "DELETE", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/nodedrift-nodes?dryRun=All", "", ""),
		rbac("give itself a role", "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings?dryRun=All", plainJSON, `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"x"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"}}`),
	}
}

func condition(t string) string {
	return fmt.Sprintf(`{"type":%q,"status":"True","reason":"Changed","message":"tried","lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:00:00Z"}`, t)
}

// node is a Node for server-side apply; meta and status are further members of theirs.
func node(name string, conditions []string, meta, status string) string {
	if meta != "" {
		meta = "," + meta
	}
	if status != "" {
		status = "," + status
	}
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q%s},"status":{"conditions":[%s]%s}}`, name, meta, strings.Join(conditions, ","), status)
}

func event(name, namespace, node, more string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Event","metadata":{"name":%q,"namespace":%q},"involvedObject":{"apiVersion":"v1","kind":"Node","name":%q},
		"type":"Normal","reason":"Tried","message":"tried","firstTimestamp":"2026-01-01T00:00:00Z","lastTimestamp":"2026-01-01T00:00:00Z","count":1,%s}`, name, namespace, node, more)
}
