package sysctl

import (
	"errors"
	"maps"
	"slices"

	"github.com/nodedrift/nodedrift/probes"
)

// A table is the node's declarations, read and resolved: what each look compares.
type table struct {
	watch      []watched
	keys       []string // of watch
	declared   int      // how many of them are declared
	protection protection
	writers    map[writer]bool

	globs     map[string][]string // what patterns of declarations matched
	findings  []probes.Finding    // about the files themselves
	notJudged []string
	err       error // what could not be read; the last good settings stand
}

// readTable reads everything that the settings follow from. old, if any, lends
// its settings where the files cannot be read now, and its values.
func readTable(root tree, sysctl keys, procs processes, config Config, old *table) *table {
	t := &table{}
	var err error
	if t.protection, err = protectionOf(root, procs); err == nil && !t.protection.found {
		err = errNoKubelet
	}
	if err != nil {
		t.notJudged = []string{BlocksKubeletStart + ": " + err.Error()}
	}
	t.writers = writersOf(root, sysctl)
	t.writers[kubelet] = t.protection.found && !t.protection.on

	settings, err := t.readSettings(root, sysctl)
	if err != nil {
		t.err = err
		if old != nil {
			settings, t.findings = old.settings(), old.findings
		}
	}
	settings = withExpected(settings, config.Expect)
	t.watchAll(settings, old)
	return t
}

// readSettings reads the files and resolves them.
func (t *table) readSettings(root tree, sysctl keys) ([]setting, error) {
	d, err := readDeclarations(root)
	if err != nil {
		return nil, err
	}
	t.findings = flawed(d.files)
	files, tampered, err := restoreBaseline(root, d.files)
	if err != nil {
		return nil, err
	}
	t.globs = map[string][]string{}
	settings, err := effective(files, func(pattern string) ([]string, error) {
		keys, err := sysctl.Glob(pattern)
		t.globs[pattern] = keys
		return keys, err
	})
	if err != nil {
		return nil, err
	}
	settings = withProcps(settings, d.procps)
	t.findings = slices.Concat(t.findings, tampered, conflicts(d, settings))
	return settings, nil
}

// moved tells whether patterns match other keys now: network interfaces, of which
// many have one, come and go.
func (t *table) moved(sysctl keys) bool {
	for pattern, known := range t.globs {
		if keys, err := sysctl.Glob(pattern); err != nil || !slices.Equal(keys, known) {
			return true
		}
	}
	return false
}

// settings are the declared ones of a table.
func (t *table) settings() []setting {
	var list []setting
	for _, w := range t.watch {
		if w.setting != nil && w.source != sourceConfig {
			list = append(list, *w.setting)
		}
	}
	return list
}

// watchAll lists the keys to read: the declared ones and, where kubelet protects
// the kernel's defaults, kubelet's.
func (t *table) watchAll(settings []setting, old *table) {
	for _, s := range settings {
		if !triggers[s.key] && !(s.globbed && podLink(s.key)) {
			t.watch = append(t.watch, watched{setting: &s, key: s.key})
		}
	}
	t.declared = len(t.watch)
	if t.protection.on {
		for _, key := range slices.Sorted(maps.Keys(kubeletWants)) {
			if !slices.ContainsFunc(t.watch, func(w watched) bool { return w.key == key }) {
				t.watch = append(t.watch, watched{key: key})
			}
		}
	}
	t.keys = make([]string, len(t.watch))
	for i := range t.watch {
		t.keys[i] = t.watch[i].key
	}
	if old == nil {
		return
	}
	values := make(map[string]watched, len(old.watch))
	for _, w := range old.watch {
		values[w.key] = w
	}
	for i := range t.watch {
		w, v := &t.watch[i], values[t.watch[i].key]
		w.last, w.seen, w.err = v.last, v.seen, v.err
	}
}

func (t *table) present(w writer) bool { return t.writers[w] }

var errNoKubelet = errors.New("find kubelet: there is none, and none of its files")
