package unit

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
)

// holdPending is how long an operator, or a package, may leave things half done.
const holdPending = 10 * time.Minute

// Locks of package managers: dpkg's (dpkg(1), apt) and rpm's, which hold a POSIX
// lock on them (fcntl(2)) while they work.
var packageLocks = []string{"var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock", "var/lib/rpm/.rpm.lock", "usr/lib/sysimage/rpm/.rpm.lock"}

// pending remembers since when something is left half done.
type pending struct{ first map[key]time.Time }

type key struct{ reason, subject string }

// pendings returns what files said last and whether systemd wants a daemon-reload.
// What a package manager may be about to finish is not judged while it works.
func (c *Checker) pendings(ctx context.Context, u host.Unit, notJudged *[]string) []probes.Finding {
	all := c.fileFindings
	if name := c.name(u); u.NeedDaemonReload || c.unloaded != "" {
		f := probes.Finding{Reason: c.reason(DaemonReloadNeeded), Subject: name, Source: c.unloaded,
			Message: name + " was changed on disk and systemd has not read it"}
		if c.unloaded != "" {
			f.Message = name + " has a new drop-in that systemd has not read"
		}
		all = append([]probes.Finding{f}, all...)
	}
	if len(all) == 0 {
		clear(c.seen.first)
		return nil
	}
	waits := map[string]bool{c.reason(DaemonReloadNeeded): true, c.reason(ConfigNotLoaded): true, c.reason(BinaryReplaced): true}
	now, old := time.Now(), c.seen.first
	c.seen.first = map[key]time.Time{}
	var out []probes.Finding
	busy, asked := "", false
	for _, f := range all {
		if !waits[f.Reason] {
			out = append(out, f)
			continue
		}
		k := key{f.Reason, f.Subject}
		since, ok := old[k]
		if !ok {
			since = now
		}
		c.seen.first[k] = since
		if now.Sub(since) < holdPending {
			if !asked {
				busy, asked = c.packageManager(), true
			}
			if busy != "" {
				*notJudged = appendOnce(*notJudged, fmt.Sprintf("%s: a package manager holds /%s", f.Reason, busy))
				continue
			}
		}
		out = append(out, f)
	}
	return out
}

func appendOnce(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// packageManager is the lock that a package manager holds now, or "".
func (c *Checker) packageManager() string {
	locked, ok := c.files.(interface {
		Locked(name string) (bool, error)
	})
	if !ok {
		return ""
	}
	for _, name := range packageLocks {
		if held, err := locked.Locked(name); err == nil && held {
			return name
		}
	}
	return ""
}

// inode is what a program is told by: replacing it makes another.
func inode(i fs.FileInfo) string {
	st, ok := i.Sys().(*host.Stat)
	if !ok {
		return fmt.Sprintf("%d %d", i.Size(), i.ModTime().UnixNano())
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
