package host

import (
	"golang.org/x/sys/unix"
)

// Locked tells whether a process holds a write lock on a file of the node
// (fcntl(2), as dpkg and rpm do). Nothing is locked or written to ask. A file that
// is not there is an error that wraps [fs.ErrNotExist].
func (r *Root) Locked(name string) (bool, error) {
	return ask(r, "ask for the lock of", name, func(name string) (bool, error) {
		i, err := r.stat(name, 0)
		if err != nil {
			return false, err
		}
		if err := regular(i); err != nil {
			return false, err
		}
		fd, err := r.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
		if err != nil {
			return false, err
		}
		defer unix.Close(fd)
		// Asked as an open file's lock, so that one of our own process would count, too.
		l := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l); err != nil {
			return false, err
		}
		return l.Type != unix.F_UNLCK, nil
	})
}
