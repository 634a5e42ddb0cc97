package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// What cannot be had on a lab node, whose chronyd runs with -x.
func init() {
	maps.Copy(fixtureOnly, map[string]string{
		"ClockErrorGrowing":       "the lab never sets the machine's clock (chronyd -x): a stand-in for adjtimex",
		"ClockDisciplinedByOther": "the lab never sets the machine's clock (chronyd -x): a stand-in for adjtimex",
		"ClockUnsynchronized":     "the lab never sets the machine's clock (chronyd -x): a stand-in for adjtimex",
		"ClockStepped":            "the lab never sets the machine's clock: readings of clocks, typed",
		"NodeFrozen":              "the machine of the lab cannot be paused: readings of clocks, typed",
		"WrongPTPClock":           "the lab has no PTP clock, and /sys is the machine's",
		"ChronyDied":              "Debian's chrony.service has no Restart=; shown by kubelet's, by the same code",
		"ChronyCrashLooping":      "Debian's chrony.service has no Restart=; shown by kubelet's, by the same code",
	})
	if off := os.Getenv("NODEDRIFT_WRONG_TIME"); off != "" {
		fmt.Fprintln(os.Stderr, wrongTime(off))
		os.Exit(1)
	}
}

// wrongTime is a time server that is wrong: this very program, copied into a node.
// No clock is set for it.
func wrongTime(off string) error {
	wrong, err := time.ParseDuration(off)
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:1123")
	if err != nil {
		return err
	}
	stamp := func(at time.Time) uint64 { // RFC 5905, "NTP Timestamp Format"
		at = at.Add(wrong)
		return uint64(at.Unix()+2208988800)<<32 | (uint64(at.Nanosecond())<<32)/1e9
	}
	q := make([]byte, 1024)
	for {
		n, from, err := c.ReadFrom(q)
		if err != nil {
			return err
		}
		if n < 48 {
			continue
		}
		a, now := make([]byte, 48), time.Now()
		a[0], a[1], a[2], a[3] = q[0]&0x38|4, 2, q[2], 0xec
		copy(a[12:], "TEST")
		binary.BigEndian.PutUint64(a[16:], stamp(now.Add(-time.Second)))
		copy(a[24:32], q[40:48])
		binary.BigEndian.PutUint64(a[32:], stamp(now))
		binary.BigEndian.PutUint64(a[40:], stamp(time.Now()))
		if _, err := c.WriteTo(a, from); err != nil {
			return err
		}
	}
}

const (
	chronyConf = "/etc/chrony/chrony.conf"
	restore    = "cp /root/chrony.conf " + chronyConf + "; "
	keep       = "cp " + chronyConf + " /root/; "
	dropNTP    = " OUTPUT -p udp -d 10.240.0.1 --dport 123 -j DROP"
	chronyUnit = "/run/systemd/system/chrony.service.d"
)

// serverAt lets the node follow a wrong server of its own; a restart is needed, so
// that the file is what chronyd runs with.
func serverAt(off string) string {
	return keep + "systemd-run --unit=wrong --setenv=NODEDRIFT_WRONG_TIME=" + off + " /usr/local/bin/wrongtime; " +
		"sed -i 's/^server .*/server 127.0.0.1 port 1123 iburst minpoll 0 maxpoll 0/' " + chronyConf + "; systemctl restart chrony"
}

const rightServer = restore + "systemctl restart chrony; systemctl stop wrong"

var chronyFaults = map[string][]fault{
	"node0": {
		{name: "killed", reason: "ChronyNotRunning", text: "chrony.service has failed: killed by SIGKILL", within: 5 * time.Second,
			breaks: "systemctl kill -s KILL chrony", repairs: "systemctl start chrony"},
		{name: "stopped", reason: "ChronyNotRunning", text: "chrony.service does not run: it was stopped", within: 5 * time.Second,
			breaks: "systemctl stop chrony", repairs: "systemctl start chrony"},
		{name: "stopped by a signal", reason: "ChronyHung", text: "does not answer", within: 12 * time.Second,
			breaks: "kill -STOP $(pidof chronyd)", repairs: "kill -CONT $(pidof chronyd)"},
		{name: "another source than declared", reason: "TimeSourceNotDeclared", text: "127.0.0.1", within: 25 * time.Second, clear: 15 * time.Second,
			breaks: "systemd-run --unit=wrong --setenv=NODEDRIFT_WRONG_TIME=0s /usr/local/bin/wrongtime; " +
				"chronyc add server 127.0.0.1 port 1123 iburst minpoll 0 maxpoll 0; sleep 8; chronyc delete 10.240.0.1",
			repairs: "systemctl restart chrony; systemctl stop wrong"},
	},
	"node1": {
		{name: "blocked by a rule", reason: "NoTimeSource", text: "10.240.0.1", within: time.Minute, clear: 30 * time.Second,
			breaks: "iptables -I" + dropNTP, repairs: "iptables -D" + dropNTP},
		{name: "configuration edited", reason: "ChronyConfigNotLoaded", text: chronyConf, within: 7 * time.Second,
			breaks: keep + "echo 'maxupdateskew 100' >>" + chronyConf, repairs: restore},
		{name: "a new drop-in", reason: "ChronyDaemonReloadNeeded", text: "chrony.service", within: 7 * time.Second,
			breaks: "mkdir -p " + chronyUnit + "; printf '[Service]\\nEnvironment=A=1\\n' >" + chronyUnit + "/10-a.conf", repairs: "rm -r " + chronyUnit},
		{name: "unit file edited", reason: "ChronyUnitChanged", text: "chrony.service", within: 7 * time.Second,
			breaks:  "cp /lib/systemd/system/chrony.service /root/; echo 'Environment=B=1' >>/lib/systemd/system/chrony.service",
			repairs: "cp /root/chrony.service /lib/systemd/system/; systemctl daemon-reload"},
		{name: "program replaced", reason: "ChronyBinaryReplaced", text: "/usr/sbin/chronyd was replaced", within: 7 * time.Second,
			breaks: "cp /usr/sbin/chronyd /usr/sbin/new; mv /usr/sbin/new /usr/sbin/chronyd", repairs: "systemctl restart chrony"},
	},
	"node2": {
		{name: "a second time daemon", reason: "TimeDaemonConflict", text: "ntpd.service runs beside chrony", within: 7 * time.Second,
			breaks: "printf 'server 10.240.0.1\\nport 0\\ncmdport 0\\nbindcmdaddress /\\npidfile /run/ntpd.pid\\n' >/run/ntpd.conf; " +
				"systemd-run --unit=ntpd /usr/sbin/chronyd -d -x -f /run/ntpd.conf", repairs: "systemctl stop ntpd"},
		{name: "a server wrong by 200 ms", reason: "ClockOffset", text: "the node's clock is more than 50 ms behind", within: 30 * time.Second, clear: 30 * time.Second,
			breaks: serverAt("200ms"), repairs: rightServer},
		{name: "a server wrong by 2 s", reason: "ClockOffset", text: "the node's clock is more than 500 ms ahead", within: 30 * time.Second, clear: 30 * time.Second,
			breaks: serverAt("-2s"), repairs: rightServer},
	},
}

// Healthy nodes are False, although their kernel says STA_UNSYNC: what only a
// disciplined clock can tell is not judged.
func TestHealthyChrony(t *testing.T) {
	need(t)
	for _, node := range []string{"node0", "node1", "node2"} {
		c, _ := until(t, node, "TimeSyncDrift", time.Minute, isFalse)
		if c.Reason != "ClockSynchronized" {
			t.Errorf("%s: %s", node, c.Reason)
		}
		for _, c := range document(t, node).Conditions {
			for _, reason := range []string{"ClockUnsynchronized", "ClockErrorGrowing", "ClockDisciplinedByOther"} {
				if c.Type == "TimeSyncDrift" && !slices.ContainsFunc(c.NotJudged, func(s string) bool { return strings.HasPrefix(s, reason+": ") }) {
					t.Errorf("%s: %s is judged, though chronyd runs with -x: %v", node, reason, c.NotJudged)
				}
			}
		}
	}
}

func TestChrony(t *testing.T) {
	need(t)
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for node, list := range chronyFaults {
		if err := os.WriteFile(filepath.Join(testLab.Node(node).Root(), "usr/local/bin/wrongtime"), program, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			tryAll(t, node, "TimeSyncDrift", soonish, list)
		})
	}
}

// A source that stops is told within a minute of its last sample.
func TestChronySourceStopped(t *testing.T) {
	const node = "node0"
	alone(t, node)
	until(t, node, "TimeSyncDrift", time.Minute, isFalse)
	refill(t, node)
	sh(t, node, serverAt("0s"))
	time.Sleep(25 * time.Second) // in its first minute chronyd is forgiven
	until(t, node, "TimeSyncDrift", 30*time.Second, isFalse)
	began := time.Now()
	sh(t, node, "systemctl stop wrong")
	t.Cleanup(func() { _, _ = testLab.Node(node).Exec(context.WithoutCancel(t.Context()), "sh", "-c", rightServer) })
	c, _ := until(t, node, "TimeSyncDrift", 80*time.Second, isTrue("NoTimeSource", "127.0.0.1"))
	raised := time.Since(began)
	if raised > time.Minute {
		t.Errorf("raised after %s, want at most a minute", raised)
	}
	began = time.Now()
	sh(t, node, restore+"systemctl restart chrony")
	until(t, node, "TimeSyncDrift", 45*time.Second, isFalse)
	t.Logf("%s: raised %.1f s, cleared %.1f s: %q", node, raised.Seconds(), time.Since(began).Seconds(), c.Message)
}
