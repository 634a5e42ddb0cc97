package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Down removes the lab of a name, whoever brought it up, unless its owner is still there. A lab that does not exist is no
// error.
func Down(ctx context.Context, lab string) error {
	if err := checkName(lab); err != nil {
		return err
	}
	unlock, err := lockLab(lab)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := loadState(lab)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return sweep(ctx, s)
}

// GC removes every lab of this machine that nobody will use again, and says which.
func GC(ctx context.Context, log io.Writer) error {
	files, err := filepath.Glob(stateFile("*"))
	if err != nil {
		return fmt.Errorf("list the labs: %w", err)
	}
	var errs []error
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		errs = append(errs, gc(ctx, name, say(log, name)))
	}
	return errors.Join(errs...)
}

func gc(ctx context.Context, name string, log logf) error {
	unlock, err := lockLab(name)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	s, err := loadState(name)
	if err != nil || !s.abandoned() {
		return err
	}
	log("removing what was left behind")
	return sweep(ctx, s)
}

// sweep removes all that a lab may have, in an order in which nothing is in use any more, and forgets the lab last: a sweep
// that was interrupted can be done again.
func sweep(ctx context.Context, s state) error {
	if s.Boot == bootID() {
		if err := s.Cgroups.kill(ctx, ""); err != nil {
			return fmt.Errorf("end the processes of lab %s: %w", s.Name, err)
		}
		for _, n := range s.netns() {
			if err := deleteNetns(n); err != nil {
				return err
			}
		}
	}
	if err := sweepFiles(s.Dir); err != nil {
		return err
	}
	// systemd-nspawn keeps a folder per machine for mounts that are to be added later.
	for i := range s.Nodes {
		if err := os.RemoveAll(filepath.Join("/run/systemd/nspawn/propagate", machineName(s.Name, i))); err != nil {
			return fmt.Errorf("remove the folder of systemd-nspawn: %w", err)
		}
	}
	if err := os.Remove(stateFile(s.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget lab %s: %w", s.Name, err)
	}
	return nil
}

// sweepFiles unmounts all that is mounted below a folder, and removes it only when that worked.
func sweepFiles(dir string) error {
	for range 2 { // the second time shows that nothing is left
		f, err := os.Open("/proc/self/mountinfo")
		if err != nil {
			return fmt.Errorf("list mounts: %w", err)
		}
		below, err := mountsBelow(f, dir)
		f.Close()
		if err != nil {
			return fmt.Errorf("list mounts: %w", err)
		}
		if len(below) == 0 {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("remove the lab's files: %w", err)
			}
			return nil
		}
		for _, m := range slices.Backward(below) {
			if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount %s: %w", m, err)
			}
		}
	}
	return fmt.Errorf("something is still mounted below %s", dir)
}

// mountsBelow reads proc_pid_mountinfo(5); later mounts come later.
func mountsBelow(mountinfo io.Reader, dir string) (points []string, err error) {
	octal := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	s := bufio.NewScanner(mountinfo)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 5 {
			continue
		}
		if p := octal.Replace(f[4]); p == dir || strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	return points, s.Err()
}

// keepLogs saves what explains a failed start, and returns an error that says where.
func (l *Lab) keepLogs() error {
	logs, kept := filepath.Join(l.dir, "logs"), l.config.Dirs.failed(l.state.Name)
	for _, n := range l.nodes {
		n.saveJournal(filepath.Join(logs, n.name+".journal"))
	}
	err := os.RemoveAll(kept)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(kept), 0o755)
	}
	if err == nil {
		err = os.Rename(logs, kept)
	}
	if err != nil {
		return fmt.Errorf("keep the logs: %w", err)
	}
	return fmt.Errorf("logs were kept in %s", kept)
}
