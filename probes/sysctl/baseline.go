package sysctl

import (
	"cmp"
	_ "embed"
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

// aksData names its source in its first lines.
//
//go:embed aks.tsv
var aksData string

// aksBaseline is what AKS writes: the lines of each file.
var aksBaseline = parseBaseline(aksData)

// aksNodePool is the file of AKS that carries a node pool's own sysctls
// (linuxOSConfig): what stands in it is truth, whatever it is.
const aksNodePool = "999-sysctl-aks.conf"

const (
	azureJSON   = "etc/kubernetes/azure.json"               // an AKS node has it
	provisioned = "opt/azure/containers/provision.complete" // made when AKS's provisioning (CSE) has ended
)

func parseBaseline(tsv string) map[string][]assignment {
	files := map[string][]assignment{}
	for line := range strings.Lines(tsv) {
		if fields := strings.Split(strings.TrimSpace(line), "\t"); len(fields) == 3 && line[0] != '#' {
			files[fields[0]] = append(files[fields[0]], assignment{key: normalize(fields[1]), value: fields[2]})
		}
	}
	return files
}

// restoreBaseline puts back, on an AKS node, what AKS wrote and somebody took
// away: lines that are gone or changed in a file that was touched since the node
// was provisioned. A file older than that is as AKS made it, whatever this
// agent's table says: images change. It also returns a finding for each such file.
func restoreBaseline(root tree, files []file) ([]file, []probes.Finding, error) {
	since, err := provisionedAt(root)
	if err != nil || since.IsZero() {
		return files, nil, err
	}
	files = slices.Clone(files)
	var findings []probes.Finding
	for _, name := range slices.Sorted(maps.Keys(aksBaseline)) {
		i := slices.IndexFunc(files, func(f file) bool { return f.name() == name })
		touched, subject := "etc/sysctl.d", path.Join("etc/sysctl.d", name)
		if i >= 0 {
			touched, subject = files[i].path, files[i].path
		}
		if !touchedAfter(root, touched, since) {
			continue
		}
		if i < 0 {
			i = len(files)
			files = append(files, file{path: subject})
		} else if files[i].unreadable() {
			continue // SysctlFileInvalid says so
		}
		whole, lost := restored(files[i].assignments, aksBaseline[name])
		if len(lost) == 0 {
			continue
		}
		f := probes.Finding{Reason: FileTampered, Subject: "/" + subject, Source: "AKS's node image",
			Message: "lines that AKS wrote are gone or changed: " + some(lost, 2)}
		if len(files[i].assignments) == 0 {
			f.Message = "the file that AKS wrote is missing, empty or masked"
		}
		findings = append(findings, f)
		files[i].assignments = whole
	}
	slices.SortStableFunc(files, func(a, b file) int { return cmp.Compare(a.name(), b.name()) })
	return files, findings, nil
}

// restored is a file with the lines of the baseline in force, and the names of
// the keys that were not.
func restored(have, baseline []assignment) (all []assignment, lost []string) {
	all = slices.Clone(have)
	for _, want := range baseline {
		i := -1 // the last assignment of the key is the one that counts
		for j, a := range all {
			if a.key == want.key {
				i = j
			}
		}
		if i >= 0 && !all[i].except && same(all[i].value, want.value) {
			continue
		}
		lost = append(lost, dotted(want.key))
		all = append(all, want)
	}
	return all, lost
}

// provisionedAt is when an AKS node was ready made; zero on other nodes and
// before that.
func provisionedAt(root tree) (time.Time, error) {
	for _, name := range []string{azureJSON, provisioned} {
		info, err := root.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return time.Time{}, nil
		case err != nil:
			return time.Time{}, fmt.Errorf("see whether AKS made this node: %w", err)
		case name == provisioned:
			return info.ModTime(), nil
		}
	}
	return time.Time{}, nil
}

// touchedAfter says whether a file, a link or a folder was changed after a time,
// or was taken away. The ctime, where it is known, shows an edit whose author put
// the mtime back.
func touchedAfter(root tree, name string, since time.Time) bool {
	if _, err := root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return true
	}
	for _, stat := range []func(string) (fs.FileInfo, error){root.Lstat, root.Stat} {
		info, err := stat(name)
		if err != nil {
			continue // a dangling link has no end
		}
		if s, ok := info.Sys().(*host.Stat); info.ModTime().After(since) || ok && s.Change.After(since) {
			return true
		}
	}
	return false
}
