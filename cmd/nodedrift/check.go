package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// formats are the values of -o.
var formats = []string{"table", "wide", "json", "yaml"}

// check looks once. It needs no Kubernetes and writes nothing.
func check(ctx context.Context, c *cli, args []string) (int, error) {
	set, root, conf := c.flags("check")
	format := set.String("o", "table", "output: "+strings.Join(formats, ", "))
	stateDir := set.String("state-dir", stateDir, "where a running agent keeps its memory; only read")
	names, err := parse(set, args)
	if err != nil {
		return 0, err
	}
	if !slices.Contains(formats, *format) {
		return 0, usagef("-o is %q, want one of %s", *format, strings.Join(formats, ", "))
	}
	snap, err := c.lookOnce(ctx, *root, *conf, *stateDir, names)
	if err != nil {
		return 0, err
	}
	if err := c.print(&snap.Document, *format); err != nil {
		return 0, err
	}
	return exitCode(&snap.Document), nil
}

// lookOnce takes one look with the named probes, or with all of them.
func (c *cli) lookOnce(ctx context.Context, root, conf, stateDir string, names []string) (agent.Snapshot, error) {
	cfg, err := loadConfig(conf)
	if err != nil {
		return agent.Snapshot{}, usageError{err}
	}
	node, err := host.Open(root)
	if err != nil {
		return agent.Snapshot{}, usageError{err}
	}
	defer node.Close()
	ps, err := chosen(enabled(cfg, node, nil), names)
	if err != nil {
		return agent.Snapshot{}, err
	}
	a := agent.Config{Node: c.nodeName(), Log: slog.New(slog.DiscardHandler), Mono: host.Monotonic, Probes: ps, Rules: cfg.rules(),
		Memory: memoryFile{stateDir}, Strain: strain{host.NewStrainGauge()}}
	if boot, err := node.Boot(); err == nil {
		a.Boot = boot.ID
	}
	return agent.Once(ctx, a), nil
}

// chosen picks the probes with the given names; all when there are none.
func chosen(all []probes.Probe, names []string) ([]probes.Probe, error) {
	if len(names) == 0 {
		return all, nil
	}
	var picked []probes.Probe
	var known []string
	for _, p := range all {
		known = append(known, p.Spec().Name)
	}
	for _, name := range names {
		i := slices.Index(known, name)
		if i < 0 {
			return nil, usagef("there is no probe %q%s; there are: %s", name, suggestion(name, known), strings.Join(known, ", "))
		}
		if !slices.Contains(picked, all[i]) {
			picked = append(picked, all[i])
		}
	}
	return picked, nil
}

// nodeName is the Node object's name: what the DaemonSet says, else the host's.
func (c *cli) nodeName() string {
	if name := c.env("NODE_NAME"); name != "" {
		return name
	}
	name, _ := os.Hostname()
	return strings.ToLower(name)
}

// exitCode says how the document ends a command: drift goes before unknown.
func exitCode(d *agent.Document) int {
	code := exitClean
	for _, c := range d.Conditions {
		if c.Type == agent.NodeDrift {
			continue
		}
		switch {
		case c.Status == agent.True:
			return exitDrift
		case c.Status != agent.False:
			code = exitUnknown
		}
	}
	return code
}

func (c *cli) print(d *agent.Document, format string) error {
	switch format {
	case "json":
		e := json.NewEncoder(c.out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(d)
	case "yaml":
		return printYAML(c.out, d)
	}
	_, err := io.WriteString(c.out, table(d, format == "wide", c.terminal && c.env("NO_COLOR") == ""))
	return err
}

// printYAML prints the JSON document as YAML, its keys in the same order.
func printYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var n yaml.Node
	if err := yaml.Unmarshal(b, &n); err != nil { // JSON is YAML
		return err
	}
	blockStyle(&n)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	return e.Encode(&n)
}

func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, child := range n.Content {
		blockStyle(child)
	}
}

// table is the document for a tired person: one line per probe, what needs
// attention below it, and a sentence at the end.
func table(d *agent.Document, wide, color bool) string {
	t := &grid{color: color}
	t.row("", "CHECK", "STATUS", "REASON", "DETAIL")
	var drifting, unknown, fine int
	for i := range d.Conditions {
		c := &d.Conditions[i]
		if c.Type == agent.NodeDrift {
			continue
		}
		switch c.Status {
		case agent.True:
			drifting++
		case agent.False:
			fine++
		default:
			unknown++
		}
		t.condition(c, wide)
	}
	for _, n := range d.NotApplicable {
		t.row("", n.Probe, "n/a", "", n.Why)
	}
	for _, s := range d.Sources {
		if s.Hearing && s.Error != "" {
			t.row("", s.Probe, "not judged", "", s.Error)
		}
	}
	return t.String() + "\n" + sentence(d.Node, drifting, unknown, fine, len(d.NotApplicable)) + "\n"
}

func sentence(node string, drifting, unknown, fine, skipped int) string {
	parts := []string{fmt.Sprintf("%d drifting", drifting), fmt.Sprintf("%d could not be determined", unknown), fmt.Sprintf("%d in order", fine)}
	if skipped > 0 {
		parts = append(parts, fmt.Sprintf("%d not applicable", skipped))
	}
	return node + ": " + strings.Join(parts, ", ") + ". What a reason means: nodedrift explain REASON"
}

// words are how a status reads in the table.
var words = map[agent.Status]string{agent.True: "DRIFT", agent.False: "ok", agent.Unknown: "UNKNOWN", "": "UNKNOWN"}

// condition prints one condition: its findings, each on its line, or why there
// are none.
func (t *grid) condition(c *agent.Condition, wide bool) {
	name, word := c.Probe, words[c.Status]
	line := func(mark, status, reason, detail string) {
		t.row(mark, name, status, reason, detail)
		name = ""
	}
	if c.Status == agent.Unknown || c.Status == "" {
		line(word, word, c.Reason, cmp.Or(c.Error, c.Message))
	}
	shown := false
	for i := range c.Findings {
		f := &c.Findings[i]
		status := strings.ToUpper(f.Severity.String())
		switch {
		case f.Waived:
			status = "waived"
		case f.Held:
			status += " (held)"
		case f.Unseen:
			status = "unseen"
		case f.Severity == probes.Info:
			status = "info"
		}
		if !shown && c.Status == agent.False {
			line("ok", word, c.Reason, "")
		}
		shown = true
		line(status, status, f.Reason, f.Line())
		if wide {
			t.details(f)
		}
	}
	if !shown && c.Status == agent.False {
		line(word, word, c.Reason, "")
	}
	for _, why := range c.NotJudged {
		line("", "not judged", "", why)
	}
}

// details are what only the wide table shows of a finding.
func (t *grid) details(f *agent.Finding) {
	if f.Observed != "" || f.Wanted != "" {
		t.row("", "", "", "", fmt.Sprintf("  observed %q, wanted %q", f.Observed, f.Wanted))
	}
	if f.Source != "" {
		t.row("", "", "", "", "  source   "+f.Source)
	}
	if !f.Since.IsZero() {
		t.row("", "", "", "", "  since    "+f.Since.UTC().Format(time.RFC3339))
	}
	for _, r := range f.Consequences {
		t.row("", "", "", "", "  explains "+strings.TrimSpace(r.ID+" "+r.Subject))
	}
}

// A grid is text in columns. text/tabwriter would count colour as width.
type grid struct {
	rows  [][]string
	marks []string
	color bool
}

func (t *grid) row(mark string, cells ...string) {
	t.rows, t.marks = append(t.rows, cells), append(t.marks, mark)
}

// String lays the grid out; the last column is as wide as it is.
func (t *grid) String() string {
	var width []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for r, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			pad := ""
			if i < len(row)-1 {
				pad = strings.Repeat(" ", width[i]-len([]rune(cell))+2)
			}
			line.WriteString(t.paint(t.marks[r], i, cell) + pad)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

// paint colours the status column: red, yellow and green beside the words, never
// instead of them.
func (t *grid) paint(mark string, column int, cell string) string {
	if !t.color || column != 1 || mark == "" {
		return cell
	}
	code := "33"
	switch {
	case strings.HasPrefix(mark, "CRITICAL"):
		code = "31"
	case mark == "ok":
		code = "32"
	case mark == "info" || mark == "waived":
		code = "2"
	}
	return "\x1b[" + code + "m" + cell + "\x1b[0m"
}
