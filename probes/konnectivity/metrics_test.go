package konnectivity

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/nodedrift/nodedrift/probes/host"
)

// What was recorded from apiserver-network-proxy v0.36.0-69-g4f8517c1 in four situations.
func TestParseRecorded(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]tally{
		"connected":                   {open: 1, known: 1, packets: 7},
		"server-killed":               {open: 0, known: 1, failed: 1, packets: 7},
		"server-stopped":              {open: 1, known: 1, failed: 1, packets: 7},
		"server-stopped-keepalive30s": {open: 0, known: 1, failed: 1},
	} {
		b, err := os.ReadFile("testdata/" + name + ".prom")
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseMetrics(bytes.NewReader(b))
		if err != nil || got != want {
			t.Errorf("%s: %+v (%v), want %+v", name, got, err, want)
		}
	}
}

// endless repeats a text without end.
type endless struct {
	text string
	n    int
}

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = e.text[e.n%len(e.text)]
		e.n++
	}
	return len(b), nil
}

func TestParseHostile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		r    io.Reader
		want error
	}{
		"1 GB of one line": {&endless{text: "x"}, host.ErrTooLarge},
		"a million series": {&endless{text: prefix + "open_server_connections{a=\"b\"} 1\n"}, host.ErrTooLarge},
		"only line ends":   {&endless{text: "\n"}, host.ErrTooLarge},
		"empty":            {strings.NewReader(""), nil},
		"a page":           {strings.NewReader("<html>\n<p>it works</p>\n</html>\n"), nil},
		"no number":        {strings.NewReader(prefix + "open_server_connections NaN\n"), nil},
		"infinite":         {strings.NewReader(prefix + "open_server_connections +Inf\n"), nil},
		"negative":         {strings.NewReader(prefix + "open_server_connections -1\n"), nil},
		"cut off":          {strings.NewReader(prefix + "stream_packets_total{segment=\"to_agent\n"), nil},
		"binary":           {strings.NewReader("\x1f\x8b\x08\x00\x00\x00\x00\x00"), nil},
	} {
		if _, err := parseMetrics(c.r); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func FuzzParseMetrics(f *testing.F) {
	f.Add([]byte("# TYPE a gauge\n" + prefix + "known_server_count 1\n" + prefix + "stream_packets_total{packet_type=\"DATA\",segment=\"to_agent\"} 2\n"))
	f.Add([]byte(prefix + "open_server_connections{} 1 5\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseMetrics(bytes.NewReader(b))
		if err == nil && (got.open < -1 || got.known < -1 || got.failed < 0 || got.packets < 0 || got.open != got.open) {
			t.Errorf("%+v", got)
		}
	})
}

func FuzzParseKubeconfig(f *testing.F) {
	f.Add([]byte("clusters:\n- name: a\n  cluster: {server: 'https://[::1]:443', certificate-authority-data: aGk=}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseKubeconfig(b, func(string) ([]byte, error) { return nil, os.ErrNotExist })
		if err == nil && (e.host == "" || e.port == 0) {
			t.Errorf("%+v", e)
		}
	})
}

func FuzzJudgeLine(f *testing.F) {
	f.Add(500, `{"message": "dial tcp 10.0.0.4:10250: i/o timeout"}`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		if l := judgeLine(status, body); status != 200 && status != 400 && l.id == "" && l.unable == "" {
			t.Errorf("status %d is taken for good", status)
		}
	})
}

func FuzzParseNames(f *testing.F) {
	f.Add("127.0.0.1 a b # c\n::1 a\nnameserver 127.0.0.53\n", "a")
	f.Fuzz(func(t *testing.T, text, name string) {
		parseHosts(text, name)
		if len(parseResolv(text)) > 3 {
			t.Error("more than three name servers")
		}
	})
}

func TestParseFlags(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]flags{
		"": {"127.0.0.1", 8091, 8093, 3600e9},
		"/proxy-agent --proxy-server-host=a.b --proxy-server-port=443 --health-server-port=8082 --keepalive-time=30s": {"a.b", 443, 8082, 30e9},
		"/proxy-agent --proxy-server-host a.b --keepalive-time 1m --health-server-port 99999":                         {"a.b", 8091, 8093, 60e9},
		"/proxy-agent --keepalive-time=-5s --proxy-server-port=0":                                                     {"127.0.0.1", 8091, 8093, 3600e9},
	} {
		if got := parseFlags(strings.Fields(args)); got != want {
			t.Errorf("%s: %+v, want %+v", args, got, want)
		}
	}
}

func TestParseKubeconfig(t *testing.T) {
	t.Parallel()
	none := func(string) ([]byte, error) { return nil, os.ErrNotExist }
	for text, want := range map[string]string{
		"clusters: [{name: a, cluster: {server: 'https://x.y'}}]": "x.y:443",
		"clusters: [{name: a, cluster: {server: 'https://x:6443'}}, {name: b, cluster: {server: 'https://y'}}]\ncontexts: [{name: c, context: {cluster: b}}]\ncurrent-context: c": "y:443",
		"clusters: [{name: a, cluster: {server: 'https://[fd00::1]:443'}}]": "[fd00::1]:443",
	} {
		if e, err := parseKubeconfig([]byte(text), none); err != nil || e.String() != want {
			t.Errorf("%s: %v (%v), want %s", text, e, err, want)
		}
	}
	for _, wrong := range []string{"", "hello", "clusters: []", "clusters: [{name: a, cluster: {server: 'http://x'}}]", "clusters: [{name: a, cluster: {server: 'https://x:70000'}}]",
		"clusters: [{name: a, cluster: {server: 'https://x', certificate-authority: /a}}]", "clusters: [{name: a, cluster: {server: 'https://x', certificate-authority-data: aGVsbG8=}}]"} {
		if e, err := parseKubeconfig([]byte(wrong), none); err == nil {
			t.Errorf("%s: %v", wrong, e)
		}
	}
}
