package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// Where CNI's files are unless containerd is told otherwise.
const (
	defaultConfDir = "etc/cni/net.d"
	defaultBinDir  = "opt/cni/bin"
)

// network is what the CNI files said last.
type network struct {
	folder  string   // of configurations, without the leading slash
	file    string   // the configuration that counts, "" without one
	plugins []plugin // that it names
	why     string   // why there is none that could be loaded
	err     error    // why it is not known

	missing  []probes.Finding
	unjudged string
}

// A plugin is a program that a configuration names.
type plugin struct{ name, of string }

// lookAtNetwork compares the plugins that the configuration names with those that
// are there: the runtime says NetworkReady without having looked.
func (p *Probe) lookAtNetwork(s *sight) {
	age := time.Since(p.cniAt)
	if s.state.Fresh || p.cniAt.IsZero() || s.blind && (age < 0 || age >= cniEach) {
		p.readNetwork()
		p.judgePlugins()
	}
	s.findings = append(s.findings, p.cni.missing...)
	if p.cni.unjudged != "" {
		s.unjudged(CNIPluginMissing, "%s", p.cni.unjudged)
	}
}

// readNetwork finds the configuration that counts. It returns why none could be loaded.
func (p *Probe) readNetwork() string {
	p.cniAt = time.Now()
	n := network{folder: p.confDir()}
	defer func() { p.cni = n }()
	entries, err := p.root.ReadDir(n.folder)
	switch {
	case absent(err):
		n.why = "/" + n.folder + " does not exist"
		return n.why
	case err != nil:
		n.err = err
		return ""
	}
	names := configurations(entries)
	if len(names) == 0 {
		n.why = "no configuration in /" + n.folder
		return n.why
	}
	most := 1
	if m := p.running.cni.MaxConfNum; m != nil {
		most = *m
	}
	for i, name := range names {
		if i > 0 && i == most {
			break
		}
		at := path.Join(n.folder, name)
		content, err := p.root.ReadFile(at)
		if err != nil {
			n.err = err
			return ""
		}
		list, err := parseNetwork(content, path.Ext(name) == ".conflist")
		if err != nil {
			n.why = name + " " + err.Error()
			return n.why
		}
		if i == 0 {
			n.file = at
		}
		for _, one := range list {
			n.plugins = append(n.plugins, plugin{one, name})
		}
	}
	if p.running.loopback {
		n.plugins = append(n.plugins, plugin{"loopback", "containerd's own loopback network"})
	}
	return ""
}

// configurations are the files that count, the one that wins first (libcni
// ConfFiles: sorted by name).
func configurations(entries []fs.DirEntry) (names []string) {
	for _, e := range entries {
		if ext := path.Ext(e.Name()); !e.IsDir() && slices.Contains([]string{".conf", ".conflist", ".json"}, ext) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}

// maxPlugins bounds what is believed of one configuration.
const maxPlugins = 64

// parseNetwork returns the plugins that a network configuration names, the
// address managers of each behind it (github.com/containernetworking/cni, SPEC.md
// section 1). A ".conflist" holds a list of plugins, other files one.
func parseNetwork(content []byte, list bool) (names []string, err error) {
	type one struct {
		Type string
		IPAM struct{ Type string }
	}
	var file struct {
		one
		Name    string
		Plugins []one
	}
	if err := json.Unmarshal(content, &file); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			return nil, fmt.Errorf("is not valid JSON (byte %d of %d)", syntax.Offset, len(content))
		}
		return nil, errors.New("is JSON, but no network configuration")
	}
	all := file.Plugins
	if !list {
		all = []one{file.one}
	}
	if len(all) == 0 {
		return nil, errors.New("names no plugin")
	}
	for _, plugin := range all[:min(len(all), maxPlugins)] {
		if plugin.Type == "" {
			return nil, errors.New("has a plugin without a type")
		}
		names = append(names, plugin.Type)
		if plugin.IPAM.Type != "" {
			names = append(names, plugin.IPAM.Type)
		}
	}
	return names, nil
}

// judgePlugins looks for each plugin where the runtime would.
func (p *Probe) judgePlugins() {
	n := &p.cni
	n.missing, n.unjudged = nil, ""
	switch {
	case n.err != nil:
		n.unjudged = n.err.Error()
		return
	case n.why != "":
		n.unjudged = n.why
		return
	}
	seen := map[string]bool{}
	for _, one := range n.plugins {
		if seen[one.name] {
			continue
		}
		seen[one.name] = true
		subject, wrong, err := p.findPlugin(one.name)
		if err != nil {
			n.unjudged = err.Error()
			continue
		}
		if wrong != "" {
			n.missing = append(n.missing, probes.Finding{Reason: CNIPluginMissing, ID: one.name, Subject: subject, Source: "/" + n.file,
				Message: fmt.Sprintf("CNI plugin %s of %s %s", one.name, one.of, wrong)})
		}
	}
}

// findPlugin says what is wrong with a plugin's program, if anything. The runtime
// takes the first file of that name in its folders (libcni FindInPath).
func (p *Probe) findPlugin(name string) (subject, wrong string, err error) {
	if strings.Contains(name, "/") || !fs.ValidPath(name) || name == "." {
		return name, "has a name that no program can have", nil
	}
	dirs := p.binDirs()
	subject = "/" + path.Join(dirs[0], name)
	for _, dir := range dirs {
		at := path.Join(dir, name)
		info, err := p.root.Stat(at)
		switch {
		case absent(err):
			continue
		case err != nil:
			return subject, "", err
		case !info.Mode().IsRegular():
			continue
		case info.Mode().Perm()&0o111 == 0:
			return "/" + at, "is not executable", nil
		case info.Size() == 0:
			return "/" + at, "is an empty file", nil
		}
		return "/" + at, "", nil
	}
	return subject, "is not in /" + strings.Join(dirs, ", /"), nil
}

// confDir and binDirs are where the runtime looks: as it says, else as its
// configuration says, else the usual places.
func (p *Probe) confDir() string {
	return cleanDir(p.running.cni.ConfDir, p.declaredCNI("conf_dir"), defaultConfDir)
}

func (p *Probe) binDirs() (dirs []string) {
	list := p.running.cni.BinDirs
	if len(list) == 0 {
		return []string{cleanDir(p.running.cni.BinDir, p.declaredCNI("bin_dir"), defaultBinDir)}
	}
	for _, d := range list[:min(len(list), 8)] {
		dirs = append(dirs, cleanDir(d, defaultBinDir))
	}
	return dirs
}

// cleanDir is the first of some folders that is one, as the node's root takes it.
func cleanDir(candidates ...string) string {
	for _, c := range candidates {
		if c = strings.TrimPrefix(path.Clean("/"+c), "/"); c != "" && fs.ValidPath(c) {
			return c
		}
	}
	return "."
}

// declaredCNI is what the configuration says of CNI; only while the runtime has
// not told what it runs with.
func (p *Probe) declaredCNI(key string) string {
	if p.running.known {
		return ""
	}
	d := p.readConfig()
	cni, _ := d.settings["cni"].(map[string]any)
	value, _ := cni[key].(string)
	return value
}

// listenTo is where CNI's files and the socket are.
func (p *Probe) listenTo(ctx context.Context) []string {
	list := append([]string{p.cni.folder}, p.binDirs()...)
	socket := strings.TrimPrefix(p.cri.Socket(ctx), "/")
	return slices.DeleteFunc(append(list, socket), func(s string) bool { return !fs.ValidPath(s) || s == "." })
}
