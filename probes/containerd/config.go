package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// ConfigNotLoaded is the shared reason that the runtime's own answer refines.
const ConfigNotLoaded = "Containerd" + unit.ConfigNotLoaded

// declared is what containerd's configuration says of its CRI plugin, whatever
// the plugin is called in its version.
type declared struct {
	settings map[string]any
	files    []string // that it was read from, without leading slashes
	broken   error    // a file that cannot be parsed
	at       string   // which
	err      error    // a file that cannot be read
}

// The CRI plugin's sections, by version of the file (containerd
// docs/cri/config.md): in version 3 it is split into two, and what a version 2
// file says is migrated when it is loaded.
var sections = []string{"cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"}

const maxImports = 32

// readConfig reads the configuration and what it imports, later files over
// earlier ones.
func (p *Probe) readConfig() (d declared) {
	d.settings = map[string]any{}
	main := p.readTOML(p.config, &d)
	if main == nil {
		return d
	}
	layers := []map[string]any{main}
	for _, name := range p.imports(main) {
		if more := p.readTOML(name, &d); more != nil {
			layers = append(layers, more)
		}
	}
	for _, layer := range layers {
		plugins, _ := layer["plugins"].(map[string]any)
		for _, name := range sections {
			if section, ok := plugins[name].(map[string]any); ok {
				overlay(d.settings, section)
			}
		}
	}
	return d
}

// readTOML reads one file; nil when that fails.
func (p *Probe) readTOML(name string, d *declared) map[string]any {
	d.files = append(d.files, name)
	content, err := p.root.ReadFile(name)
	if err != nil {
		if !absent(err) {
			d.err = err
		}
		return nil
	}
	t, err := parseTOML(content)
	if err != nil {
		d.broken, d.at = err, name
		return nil
	}
	return t
}

// imports are the files that a configuration imports: paths and patterns,
// relative ones beside it.
func (p *Probe) imports(main map[string]any) (names []string) {
	list, _ := main["imports"].([]any)
	for _, item := range list[:min(len(list), maxImports)] {
		pattern, ok := item.(string)
		if !ok || pattern == "" {
			continue
		}
		if !strings.HasPrefix(pattern, "/") {
			pattern = path.Join("/", path.Dir(p.config), pattern)
		}
		pattern = strings.TrimPrefix(path.Clean(pattern), "/")
		if !strings.ContainsAny(pattern, "*?[") {
			names = append(names, pattern)
			continue
		}
		entries, err := p.root.ReadDir(path.Dir(pattern))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if ok, err := path.Match(path.Base(pattern), e.Name()); ok && err == nil && len(names) < maxImports {
				names = append(names, path.Join(path.Dir(pattern), e.Name()))
			}
		}
	}
	return slices.DeleteFunc(names, func(n string) bool { return !fs.ValidPath(n) || n == p.config })
}

// overlay puts one table over another, tables inside them too.
func overlay(into, over map[string]any) {
	for key, v := range over {
		old, isOld := into[key].(map[string]any)
		table, isTable := v.(map[string]any)
		if isTable {
			if !isOld {
				old = map[string]any{}
				into[key] = old
			}
			overlay(old, table)
			continue
		}
		into[key] = v
	}
}

// maxNesting bounds how deep a TOML file may nest arrays and tables: the parser
// calls itself for each.
const maxNesting = 64

var errNested = errors.New("it nests too deep")

// parseTOML parses a configuration. Its errors name a line and nothing of the content.
func parseTOML(content []byte) (map[string]any, error) {
	if nestsTooDeep(content) {
		return nil, errNested
	}
	var t map[string]any
	if err := toml.Unmarshal(content, &t); err != nil {
		if at, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, _ := at.Position()
			return nil, fmt.Errorf("line %d is not valid TOML", line)
		}
		return nil, errors.New("it is not valid TOML")
	}
	return t, nil
}

// nestsTooDeep looks at brackets and dots outside of strings and comments.
func nestsTooDeep(content []byte) bool {
	depth, dots := 0, 0
	for i := 0; i < len(content); i++ {
		switch c := content[i]; c {
		case '[', '{':
			depth++
		case ']', '}':
			depth = max(depth-1, 0)
		case '.':
			dots++
		case '\n':
			dots = 0
		case '#':
			i += len(line(content[i:])) - 1
		case '"', '\'':
			i += len(quoted(content[i:])) - 1
		}
		if depth > maxNesting || dots > maxNesting {
			return true
		}
	}
	return false
}

// line is what is before the end of the line.
func line(b []byte) []byte {
	if before, _, ok := bytes.Cut(b, []byte{'\n'}); ok {
		return before
	}
	return b
}

// quoted is the string that b begins with, its quotes included; when it does not
// end, as much as one could.
func quoted(b []byte) []byte {
	mark := b[:1]
	if triple := bytes.Repeat(mark, 3); bytes.HasPrefix(b, triple) {
		if n := bytes.Index(b[3:], triple); n >= 0 {
			return b[:n+6]
		}
		return b
	}
	for i := 1; i < len(b) && b[i] != '\n'; i++ {
		switch {
		case b[i] == '\\' && mark[0] == '"':
			i++
		case b[i] == mark[0]:
			return b[:i+1]
		}
	}
	return b[:1]
}

// normalTOML takes from a configuration what is without effect: comments, order,
// white space. What is no TOML is taken as it is.
func normalTOML(_ string, content []byte) []byte {
	t, err := parseTOML(content)
	if err != nil {
		return content
	}
	if b, err := json.Marshal(t); err == nil {
		return b
	}
	return content
}

// configs are the files that containerd reads when it starts.
func (p *Probe) configs(run unit.Run) []string {
	p.config = defaultConfig
	for i, arg := range run.Args {
		value := ""
		switch name, v, ok := strings.Cut(strings.TrimLeft(arg, "-"), "="); {
		case i == 0 || !strings.HasPrefix(arg, "-") || name != "c" && name != "config":
			continue
		case ok:
			value = v
		case i+1 < len(run.Args):
			value = run.Args[i+1]
		}
		if name, ok := unit.Path(value); ok {
			p.config = name
		}
	}
	return p.readConfig().files
}

// startedWithThis asks the running containerd whether it runs with what the
// configuration says now.
func (p *Probe) startedWithThis(unit.Run) (same, known bool) {
	ctx, cancel := context.WithTimeout(context.Background(), versionWithin)
	defer cancel()
	p.asked, p.running = time.Time{}, settings{}
	p.learnSettings(ctx)
	keys, known := p.differs()
	return len(keys) == 0, known
}

// differs are the settings that the running containerd has otherwise than its
// configuration says; known is false when either cannot be told.
func (p *Probe) differs() (keys []string, known bool) {
	if !p.running.known {
		return nil, false
	}
	d := p.readConfig()
	if d.err != nil || d.broken != nil {
		return nil, false
	}
	compare(d.settings, p.running.config, "", &keys)
	slices.Sort(keys)
	return keys, true
}

// lookAtConfig says which settings differ where the unit's files are known to
// have changed, and decides where the unit's check could not know.
func (p *Probe) lookAtConfig(look *probes.Look) {
	mine := func(f probes.Finding) bool {
		return f.Reason == ConfigNotLoaded && strings.HasSuffix(f.Subject, ".toml")
	}
	unsure := func(s string) bool {
		return strings.HasPrefix(s, ConfigNotLoaded+": /") && strings.Contains(s, ".toml was changed")
	}
	if !slices.ContainsFunc(look.Findings, mine) && !slices.ContainsFunc(look.NotJudged, unsure) {
		return
	}
	message := ""
	keys, known := p.differs()
	switch d := p.readConfig(); {
	case d.broken != nil:
		message = fmt.Sprintf("/%s: %v: %s will not start with it", d.at, d.broken, p.name)
	case len(keys) > 0:
		message = p.otherwise(keys)
	case !known:
		return
	}
	look.NotJudged = slices.DeleteFunc(slices.Clone(look.NotJudged), unsure)
	if message == "" {
		return
	}
	// One finding for the configuration and all that it imports.
	subject := "/" + p.config
	one := probes.Finding{Reason: ConfigNotLoaded, Subject: subject, Source: subject, Message: message}
	look.Findings = append(slices.DeleteFunc(slices.Clone(look.Findings), mine), one)
}

// otherwise names settings, and never their values: the file may be one that not
// everybody may read.
func (p *Probe) otherwise(keys []string) string {
	names := strings.Join(keys[:min(3, len(keys))], ", ")
	if len(keys) > 3 {
		names += fmt.Sprintf(" (+%d more)", len(keys)-3)
	}
	return fmt.Sprintf("/%s sets %s otherwise than %s runs with", p.config, names, p.name)
}

// Settings that the running configuration tells otherwise than they were written,
// by design: deprecated ones that are moved elsewhere when they are loaded, and
// registries, whose secrets are not looked at.
var incomparable = []string{"registry", "systemdcgroup", "containerd.defaultruntime", "containerd.untrustedworkloadruntime", "containerd.nopivot",
	"runtimeengine", "runtimeroot"}

// Settings whose JSON name is not their TOML name in another spelling.
var spelled = map[string]string{"maxcontainerloglinesize": "maxcontainerlogsize"}

// compare finds the settings that are there on both sides and differ. The running
// configuration holds every setting that its version knows, so one that is not in
// it is unknown to it, and no difference; but in maps of the operator's own names
// (runtimes, and the options of each) what is missing is.
func compare(want, got map[string]any, at string, keys *[]string) {
	byName := make(map[string]any, len(got))
	for key, v := range got {
		byName[plainKey(key)] = v
	}
	own := at == "containerd.runtimes" || strings.HasPrefix(at, "containerd.runtimes.") && strings.HasSuffix(at, ".options")
	for _, key := range slices.Sorted(maps.Keys(want)) {
		name := plainKey(key)
		if other := spelled[name]; other != "" {
			name = other
		}
		full := joinKey(at, key)
		if slices.Contains(incomparable, strings.ToLower(strings.ReplaceAll(full, "_", ""))) || slices.Contains(incomparable[5:], name) {
			continue
		}
		value, ok := byName[name]
		table, isTable := want[key].(map[string]any)
		switch gotTable, isGotTable := value.(map[string]any); {
		case !ok || value == nil && isTable:
			if own && len(*keys) < 64 {
				*keys = append(*keys, full)
			}
		case isTable && isGotTable:
			compare(table, gotTable, full, keys)
		case isTable || isGotTable: // another shape in this version
		case full == "cni.bin_dir" && value == "": // from 2.1 on in bin_dirs
			if dirs, ok := byName["bindirs"].([]any); ok && !slices.ContainsFunc(dirs, func(d any) bool { return same(want[key], d) }) {
				*keys = append(*keys, full)
			}
		case !same(want[key], value) && len(*keys) < 64:
			*keys = append(*keys, full)
		}
	}
}

func plainKey(key string) string { return strings.ToLower(strings.ReplaceAll(key, "_", "")) }

func joinKey(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

// same compares a TOML value with a JSON one: numbers by value, durations by
// length, and nothing with an empty list.
func same(want, got any) bool {
	if list, ok := want.([]any); ok {
		other, _ := got.([]any)
		return slices.EqualFunc(list, other, same)
	}
	a, b := fmt.Sprint(want), fmt.Sprint(got)
	if got == nil {
		b = ""
	}
	if n, ok := got.(float64); ok {
		b = fmt.Sprintf("%.0f", n)
		if f, ok := want.(float64); ok {
			return f == n
		}
	}
	if a == b {
		return true
	}
	x, err1 := time.ParseDuration(a)
	y, err2 := time.ParseDuration(b)
	return err1 == nil && err2 == nil && x == y
}
