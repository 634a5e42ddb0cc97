package azurecni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodedrift/nodedrift/probes"
)

// groups are the rtnetlink multicast groups that wake a look. IPv4 routes that
// go with their link are silent: the link's event stands for them. So is
// proxy_arp: the sweep finds it.
const groups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) |
	1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV4_RULE-1) | 1<<(unix.RTNLGRP_IPV4_NETCONF-1) |
	1<<(unix.RTNLGRP_IPV6_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1) | 1<<(unix.RTNLGRP_IPV6_NETCONF-1)

// earBuffer holds what comes while the agent is not scheduled: 4 MiB is some
// thousand links. Without NET_ADMIN the kernel caps it at net.core.rmem_max.
const earBuffer = 4 << 20

// Watch implements [probes.Watcher]: it hears the kernel's tables and the files.
// The subscription is there before the first look that it wakes.
func (p *Probe) Watch(ctx context.Context, h probes.Hearer) error {
	ear, err := listen()
	if err != nil {
		return err
	}
	defer ear.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { ear.Close() })()
	files := make(chan error, 1)
	go func() {
		err := p.root.Watch(ctx, probes.Noting(h, func() { p.stale.Store(true) }), confFolder, vnetState, cnsState, invoked)
		cancel(err)
		files <- err
	}()
	err = hear(ear, h)
	cancel(nil)
	if fileErr := <-files; fileErr != nil {
		return fileErr
	}
	if context.Cause(ctx) != nil && errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// listen subscribes in the network namespace of the calling thread.
func listen() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("listen to netlink: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, earBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, earBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen to netlink: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// hear wakes a look for each burst of events that says something new.
func hear(ear *os.File, h probes.Hearer) error {
	h.Changed()
	for buf := make([]byte, 4<<10); ; { // what is longer is cut, which matters() takes for news
		n, err := ear.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			// The socket goes on; what was lost is unknown, and a full look answers it.
			h.Lost("netlink", 1)
			continue
		}
		if err != nil {
			return fmt.Errorf("hear netlink: %w", err)
		}
		if matters(buf[:n]) {
			h.Changed()
		}
	}
}

// matters tells whether events can change a finding: a neighbour that traffic
// merely made reachable or stale cannot.
func matters(b []byte) bool {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(u32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return true
		}
		kind, body := u16(b[4:]), b[unix.NLMSG_HDRLEN:size]
		if kind != unix.RTM_NEWNEIGH && kind != unix.RTM_DELNEIGH {
			return true
		}
		if n, ok := parseNeigh(body); ok && (n.state == neighPermanent || n.state == neighFailed || kind == unix.RTM_DELNEIGH) {
			return true
		}
		b = b[min(align4(size), len(b)):]
	}
	return false
}

// lastTry is how long a neighbour's state has stood at most, of its
// NDA_CACHEINFO: whole ticks of 10 ms, of a clock that itself may tick as seldom.
func lastTry(ticks uint32) time.Duration { return time.Duration(ticks+2) * 10 * time.Millisecond }
