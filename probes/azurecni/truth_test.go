package azurecni

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// proc makes a folder in place of /proc; a file without content is a folder,
// which cannot be read.
func proc(t *testing.T, files map[string]string) string {
	t.Helper()
	top := t.TempDir()
	for name, content := range files {
		at := filepath.Join(top, name)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		if content == "" {
			err = errors.Join(err, os.Mkdir(at, 0o755))
		} else {
			err = errors.Join(err, os.WriteFile(at, []byte(content), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return top
}

// TestCountersUnread takes the counters in /proc away: what they tell of is not
// judged, and not clean. A kernel without connection tracking has none to tell.
func TestCountersUnread(t *testing.T) {
	t.Parallel()
	const (
		netstat, stat, count = "thread-self/net/netstat", "thread-self/net/stat/nf_conntrack", "sys/net/netfilter/nf_conntrack_count"
		drops, failing       = "TcpExt: IPReversePathFilter\nTcpExt: 7\n", "entries insert_failed drop\n00000001 00000002 00000000\n"
		none, zero           = "TcpExt: IPReversePathFilter\nTcpExt: 0\n", "entries insert_failed drop\n00000001 00000000 00000000\n"
	)
	l := newLab(t, "bridge", 1, false)
	l.sysctl("net/ipv4/conf/all/rp_filter", "1")
	for name, test := range map[string]struct {
		files map[string]string
		first []string // reasons that the first look does not judge
		next  []string // and the look after the next sweep
	}{
		"nothing ever failed":     {map[string]string{netstat: none, stat: zero}, nil, nil},
		"something failed before": {map[string]string{netstat: drops, stat: failing}, []string{ReversePathDrops, ConntrackDrops}, nil},
		"no netstat":              {map[string]string{stat: zero}, []string{ReversePathDrops}, []string{ReversePathDrops}},
		"unreadable netstat":      {map[string]string{netstat: "", stat: zero}, []string{ReversePathDrops}, []string{ReversePathDrops}},
		"another netstat":         {map[string]string{netstat: "TcpExt: A\nTcpExt: 1\n", stat: zero}, []string{ReversePathDrops}, []string{ReversePathDrops}},
		"half a netstat":          {map[string]string{netstat: "TcpExt: IPReversePathFilter\n", stat: zero}, []string{ReversePathDrops}, []string{ReversePathDrops}},
		"no connection tracking":  {map[string]string{netstat: none}, nil, nil},
		"tracking does not tell":  {map[string]string{netstat: none, count: "1\n"}, []string{ConntrackDrops}, []string{ConntrackDrops}},
		"unreadable tracking":     {map[string]string{netstat: none, stat: ""}, []string{ConntrackDrops}, []string{ConntrackDrops}},
		"another tracking":        {map[string]string{netstat: none, stat: "entries\n1\n"}, []string{ConntrackDrops}, []string{ConntrackDrops}},
	} {
		p := l.probe(stateOnly)
		p.kernel.(*kernel).proc = proc(t, test.files)
		for i, want := range [][]string{test.first, test.next} {
			p.slowAt = p.slowAt.Add(-sweep)
			look, err := p.Check(t.Context())
			if got := reasonsOf(look.NotJudged, ReversePathDrops, ConntrackDrops); err != nil || len(look.Findings) > 0 || !slices.Equal(got, want) {
				t.Errorf("%s, look %d: %v, found %v, not judged %q, want %v", name, i+1, err, look.Findings, look.NotJudged, want)
			}
		}
	}
}

// reasonsOf are those of the given reasons that are listed as not judged.
func reasonsOf(notJudged []string, reasons ...string) (found []string) {
	for _, r := range reasons {
		if slices.ContainsFunc(notJudged, func(s string) bool { return strings.HasPrefix(s, r+": ") }) {
			found = append(found, r)
		}
	}
	return found
}

// A muteStack is a kernel that does not tell everything.
type muteStack struct {
	netstack
	mute     func(*snapshot)
	lookups  error
	limits   error
	gateways []podGateway
	rules    error
}

func (k *muteStack) observe(s *snapshot, dual bool) error {
	err := k.netstack.observe(s, dual)
	if k.mute != nil {
		k.mute(s)
	}
	return err
}

func (k *muteStack) lookup(ip netip.Addr) (route, error) {
	if k.lookups != nil {
		return route{}, k.lookups
	}
	return k.netstack.lookup(ip)
}

func (k *muteStack) neighLimits() neighLimits {
	if k.limits != nil {
		return neighLimits{err: k.limits}
	}
	return k.netstack.neighLimits()
}

func (k *muteStack) podGateways(tree, []netnsPlace) []podGateway { return k.gateways }
func (k *muteStack) ebtables() *bridgeRules                      { return &bridgeRules{err: k.rules} }

// TestUnreadIsNotJudged leaves out one source after the other: nothing is found
// for want of it, and its reason is not judged.
func TestUnreadIsNotJudged(t *testing.T) {
	t.Parallel()
	eachLink := func(change func(*link)) func(*snapshot) {
		return func(s *snapshot) {
			for i := range s.links {
				change(&s.links[i])
			}
		}
	}
	transparentLab, bridgeLab := newLab(t, "transparent", 2, true), newLab(t, "bridge", 2, false)
	for name, test := range map[string]struct {
		lab    *lab
		config Config
		kernel muteStack
		state  string // in place of the CNI's, for a runtime that knows the pods
		want   []string
	}{
		"forwarding":        {lab: transparentLab, kernel: muteStack{mute: func(s *snapshot) { s.forward4 = -1 }}, want: []string{ForwardingOff}},
		"IPv6 forwarding":   {lab: transparentLab, kernel: muteStack{mute: func(s *snapshot) { s.forward6 = -1 }}, want: []string{ForwardingOff, PodIPv6Broken}},
		"links' settings":   {lab: transparentLab, kernel: muteStack{mute: eachLink(func(l *link) { l.conf, l.conf6 = false, false })}, want: []string{ForwardingOff, PodVethChanged, ReversePathDrops, PodIPv6Broken}},
		"all.rp_filter":     {lab: bridgeLab, kernel: muteStack{mute: func(s *snapshot) { s.rpFilterAll = -1 }}, want: []string{ReversePathDrops}},
		"ports' flags":      {lab: bridgeLab, kernel: muteStack{mute: eachLink(func(l *link) { l.isPort = false })}, want: []string{BridgePortChanged}},
		"lookups":           {lab: transparentLab, kernel: muteStack{lookups: unix.EPERM}, want: []string{PlatformRouteLost}},
		"lookups' answer":   {lab: bridgeLab, kernel: muteStack{lookups: unix.EAGAIN}, want: []string{PlatformRouteLost}},
		"neighbours' limit": {lab: transparentLab, kernel: muteStack{limits: unix.EPERM}, want: []string{NeighborTableFull}},
		"pods' namespaces":  {lab: transparentLab, config: Config{PodGateway: true}, kernel: muteStack{gateways: []podGateway{{via: virtualGateway}, {via: virtualGateway}}}, want: []string{PodGatewayLost}},
		"pods' gateways":    {lab: transparentLab, config: Config{Expect: "cri", PodGateway: true}, kernel: muteStack{gateways: []podGateway{{err: fs.ErrPermission}, {via: virtualGateway}}}, want: []string{PodGatewayLost}},
		"ebtables":          {lab: bridgeLab, config: Config{Ebtables: true}, kernel: muteStack{rules: fs.ErrPermission}, want: []string{BridgeRulesLost}},
		"a broken state": {lab: bridgeLab, state: "{", config: Config{Expect: "cri"},
			want: []string{BridgePortChanged, PodVethOrphaned, PodNeighborWrong, BridgeNeighborStale, DNSServersTruncated}},
	} {
		config := test.config
		if config.Expect == "" {
			config.Expect = expectStateFile
		}
		test.lab.enterNode()
		p := test.lab.probe(config)
		real := p.kernel.(*kernel)
		real.proc = proc(t, map[string]string{"thread-self/net/netstat": "TcpExt: IPReversePathFilter\nTcpExt: 0\n"})
		k := test.kernel
		k.netstack, p.kernel, p.cri = real, &k, test.lab.sandboxes()
		if test.state != "" {
			test.lab.file(vnetState, test.state)
		}
		look, err := p.Check(t.Context())
		test.lab.write()
		p.kernel = real
		var all []string
		for _, r := range reasons {
			if r.Name != NeighborTableFull || name == "neighbours' limit" { // table_fulls is the machine's
				all = append(all, r.Name)
			}
		}
		got := reasonsOf(look.NotJudged, all...)
		slices.Sort(got)
		slices.Sort(test.want)
		found, _ := ids(look.Findings)
		found = slices.DeleteFunc(found, func(id string) bool { return test.state != "" && id == "N-STATE" })
		if err != nil || len(found) > 0 || !slices.Equal(got, test.want) {
			t.Errorf("%s: found %v, %v; not judged %q, want %v", name, found, err, look.NotJudged, test.want)
		}
	}
}

// TestUnknownMode has a mode that nobody here knows: the pods' routes are not judged.
func TestUnknownMode(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 0, false)
	l.file("etc/cni/net.d/10-azure.conflist", `{"plugins":[{"type":"azure-vnet","mode":"something new"}]}`)
	l.must(os.Remove(filepath.Join(l.root, vnetState)))
	look, err := l.probe(stateOnly).Check(t.Context())
	if err != nil || len(look.Findings) > 0 || len(reasonsOf(look.NotJudged, PodRouteMissing)) != 1 {
		t.Errorf("%v, found %v, not judged %q", err, look.Findings, look.NotJudged)
	}
}

// TestQueueUnread cannot see which releases wait: a leaked endpoint is not judged.
func TestQueueUnread(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 3, false)
	l.file(queued, "not a folder")
	r := l.sandboxes()
	r.list = r.list[1:]
	p := l.probe(Config{})
	p.cri = r
	look, err := p.Check(t.Context())
	if err != nil || len(look.Findings) > 0 || len(reasonsOf(look.NotJudged, CNIStateInvalid)) != 1 {
		t.Errorf("%v, found %v, not judged %q", err, look.Findings, look.NotJudged)
	}
}

// TestStateGone takes the state file from under running pods that the runtime knows.
func TestStateGone(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 3, false)
	p := l.probe(Config{})
	p.cri = l.sandboxes()
	l.must(os.Remove(filepath.Join(l.root, vnetState)))
	if roots, _ := ids(l.again(p)); !slices.Equal(roots, []string{"N-STATE"}) {
		t.Errorf("found %v", roots)
	}
}

// TestTwoStates has both of the CNI's files: the later one counts, broken or not.
func TestTwoStates(t *testing.T) {
	t.Parallel()
	l := newLab(t, "transparent", 2, false)
	past := time.Now().Add(-time.Hour)
	const cns = `{"Endpoints":{"1":{"PodName":"pod-0001","PodNamespace":"default","IfnameToIPMap":{"eth0":{"IPv4":[{"IP":"10.240.0.11"}]}}},
		"2":{"PodName":"pod-0002","PodNamespace":"default","IfnameToIPMap":{"eth0":{"IPv4":[{"IP":"10.240.0.12"}]}}}}}`
	for name, test := range map[string]struct{ first, firstContent, last, lastContent string }{
		"the plugin's is broken, and older":   {vnetState, "", cnsState, cns},
		"the plugin's is broken, and later":   {cnsState, cns, vnetState, ""},
		"azure-cns's is broken, and later":    {vnetState, l.state(), cnsState, "{"},
		"azure-cns's is broken, and older":    {cnsState, "{", vnetState, l.state()},
		"an endpoint without an interface":    {vnetState, l.state(), cnsState, `{"Endpoints":{"1":{"PodName":"p","PodNamespace":"n"}}}`},
		"azure-cns's is truncated, and later": {vnetState, l.state(), cnsState, cns[:80]},
	} {
		l.file(test.first, test.firstContent)
		l.file(test.last, test.lastContent)
		l.must(os.Chtimes(filepath.Join(l.root, test.first), past, past))
		look, err := l.probe(stateOnly).Check(t.Context())
		roots, _ := ids((*Probe)(nil).Explain(look.Findings))
		if err != nil || !slices.Equal(roots, []string{"N-STATE"}) {
			t.Errorf("%s: found %v, %v", name, roots, err)
		}
		if len(look.NotJudged) == 0 && strings.HasSuffix(name, "later") {
			t.Errorf("%s: the pods are judged by the file that is not in force", name)
		}
	}
}
