package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf/link"
)

// census asks the kernel which threads of daemons are blocked now; it remembers on the way
// whose connections matter. The nil detector cannot.
func (d *detector) census() ([]blocked, error) {
	if d == nil {
		return nil, errors.New("not attached")
	}
	if err := d.coll.Variables[censusVarFound].Set(uint32(0)); err != nil { // shared memory
		return nil, fmt.Errorf("count blocked threads: %w", err)
	}
	f, err := d.links[0].(*link.Iter).Open()
	if err != nil {
		return nil, fmt.Errorf("count blocked threads: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("count blocked threads: %w", err)
	}
	var all []blocked
	for size := int(unsafe.Sizeof(blocked{})); len(b) >= size; b = b[size:] {
		e, err := decode[blocked](b)
		if err != nil {
			return nil, err
		}
		all = append(all, *e)
	}
	return all, nil
}

// readCensus reads the same from /proc, which takes some milliseconds instead of
// microseconds and no right. Processes that end meanwhile are not there. None of
// the files waits for a lock of the process's own: many that are read here hang.
func readCensus(proc string) (all []blocked) {
	names, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm")) // the pattern is right
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || !slices.ContainsFunc(daemons, func(d daemon) bool { return d.comm == strings.TrimSuffix(string(comm), "\n") }) {
			continue
		}
		process := filepath.Dir(name)
		threads, _ := filepath.Glob(filepath.Join(process, "task", "[0-9]*"))
		for _, thread := range threads {
			b, ok := readThread(thread)
			if !ok {
				continue
			}
			pid, _ := strconv.ParseUint(filepath.Base(process), 10, 32) // a row of digits
			b.By.PID = uint32(pid)
			copy(b.By.Comm[:], bytes.TrimSuffix(comm, []byte("\n")))
			groups, _ := os.ReadFile(filepath.Join(process, "cgroup"))
			b.By.place(groups)
			all = append(all, b)
		}
	}
	return all
}

// readThread reads a thread that is blocked; ok is false for others.
func readThread(dir string) (b blocked, ok bool) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return b, false
	}
	start, ok := parseBlocked(stat)
	if !ok {
		return b, false
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return b, false
	}
	for line := range strings.Lines(string(status)) {
		if key, value, _ := strings.Cut(line, ":"); strings.HasSuffix(key, "voluntary_ctxt_switches") { // nonvoluntary_ too
			n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			b.Switches += n
		}
	}
	id, _ := strconv.ParseUint(filepath.Base(dir), 10, 32)
	b.Start, b.Thread = start, uint32(id)
	return b, true
}

// parseBlocked parses /proc/PID/task/TID/stat (proc_pid_stat(5)): whether the thread
// is in state D, and its start time in ticks.
func parseBlocked(stat []byte) (start uint64, ok bool) {
	end := bytes.LastIndexByte(stat, ')') // of the name, which may hold anything
	if end < 0 {
		return 0, false
	}
	fields := strings.Fields(string(stat[end+1:])) // from the third on
	const state, startTime = 0, 22 - 3
	if len(fields) <= startTime || fields[state] != "D" {
		return 0, false
	}
	start, err := strconv.ParseUint(fields[startTime], 10, 64)
	return start, err == nil
}

// place takes the cgroup from /proc/PID/cgroup (cgroups(7)): of the pids controller
// where there is one of its own and it knows a pod, else of cgroup v2. It is
// relative to the reader's cgroup namespace: "/../../system.slice/kubelet.service".
func (a *actorEvent) place(groups []byte) {
	var pids, unified []string
	for line := range strings.Lines(string(groups)) {
		part := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(part) < 3 {
			continue
		}
		path := slices.DeleteFunc(strings.Split(part[2], "/"), func(s string) bool { return s == "" || s == ".." })
		switch {
		case part[0] == "0":
			unified = path
		case slices.Contains(strings.Split(part[1], ","), "pids"):
			pids = path
		}
	}
	if identify(pids).pod != "" {
		unified = pids
	}
	a.Where, a.Steps = inside, uint32(len(unified))
	if len(unified) > nameCount { // those nearest to the root are kept
		unified = unified[:nameCount]
	}
	for i, name := range unified {
		copy(a.Names[(int(a.Steps)-1-i)%nameCount][:nameSize-1], name)
	}
}
