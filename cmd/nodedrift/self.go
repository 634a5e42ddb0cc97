package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/bpf"
	"github.com/nodedrift/nodedrift/cmd/internal/lock"
	"github.com/nodedrift/nodedrift/probes/azurecni"
)

// A capability is one that the agent keeps, and what for.
type capability struct {
	bit   uint
	why   string
	calls []uint32               // system calls that it is for
	when  func(*bpf.Tracer) bool // nil: always
}

// needs are the capabilities that looking takes, all of them opted in to.
func needs(cfg *config) []capability {
	keep := []capability{{bit: unix.CAP_SYSLOG, why: "the kernel log, in place of BPF", when: (*bpf.Tracer).ReadsLog}}
	cni := section[azurecni.Config](cfg, "azurecni")
	if cni.Ebtables {
		keep = append(keep, capability{bit: unix.CAP_NET_ADMIN, why: "probes.azurecni.ebtables: the kernel tells its rules to nobody else"})
	}
	if cni.PodGateway {
		keep = append(keep, capability{bit: unix.CAP_SYS_ADMIN, why: "probes.azurecni.podGateway: to enter pods' network namespaces", calls: []uint32{unix.SYS_SETNS}})
	}
	return keep
}

// locks is what was locked, once.
type locks struct {
	lock.State
	kept []string // capabilities that stay, and why
}

// lock gives up, for good, all by which this process could change the host, as
// soon as the tracer needs no more right to BPF.
func (d *daemon) lock() {
	<-d.trace.Tried()
	still := lock.Config{Write: d.flags.writes}
	for _, c := range d.keep {
		if c.when == nil || c.when(d.trace) {
			still.Keep, still.Calls = append(still.Keep, c.bit), append(still.Calls, c.calls...)
		}
	}
	taken := &locks{State: lock.Take(still)}
	for _, c := range d.keep {
		if slices.Contains(taken.Kept, c.bit) {
			taken.kept = append(taken.kept, capabilityName(c.bit)+": "+c.why)
		}
	}
	d.locked.Store(taken)
	if err := taken.Err(); err != nil {
		d.log.Warn("the agent is not locked out of changing the host", "error", err)
		return
	}
	d.log.Info("locked in: nothing of the host can be written", "landlock", taken.ABI, "writable", d.flags.writes, "kept", taken.kept)
}

// locks tells which locks hold, for metrics.
func (d *daemon) locks() map[string]bool {
	l := d.locked.Load()
	if l == nil {
		return nil
	}
	return map[string]bool{"capabilities": l.Capabilities == nil, "landlock": l.Landlock == nil, "syscalls": l.Syscalls == nil}
}

// A selfDocument is what the agent tells of itself: /api/v1/self.
type selfDocument struct {
	SchemaVersion string     `json:"schemaVersion"`
	Version       string     `json:"version"`
	PID           int        `json:"pid"`
	Threads       []thread   `json:"threads"`
	Locks         []lockDoc  `json:"locks"`
	LandlockABI   int        `json:"landlockABI"` // 0: the kernel has none
	Gaps          []string   `json:"gaps"`        // what the locks leave open on this kernel though they hold
	Writable      []string   `json:"writable"`    // folders
	Kept          []string   `json:"kept"`        // capabilities that stay, and why
	Detectors     []detector `json:"detectors"`
	NotJudged     []string   `json:"notJudged"` // by any probe
}

// A thread has capabilities of its own.
type thread struct {
	ID         int      `json:"id"`
	Effective  []string `json:"effective"`
	Permitted  []string `json:"permitted"`
	Bounding   []string `json:"bounding"`
	NoNewPrivs bool     `json:"noNewPrivs"`
	Filters    int      `json:"seccompFilters"`
}

type lockDoc struct {
	Name  string `json:"name"`
	Holds bool   `json:"holds"`
	Why   string `json:"why"` // it does not
}

type detector struct {
	Name   string `json:"name"`
	Active bool   `json:"active"`
	Why    string `json:"why"` // it is not
	Events uint64 `json:"events"`
	Lost   uint64 `json:"lost"`
}

// self describes this process as it is now.
func (d *daemon) self() *selfDocument {
	s := &selfDocument{SchemaVersion: agent.SchemaVersion, Version: version, PID: os.Getpid(), Threads: threads(), Locks: []lockDoc{},
		Writable: append([]string{}, d.flags.writes...), Kept: []string{}, Gaps: []string{}, Detectors: []detector{}, NotJudged: []string{}}
	if l := d.locked.Load(); l != nil {
		s.LandlockABI, s.Kept, s.Gaps = l.ABI, append(s.Kept, l.kept...), append(s.Gaps, l.Gaps()...)
		land := l.Landlock
		if land == nil {
			land = lock.Try()
		}
		s.Locks = []lockDoc{lockOf("capabilities", l.Capabilities), lockOf("landlock", land), lockOf("syscalls", l.Syscalls)}
	}
	for _, t := range d.trace.States() {
		s.Detectors = append(s.Detectors, detector{t.Detector, t.Active, t.Reason, t.Events, t.Lost})
	}
	known := d.agent.Snapshot()
	for i := range known.Conditions {
		s.NotJudged = append(s.NotJudged, known.Conditions[i].NotJudged...)
	}
	for _, n := range known.NotApplicable {
		s.NotJudged = append(s.NotJudged, n.Probe+": "+n.Why)
	}
	return s
}

func lockOf(name string, err error) lockDoc {
	if err != nil {
		return lockDoc{name, false, err.Error()}
	}
	return lockDoc{Name: name, Holds: true}
}

// threads reads what the kernel says of each thread of this process.
func threads() []thread {
	all := []thread{}
	names, _ := filepath.Glob("/proc/self/task/*/status") // the pattern is right
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it ended
		}
		all = append(all, parseThread(b))
	}
	slices.SortFunc(all, func(a, b thread) int { return a.ID - b.ID })
	return all
}

// parseThread parses /proc/PID/task/TID/status (proc_pid_status(5)).
func parseThread(status []byte) (t thread) {
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(string(line), ":")
		switch value = strings.TrimSpace(value); key {
		case "Pid":
			t.ID, _ = strconv.Atoi(value)
		case "CapEff":
			t.Effective = capabilityNames(value)
		case "CapPrm":
			t.Permitted = capabilityNames(value)
		case "CapBnd":
			t.Bounding = capabilityNames(value)
		case "NoNewPrivs":
			t.NoNewPrivs = value == "1"
		case "Seccomp_filters":
			t.Filters, _ = strconv.Atoi(value)
		}
	}
	return t
}

// capabilityNames names the bits of a set that is written in hexadecimal.
func capabilityNames(hex string) []string {
	set, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		return []string{"unreadable: " + strconv.Quote(hex)}
	}
	if set == 1<<(unix.CAP_LAST_CAP+1)-1 {
		return []string{"all"}
	}
	names := []string{}
	for ; set != 0; set &= set - 1 {
		names = append(names, capabilityName(uint(bits.TrailingZeros64(set))))
	}
	return names
}

// capabilityName is the name that a pod's securityContext uses.
func capabilityName(bit uint) string {
	switch bit {
	case unix.CAP_BPF:
		return "BPF"
	case unix.CAP_PERFMON:
		return "PERFMON"
	case unix.CAP_NET_ADMIN:
		return "NET_ADMIN"
	case unix.CAP_SYSLOG:
		return "SYSLOG"
	case unix.CAP_DAC_READ_SEARCH:
		return "DAC_READ_SEARCH"
	case unix.CAP_SYS_PTRACE:
		return "SYS_PTRACE"
	case unix.CAP_SYS_ADMIN:
		return "SYS_ADMIN"
	}
	return "capability " + strconv.FormatUint(uint64(bit), 10)
}

// self prints what the agent on this node can do to it.
func self(ctx context.Context, c *cli, args []string) (int, error) {
	set, _, _ := c.flags("self")
	format := set.String("o", "table", "output: table or json")
	addr := set.String("agent", "127.0.0.1:20258", "address of the agent")
	rest, err := parse(set, args)
	if err := errors.Join(err, noArguments(rest)); err != nil {
		return 0, err
	}
	if *format != "table" && *format != "json" {
		return 0, usagef("-o is %q, want table or json", *format)
	}
	var s selfDocument
	if err := ask(ctx, "http://"+*addr+"/api/v1/self", &s); err != nil {
		fmt.Fprintf(c.err, "nodedrift self: %v\nno agent answers here\n", err)
		return exitUnknown, nil
	}
	if *format == "json" {
		e := json.NewEncoder(c.out)
		e.SetIndent("", "  ")
		return exitClean, e.Encode(&s)
	}
	return exitClean, s.print(c.out)
}

// print is the document for a person.
func (s *selfDocument) print(w io.Writer) error {
	t := &grid{}
	t.row("", "WHAT", "STATUS", "DETAIL")
	for _, l := range s.Locks {
		t.row("", "lock "+l.Name, word(l.Holds, "holds", "OPEN"), l.Why)
	}
	t.row("", "landlock", "ABI "+strconv.Itoa(s.LandlockABI), "writable: "+none(s.Writable))
	for _, g := range s.Gaps {
		t.row("", "gap", "OPEN", g)
	}
	for _, k := range s.Kept {
		t.row("", "capability", "kept", k)
	}
	for _, th := range s.Threads {
		t.row("", "thread "+strconv.Itoa(th.ID), "CapEff "+none(th.Effective), fmt.Sprintf("permitted %s; bounding %s; no new privileges %v; %d filters of system calls",
			none(th.Permitted), none(th.Bounding), th.NoNewPrivs, th.Filters))
	}
	for _, d := range s.Detectors {
		t.row("", "detector "+d.Name, word(d.Active, "attached", "OFF"), strings.TrimPrefix(fmt.Sprintf("%s; %d events, %d lost", d.Why, d.Events, d.Lost), "; "))
	}
	for _, n := range s.NotJudged {
		t.row("", "not judged", "", n)
	}
	_, err := fmt.Fprintf(w, "nodedrift %s, process %d\n%s", s.Version, s.PID, t)
	return err
}

func word(yes bool, is, isNot string) string {
	if yes {
		return is
	}
	return isNot
}

func none(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, " ")
}
