package sysctl

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodedrift/nodedrift/probes/host"
)

// The real systemd-sysctl and the real sysctl(8) are run in a mount and a
// network namespace of their own on the same files that we read, and what they
// leave in /proc/sys is compared with what we say they declare. Every key is one
// of the network namespace's: nothing outside it changes.

// untouched is what every key holds before.
const untouched = "77"

// keysOfTest are plain numbers without a limit (DEVINET_SYSCTL_RW_ENTRY), and
// the twins of forwarding.
var keysOfTest = func() []string {
	list := []string{"net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv4/tcp_fin_timeout", "net/ipv4/tcp_keepalive_time", "net/ipv4/tcp_reordering"}
	for _, link := range []string{"all", "default", "lo", "d0", "d1.5"} {
		for _, key := range []string{"log_martians", "send_redirects", "secure_redirects", "shared_media", "proxy_arp"} {
			list = append(list, "net/ipv4/conf/"+link+"/"+key)
		}
	}
	return list
}()

// inNamespaces lays the folders of a root over the machine's and runs a program.
const inNamespaces = `set -e
mount --make-rprivate /
mount -t proc proc /proc
ip link add d0 type veth peer name d1.5
mount -t tmpfs none /usr/local/lib && mkdir /usr/local/lib/sysctl.d
mount -t tmpfs none /run && mkdir /run/sysctl.d
mount --bind "$ROOT/etc/sysctl.d" /etc/sysctl.d
mount --bind "$ROOT/run/sysctl.d" /run/sysctl.d
mount --bind "$ROOT/usr/local/lib/sysctl.d" /usr/local/lib/sysctl.d
mount --bind "$ROOT/usr/lib/sysctl.d" /usr/lib/sysctl.d
mount --bind "$ROOT/etc/sysctl.conf" /etc/sysctl.conf
cd /proc/sys
for key in $KEYS; do echo ` + untouched + ` >$key; done
"$@" >&2 || true
cat $KEYS
`

// apply runs the real program on a root and returns what it left, and what it said.
func apply(t *testing.T, root string, program ...string) (map[string]string, string) {
	t.Helper()
	cmd := exec.Command("unshare", append([]string{"-m", "-n", "sh", "-c", inNamespaces, "sh"}, program...)...)
	cmd.Env = append(os.Environ(), "ROOT="+root, "KEYS="+strings.Join(keysOfTest, " "), "SYSTEMD_LOG_TARGET=console", "SYSTEMD_LOG_LEVEL=info", "SYSTEMD_LOG_COLOR=0")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(lines) != len(keysOfTest) {
		t.Fatalf("run %v: %v, %d values for %d keys\n%s", program, err, len(lines), len(keysOfTest), said.String())
	}
	left := map[string]string{}
	for i, key := range keysOfTest {
		left[key] = lines[i]
	}
	return left, said.String()
}

// realSysctl finds a program and the rights to run it apart, or skips the test.
func realSysctl(t *testing.T, names ...string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real programs")
	}
	if out, err := exec.Command("unshare", "-m", "-n", "ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1.5").CombinedOutput(); err != nil {
		t.Skipf("needs root, unshare(1), ip(8) and veth links: %v %s", err, out)
	}
	for _, name := range names {
		if found, err := exec.LookPath(name); err == nil {
			return found
		}
	}
	t.Skipf("none of %v is here", names)
	return ""
}

// makeRoot writes files below a new root. "-> TARGET" is a link, "dir" a folder.
func makeRoot(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for _, folder := range folders[:4] {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, ok := files[procpsFile]; !ok {
		files[procpsFile] = ""
	}
	for name, content := range files {
		var err error
		target, isLink := strings.CutPrefix(content, "-> ")
		switch name = filepath.Join(root, name); {
		case isLink:
			err = os.Symlink(target, name)
		case content == "dir":
			err = os.Mkdir(name, 0o755)
		default:
			err = os.WriteFile(name, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// ours reads a root as the probe does.
func ours(t *testing.T, dir string) (declarations, []setting) {
	t.Helper()
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	d, err := readDeclarations(root)
	if err != nil {
		t.Fatal(err)
	}
	settings, err := effective(d.files, func(pattern string) ([]string, error) { return globIn(keysOfTest, pattern) })
	if err != nil {
		t.Fatal(err)
	}
	return d, withProcps(settings, d.procps)
}

// want is what every key holds after the settings were applied.
func want(settings []setting) map[string]string {
	all := map[string]string{}
	for _, key := range keysOfTest {
		all[key] = untouched
	}
	for _, s := range settings {
		if _, ok := all[s.key]; ok {
			all[s.key] = s.value
			if twin, ok := aliases[s.key]; ok {
				all[twin] = s.value
			}
		}
	}
	return all
}

// rejection is systemd's complaint about a line.
var rejection = regexp.MustCompile(`(?m)(/\S*sysctl\.d/\S+\.conf):(\d+): Line is not an assignment`)

// compare reads and applies the same files.
func compare(t *testing.T, systemd string, files map[string]string) {
	t.Helper()
	root := makeRoot(t, files)
	left, said := apply(t, root, systemd)
	d, settings := ours(t, root)
	var theirs, rejected []string
	for _, m := range rejection.FindAllStringSubmatch(said, -1) {
		theirs = append(theirs, m[1]+":"+m[2])
	}
	for _, f := range d.files {
		for _, flaw := range f.flaws {
			if flaw.why == "is not an assignment" {
				rejected = append(rejected, fmt.Sprintf("/%s:%d", f.path, flaw.line))
			}
		}
	}
	slices.Sort(theirs)
	slices.Sort(rejected)
	byKernel := cmp.Comparer(func(live, declared string) bool { return same(live, declared) || same(declared, live) })
	if diff := cmp.Diff(left, want(settings), byKernel) + cmp.Diff(theirs, rejected); diff != "" {
		var shown strings.Builder
		for _, name := range slices.Sorted(maps.Keys(files)) {
			fmt.Fprintf(&shown, "%s:\n%q\n", name, files[name])
		}
		t.Errorf("we read otherwise than systemd-sysctl (-systemd +nodedrift):\n%s\nit said:\n%s\nfiles:\n%s", diff, said, shown.String())
	}
}

func TestAgainstSystemd(t *testing.T) {
	systemd := realSysctl(t, "/usr/lib/systemd/systemd-sysctl", "/lib/systemd/systemd-sysctl")
	for name, files := range map[string]map[string]string{
		"folders and masks": {
			"usr/lib/sysctl.d/10-a.conf":       "net.ipv4.tcp_fin_timeout = 10\n",
			"run/sysctl.d/10-a.conf":           "net.ipv4.tcp_fin_timeout = 11\n",
			"usr/lib/sysctl.d/20-b.conf":       "net.ipv4.tcp_reordering = 12\n",
			"etc/sysctl.d/20-b.conf":           "-> /dev/null",
			"usr/lib/sysctl.d/30-c.conf":       "net.ipv4.tcp_keepalive_time = 13\n",
			"usr/local/lib/sysctl.d/30-c.conf": "",
			"usr/lib/sysctl.d/40-d.conf":       "net.ipv4.conf.lo.proxy_arp = 14\n",
			"etc/sysctl.d/40-d.conf":           "-> nowhere",
			"etc/sysctl.d/.50-e.conf":          "net.ipv4.conf.d0.proxy_arp = 15\n",
			"etc/sysctl.d/60-f.config":         "net.ipv4.conf.d0.proxy_arp = 16\n",
		},
		"keys":       {"etc/sysctl.d/a.conf": "net/ipv4/conf/d1.5/proxy_arp = 1\nnet.ipv4.conf.d1/5.shared_media = 2\n/net/ipv4//conf/./d0/proxy_arp=3\nnet.ipv4..tcp_reordering=4\n"},
		"globs":      {"etc/sysctl.d/a.conf": "net.ipv4.conf.*.proxy_arp = 1\n-net.ipv4.conf.all.proxy_arp\nnet.ipv4.conf.d?.shared_media = 2\nnet.ipv4.conf.[!d]*.shared_media = 3\nnet.ipv4.conf.lo.shared_media=4"},
		"forwarding": {"etc/sysctl.d/a.conf": "net.ipv4.ip_forward = 1\n", "etc/sysctl.d/b.conf": "net.ipv4.conf.all.forwarding = 0\n"},
		"a repeated value keeps its place": {"etc/sysctl.d/a.conf": "net.ipv4.ip_forward = 1\nnet.ipv4.conf.d*.proxy_arp = 3\n",
			"etc/sysctl.d/b.conf": "net.ipv4.conf.all.forwarding = 0\nnet.ipv4.conf.?0.proxy_arp = 4\n",
			"etc/sysctl.d/c.conf": "net.ipv4.ip_forward = 1\nnet.ipv4.conf.d*.proxy_arp = 3\n"},
		"lines":                {"etc/sysctl.d/a.conf": "net.ipv4.tcp_reordering 1\n#x\n;y=1\r\nnet.ipv4.tcp_fin_timeout = 9 # why not\r\n\x00what\n\n\rnet.ipv4.tcp_keepalive_time = 0x10"},
		"not /etc/sysctl.conf": {"etc/sysctl.conf": "net.ipv4.tcp_reordering = 5\n"},
		"a link to /etc/sysctl.conf": {"etc/sysctl.conf": "net.ipv4.tcp_reordering = 5\nnet.ipv4.tcp_fin_timeout = 6\n",
			"etc/sysctl.d/99-sysctl.conf": "-> ../sysctl.conf", "etc/sysctl.d/999-sysctl-aks.conf": "net.ipv4.tcp_fin_timeout = 7\n"},
	} {
		t.Run(name, func(t *testing.T) {
			compare(t, systemd, files)
		})
	}
}

// TestAgainstSystemdAtRandom makes up files.
func TestAgainstSystemdAtRandom(t *testing.T) {
	systemd := realSysctl(t, "/usr/lib/systemd/systemd-sysctl", "/lib/systemd/systemd-sysctl")
	cases := 60
	if os.Getenv("CI") != "" {
		cases = 300
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for i := range cases {
		compare(t, systemd, madeUp(rand.New(rand.NewPCG(seed, uint64(i)))))
		if t.Failed() {
			t.Fatalf("case %d of seed %d", i, seed)
		}
	}
}

// madeUp are a few files with all that a file may hold.
func madeUp(r *rand.Rand) map[string]string {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	key := func() string {
		key := pick(keysOfTest...)
		if r.IntN(3) == 0 {
			parts := strings.Split(key, "/")
			if len(parts) == 5 && parts[4] != "forwarding" {
				parts[3] = pick("*", "d*", "?0", "[!l]*", "l[n-p]", "d1.*", "wg*")
				key = strings.Join(parts, "/")
			}
		}
		switch r.IntN(3) {
		case 0:
			return key
		case 1:
			return "/" + key
		}
		return dotted(key)
	}
	line := func() string {
		value := fmt.Sprint(1 + r.IntN(9))
		switch r.IntN(12) {
		case 0:
			return pick("#", ";", " # ", "\t;") + key() + "=" + value
		case 1:
			return "-" + key()
		case 2:
			return "-" + key() + "=" + value
		case 3:
			return pick("", " ", key(), "what is this", "-")
		}
		blank := func() string { return pick("", " ", "\t", "  ") }
		return blank() + key() + blank() + "=" + blank() + value + blank()
	}
	files := map[string]string{}
	for range 1 + r.IntN(7) {
		name := pick(folders[:4]...) + "/" + pick("10-a", "20-b", "5-c", "99-sysctl", "999-sysctl-aks", "zz", "Z") + ".conf"
		var text strings.Builder
		for range r.IntN(9) {
			text.WriteString(line() + pick("\n", "\n", "\n", "\r\n", "\n\n", "\r"))
		}
		files[name] = text.String()
		if r.IntN(8) == 0 {
			files[name] = pick("", "-> /dev/null", "-> nowhere", "-> ../sysctl.conf", "dir")
		}
	}
	files[procpsFile] = line() + "\n"
	return files
}

// TestAgainstProcps holds what we say of "sysctl --system" to the real one: it
// reads /etc/sysctl.conf last.
func TestAgainstProcps(t *testing.T) {
	procps := realSysctl(t, "sysctl", "/usr/sbin/sysctl", "/sbin/sysctl")
	root := makeRoot(t, map[string]string{
		"etc/sysctl.conf":                    "net.ipv4.tcp_reordering = 5\n",
		"etc/sysctl.d/99-sysctl.conf":        "-> ../sysctl.conf",
		"etc/sysctl.d/999-sysctl-aks.conf":   "net.ipv4.tcp_reordering = 6\nnet.ipv4.tcp_fin_timeout = 7\n",
		"usr/lib/sysctl.d/999-sysctl-a.conf": "net.ipv4.tcp_fin_timeout = 8\n",
	})
	left, said := apply(t, root, procps, "--system")
	_, settings := ours(t, root)
	for _, s := range settings {
		value := s.value
		if s.otherSource != "" {
			value = s.other
		}
		if left[s.key] != value {
			t.Errorf("%s is %s after sysctl --system, want %s\n%s", dotted(s.key), left[s.key], value, said)
		}
	}
	if len(settings) != 2 || settings[0].otherSource == "" && settings[1].otherSource == "" {
		t.Errorf("settings %+v do not tell the two readings apart", settings)
	}
}
