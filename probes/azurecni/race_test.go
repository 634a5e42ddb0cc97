//go:build race

package azurecni

// raceEnabled says that the race detector runs: it allocates, and takes time.
const raceEnabled = true
