package web

import (
	"cmp"
	"fmt"
	"html"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

// The page is written by hand: html/template alone would add 3 MB to the
// binary. Every value passes through esc.
const head = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="15"><meta name="color-scheme" content="light dark"><title>%s</title><style>
:root{color-scheme:light dark;--bad:#b3261e;--ok:#1b6e3c;--unk:#8a5a00;--line:#8884;--dim:#666;--bg:#fff;--fg:#1a1a1a}
@media(prefers-color-scheme:dark){:root{--bad:#ff8a80;--ok:#7fd89b;--unk:#ffcc66;--dim:#aaa;--bg:#16181b;--fg:#e8e8e8}}
body{margin:0 auto;max-width:70rem;padding:1rem;font:16px/1.45 system-ui,sans-serif;background:var(--bg);color:var(--fg)}
h1{font-size:1.3rem;margin:0 0 .2rem}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}
p{margin:.2rem 0}.dim{color:var(--dim);font-size:.9rem}
.True{color:var(--bad)}.False{color:var(--ok)}.Unknown,.none{color:var(--unk)}
article{border-top:1px solid var(--line);padding:.6rem 0;overflow-wrap:anywhere}
article h3{font-size:1rem;margin:0}article h3 span{font-weight:600}
ul{margin:.3rem 0;padding-left:1.2rem}li{margin:.25rem 0;overflow-wrap:anywhere}
code{font:.9em ui-monospace,monospace}
</style></head><body>
`

// page shows the document to a person: the verdict first.
func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	snapshot := s.cfg.Source()
	var b strings.Builder
	writePage(&b, &snapshot.Document, s.cfg.Version)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(b.String())) // the reader may have gone
}

func writePage(b *strings.Builder, d *agent.Document, version string) {
	verdict := verdictOf(d)
	fmt.Fprintf(b, head, esc(d.Node+": "+verdict.word))
	fmt.Fprintf(b, "<h1>%s: <span class=%q>%s</span></h1>\n<p>%s</p>\n", esc(d.Node), verdict.class, esc(verdict.word), esc(verdict.text))
	fmt.Fprintf(b, "<p class=dim>as of %s; nodedrift %s; <a href=\"/api/v1/status\">JSON</a> <a href=\"/metrics\">metrics</a></p>\n",
		stamp(d.Time), esc(cmp.Or(version, "(no version)")))
	b.WriteString("<h2>Conditions</h2>\n")
	for _, c := range ranked(d.Conditions) {
		writeCondition(b, c, d.Time)
	}
	writeRest(b, d)
	b.WriteString("</body></html>\n")
}

type verdict struct{ word, class, text string }

// verdictOf is the summary condition in words.
func verdictOf(d *agent.Document) verdict {
	i := slices.IndexFunc(d.Conditions, func(c agent.Condition) bool { return c.Type == agent.NodeDrift })
	if i < 0 || d.Conditions[i].Status == "" {
		return verdict{"not looked yet", "none", "The first look is not over."}
	}
	c := &d.Conditions[i]
	switch c.Status {
	case agent.True:
		return verdict{"drift", "True", c.Reason + ": " + c.Message}
	case agent.False:
		return verdict{"no drift", "False", cmp.Or(c.Message, c.Reason)}
	}
	return verdict{"unknown", "Unknown", c.Reason + ": " + c.Message}
}

// ranked lists the conditions with the worst first, the summary left out.
func ranked(list []agent.Condition) []*agent.Condition {
	rank := map[agent.Status]int{agent.True: 0, agent.Unknown: 1, "": 2, agent.False: 3}
	var out []*agent.Condition
	for i := range list {
		if list[i].Type != agent.NodeDrift {
			out = append(out, &list[i])
		}
	}
	slices.SortStableFunc(out, func(a, b *agent.Condition) int { return cmp.Compare(rank[a.Status], rank[b.Status]) })
	return out
}

func writeCondition(b *strings.Builder, c *agent.Condition, now time.Time) {
	word := map[agent.Status]string{agent.True: "drift", agent.False: "ok", agent.Unknown: "unknown"}[c.Status]
	fmt.Fprintf(b, "<article><h3>%s <span class=%q>%s</span></h3>\n<p>%s</p>\n", esc(c.Type), class(c.Status), esc(cmp.Or(word, "not looked yet")),
		esc(join(c.Reason, c.Message)))
	if c.Status != "" {
		fmt.Fprintf(b, "<p class=dim>%s since %s; last good look %s</p>\n", esc(string(c.Status)), since(c.LastTransitionTime, now), since(c.LastCheckTime, now))
	}
	if c.Error != "" {
		fmt.Fprintf(b, "<p class=Unknown>could not look: %s</p>\n", esc(c.Error))
	}
	if len(c.Findings)+len(c.NotJudged) > 0 {
		b.WriteString("<ul>")
		for i := range c.Findings {
			writeFinding(b, &c.Findings[i], now)
		}
		for _, n := range c.NotJudged {
			fmt.Fprintf(b, "<li class=dim>not judged: %s</li>\n", esc(n))
		}
		b.WriteString("</ul>\n")
	}
	b.WriteString("</article>\n")
}

func writeFinding(b *strings.Builder, f *agent.Finding, now time.Time) {
	mark := f.Severity.String()
	switch {
	case f.Waived:
		mark += ", waived"
	case f.Held:
		mark += ", not yet for long enough"
	}
	fmt.Fprintf(b, "<li><b>%s</b> (%s, acts: %s) <code>%s</code>", esc(f.Reason), esc(mark), acts(f.Owner), esc(f.Subject))
	if f.Message != "" {
		fmt.Fprintf(b, "<br>%s", esc(f.Message))
	}
	if f.Observed != "" || f.Wanted != "" {
		fmt.Fprintf(b, "<br>is <code>%s</code>, want <code>%s</code>", esc(f.Observed), esc(f.Wanted))
	}
	b.WriteString("<br><span class=dim>")
	if f.Source != "" {
		fmt.Fprintf(b, "wanted by %s; ", esc(f.Source))
	}
	if f.Actor != nil {
		fmt.Fprintf(b, "by %s; ", esc(actor(f.Actor)))
	}
	if n := len(f.Consequences); n > 0 {
		fmt.Fprintf(b, "explains %d more; ", n)
	}
	fmt.Fprintf(b, "seen since %s</span></li>\n", since(f.Since, now))
}

// writeRest lists what happened, what the probes listen to, and what does not
// apply to this node.
func writeRest(b *strings.Builder, d *agent.Document) {
	if len(d.Occurrences) > 0 {
		b.WriteString("<h2>What happened</h2>\n<ul>")
		for _, o := range slices.Backward(d.Occurrences) {
			fmt.Fprintf(b, "<li>%s <b>%s</b> %s <span class=dim>%s</span></li>\n", stamp(o.Time), esc(o.Reason), esc(o.Message), esc(o.Subject))
		}
		b.WriteString("</ul>\n")
	}
	if len(d.Sources) > 0 {
		b.WriteString("<h2>Sources</h2>\n<ul>")
		for _, s := range d.Sources {
			state := "hears changes"
			if !s.Hearing {
				state = "deaf, the sweep alone sees changes"
			}
			fmt.Fprintf(b, "<li>%s: %s", esc(s.Probe), state)
			if s.Lost > 0 {
				fmt.Fprintf(b, "; %d events lost, each answered by a full look", s.Lost)
			}
			if s.Error != "" {
				fmt.Fprintf(b, "; %s", esc(s.Error))
			}
			b.WriteString("</li>\n")
		}
		b.WriteString("</ul>\n")
	}
	if len(d.NotApplicable) > 0 {
		b.WriteString("<h2>Not on this node</h2>\n<ul>")
		for _, n := range d.NotApplicable {
			fmt.Fprintf(b, "<li>%s: %s</li>\n", esc(n.Probe), esc(n.Why))
		}
		b.WriteString("</ul>\n")
	}
}

func actor(a *agent.Actor) string {
	switch {
	case a.Pod != "":
		return strings.TrimSuffix("pod "+a.Pod+", container "+a.Container, ", container ")
	case a.Unit != "":
		return a.Unit
	}
	return fmt.Sprintf("%s (pid %d)", a.Comm, a.PID)
}

// acts says who has to act, in the words of the messages.
func acts(o probes.Owner) string {
	switch o {
	case probes.AKS:
		return "AKS"
	case probes.Customer:
		return "you"
	}
	return "AKS or you"
}

func class(s agent.Status) string { return cmp.Or(string(s), "none") }

// join is "reason: message" without what is missing.
func join(reason, message string) string {
	if message == "" {
		return reason
	}
	return reason + ": " + message
}

func stamp(t time.Time) string {
	return fmt.Sprintf("<time>%s</time>", t.UTC().Format("2006-01-02 15:04:05Z"))
}

// since is a time with how long ago it was, for a reader who does not want to count.
func since(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	ago := max(now.Sub(t), 0).Round(time.Second)
	if ago >= 48*time.Hour {
		return fmt.Sprintf("%s (%d days ago)", stamp(t), int(ago.Hours()/24))
	}
	return fmt.Sprintf("%s (%s ago)", stamp(t), ago)
}

func esc(s string) string { return html.EscapeString(s) }
