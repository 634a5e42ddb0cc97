package sysctl

import "strings"

// An assignment is one line of a declaration file, read as systemd-sysctl reads
// it (sysctl.d(5); src/sysctl/sysctl.c of systemd 245 to 260).
type assignment struct {
	key    string // a path below /proc/sys, "net/ipv4/ip_forward"; may be a glob
	value  string // as written, without the blanks around it
	except bool   // "-key" without "=": keeps globs away from the key
	silent bool   // "-key = value": nobody minds when it cannot be set
	line   int    // from 1
}

// A flaw is a line that systemd-sysctl rejects.
type flaw struct {
	line int // 0 is the file as a whole
	why  string
}

// parse reads a declaration file.
func parse(content []byte) (assignments []assignment, flaws []flaw) {
	for number, text := range lines(string(content)) {
		text = strip(text)
		if text == "" || text[0] == '#' || text[0] == ';' {
			continue
		}
		a := assignment{line: number}
		name, value, assigns := strings.Cut(text, "=")
		name, dash := strings.CutPrefix(name, "-")
		switch {
		case assigns:
			a.value, a.silent = strip(value), dash
		case dash:
			a.except = true
		default:
			flaws = append(flaws, flaw{number, "is not an assignment"})
			continue
		}
		a.key = normalize(strip(name))
		if why := unwritable(a.key); why != "" {
			flaws = append(flaws, flaw{number, why})
			continue
		}
		assignments = append(assignments, a)
	}
	return assignments, flaws
}

// lines yields the lines of a text with their numbers from 1. As for systemd's
// read_line(), \n, \r and \0 end a line, and different ones in a row end it once.
func lines(text string) func(yield func(int, string) bool) {
	const ends = "\n\r\x00"
	return func(yield func(int, string) bool) {
		for number := 1; text != ""; number++ {
			end := strings.IndexAny(text, ends)
			if end < 0 {
				yield(number, text)
				return
			}
			if !yield(number, text[:end]) {
				return
			}
			next := end + 1
			for next < len(text) && next-end < len(ends) && strings.IndexByte(ends, text[next]) >= 0 &&
				strings.IndexByte(text[end:next], text[next]) < 0 {
				next++
			}
			text = text[next:]
		}
	}
}

// strip removes the blanks that systemd's strstrip() removes.
func strip(s string) string { return strings.Trim(s, " \t\n\r") }

// normalize turns a key as people write it into a path below /proc/sys. When the
// first separator is a dot, dots and slashes change places, so that
// "net.ipv4.conf.eth0/100.forwarding" is a key of the interface eth0.100.
func normalize(key string) string {
	if first := strings.IndexAny(key, "./"); first >= 0 && key[first] == '.' {
		key = swap(key)
	}
	rooted := strings.HasPrefix(key, "/")
	var parts []string
	for part := range strings.SplitSeq(key, "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 && rooted {
		return "/"
	}
	return strings.Join(parts, "/")
}

// dotted is a key as sysctl(8) prints it.
func dotted(key string) string { return swap(key) }

var swapped = strings.NewReplacer(".", "/", "/", ".")

func swap(key string) string { return swapped.Replace(key) }

// unwritable says why a key can never be one, or "".
func unwritable(key string) string {
	switch {
	case key == "" || key == "/":
		return "names no key"
	case key == ".." || strings.HasPrefix(key, "../") || strings.HasSuffix(key, "/..") || strings.Contains(key, "/../"):
		return "names a key outside /proc/sys"
	}
	return ""
}

// isGlob tells a pattern from a key (glob(7)).
func isGlob(key string) bool { return strings.ContainsAny(key, "*?[") }
