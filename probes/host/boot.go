package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Boot is one boot of a node.
type Boot struct {
	// ID tells boots apart: the kernel's boot_id (random(4)) and when process 1
	// started, in 1/100 s. A container that is started again keeps the kernel's
	// and so differs in the second.
	ID string
	// Started is when process 1 started, on CLOCK_BOOTTIME.
	Started time.Duration
	// Age is how long ago that was, suspended time included.
	Age time.Duration
	// At is that time on the present wall clock: it moves when the clock is set.
	At time.Time
}

// Boot tells which boot of the node this is.
func (n *Node) Boot() (Boot, error) { return n.Proc.Boot() }

// Boot tells which boot this is, by /proc/sys/kernel/random/boot_id, the start
// of process 1, and /proc/uptime, which counts on the same clock.
func (p Processes) Boot() (Boot, error) {
	if p.dir == "" {
		return Boot{}, errors.New("tell the boot: no /proc")
	}
	id, err := p.file("sys/kernel/random/boot_id")
	if err != nil {
		return Boot{}, fmt.Errorf("tell the boot: %w", err)
	}
	uptime, err := p.file("uptime")
	if err != nil {
		return Boot{}, fmt.Errorf("tell the boot: %w", err)
	}
	up, err := parseUptime(uptime)
	if err != nil {
		return Boot{}, fmt.Errorf("tell the boot: %w", err)
	}
	first, err := p.Process(1)
	if err != nil {
		return Boot{}, fmt.Errorf("tell the boot: %w", err)
	}
	defer first.Close()
	ticks, err := first.StartTicks()
	if err != nil {
		return Boot{}, fmt.Errorf("tell the boot: %w", err)
	}
	started := time.Duration(ticks) * (time.Second / userHZ)
	age := max(up-started, 0)
	return Boot{
		ID: strings.TrimSpace(id) + "/" + strconv.FormatUint(ticks, 10), Started: started,
		Age: age, At: time.Now().Add(-age).Round(0), // wall clock only
	}, nil
}

// file reads a small file of /proc.
func (p Processes) file(name string) (string, error) {
	if err := p.fails(name); err != nil {
		return "", fmt.Errorf("read /proc/%s: %w", name, err)
	}
	b, err := within(p.calls, name, func() ([]byte, error) { return os.ReadFile(filepath.Join(p.dir, name)) })
	return string(b), err
}

// parseUptime reads the first number of /proc/uptime, seconds with two digits
// after the point (proc_uptime(5)).
func parseUptime(s string) (time.Duration, error) {
	number, _, _ := strings.Cut(strings.TrimSpace(s), " ")
	seconds, hundredths, ok := strings.Cut(number, ".")
	whole, err := strconv.ParseUint(seconds, 10, 32)
	part, partErr := strconv.ParseUint(hundredths, 10, 32)
	if err != nil || partErr != nil || !ok || len(hundredths) != 2 {
		return 0, fmt.Errorf("uptime is %q", number)
	}
	return time.Duration(whole)*time.Second + time.Duration(part)*(time.Second/100), nil
}

// Monotonic is CLOCK_MONOTONIC: the time since boot without what was suspended.
func Monotonic() time.Duration { return Clock(unix.CLOCK_MONOTONIC) }

// Clock reads a clock (clock_gettime(2)); 0 is one that there is not. The raw call spares the runtime, which wakes its monitor
// thread for each call that may block.
func Clock(id int32) time.Duration {
	var ts unix.Timespec
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, uintptr(id), uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0 // both clocks are older than any kernel this runs on
	}
	return time.Duration(ts.Nano())
}
