package containerd

import (
	"errors"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// listsApart is how far apart the two lists must be that both lack a shim's
// sandbox: a sandbox is listed a moment after its shim was started, and its shim
// ends a moment after it is taken off. Looks that are ten seconds apart may be so
// by a little less.
const listsApart = 9 * time.Second

// kubernetes is the namespace of containerd that kubelet's pods are in.
const kubernetes = "k8s.io"

// shims is what is known of the processes that hold pods.
type shims struct {
	known map[int]string  // by pid, the sandbox of each shim; only of those that are listed
	alone map[suspect]int // shims without a sandbox: in how many lists running
	at    time.Time       // when alone was counted last
	count int
}

// A suspect is a shim whose sandbox was not in the list.
type suspect struct {
	pid     int
	sandbox string
}

func (k *shims) suspects() bool {
	for _, n := range k.alone {
		if n < 2 {
			return true
		}
	}
	return false
}

// judgeShims finds shims without a sandbox in two lists.
func (p *Probe) judgeShims(s *sight, listed []host.Sandbox) (found []probes.Finding, notJudged string) {
	pids, err := p.shimPIDs(s)
	if err != nil {
		return p.store.shims, err.Error()
	}
	has := make(map[string]bool, len(listed))
	for i := range listed {
		has[listed[i].ID] = true
	}
	k := &p.shims
	old, was, now := k.known, k.alone, time.Now()
	k.known, k.alone, k.count = make(map[int]string, len(pids)), map[suspect]int{}, 0
	for _, pid := range pids {
		if id := old[pid]; id != "" && has[id] {
			k.known[pid] = id
			k.count++
			continue
		}
		id, err := p.sandboxOf(pid)
		switch {
		case errors.Is(err, host.ErrProcessGone):
			continue
		case err != nil:
			return p.store.shims, err.Error()
		case id == "":
			continue
		}
		k.count++
		if has[id] {
			k.known[pid] = id
			continue
		}
		k.alone[suspect{pid, id}] = max(was[suspect{pid, id}], 0) + 1
	}
	waits := false
	for who, lists := range k.alone {
		if lists < 2 {
			waits = true
			continue
		}
		id := who.sandbox[:min(12, len(who.sandbox))]
		f := p.finding(OrphanShims, "shim of sandbox "+id, "a shim of sandbox "+id+" runs on, and containerd lists no such sandbox")
		f.ID = strconv.Itoa(who.pid)
		found = append(found, f)
	}
	slices.SortFunc(found, func(a, b probes.Finding) int { return strings.Compare(a.Subject+a.ID, b.Subject+b.ID) })
	k.at = now
	if waits {
		return found, "a shim was without a sandbox in one list; a second one will tell"
	}
	return found, ""
}

// shimPIDs are the processes that may be shims. containerd starts them, and they
// stay in the cgroup of its unit; where that cannot be read, all processes are.
func (p *Probe) shimPIDs(s *sight) (pids []int, err error) {
	if group := s.state.Unit.ControlGroup; group != "" && group != "/" {
		for _, mount := range []string{"sys/fs/cgroup", "sys/fs/cgroup/unified", "sys/fs/cgroup/systemd"} {
			content, err := p.root.ReadFile(path.Join(mount, path.Clean("/"+group), "cgroup.procs"))
			if err != nil {
				continue
			}
			if pids, ok := parsePIDs(content); ok && slices.Contains(pids, int(s.state.Unit.MainPID)) {
				return pids, nil
			}
		}
	}
	for process, err := range p.procs.List() {
		if err != nil {
			return nil, err
		}
		if comm, err := process.Comm(); err == nil && strings.HasPrefix(comm, "containerd-shim") {
			pids = append(pids, process.PID())
		}
	}
	return pids, nil
}

// parsePIDs reads a cgroup.procs (cgroups(7)). A process of another pid namespace
// is a 0 there: then the list is not for us.
func parsePIDs(content []byte) (pids []int, ok bool) {
	for line := range strings.Lines(string(content)) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil || pid <= 0 {
			return nil, false
		}
		pids = append(pids, pid)
	}
	return pids, len(pids) > 0
}

// sandboxOf is the sandbox of a process that is the shim of one of kubelet's
// pods, "" for any other process.
func (p *Probe) sandboxOf(pid int) (string, error) {
	process, err := p.procs.Process(pid)
	if err != nil {
		return "", err
	}
	defer process.Close()
	args, err := process.Cmdline()
	if err != nil {
		return "", err
	}
	return sandboxIn(args), nil
}

// sandboxIn reads a shim's arguments:
//
//	containerd-shim-runc-v2 -namespace k8s.io -id SANDBOX -address /run/containerd/containerd.sock
//
// "start" and "delete" behind them are short errands and no shims.
func sandboxIn(args []string) string {
	if len(args) == 0 || path.Base(args[0]) != "containerd-shim-runc-v2" {
		return ""
	}
	var namespace, id string
	for i := 1; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "start" || arg == "delete":
			return ""
		case i+1 == len(args):
		case arg == "-namespace":
			i++
			namespace = args[i]
		case arg == "-id":
			i++
			id = args[i]
		case arg == "-address" || arg == "-publish-binary" || arg == "-socket" || arg == "-bundle":
			i++
		}
	}
	if namespace != kubernetes {
		return ""
	}
	return id
}
