package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sysctls reads the kernel's settings. Keys are paths below /proc/sys:
// "net/ipv4/ip_forward"; [SysctlKey] makes them of what people write.
type Sysctls interface {
	// Read reads a value into buf, from its start, and returns it without the
	// last newline. It allocates only when buf is too small, so pass the
	// returned slice again. A key that does not exist wraps [fs.ErrNotExist].
	Read(key string, buf []byte) ([]byte, error)

	// Glob returns the keys that match a pattern, sorted. In a pattern *, ? and
	// [] stand within one part of the key, as in [path.Match]. No match is no error.
	Glob(pattern string) ([]string, error)
}

// SysctlKey converts a name of sysctl(8) or sysctl.d(5) to a key: the first
// separator tells whether "/" or "." separates, and the other one is part of a
// name. So "net.ipv4.ip_forward" is net/ipv4/ip_forward, and both
// "net.ipv4.conf.eth0/100.rp_filter" and "net/ipv4/conf/eth0.100/rp_filter" are
// net/ipv4/conf/eth0.100/rp_filter. Patterns convert alike.
func SysctlKey(name string) string {
	name = strings.TrimPrefix(name, "/proc/sys/")
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = swapSeparators(name)
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// SysctlName converts a key to the dotted name that people know, the opposite of [SysctlKey].
func SysctlName(key string) string { return swapSeparators(key) }

var separators = strings.NewReplacer(".", "/", "/", ".")

func swapSeparators(s string) string { return separators.Replace(s) }

const (
	// A key's descriptor is opened anew this often: a module that was unloaded
	// and loaded again has another inode behind the same name.
	sysctlReopen = 10 * time.Minute
	// A key that was not read for this long (its interface has gone, say) is let go.
	sysctlForget = 2 * sysctlReopen
	maxSysctl    = 1 << 20
)

// KeptSysctls reads a /proc/sys through one kept descriptor per key: a read is
// one pread(2), which the kernel answers with the present value. It implements
// [Sysctls] and may be used by many goroutines.
type KeptSysctls struct {
	dir   int
	base  time.Time
	mu    sync.RWMutex // held for reading while a descriptor is in use
	keys  map[string]*keptKey
	swept time.Duration
}

type keptKey struct {
	fd     int
	opened time.Duration // since base
	used   atomic.Int64  // since base
}

// OpenSysctls opens the settings below a folder: /proc/sys, where net/ shows the
// network namespace of the caller. The agent's own is the right one: with
// hostNetwork it is the node's, and it is there without any right.
func OpenSysctls(dir string) (*KeptSysctls, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the sysctls in %s: %w", dir, err)
	}
	return &KeptSysctls{dir: fd, base: time.Now(), keys: map[string]*keptKey{}}, nil
}

// Close closes all descriptors.
func (s *KeptSysctls) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.keys {
		s.drop(key)
	}
	err := unix.Close(s.dir)
	s.dir = -1
	return err
}

// Read implements [Sysctls].
func (s *KeptSysctls) Read(key string, buf []byte) ([]byte, error) {
	now := time.Since(s.base)
	s.mu.RLock()
	if k := s.keys[key]; k != nil && now-k.opened < sysctlReopen {
		value, err := preadValue(k.fd, buf)
		k.used.Store(int64(now))
		if err == nil {
			s.mu.RUnlock()
			return value, nil
		}
	}
	s.mu.RUnlock()
	return s.readAnew(key, buf, now)
}

// readAnew opens a key that is new, old or in error, and reads it.
func (s *KeptSysctls) readAnew(key string, buf []byte, now time.Duration) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, err := s.reopen(key, buf, now)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", SysctlName(key), err)
	}
	return value, nil
}

func (s *KeptSysctls) reopen(key string, buf []byte, now time.Duration) ([]byte, error) {
	s.forget(now)
	fd, err := s.open(key)
	if k := s.keys[key]; k != nil && (err == unix.EMFILE || err == unix.ENFILE) {
		return preadValue(k.fd, buf) // no descriptor is free: the old one is better than none
	}
	s.drop(key)
	if err != nil {
		return nil, err
	}
	value, err := preadValue(fd, buf)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	k := &keptKey{fd: fd, opened: now}
	k.used.Store(int64(now))
	s.keys[key] = k
	return value, nil
}

// open opens a key and nothing that is no key: /proc/sys has neither links nor FIFOs.
func (s *KeptSysctls) open(key string) (int, error) {
	if !fs.ValidPath(key) {
		return -1, fs.ErrInvalid
	}
	fd, err := unix.Openat2(s.dir, key, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, err
	}
	i, err := fstat(fd, key)
	if err == nil {
		err = regular(i)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (s *KeptSysctls) drop(key string) {
	if k := s.keys[key]; k != nil {
		unix.Close(k.fd)
		delete(s.keys, key)
	}
}

// forget lets go of keys that nobody reads any more.
func (s *KeptSysctls) forget(now time.Duration) {
	if now-s.swept < sysctlReopen {
		return
	}
	s.swept = now
	for key, k := range s.keys {
		if now-time.Duration(k.used.Load()) > sysctlForget {
			s.drop(key)
		}
	}
}

// preadValue reads a whole value into buf. A table of numbers can be read in one
// go only (proc_dointvec says end of file at any other offset), so a buffer that
// was filled is doubled and the value read again.
func preadValue(fd int, buf []byte) ([]byte, error) {
	buf = buf[:cap(buf)]
	for {
		if len(buf) == 0 {
			buf = make([]byte, 256)
		}
		n, err := preadKernel(fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case n < len(buf):
			return bytes.TrimSuffix(buf[:n], []byte("\n")), nil
		case len(buf) >= maxSysctl:
			return nil, fmt.Errorf("larger than 1 MiB: %w", ErrTooLarge)
		}
		buf = make([]byte, 2*len(buf))
	}
}

// preadKernel is pread(2), from the start, of a file that is the kernel's own and
// answers from memory: Go's scheduler need not hear of it, which would wake its
// monitor thread.
func preadKernel(fd int, buf []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Glob implements [Sysctls].
func (s *KeptSysctls) Glob(pattern string) ([]string, error) {
	key := SysctlKey(pattern)
	if _, err := path.Match(key, ""); err != nil {
		return nil, fmt.Errorf("match %s: %w", pattern, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := []string{"."}
	parts := strings.Split(key, "/")
	for i, part := range parts {
		var next []string
		for _, folder := range found {
			names, err := s.match(folder, part, i < len(parts)-1)
			if err != nil {
				return nil, fmt.Errorf("match %s in %s: %w", pattern, SysctlName(folder), err)
			}
			next = append(next, names...)
		}
		found = next
	}
	slices.Sort(found)
	return found, nil
}

// match returns the folders, or else the keys, in a folder whose names match one
// part of a pattern.
func (s *KeptSysctls) match(folder, part string, folders bool) ([]string, error) {
	if !strings.ContainsAny(part, `*?[\`) {
		return s.exists(inside(folder, part), folders)
	}
	fd, err := unix.Openat(s.dir, folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case err != nil:
		return nil, err
	}
	defer unix.Close(fd)
	var found []string
	buf := make([]byte, 8<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return found, err
		}
		for name, kind := range dirents(buf[:n]) {
			if ok, _ := path.Match(part, name); ok && (kind == unix.DT_DIR) == folders {
				found = append(found, inside(folder, name))
			}
		}
	}
}

func (s *KeptSysctls) exists(key string, folder bool) ([]string, error) {
	var st unix.Stat_t
	err := unix.Fstatat(s.dir, key, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case err != nil:
		return nil, err
	case (st.Mode&unix.S_IFMT == unix.S_IFDIR) != folder:
		return nil, nil
	}
	return []string{key}, nil
}
