package host

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// ReadDir lists a folder, sorted by name. More than [MaxEntries] are an error.
func (r *Root) ReadDir(name string) ([]fs.DirEntry, error) {
	return ask(r, "list", name, r.list)
}

func (r *Root) list(name string) ([]fs.DirEntry, error) {
	fd, err := r.open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var entries []fs.DirEntry
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case n <= 0:
			slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
			return entries, nil
		}
		for entry, kind := range dirents(buf[:n]) {
			if len(entries) == MaxEntries {
				return nil, fmt.Errorf("more than %d entries: %w", MaxEntries, ErrTooLarge)
			}
			mode, err := typeOf(fd, entry, kind)
			if err == unix.ENOENT {
				continue // gone since
			} else if err != nil {
				return nil, err
			}
			entries = append(entries, &dirEntry{r, inside(name, entry), mode})
		}
	}
}

// dirEntry implements [fs.DirEntry].
type dirEntry struct {
	root *Root
	path string
	mode fs.FileMode
}

func (e *dirEntry) Name() string               { return path.Base(e.path) }
func (e *dirEntry) IsDir() bool                { return e.mode.IsDir() }
func (e *dirEntry) Type() fs.FileMode          { return e.mode }
func (e *dirEntry) Info() (fs.FileInfo, error) { return e.root.Lstat(e.path) }
func (e *dirEntry) String() string             { return fs.FormatDirEntry(e) }

// typeOf is the type of an entry of an open folder. A file system that does not
// tell it with the name (DT_UNKNOWN) is asked.
func typeOf(folder int, name string, kind byte) (fs.FileMode, error) {
	st := unix.Stat_t{Mode: uint32(kind) << 12} // S_IFxxx is DT_xxx << 12, dirent.h
	if kind == unix.DT_UNKNOWN {
		if err := unix.Fstatat(folder, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
			return 0, err
		}
	}
	return infoOf(name, &st).mode.Type(), nil
}

// dirents yields the names and types (DT_*) in what getdents64(2) returned,
// without "." and "..". It stops at the first record that cannot be one.
func dirents(buf []byte) func(yield func(string, byte) bool) {
	const header = 8 + 8 + 2 + 1 // d_ino, d_off, d_reclen, d_type
	return func(yield func(string, byte) bool) {
		for len(buf) > header {
			size := int(binary.NativeEndian.Uint16(buf[16:]))
			if size <= header || size > len(buf) {
				return
			}
			name, _, _ := bytes.Cut(buf[header:size], []byte{0})
			kind := buf[18]
			buf = buf[size:]
			if s := string(name); s != "." && s != ".." && !yield(s, kind) {
				return
			}
		}
	}
}
