package unit

import (
	"bytes"
	"maps"
	"path"
	"slices"
	"strings"
)

// withoutComments takes from a unit or environment file what is without effect:
// comments, empty lines, white space at the ends (systemd.syntax(7)).
func withoutComments(b []byte) []byte {
	var out []byte
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' || line[0] == ';' {
			continue
		}
		out = append(append(out, line...), '\n')
	}
	return out
}

// environmentFiles finds the EnvironmentFile= lines of a service (systemd.exec(5)):
// an empty one takes back those before it. Patterns and specifiers are passed over.
func environmentFiles(list []file) (names []string) {
	for _, f := range list {
		section := ""
		for line := range strings.Lines(string(f.body)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = line
				continue
			}
			key, value, ok := strings.Cut(line, "=")
			if !ok || section != "[Service]" || strings.TrimSpace(key) != "EnvironmentFile" {
				continue
			}
			value = strings.TrimPrefix(strings.TrimSpace(value), "-")
			if value == "" {
				names = nil
			}
			if name, ok := inRoot(value); ok && !strings.ContainsAny(value, "%*?[") && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// parseEnv reads an environment file (systemd.exec(5), "EnvironmentFile="): lines
// of NAME=value, quotes taken off, a backslash at the end joins lines.
func parseEnv(b []byte) map[string]string {
	env := map[string]string{}
	text := strings.ReplaceAll(string(b), "\\\n", " ")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok || name == "" || strings.ContainsAny(name, " \t\"'") {
			continue
		}
		if n := len(value); n > 1 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		env[name] = value
	}
	return env
}

// Expand puts environment into arguments as systemd does: $NAME standing alone
// becomes words, ${NAME} its value (systemd.service(5), "Command lines").
func Expand(args []string, env map[string]string) (out []string) {
	for _, a := range args {
		name, alone := strings.CutPrefix(a, "$")
		if alone && name != "" && !strings.ContainsAny(name, "{}$/-=. ") {
			out = append(out, strings.Fields(env[name])...)
			continue
		}
		var b strings.Builder
		for rest := a; ; {
			before, after, ok := strings.Cut(rest, "${")
			b.WriteString(before)
			if !ok {
				break
			}
			var name string
			if name, rest, ok = strings.Cut(after, "}"); !ok {
				b.WriteString("${" + after)
				break
			}
			b.WriteString(env[name])
		}
		out = append(out, b.String())
	}
	return out
}

// Flag returns the value of a long flag; the last one given wins, as in pflag.
func Flag(args []string, name string) (string, bool) {
	for i, a := range slices.Backward(args) {
		switch v, ok := strings.CutPrefix(a, "--"+name+"="); {
		case ok:
			return strings.Trim(v, `"'`), true
		case a == "--"+name && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-"):
			return args[i+1], true
		case a == "--"+name:
			return "true", true
		}
	}
	return "", false
}

// Path is a path from a flag or a file as the node's root takes it.
func Path(p string) (string, bool) { return inRoot(p) }

// unitPlaces are the folders that systemd reads units from (systemd.unit(5)).
var unitPlaces = []string{"etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system"}

// placesOf are where files of a unit may appear.
func placesOf(names ...string) []string {
	all := map[string]bool{}
	for _, n := range names {
		for _, place := range unitPlaces {
			all[path.Join(place, n)], all[path.Join(place, n+".d")] = true, true
		}
	}
	return slices.Sorted(maps.Keys(all))
}
