package agent

import (
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nodedrift/nodedrift/probes"
)

// Limits of text. What is longer ends in "...".
const (
	maxMessage = 160 // bytes of a condition's message: one line of kubectl describe
	maxField   = 256 // bytes of one field of a finding
	maxError   = 256
)

// clean makes text from outside fit for a terminal, a log and a JSON document:
// one line, valid UTF-8, without control, format or direction characters, at
// most limit bytes. Clean text is returned as it is, without allocating.
func clean(s string, limit int) string {
	ok := len(s) <= limit
	for _, r := range s {
		if !ok {
			break
		}
		ok = r != utf8.RuneError && printable(r)
	}
	if ok {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		piece := s[i : i+n]
		switch {
		case r == utf8.RuneError && n <= 1:
			piece = fmt.Sprintf(`\x%02x`, s[i])
		case r == '\n':
			piece = `\n`
		case r == '\t':
			piece = `\t`
		case !printable(r):
			piece = fmt.Sprintf(`\u%04x`, r)
		}
		if b.Len()+len(piece) > limit-3 && i+n < len(s) {
			return b.String() + "..."
		}
		b.WriteString(piece)
		i += n
	}
	return shorten(b.String(), limit)
}

func printable(r rune) bool { return unicode.IsPrint(r) }

// shorten cuts clean text to limit bytes, between runes.
func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	if limit <= 3 {
		return s[:0]
	}
	cut := limit - 3
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}

// name is the one name of an actor that a person can act on: the pod, else the
// unit, else the process.
func (a *Actor) name() string {
	switch {
	case a.Pod != "":
		return "pod " + a.Pod
	case a.Unit != "":
		return a.Unit
	case a.Comm != "":
		return fmt.Sprintf("%s (pid %d)", a.Comm, a.PID)
	}
	return fmt.Sprintf("pid %d", a.PID)
}

// acts says who has to act, in the words that end each message.
func acts(o probes.Owner) string {
	switch o {
	case probes.AKS:
		return "acts: AKS"
	case probes.Customer:
		return "acts: you"
	}
	return "acts: AKS or you"
}

// clause is what is wrong, without who did it and who acts. It names the subject
// unless the message does, or the source is it.
func (f *Finding) clause() string {
	switch {
	case f.Message != "" && (f.Subject == "" || f.Subject == f.Source || strings.Contains(f.Message, f.Subject)):
		return f.Message
	case f.Message != "":
		return f.Subject + ": " + f.Message
	}
	return fmt.Sprintf("%s is %s, want %s", f.Subject, blank(f.Observed), blank(f.Wanted))
}

func blank(s string) string {
	if s == "" {
		return "empty"
	}
	return s
}

// Line is the finding's message: what is wrong, who did it, and who acts.
func (f *Finding) Line() string { return f.line(0) }

// line is the message of one finding and how many more stand beside it: the
// clause first, so that its first 60 bytes stand alone, then the actor, the
// source, and who acts. What does not fit goes: first the source, then the end
// of the clause; never who did it, nor who acts.
func (f *Finding) line(more int) string {
	var by, beside, source string
	if f.Actor != nil {
		by = "; by " + shorten(f.Actor.name(), 64)
	}
	if more > 0 {
		beside = fmt.Sprintf("; +%d more", more)
	}
	if f.Source != "" {
		source = "; " + path.Base(f.Source)
	}
	end := "; " + acts(f.Owner)
	clause := f.clause()
	if len(clause)+len(by)+len(beside)+len(source)+len(end) > maxMessage {
		source = ""
	}
	return shorten(clause, maxMessage-len(by)-len(beside)-len(source)-len(end)) + by + beside + source + end
}
