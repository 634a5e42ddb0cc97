package host

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Uptime is the time since the node's kernel booted, suspended time included
// (CLOCK_BOOTTIME), in 1/100 s: the clock of [Process.StartTime].
func (p Processes) Uptime() (time.Duration, error) {
	switch p.dir {
	case "":
		return 0, errors.New("tell the uptime: no /proc")
	case "/proc": // its uptime file is this clock in text
		return Clock(unix.CLOCK_BOOTTIME).Truncate(10 * time.Millisecond), nil
	}
	text, err := p.file("uptime")
	if err != nil {
		return 0, fmt.Errorf("tell the uptime: %w", err)
	}
	up, err := parseUptime(text)
	if err != nil {
		return 0, fmt.Errorf("tell the uptime: %w", err)
	}
	return up, nil
}
