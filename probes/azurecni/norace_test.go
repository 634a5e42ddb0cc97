//go:build !race

package azurecni

const raceEnabled = false
