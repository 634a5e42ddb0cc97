package sysctl

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/nodedrift/nodedrift/probes/host"
)

// A setting is what the node declares for one key, once order, masks and globs
// are resolved.
type setting struct {
	key      string // "net/ipv4/ip_forward"
	value    string
	source   string // "/etc/sysctl.d/60-CIS.conf", "config"
	baseline bool   // AKS wrote it, and the file has lost it
	local    bool   // some file other than the distribution's declares it
	globbed  bool   // by a glob
	quiet    bool   // by a glob or "-key =": nobody minds when the key is missing

	// other is the value that "sysctl --system" leaves where it reads another one
	// than systemd-sysctl; which of the two ran last is not known.
	other       string
	otherSource string
}

// aliases are keys that are one number in the kernel: writing one writes the
// other (net/ipv4/devinet.c).
var aliases = map[string]string{
	"net/ipv4/ip_forward":          "net/ipv4/conf/all/forwarding",
	"net/ipv4/conf/all/forwarding": "net/ipv4/ip_forward",
}

// effective resolves declarations as systemd-sysctl does: the last assignment of
// a key wins, a glob sets no key that is named itself or excluded, later globs
// win over earlier ones. glob names the keys of this kernel that match.
func effective(files []file, glob func(pattern string) ([]string, error)) ([]setting, error) {
	named, locals := assigned(files)
	var order []string
	settings := map[string]setting{}
	set := func(s setting) {
		if i := slices.Index(order, s.key); i >= 0 {
			order = slices.Delete(order, i, i+1)
		}
		order = append(order, s.key)
		settings[s.key] = s
		if twin, ok := settings[aliases[s.key]]; ok {
			twin.value, twin.source = s.value, s.source
			settings[twin.key] = twin
		}
	}
	for _, o := range named.inOrder() {
		s := setting{key: o.key, value: o.value, source: o.source(), baseline: o.line == 0, local: locals[o.key], quiet: o.silent}
		switch {
		case o.except:
		case !isGlob(o.key):
			set(s)
		default:
			keys, err := glob(strings.ReplaceAll(o.key, "[!", "[^")) // glob(7) and path.Match differ here
			if errors.Is(err, path.ErrBadPattern) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("find the keys of %s: %w", dotted(o.key), err)
			}
			for _, key := range keys {
				if _, ok := named.byKey[key]; !ok {
					s.key, s.quiet, s.globbed = key, true, true
					set(s)
				}
			}
		}
	}
	list := make([]setting, 0, len(order))
	for _, key := range order {
		list = append(list, settings[key])
	}
	return list, nil
}

// An option is an assignment that stands after all files are read.
type option struct {
	assignment
	file  *file
	order int
}

// source names the authority of an option. Line 0 is one that AKS wrote and that
// the file has lost.
func (o option) source() string {
	if o.line == 0 {
		return "AKS's " + o.file.name()
	}
	return "/" + o.file.path
}

// options are what systemd-sysctl keeps while it reads: one per key.
type options struct{ byKey map[string]option }

func (o options) inOrder() []option {
	list := make([]option, 0, len(o.byKey))
	for _, v := range o.byKey {
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b option) int { return a.order - b.order })
	return list
}

// assigned reads the files in order. An assignment that repeats the value keeps
// the place of the first; another value takes the place of the last.
func assigned(files []file) (options, map[string]bool) {
	named := options{map[string]option{}}
	locals := map[string]bool{}
	next := 0
	for i := range files {
		for _, a := range files[i].assignments {
			locals[a.key] = locals[a.key] || files[i].local()
			old, ok := named.byKey[a.key]
			if ok && old.value == a.value && old.except == a.except {
				old.silent = old.silent || a.silent
				old.file = &files[i]
				named.byKey[a.key] = old
				continue
			}
			next++
			named.byKey[a.key] = option{a, &files[i], next}
		}
	}
	return named, locals
}

// withProcps adds what "sysctl --system" would leave instead: /etc/sysctl.conf
// after everything else.
func withProcps(settings []setting, procps *file) []setting {
	if procps == nil {
		return settings
	}
	last := map[string]string{}
	for _, a := range procps.assignments {
		if !a.except {
			last[a.key] = a.value
		}
	}
	for i, s := range settings {
		if v, ok := last[s.key]; ok && !same(v, s.value) && "/"+procps.path != s.source {
			settings[i].other, settings[i].otherSource = v, "/"+procps.path
		}
	}
	return settings
}

// withExpected puts the operator's own values over everything.
func withExpected(settings []setting, expect map[string]string) []setting {
	for _, name := range slices.Sorted(maps.Keys(expect)) {
		s := setting{key: host.SysctlKey(name), value: expect[name], source: "config", local: true}
		settings = slices.DeleteFunc(settings, func(old setting) bool { return old.key == s.key })
		settings = append(settings, s)
	}
	return settings
}

// interfaceOf is the link that a key belongs to, or "".
func interfaceOf(key string) string {
	for _, pattern := range []string{"net/ipv4/conf/*/*", "net/ipv6/conf/*/*", "net/ipv4/neigh/*/*", "net/ipv6/neigh/*/*"} {
		if ok, _ := path.Match(pattern, key); ok {
			name := strings.Split(key, "/")[3]
			if name != "all" && name != "default" {
				return name
			}
		}
	}
	return ""
}
