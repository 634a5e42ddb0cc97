package reboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// Reading the maps of every daemon is the heavy part of a look: it is done once
// a minute, and after something was heard, but not more often than every ten seconds.
const (
	scanEvery = 55 * time.Second // a look each minute, less its jitter
	scanPause = 10 * time.Second
	// scanRefused is how long a refusal for want of a right stands: a process gets none later.
	scanRefused = time.Hour
)

// A scan is what the processes told last.
type scan struct {
	at       time.Time
	findings []probes.Finding
	err      error // why they could not be judged
}

// rescan asks the processes again when it is time.
func (p *Probe) rescan(ctx context.Context) {
	since := time.Since(p.scan.at)
	if errors.Is(p.scan.err, fs.ErrPermission) && since < scanRefused {
		return
	}
	if !p.scan.at.IsZero() && since < scanEvery && !(p.heard.Load() && since >= scanPause) {
		return
	}
	p.heard.Store(false)
	libraries, err := p.deletedByUnit(ctx)
	p.scan = scan{at: time.Now(), err: err}
	for _, unit := range slices.Sorted(maps.Keys(libraries)) {
		p.scan.findings = append(p.scan.findings, probes.Finding{
			Reason: ServiceRestartRequired, Subject: unit,
			Message: "runs replaced files: " + some(libraries[unit], 3),
		})
	}
}

// deletedByUnit finds system services that run files which an update has
// replaced, by unit. It is an error when any service could not be asked; those
// that could stand.
func (p *Probe) deletedByUnit(ctx context.Context) (map[string][]string, error) {
	found := map[string][]string{}
	var refused error
	for process, err := range p.procs.List() {
		if ctx.Err() != nil {
			return found, fmt.Errorf("ask the processes: %w", context.Cause(ctx))
		}
		if err != nil {
			return found, err
		}
		unit, files, err := deletedBy(process)
		switch {
		case errors.Is(err, host.ErrProcessGone):
		case errors.Is(err, fs.ErrPermission): // then all are refused, as in the pod, which goes without SYS_PTRACE
			return found, fmt.Errorf("the right to trace processes is missing: %w", fs.ErrPermission)
		case err != nil:
			refused = err
		case len(files) > 0:
			for _, f := range files {
				found[unit] = append(found[unit], path.Base(f))
			}
			slices.Sort(found[unit])
			found[unit] = slices.Compact(found[unit])
		}
	}
	if e, ok := errors.AsType[*fs.PathError](refused); ok { // without the pid, which is another one each time
		refused = fmt.Errorf("read a process's maps: %w", e.Err)
	}
	return found, refused
}

// deletedBy names a process's service and the replaced files that it runs; none
// for what is no service.
func deletedBy(process *host.Process) (unit string, files []string, err error) {
	// A shim stays with its pod through every update of containerd.
	if comm, err := process.Comm(); err == nil && strings.HasPrefix(comm, "containerd-shim") {
		return "", nil, nil
	}
	group, err := process.Cgroup()
	if err != nil {
		return "", nil, err
	}
	if unit = serviceOf(group); unit == "" {
		return "", nil, nil
	}
	files, err = process.DeletedLibraries()
	return unit, files, err
}

// serviceOf is the system service that a cgroup belongs to, "" for pods, users'
// sessions and kernel threads:
//
//	/system.slice/containerd.service                        containerd.service
//	/system.slice/system-getty.slice/getty@tty1.service     getty@tty1.service
//	/kubepods.slice/kubepods-burstable.slice/cri-...scope   ""
//
// A pod sees its own group as the root ("/../../.."), so the parts count, not
// the beginning.
func serviceOf(group string) string {
	unit := ""
	for part := range strings.SplitSeq(group, "/") {
		switch {
		case strings.Contains(part, "kubepods"), strings.HasPrefix(part, "user-") || part == "user.slice", part == "machine.slice":
			return ""
		case unit == "" && strings.HasSuffix(part, ".service"):
			unit = part
		}
	}
	return unit
}
