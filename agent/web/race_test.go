//go:build race

package web

const raceEnabled = true // the detector's own memory counts
