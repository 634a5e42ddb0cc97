package agent

import (
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nodedrift/nodedrift/probes"
)

func TestClean(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text  string
		limit int
		want  string
	}{
		{"", 10, ""},
		{"net.ipv4.ip_forward", 32, "net.ipv4.ip_forward"},
		{"Straße ✓ 漢字", 32, "Straße ✓ 漢字"},
		{"two\nlines", 32, `two\nlines`},
		{"a\ttab", 32, `a\ttab`},
		{"\x1b[31mred", 32, `\u001b[31mred`},
		{"nul\x00", 32, `nul\u0000`},
		{"\u202egnp.exe", 32, `\u202egnp.exe`},
		{"no\u00a0break\u2028line", 64, `no\u00a0break\u2028line`},
		{"bad\xffbyte", 32, `bad\xffbyte`},
		{"a real \ufffd", 32, "a real \ufffd"},
		{"exactly ten", 11, "exactly ten"},
		{"exactly eleven", 11, "exactly ..."},
		{"ééééé", 8, "éé..."},
		{strings.Repeat("\n", 100), 10, `\n\n\n...`},
	} {
		if got := clean(c.text, c.limit); got != c.want {
			t.Errorf("clean(%q, %d) = %q, want %q", c.text, c.limit, got, c.want)
		}
	}
}

func TestName(t *testing.T) {
	t.Parallel()
	for want, a := range map[string]Actor{
		"pod ns/name":    {PID: 1, Comm: "sh", Unit: "kubelet.service", Pod: "ns/name"},
		"tuned.service":  {PID: 1, Comm: "sh", Unit: "tuned.service"},
		"sysctl (pid 7)": {PID: 7, Comm: "sysctl"},
		"pid 7":          {PID: 7},
	} {
		if got := a.name(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"plain", "two\nlines", "\xff\xfe", "\u202e", strings.Repeat("é", 200), "\ufffd", "...", `\n`, "😀😀😀", "a\u0301"} {
		for _, limit := range []uint8{4, 32, 160} {
			f.Add(s, limit)
		}
	}
	f.Fuzz(func(t *testing.T, s string, limit uint8) {
		if limit < 4 {
			return // no limit of ours is that small
		}
		got := clean(s, int(limit))
		if !utf8.ValidString(got) || len(got) > int(limit) {
			t.Fatalf("clean(%q, %d) = %q", s, limit, got)
		}
		for _, r := range got {
			if !printable(r) {
				t.Fatalf("clean(%q, %d) = %q keeps %U", s, limit, got, r)
			}
		}
		if again := clean(got, int(limit)); again != got {
			t.Fatalf("not idempotent: %q, then %q", got, again)
		}
		if len(s) <= int(limit) && !strings.ContainsRune(s, utf8.RuneError) && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !printable(r) }) && got != s {
			t.Fatalf("clean text %q became %q", s, got)
		}
	})
}

// FuzzLine holds that a message, whatever it is made of, is one line of at most
// 160 bytes that keeps who did it and ends with who acts.
func FuzzLine(f *testing.F) {
	f.Add("net.ipv4.ip_forward", "", "0", "1", "/etc/sysctl.d/99.conf", "kube-system/tuner", "aks", 3, true)
	f.Add(strings.Repeat("s", 300), strings.Repeat("é", 300), "", "", strings.Repeat("/x", 200), strings.Repeat("p", 300), "customer", 511, true)
	f.Add("", "", "", "", "", "", "", 0, false)
	f.Add("a\nb", "\x1b[2J\u202e", "\xff", "", "/", "\n", "both", 1, true)
	f.Fuzz(func(t *testing.T, subject, message, observed, wanted, source, pod, owner string, more int, known bool) {
		in := bound(&probes.Finding{Subject: subject, Message: message, Observed: observed, Wanted: wanted, Source: source})
		l := Finding{Subject: in.Subject, Message: in.Message, Observed: in.Observed, Wanted: in.Wanted, Source: in.Source, Owner: probes.Owner(owner)}
		if known {
			l.Actor = &Actor{PID: 1, Pod: clean(pod, maxField)}
		}
		more = max(0, min(more, maxStanding))
		got := l.line(more)
		if len(got) > maxMessage || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !printable(r) }) {
			t.Fatalf("%d bytes: %q", len(got), got)
		}
		if !strings.HasSuffix(got, "; "+acts(l.Owner)) {
			t.Fatalf("nobody acts: %q", got)
		}
		if known && !strings.Contains(got, "; by "+shorten(l.Actor.name(), 64)) {
			t.Fatalf("the actor is lost: %q", got)
		}
		if base := path.Base(l.Source); l.Source != "" && len(got)+len("; ")+len(base) <= maxMessage && !strings.Contains(got, base) {
			t.Fatalf("the source would fit: %q", got)
		}
		if head := l.clause(); len(head) >= 58 && !strings.HasPrefix(got, shorten(head, 58)[:50]) && utf8.ValidString(head[:50]) {
			t.Fatalf("the first bytes are not what is wrong: %q", got)
		}
	})
}
