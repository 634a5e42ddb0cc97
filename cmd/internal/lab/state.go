package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// registry holds a state file and a lock per lab of this machine. A name is the machine's, not a folder's: network namespaces are, too.
const registry = "/run/nodelab"

// state is what a lab has or is about to have. It is written before the first thing is made, so that it can be removed
// again whatever happens in between.
type state struct {
	Name      string
	Dir       string // Base/run/NAME
	Bin       string
	Boot      string // the machine's boot id: after a reboot only files are left
	Owner     process
	Detach    bool // given away: goes on without its owner
	Up        bool // Up has returned
	Nodes     int
	Cgroups   cgroups
	APIServer []string // more flags
	Running   map[string]process
}

func stateFile(lab string) string { return filepath.Join(registry, lab+".json") }

func (s state) save() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write the state of lab %s: %w", s.Name, err)
	}
	return replaceFile(stateFile(s.Name), b, 0o600)
}

// loadState reports a lab that does not exist as fs.ErrNotExist.
func loadState(lab string) (state, error) {
	var s state
	b, err := os.ReadFile(stateFile(lab))
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("there is no lab %s: %w", lab, fs.ErrNotExist)
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil && s.Name != lab {
		err = fmt.Errorf("it is of lab %q", s.Name)
	}
	if err != nil {
		return s, fmt.Errorf("read the state of lab %s: %w", lab, err)
	}
	return s, nil
}

// abandoned tells whether nobody will use the lab again: its owner is gone and has not given it away.
func (s state) abandoned() bool {
	if s.Boot != bootID() {
		return true
	}
	if s.Detach && s.Up {
		return !s.Running["etcd"].alive()
	}
	return !s.Owner.alive()
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

var errLocked = errors.New("locked")

// lockLab takes the lab's lock without waiting. The kernel lets go of it when the owner ends, however it ends.
func lockLab(lab string) (unlock func(), err error) {
	if err := os.MkdirAll(registry, 0o700); err != nil {
		return nil, fmt.Errorf("register lab %s: %w", lab, err)
	}
	unlock, err = lock(filepath.Join(registry, lab+".lock"))
	if errors.Is(err, errLocked) {
		s, _ := loadState(lab)
		return nil, fmt.Errorf("lab %s is in use by process %d: %w", lab, s.Owner.Pid, err)
	}
	return unlock, err
}

// lock takes the lock that a file stands for; unlock removes the file.
func lock(path string) (unlock func(), err error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open a lock: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errLocked
			}
			return nil, fmt.Errorf("take a lock: %w", err)
		}
		// Whoever had it may have removed the file after it was opened here: then this is a lock that nobody else sees.
		mine, err1 := f.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, named) {
			return func() { _ = os.Remove(path); f.Close() }, nil
		}
		f.Close()
	}
}

func waitLock(ctx context.Context, path string) (unlock func(), err error) {
	err = poll(ctx, func(context.Context) error {
		unlock, err = lock(path)
		return err
	})
	return unlock, err
}

// A lab's name begins network namespaces, cgroups and machine names: short, and no path.
var nameRule = regexp.MustCompile(`^[a-z][a-z0-9-]{0,15}$`)

func checkName(lab string) error {
	if !nameRule.MatchString(lab) {
		return fmt.Errorf("lab name %q: want %s", lab, nameRule)
	}
	return nil
}
