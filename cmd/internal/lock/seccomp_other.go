//go:build !amd64

package lock

var refusedHere []uint32 // this machine has no older forms
