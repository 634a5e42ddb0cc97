package host

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// OpenNetNS opens a namespace that is mounted at a path, as ip-netns(8) does below
// /run/netns: to be entered (setns(2)) or to be asked about. It must be closed.
// Nothing else is opened.
func (r *Root) OpenNetNS(name string) (*os.File, error) {
	return ask(r, "open", name, r.openNS)
}

func (r *Root) openNS(name string) (*os.File, error) {
	if seen, err := r.stat(name, unix.O_NOFOLLOW); err != nil {
		return nil, err
	} else if err := regular(seen); err != nil {
		return nil, err
	}
	fd, err := r.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.NSFS_MAGIC {
		f.Close()
		return nil, errors.Join(err, errors.New("no namespace is mounted there"))
	}
	return f, nil
}
