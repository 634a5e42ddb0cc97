package bpf

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unsafe"
)

// The Go shape of headers/actor.h; a test compares them.
const (
	nameCount = 8
	nameSize  = 96
)

// Where the cgroup of a task lies.
const (
	outside = iota
	inside
	tooDeep
)

type actorEvent struct {
	Time   uint64
	Cgroup uint64
	Start  uint64
	PID    uint32
	Parent uint32
	Comm   [16]byte
	Steps  uint32
	Where  uint32
	Names  [nameCount][nameSize]byte
}

// An event is something rare: the Go shape of headers/event.h.
type event struct {
	Kind        uint32
	Number      uint32
	Memory      uint64
	TargetStart uint64
	Target      uint32
	Kernel      uint32
	TargetComm  [16]byte
	By          actorEvent
}

// The kinds of events.
const (
	kindTest = iota + 1
	kindExit
	kindSignal
	kindOOM
	kindHang
	kindClock
)

// A blocked thread: the Go shape of census.bpf.c.
type blocked struct {
	Start    uint64
	Switches uint64
	Thread   uint32
	_        uint32
	By       actorEvent
}

// path are the components of the cgroup's path from the root on, as many as were
// kept; nil when the path is not known.
func (a *actorEvent) path() []string {
	if a.Where == tooDeep {
		return nil
	}
	kept := min(a.Steps, nameCount)
	path := make([]string, 0, kept)
	for i := a.Steps; i > a.Steps-kept; i-- { // component i-1, counted from the leaf
		path = append(path, text(a.Names[(i-1)%nameCount][:]))
	}
	return path
}

// text is a C string.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// printable bounds text from outside and escapes what would act on a terminal or
// break a line.
func printable(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) < 0 {
		return s
	}
	q := strconv.QuoteToASCII(s)
	return q[1 : len(q)-1]
}

// decode gives raw bytes of a ring buffer their shape. The event is part of raw.
func decode[T any](raw []byte) (*T, error) {
	var e *T
	if size := unsafe.Sizeof(*e); uintptr(len(raw)) < size {
		return nil, fmt.Errorf("an event of %d bytes, want %d", len(raw), size)
	}
	e = (*T)(unsafe.Pointer(unsafe.SliceData(raw)))
	if uintptr(unsafe.Pointer(e))%unsafe.Alignof(*e) != 0 {
		return nil, fmt.Errorf("an event that is not aligned")
	}
	return e, nil
}

// at is a time of the kernel's monotonic clock on the wall clock of now.
func at(mono time.Duration, now time.Time, monoNow time.Duration) time.Time {
	return now.Add(mono - monoNow)
}
