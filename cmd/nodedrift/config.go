package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

// Modes of telling, from the quietest on.
const (
	modeObserve    = "observe"    // metrics and logs only
	modeEvents     = "events"     // and Events
	modeConditions = "conditions" // and NodeConditions
)

// config is the configuration file, version nodedrift/v1. Its zero values mean
// the default; every key is optional.
type config struct {
	APIVersion string                  `yaml:"apiVersion"`
	Kind       string                  `yaml:"kind"`
	Mode       string                  `yaml:"mode"`
	Probes     map[string]yaml.Node    `yaml:"probes"` // by name: common and the probe's own keys
	Reasons    map[string]reasonConfig `yaml:"reasons"`
	Waivers    []waiverConfig          `yaml:"waivers"`
	BPF        bpfConfig               `yaml:"bpf"`

	common map[string]common
	errs   []error // what section found
	text   string  // as it was read
}

// common is what can be said of every probe.
type common struct {
	Enabled *bool         `yaml:"enabled"`
	Every   time.Duration `yaml:"every"`
}

// bpfConfig says what is traced; it takes effect when the agent starts.
type bpfConfig struct {
	Enabled *bool `yaml:"enabled"`
	Sysctl  *bool `yaml:"sysctl"` // a program that runs on each access to /proc/sys
	Clock   bool  `yaml:"clock"`  // programs that run when somebody sets the clock, or asks adjtimex(2)
}

type reasonConfig struct {
	Severity string         `yaml:"severity"`
	Hold     *time.Duration `yaml:"hold"`
	Clear    *time.Duration `yaml:"clear"`
}

type waiverConfig struct {
	Reason  string `yaml:"reason"`
	Subject string `yaml:"subject"`
	Actor   string `yaml:"actor"`
	Until   date   `yaml:"until"`
	Why     string `yaml:"why"`
}

// section decodes what the configuration says of one probe into the probe's own
// type, whose Valid, if it has one, names a key with a value that is none. Errors
// are kept for the end.
func section[T any](c *config, name string) (own T) {
	n, ok := c.Probes[name]
	if !ok || n.Tag == "!!null" {
		return own
	}
	var shared common
	at := "probes." + name
	fields := fieldsOf(reflect.TypeFor[T]())
	maps.Copy(fields, fieldsOf(reflect.TypeFor[common]()))
	err := knownFields(&n, fields, at)
	if err == nil {
		err = plainYAML(errors.Join(n.Decode(&shared), n.Decode(&own)))
	}
	if err == nil && shared.Every != 0 && (shared.Every < 100*time.Millisecond || shared.Every > time.Hour) {
		err = fmt.Errorf("line %d: %s.every: is %s, want 100ms to 1h", n.Line, at, shared.Every)
	}
	if v, ok := any(own).(interface{ Valid() error }); err == nil && ok {
		if wrong := v.Valid(); wrong != nil {
			err = fmt.Errorf("line %d: %s.%w", n.Line, at, wrong)
		}
	}
	if err != nil {
		c.errs = append(c.errs, err)
	}
	c.common[name] = shared
	return own
}

// enabled tells whether a probe is to run.
func (c *config) enabled(name string) bool {
	e := c.common[name].Enabled
	return e == nil || *e
}

// normalDuration rewrites a number of days ("7d") as a Go duration, and refuses
// what is neither.
func normalDuration(n *yaml.Node) error {
	if days, ok := strings.CutSuffix(n.Value, "d"); ok {
		if v, err := strconv.ParseFloat(days, 64); err == nil && v >= 0 && v < 36500 {
			n.Value = time.Duration(v * 24 * float64(time.Hour)).String()
			return nil
		}
	}
	if v, err := time.ParseDuration(n.Value); err != nil || v < 0 {
		return fmt.Errorf("line %d: %q is not a duration such as 30s, 5m or 7d", n.Line, n.Value)
	}
	n.Tag = "!!str" // "0" would be taken for a number of nanoseconds
	return nil
}

// date is a day ("2027-03-01", its beginning in UTC) or an RFC 3339 time.
type date struct{ time.Time }

// UnmarshalYAML implements [yaml.Unmarshaler].
func (d *date) UnmarshalYAML(n *yaml.Node) (err error) {
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if d.Time, err = time.Parse(layout, n.Value); err == nil {
			return nil
		}
	}
	return fmt.Errorf("line %d: %q is not a date such as 2027-03-01", n.Line, n.Value)
}

// maxConfig bounds the configuration file.
const maxConfig = 1 << 20

// loadConfig reads the configuration; an empty name means the default one. The
// error names the file, the line and the field.
func loadConfig(name string) (*config, error) {
	if name == "" {
		return parseConfig(nil)
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfig {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file of at most 1 MiB")}
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	c, err := parseConfig(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// parseConfig parses a configuration and checks it against the probes and
// reasons that there are.
func parseConfig(b []byte) (*config, error) {
	c := &config{common: map[string]common{}, text: string(b)}
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, plainYAML(err)
	}
	if len(doc.Content) > 0 && doc.Content[0].Tag != "!!null" {
		if err := knownKeys(doc.Content[0], reflect.TypeFor[config](), ""); err != nil {
			return nil, err
		}
		if err := doc.Decode(c); err != nil {
			return nil, plainYAML(err)
		}
		if d.Decode(new(yaml.Node)) == nil {
			return nil, errors.New("more than one YAML document")
		}
	}
	return c, c.check(&doc)
}

// plainYAML takes the library's prefix off its errors.
func plainYAML(err error) error {
	if err == nil {
		return nil
	}
	if t, ok := errors.AsType[*yaml.TypeError](err); ok {
		return errors.New(strings.Join(t.Errors, "; "))
	}
	return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
}

// knownKeys checks every key below a node against the type that it will become.
func knownKeys(n *yaml.Node, t reflect.Type, at string) error {
	if n.Kind == yaml.AliasNode {
		return fmt.Errorf("line %d: aliases are not supported", n.Line)
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case n.Tag == "!!null" || t == reflect.TypeFor[yaml.Node]() || t == reflect.TypeFor[date]():
		return nil
	case t == reflect.TypeFor[time.Duration]():
		return normalDuration(n)
	case t.Kind() == reflect.Struct:
		return knownFields(n, fieldsOf(t), at)
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		for _, item := range n.Content {
			if err := knownKeys(item, t.Elem(), at); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		for i := 1; i < len(n.Content); i += 2 {
			if err := knownKeys(n.Content[i], t.Elem(), join(at, n.Content[i-1].Value)); err != nil {
				return err
			}
		}
	}
	return nil
}

func knownFields(n *yaml.Node, fields map[string]reflect.Type, at string) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: %s is not a mapping", n.Line, cmp.Or(at, "the configuration"))
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		field, ok := fields[key.Value]
		if !ok {
			return fmt.Errorf("line %d: unknown key %s%s", key.Line, join(at, key.Value), suggestion(key.Value, slices.Sorted(maps.Keys(fields))))
		}
		if err := knownKeys(n.Content[i+1], field, join(at, key.Value)); err != nil {
			return err
		}
	}
	return nil
}

// fieldsOf are the keys that a struct takes, by the YAML library's rules.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for f := range t.Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); f.IsExported() {
			fields[cmp.Or(name, strings.ToLower(f.Name))] = f.Type
		}
	}
	return fields
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

// suggestion is "; did you mean ...?" for the nearest of the words, if one is near.
func suggestion(word string, words []string) string {
	best, distance := "", len(word)/2+1
	for _, w := range words {
		if d := editDistance(strings.ToLower(word), strings.ToLower(w)); d < distance {
			best, distance = w, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// check finds what is well formed and still wrong, and fills in the defaults.
func (c *config) check(doc *yaml.Node) error {
	bad := func(path []string, format string, args ...any) {
		c.errs = append(c.errs, fmt.Errorf("line %d: %s: %s", lineOf(doc, path), strings.Join(path, "."), fmt.Sprintf(format, args...)))
	}
	if c.APIVersion == "" && c.Kind == "" {
		c.APIVersion, c.Kind = "nodedrift/v1", "Config"
	}
	if c.APIVersion != "nodedrift/v1" {
		bad([]string{"apiVersion"}, "is %q, want nodedrift/v1", c.APIVersion)
	}
	if c.Kind != "Config" {
		bad([]string{"kind"}, "is %q, want Config", c.Kind)
	}
	c.Mode = cmp.Or(c.Mode, modeConditions)
	if modes := []string{modeObserve, modeEvents, modeConditions}; !slices.Contains(modes, c.Mode) {
		bad([]string{"mode"}, "is %q, want observe, events or conditions%s", c.Mode, suggestion(c.Mode, modes))
	}
	specs := c.specs()
	names := make([]string, 0, len(specs))
	for _, s := range specs {
		names = append(names, s.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Probes)) {
		if !slices.Contains(names, name) {
			bad([]string{"probes", name}, "there is no such probe%s", suggestion(name, names))
		}
	}
	c.checkReasons(specs, bad)
	return errors.Join(c.errs...)
}

func (c *config) checkReasons(specs []probes.Spec, bad func([]string, string, ...any)) {
	reasons := reasonNames(specs)
	for _, name := range slices.Sorted(maps.Keys(c.Reasons)) {
		if !slices.Contains(reasons, name) {
			bad([]string{"reasons", name}, "there is no such reason%s", suggestion(name, reasons))
		}
		if s := c.Reasons[name].Severity; !slices.Contains([]string{"", "critical", "warning", "info", "off"}, s) {
			bad([]string{"reasons", name, "severity"}, "is %q, want critical, warning, info or off", s)
		}
	}
	for i, w := range c.Waivers {
		at := []string{"waivers", strconv.Itoa(i)}
		if !slices.Contains(reasons, w.Reason) {
			bad(append(at, "reason"), "there is no reason %q%s", w.Reason, suggestion(w.Reason, reasons))
		}
		if w.Why == "" {
			bad(at, "a waiver needs a why")
		}
	}
}

// lineOf is the line of a key, or of the nearest thing above it that is there.
func lineOf(doc *yaml.Node, path []string) int {
	n, line := doc, 1
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	for _, part := range path {
		var next *yaml.Node
		switch i, err := strconv.Atoi(part); {
		case n.Kind == yaml.SequenceNode && err == nil && i < len(n.Content):
			next = n.Content[i]
			line = next.Line
		case n.Kind == yaml.MappingNode:
			for k := 0; k+1 < len(n.Content); k += 2 {
				if n.Content[k].Value == part {
					next, line = n.Content[k+1], n.Content[k].Line
				}
			}
		}
		if next == nil {
			break
		}
		n = next
	}
	return line
}

func reasonNames(specs []probes.Spec) (names []string) {
	for _, s := range specs {
		for _, r := range s.Reasons {
			names = append(names, r.Name)
		}
	}
	return names
}

// rules compiles what the configuration says of reasons and periods.
func (c *config) rules() agent.Rules {
	r := agent.Rules{Reasons: map[string]agent.ReasonRule{}, Every: map[string]time.Duration{}}
	for name, rc := range c.Reasons {
		rule := agent.ReasonRule{Off: rc.Severity == "off", Hold: rc.Hold, Clear: rc.Clear}
		if !rule.Off {
			_ = rule.Severity.UnmarshalText([]byte(rc.Severity)) // checkReasons knows the words
		}
		r.Reasons[name] = rule
	}
	for name, shared := range c.common {
		r.Every[name] = shared.Every
	}
	for _, w := range c.Waivers {
		r.Waivers = append(r.Waivers, agent.Waiver{Reason: w.Reason, Subject: w.Subject, Actor: w.Actor, Until: w.Until.Time, Why: w.Why})
	}
	return r
}

// defaultConfig is what an empty file means, with every key that there is.
//
//go:embed default.yaml
var defaultConfig string
