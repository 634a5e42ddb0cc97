package unit

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestEnvironmentFiles(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"[Service]\nEnvironmentFile=/etc/default/kubelet\n":                         {"etc/default/kubelet"},
		"[Service]\nEnvironmentFile=-/etc/default/x\nEnvironmentFile=/run/y\n":      {"etc/default/x", "run/y"},
		"[Service]\nEnvironmentFile=/a\nEnvironmentFile=\nEnvironmentFile = /b/c\n": {"b/c"},
		"[Unit]\nEnvironmentFile=/a\n":                                              nil,
		"[Service]\nEnvironmentFile=/etc/%i.env\nEnvironmentFile=/etc/*.env\n":      nil,
		"[Service]\nEnvironmentFile=relative\nEnvironmentFile=/../../etc/passwd\n":  {"etc/passwd"},
	} {
		if got := environmentFiles([]file{{body: []byte(text)}}); !slices.Equal(got, want) {
			t.Errorf("%q names %q, want %q", text, got, want)
		}
	}
}

func TestParseEnv(t *testing.T) {
	t.Parallel()
	got := parseEnv([]byte("# comment\nA=1\n B = two words \nC=\"quoted\"\nD='x'\nE=a \\\n  b\nnonsense\n=x\nF=\n"))
	want := map[string]string{"A": "1", "B": "two words", "C": "quoted", "D": "x", "E": "a    b", "F": ""}
	if !maps.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestExpandAndFlag(t *testing.T) {
	t.Parallel()
	args := Expand([]string{"/opt/bin/kubelet", "$FLAGS", "--labels=${LABELS}", "$NONE", "--x=${open", "$HOME/x"},
		map[string]string{"FLAGS": "--config=/a --v 2 --config=/b --flag", "LABELS": "a=b c"})
	want := []string{"/opt/bin/kubelet", "--config=/a", "--v", "2", "--config=/b", "--flag", "--labels=a=b c", "--x=${open", "$HOME/x"}
	if !slices.Equal(args, want) {
		t.Errorf("%q, want %q", args, want)
	}
	for name, want := range map[string]string{"config": "/b", "v": "2", "flag": "true", "conf": ""} {
		if got, ok := Flag(args, name); got != want || ok != (want != "") {
			t.Errorf("--%s is %q, want %q", name, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("[Service]\nEnvironmentFile=-/etc/default/x\n", "A=\"1\"\n", "${A} $A")
	f.Fuzz(func(t *testing.T, unit, env, arg string) {
		for _, name := range environmentFiles([]file{{body: []byte(unit)}}) {
			if strings.HasPrefix(name, "/") || strings.Contains(name, "..") && slices.Contains(strings.Split(name, "/"), "..") {
				t.Errorf("a path that leaves the root: %q", name)
			}
		}
		e := parseEnv([]byte(env))
		for name := range e {
			if name == "" || strings.ContainsAny(name, " \t\n") {
				t.Errorf("a name %q", name)
			}
		}
		Expand([]string{arg, arg}, e)
		Flag([]string{arg, env}, "config")
		once := withoutComments([]byte(unit))
		if twice := withoutComments(once); string(once) != string(twice) {
			t.Errorf("%q becomes %q, and that %q", unit, once, twice)
		}
	})
}
