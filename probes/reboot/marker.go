package reboot

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// The marker of Debian and Ubuntu (update-notifier-common), which Azure Linux's
// check-restart.timer touches too, so that kured works alike. Packages' names
// stand in a second file on Debian and Ubuntu only, a line for each, with
// repetitions (kured#173). A marker made as /var/run/reboot-required lands here,
// as /var/run is a link to /run.
const (
	marker   = "run/reboot-required"
	packages = "run/reboot-required.pkgs"
)

const pendingSince = "reboot_pending_since_timestamp_seconds"

// A pending reboot is a marker that was found; the zero value is none.
type pending struct {
	path     string
	since    time.Time
	packages string // "linux-base, libc6 (+3 more)"
}

// findMarker looks for the marker where it belongs and, on a node whose /var/run
// is a folder of its own, there too.
func (p *Probe) findMarker() (pending, error) {
	places := []string{"run"}
	switch info, err := p.root.Lstat("var/run"); {
	case err != nil && !absent(err):
		return pending{}, fmt.Errorf("see the reboot marker: %w", err)
	case err == nil && info.IsDir():
		places = append(places, "var/run")
	}
	for _, place := range places {
		name := path.Join(place, path.Base(marker))
		info, err := p.root.Stat(name)
		switch {
		case absent(err):
			continue
		case err != nil:
			return pending{}, fmt.Errorf("see the reboot marker: %w", err)
		case !info.Mode().IsRegular():
			return pending{}, fmt.Errorf("see the reboot marker: /%s is no file, but %v", name, info.Mode())
		}
		return pending{name, p.markedAt(info), p.packagesOf(name + ".pkgs")}, nil
	}
	// A missing marker proves nothing until the folder that would hold it is seen
	// to be a live /run.
	switch live, err := p.root.ReadDir("run/systemd"); {
	case err != nil:
		return pending{}, fmt.Errorf("see the node's /run: %w", err)
	case len(live) == 0:
		return pending{}, errors.New("see the node's /run: /run/systemd is empty")
	}
	return pending{}, nil
}

// markedAt is when the marker was made. /run is empty at boot, so a marker that
// claims to be older is as old as the boot.
func (p *Probe) markedAt(info fs.FileInfo) time.Time {
	at := info.ModTime()
	if boot, err := p.procs.Boot(); err == nil && at.Before(boot.At) {
		return boot.At
	}
	return at
}

// packagesOf names the packages that asked. The list is an ornament: without it
// the reboot is pending all the same.
func (p *Probe) packagesOf(name string) string {
	content, err := p.root.ReadFile(name)
	switch {
	case absent(err):
		return ""
	case err != nil:
		return "the packages' list cannot be read"
	}
	return some(parsePackages(content), 3)
}

// parsePackages reads a list of packages, each once, in the order of the list.
func parsePackages(content []byte) []string {
	const longest = 100
	var names []string
	seen := map[string]bool{}
	for line := range strings.Lines(string(content)) {
		name := strings.TrimSpace(line)
		if name == "" || len(name) > longest || strings.ContainsAny(name, " \t\x00") || seen[name] {
			continue
		}
		seen[name] = true
		names = append(names, name)
	}
	return names
}

// judgeMarker makes the findings of a marker. The date, and no age, stands in
// the message: it does not move.
func (p *Probe) judgeMarker(m pending) []probes.Finding {
	if m.path == "" {
		return nil
	}
	subject := "/" + m.path
	required := probes.Finding{Reason: Required, Subject: subject, Message: "a reboot is pending", Source: subject}
	if m.packages != "" {
		required.Message += ": " + m.packages
	}
	// A marker from the future is new: somebody stepped the clock.
	if time.Since(m.since) <= p.overdue {
		return []probes.Finding{required}
	}
	overdue := probes.Finding{Reason: Overdue, Subject: subject, Source: subject,
		Message: "a reboot is pending since " + m.since.UTC().Format(time.DateOnly)}
	if m.packages != "" {
		overdue.Message += ": " + m.packages
	}
	return []probes.Finding{overdue, required}
}

// timestamp is the marker's time for the metric, 0 without a marker.
func (m pending) timestamp() float64 {
	if m.path == "" {
		return 0
	}
	return float64(m.since.Unix())
}

// some names the first few of many.
func some(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s (+%d more)", strings.Join(names[:most], ", "), len(names)-most)
}
