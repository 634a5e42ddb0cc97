package unit

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// compareBinary compares the file of ExecStart with what it was when the process
// started. The process's own exe link needs the right to trace it, which a pod
// goes without; but a program that runs cannot be written (ETXTBSY), so another
// one is another inode.
func (c *Checker) compareBinary(ctx context.Context, s *State) error {
	k := &c.known
	if !s.Running || len(s.Unit.ExecStart) == 0 {
		return nil
	}
	p := s.Unit.ExecStart[0].Path
	name, ok := inRoot(p)
	if !ok {
		return fmt.Errorf("ExecStart is %q", p)
	}
	if len(s.Args) > 0 && path.Base(s.Args[0]) != path.Base(p) {
		return fmt.Errorf("ExecStart is %s, the main process is %s", path.Base(p), path.Base(s.Args[0]))
	}
	gone := func() {
		c.fileFindings = append(c.fileFindings, probes.Finding{Reason: c.reason(BinaryReplaced), Subject: p, Source: p,
			Message: fmt.Sprintf("%s is gone, %s runs on", p, c.name(s.Unit))})
	}
	i, err := c.files.Stat(name)
	switch {
	case absent(err):
		gone()
		return nil
	case err != nil:
		return err
	case i.IsDir():
		return errors.New("it is a folder")
	}
	now := inode(i)
	if k.exec == "" || !strings.HasPrefix(k.exec, s.Unit.InvocationID+" ") {
		if c.newerThan(s, changedAt(i)) {
			now = "replaced before it was first looked at"
		}
		k.exec = s.Unit.InvocationID + " " + now
	}
	_, then, _ := strings.Cut(k.exec, " ")
	if then == inode(i) || c.o.Lawful != nil && c.o.Lawful(ctx) {
		return nil
	}
	c.fileFindings = append(c.fileFindings, probes.Finding{Reason: c.reason(BinaryReplaced), Subject: p, Source: p,
		Message: fmt.Sprintf("%s was replaced, %s runs the old one", p, c.name(s.Unit))})
	return nil
}

// newerThan tells whether something happened after the process started, by each
// clock that there was: the clock may have been stepped between.
func (c *Checker) newerThan(s *State, at time.Time) bool {
	const slack = 2 * time.Second
	return !s.Start.IsZero() && at.After(s.Start.Add(slack)) && at.After(s.Unit.ExecMainStartTimestamp.Add(slack))
}
