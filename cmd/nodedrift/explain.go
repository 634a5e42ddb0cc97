package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/agent/kube"
	"github.com/nodedrift/nodedrift/probes"
)

// explain prints the catalogue's entry of a reason, or all of a condition.
func explain(ctx context.Context, c *cli, args []string) (int, error) {
	set, _, _ := c.flags("explain")
	names, err := parse(set, args)
	if err != nil {
		return 0, err
	}
	specs := catalogue()
	if len(names) == 0 {
		return listProbes(ctx, c, nil)
	}
	for i, name := range names {
		if i > 0 {
			fmt.Fprintln(c.out)
		}
		if err := explainOne(c.out, specs, name); err != nil {
			return 0, err
		}
	}
	return exitClean, nil
}

func explainOne(w io.Writer, specs []probes.Spec, name string) error {
	var known []string
	for _, s := range specs {
		known = append(known, s.Condition, s.Name)
		for i := range s.Reasons {
			known = append(known, s.Reasons[i].Name)
			if strings.EqualFold(s.Reasons[i].Name, name) {
				explainReason(w, &s, &s.Reasons[i])
				return nil
			}
		}
		if strings.EqualFold(s.Condition, name) || strings.EqualFold(s.Name, name) {
			explainCondition(w, &s)
			return nil
		}
	}
	for _, e := range engineReasons {
		known = append(known, e.name)
		if strings.EqualFold(e.name, name) {
			fmt.Fprintf(w, "%s\n", e.name)
			paragraph(w, "Meaning", e.meaning)
			paragraph(w, "Mend", e.mend)
			return nil
		}
	}
	return usagef("there is no condition, probe or reason %q%s", name, suggestion(name, known))
}

func explainCondition(w io.Writer, s *probes.Spec) {
	fmt.Fprintf(w, "%s: condition of the probe %s; True means drift, %s that there is none\n\n", s.Condition, s.Name, s.Healthy)
	t := &grid{}
	for i := range s.Reasons {
		r := &s.Reasons[i]
		t.row("", "  "+r.Name, kindOf(r), "acts: "+actor(r.Owner), r.Meaning)
	}
	fmt.Fprint(w, t)
}

func explainReason(w io.Writer, s *probes.Spec, r *probes.Reason) {
	fmt.Fprintf(w, "%s (%s), condition %s, acts: %s\n", r.Name, kindOf(r), s.Condition, actor(r.Owner))
	paragraph(w, "Meaning", r.Meaning)
	paragraph(w, "Breaks", r.Breaks)
	paragraph(w, "Confirm", r.Confirm)
	paragraph(w, "Mend", r.Mend)
	paragraph(w, "False alarm", r.FalsePositives)
	if !r.Happens {
		paragraph(w, "Times", fmt.Sprintf("raised after %s, cleared after %s", spell(r.Hold), spell(r.Clear)))
	}
	paragraph(w, "Read", strings.Join(r.Links, "\n"))
}

func kindOf(r *probes.Reason) string {
	kind := r.Severity.String()
	if r.Routine {
		kind += ", routine"
	}
	if r.Happens {
		kind += ", occurrence"
	}
	return kind
}

func actor(o probes.Owner) string {
	switch o {
	case probes.AKS:
		return "AKS"
	case probes.Customer:
		return "you"
	}
	return "AKS or you"
}

func spell(d time.Duration) string {
	if d == 0 {
		return "the first look"
	}
	return d.String()
}

func paragraph(w io.Writer, head, text string) {
	if text == "" {
		return
	}
	fmt.Fprintf(w, "\n%s\n", head)
	for line := range strings.Lines(text) {
		fmt.Fprintf(w, "  %s\n", strings.TrimRight(line, "\n"))
	}
}

// engineReasons are the reasons that no probe gives.
var engineReasons = []struct{ name, meaning, mend string }{
	{agent.NodeDrift, "Summary of all conditions: True if any other is True for a reason that is not routine; its reason names the worst one.", "nodedrift explain with the condition it names."},
	{agent.ProbeFailed, "A probe could not look, so nothing is known: this is neither drift nor health.", "The message says what failed; on the node: nodedrift check."},
	{agent.ProbeTimedOut, "A probe got no answer within its deadline.", "Something that it asks hangs; on the node: nodedrift check -o wide."},
	{agent.PermissionDenied, "The agent lacks a right that this look needs.", "Compare the DaemonSet's securityContext with the one shipped."},
	{agent.AgentStarved, "For a minute the agent itself got so little CPU that no look was fair.", "The node is overloaded, or the agent's cgroup is throttled: do not set a CPU limit."},
	{agent.NodeProvisioning, "The node is still being set up by AKS: until provision.complete and two minutes of Ready, at most 15 minutes after boot.", "Wait."},
	{agent.ProvisioningFailed, "AKS's provisioning script ended with an exit code other than 0, so the node may be half set up.", "Look up the code in /var/log/azure/aks/provision.json; replace the node (AKS: reimage, or delete the machine)."},
	{agent.NodeShuttingDown, "The node began to shut down; conditions stay as they were.", ""},
	{agent.NotCheckedYet, "No look has ended yet; never published.", "Wait a second."},
}

// listProbes prints the probes with what they publish.
func listProbes(_ context.Context, c *cli, args []string) (int, error) {
	set, _, _ := c.flags("list")
	format := set.String("o", "table", "output: table or json")
	rest, err := parse(set, args)
	if err != nil {
		return 0, err
	}
	if err := noArguments(rest); err != nil {
		return 0, err
	}
	switch *format {
	case "table":
	case "json":
		e := json.NewEncoder(c.out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return exitClean, e.Encode(described(catalogue()))
	default:
		return 0, usagef("-o is %q, want table or json", *format)
	}
	t := &grid{}
	t.row("", "PROBE", "CONDITION", "HEALTHY", "EVERY", "REASONS")
	for _, s := range catalogue() {
		var names []string
		for _, r := range s.Reasons {
			names = append(names, r.Name)
		}
		t.row("", s.Name, s.Condition, s.Healthy, s.Every.String(), strings.Join(names, ", "))
	}
	_, err = io.WriteString(c.out, t.String())
	return exitClean, err
}

// A listedProbe is a probe in list -o json.
type listedProbe struct {
	Name      string         `json:"name"`
	Condition string         `json:"condition"`
	Healthy   string         `json:"healthy"`
	Every     string         `json:"every"`
	Reasons   []listedReason `json:"reasons"`
}

type listedReason struct {
	Name           string          `json:"name"`
	Severity       probes.Severity `json:"severity"`
	Routine        bool            `json:"routine"`
	Occurrence     bool            `json:"occurrence"`
	Owner          probes.Owner    `json:"owner"`
	Hold           string          `json:"hold"`
	Clear          string          `json:"clear"`
	Meaning        string          `json:"meaning"`
	Breaks         string          `json:"breaks"`
	Confirm        string          `json:"confirm"`
	Mend           string          `json:"mend"`
	FalsePositives string          `json:"falsePositives"`
	Links          []string        `json:"links"`
}

func described(specs []probes.Spec) []listedProbe {
	out := make([]listedProbe, 0, len(specs))
	for _, s := range specs {
		p := listedProbe{s.Name, s.Condition, s.Healthy, s.Every.String(), make([]listedReason, 0, len(s.Reasons))}
		for _, r := range s.Reasons {
			p.Reasons = append(p.Reasons, listedReason{r.Name, r.Severity, r.Routine, r.Happens, r.Owner, r.Hold.String(), r.Clear.String(),
				r.Meaning, r.Breaks, r.Confirm, r.Mend, r.FalsePositives, r.Links})
		}
		out = append(out, p)
	}
	return out
}

// render looks once and prints the body that run would apply.
func render(ctx context.Context, c *cli, args []string) (int, error) {
	set, root, conf := c.flags("render")
	rest, err := parse(set, args)
	if err != nil {
		return 0, err
	}
	if err := noArguments(rest); err != nil {
		return 0, err
	}
	snap, err := c.lookOnce(ctx, *root, *conf, stateDir, nil)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprintf(c.out, "%s\n", kube.Body(snap))
	return exitClean, err
}

// configure checks or prints a configuration.
func configure(_ context.Context, c *cli, args []string) (int, error) {
	set, _, conf := c.flags("config")
	rest, err := parse(set, args)
	if err != nil {
		return 0, err
	}
	switch {
	case slices.Equal(rest, []string{"validate"}):
		if *conf == "" {
			return 0, usagef("name the file: nodedrift config validate --config FILE")
		}
		if _, err := loadConfig(*conf); err != nil {
			return 0, usageError{err}
		}
		_, err := fmt.Fprintf(c.out, "%s is valid\n", *conf)
		return exitClean, err
	case slices.Equal(rest, []string{"default"}):
		_, err := io.WriteString(c.out, defaultConfig)
		return exitClean, err
	}
	return 0, usagef("want validate or default")
}

// version is set by the linker.
var version = "dev"

// printVersion prints what this binary is.
func printVersion(_ context.Context, c *cli, args []string) (int, error) {
	set, _, _ := c.flags("version")
	rest, err := parse(set, args)
	if err != nil {
		return 0, err
	}
	if err := noArguments(rest); err != nil {
		return 0, err
	}
	_, err = fmt.Fprintf(c.out, "nodedrift %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return exitClean, err
}

// revision is the commit that the binary was built from, where Go knows it.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
