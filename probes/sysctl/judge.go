package sysctl

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/nodedrift/nodedrift/probes"
)

// critical keys carry every pod's packets.
var critical = map[string]bool{
	"net/ipv4/ip_forward":                 true,
	"net/ipv4/conf/all/forwarding":        true,
	"net/ipv6/conf/all/forwarding":        true,
	"net/bridge/bridge-nf-call-iptables":  true,
	"net/bridge/bridge-nf-call-ip6tables": true,
	"net/bridge/bridge-nf-call-arptables": true,
}

// triggers do something when they are written and hold no value to read.
var triggers = map[string]bool{
	"net/ipv4/route/flush": true, "net/ipv6/route/flush": true, "vm/compact_memory": true, "vm/drop_caches": true,
}

// modules make the keys below them exist.
var modules = map[string]string{
	"net/bridge/": "br_netfilter", "net/netfilter/": "nf_conntrack", "net/nf_conntrack_max": "nf_conntrack",
	"net/ipv4/vs/": "ip_vs", "net/ipv6/": "ipv6",
}

// severity ranks a key by who declares it and by what breaks.
func severity(s setting) probes.Severity {
	switch {
	case !s.local:
		return probes.Info
	case critical[s.key]:
		return probes.Critical
	}
	return probes.Warning
}

// judge compares one key. A nil finding is a key in order, or one that nobody misses.
func (t *table) judge(w *watched) (*probes.Finding, error) {
	if f := t.blocksKubelet(w); f != nil {
		return f, nil
	}
	switch {
	case w.setting == nil: // kubelet's alone
		return nil, w.unread()
	case errors.Is(w.err, fs.ErrNotExist):
		return missing(w.setting), nil
	case w.err != nil && (critical[w.key] || kubeletWants[w.key] != "" && t.protection.on):
		return t.changed(w), w.unread()
	case w.err != nil:
		if f := t.changed(w); f != nil {
			return f, nil // it was seen to differ, and nobody saw it put right
		}
		return &probes.Finding{Reason: Unreadable, Subject: dotted(w.key), Message: w.unread().Error(), Source: w.source}, nil
	}
	return t.changed(w), nil
}

// changed compares the value read last with the declared one.
func (t *table) changed(w *watched) *probes.Finding {
	if !w.seen {
		return nil
	}
	live := string(w.last)
	if sameFor(w.key, live, w.value) || w.otherSource != "" && sameFor(w.key, live, w.other) ||
		allowed(*w.setting, live, t.present) {
		return nil
	}
	return &probes.Finding{
		Reason: Changed, Severity: severity(*w.setting), Subject: dotted(w.key),
		Observed: printed(live), Wanted: printed(w.value), Source: w.source,
		Trace: probes.Key{Domain: "sysctl", Name: dotted(w.key)},
	}
}

// blocksKubelet finds what keeps a protecting kubelet from starting: now, or
// once the node has booted with what is declared.
func (t *table) blocksKubelet(w *watched) *probes.Finding {
	want, ok := kubeletWants[w.key]
	if !ok || !t.protection.on {
		return nil
	}
	f := probes.Finding{Reason: BlocksKubeletStart, Subject: dotted(w.key), Wanted: want, Source: t.protection.from,
		Trace: probes.Key{Domain: "sysctl", Name: dotted(w.key)}}
	switch {
	case errors.Is(w.err, fs.ErrNotExist):
		f.Observed = "missing"
		f.Message = f.Subject + " does not exist, and kubelet will not start without it"
	case w.seen && !same(string(w.last), want):
		f.Observed = printed(string(w.last))
		f.Message = fmt.Sprintf("%s is %s, and kubelet will not start again unless it is %s", f.Subject, f.Observed, want)
	case w.setting != nil && w.source != sourceConfig && !w.globbed && !same(w.value, want):
		f.Observed = printed(w.value)
		f.Message = fmt.Sprintf("%s will be %s after a boot (%s), and kubelet starts only with %s", f.Subject, f.Observed, path.Base(w.source), want)
		f.Trace = probes.Key{}
	default:
		return nil
	}
	return &f
}

// missing is a key that this kernel, or this network namespace, does not have.
func missing(s *setting) *probes.Finding {
	if s.quiet || !s.local {
		return nil // distributions name keys of many kernels
	}
	f := probes.Finding{Reason: KeyMissing, Subject: dotted(s.key), Observed: "missing", Wanted: printed(s.value), Source: s.source}
	f.Message = fmt.Sprintf("%s does not exist, want %s", f.Subject, f.Wanted)
	if m := moduleOf(s.key); m != "" {
		f.Message += ": module " + m + " is not loaded"
	}
	aks := aksBaseline[path.Base(s.source)] != nil || s.baseline
	if strings.HasPrefix(s.key, "net/ipv6/") || !aks && !critical[s.key] && s.source != sourceConfig {
		f.Severity = probes.Info
	}
	return &f
}

func moduleOf(key string) string {
	for prefix, m := range modules {
		if strings.HasPrefix(key, prefix) {
			return m
		}
	}
	return ""
}

// flawed are the files that systemd-sysctl rejects, in whole or in part.
func flawed(files []file) []probes.Finding {
	var found []probes.Finding
	for _, f := range files {
		if len(f.flaws) == 0 {
			continue
		}
		message := f.flaws[0].why
		if line := f.flaws[0].line; line > 0 {
			message = fmt.Sprintf("line %d %s", line, message)
		}
		if more := len(f.flaws) - 1; more > 0 {
			message += fmt.Sprintf(" (+%d more lines)", more)
		}
		found = append(found, probes.Finding{Reason: FileInvalid, Subject: "/" + f.path, Message: message})
	}
	return found
}

// conflicts are keys of AKS's node pool file that another file sets otherwise
// and wins.
func conflicts(d declarations, settings []setting) []probes.Finding {
	i := slices.IndexFunc(d.files, func(f file) bool { return f.name() == aksNodePool })
	if i < 0 {
		return nil
	}
	pool, _ := effective(d.files[i:i+1], func(string) ([]string, error) { return nil, nil })
	var found []probes.Finding
	for _, ours := range pool {
		for _, s := range settings {
			winner, value := s.source, s.value
			if same(value, ours.value) {
				winner, value = s.otherSource, s.other
			}
			if s.key != ours.key || s.baseline || winner == "" || winner == sourceConfig || same(value, ours.value) {
				continue
			}
			name := dotted(s.key)
			found = append(found, probes.Finding{Reason: Conflict, Subject: name,
				Message:  fmt.Sprintf("%s sets %s to %s, and %s sets it to %s and wins", aksNodePool, name, printed(ours.value), winner, printed(value)),
				Observed: printed(value), Wanted: printed(ours.value), Source: ours.source})
		}
	}
	return found
}

// fingerprint hashes what is declared and what is.
func fingerprint(watch []watched) string {
	lines := make([]string, 0, len(watch))
	for _, w := range watch {
		if w.setting != nil && interfaceOf(w.key) == "" {
			lines = append(lines, fmt.Sprintf("%q %q %q\n", w.key, strings.Fields(w.value), strings.Fields(string(w.last))))
		}
	}
	slices.Sort(lines)
	sum := sha256.Sum256([]byte(strings.Join(lines, "")))
	return hex.EncodeToString(sum[:8])
}

// gravestFirst sorts findings so that the same node reads the same.
func gravestFirst(a, b probes.Finding) int {
	return cmp.Or(cmp.Compare(rank(b), rank(a)), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Reason, b.Reason))
}

// rank is a finding's severity, its own or the catalogue's.
func rank(f probes.Finding) probes.Severity {
	if i := slices.IndexFunc(reasons, func(r probes.Reason) bool { return r.Name == f.Reason }); f.Severity == 0 && i >= 0 {
		return reasons[i].Severity
	}
	return f.Severity
}

// some names the first few of many.
func some(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s (+%d more)", strings.Join(names[:most], ", "), len(names)-most)
}
