package host

import (
	"errors"
	"fmt"
	"time"
)

// Uptime is the time since the node's kernel booted, suspended time included
// (CLOCK_BOOTTIME), in 1/100 s: the clock of [Process.StartTime].
func (p Processes) Uptime() (time.Duration, error) {
	if p.dir == "" {
		return 0, errors.New("tell the uptime: no /proc")
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
