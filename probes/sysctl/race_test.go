//go:build race

package sysctl

// raceEnabled: the race detector slows our loop and not the kernel's part.
const raceEnabled = true
