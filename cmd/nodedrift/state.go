package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// stateDir is the one folder of the host that the agent writes. It lies on a
// tmpfs, and so dies with the boot.
const stateDir = "/run/nodedrift"

// memoryFile is the agent's memory in a folder: one file, replaced whole.
type memoryFile struct{ dir string }

const maxMemoryFile = 64 << 10

// Load implements [agent.Memory].
func (m memoryFile) Load() ([]byte, error) {
	f, err := os.OpenFile(m.name(), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: m.name(), Err: errors.Join(err, errors.New("not a regular file"))}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxMemoryFile+1))
	if err == nil && len(b) > maxMemoryFile {
		return nil, &fs.PathError{Op: "read", Path: m.name(), Err: errors.New("larger than 64 KiB")}
	}
	return b, err
}

// Save implements [agent.Memory]: a reader sees the old content or the new.
func (m memoryFile) Save(b []byte) error {
	next := m.name() + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(next, m.name())
}

func (m memoryFile) name() string { return filepath.Join(m.dir, "state.json") }

// lockState makes sure that one agent alone writes the folder and publishes for
// the node. It waits for an agent that is about to leave.
func lockState(ctx context.Context, dir string, log *slog.Logger) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for said := false; ; said = true {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if !said {
			log.Warn("another agent runs on this node; waiting for it to leave", "lock", f.Name())
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
