package main

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// giveBack returns what only the start has needed: heap, which Go would return over
// minutes, and the pages of the program's own file, which the kernel maps by whole
// runs, twice as many as are used. Those that are needed are mapped again, from the
// page cache (madvise(2), MADV_DONTNEED; proc_pid_smaps(5)).
func giveBack() {
	debug.FreeOSMemory()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	var begin, end uint64 // of the mapping that is told about; 0 when it is not the program's
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 6 && f[5] == program && f[1][1] == '-': // ADDRESS-ADDRESS r-xp OFFSET DEVICE INODE PATH
			from, to, _ := strings.Cut(f[0], "-")
			begin, _ = strconv.ParseUint(from, 16, 64)
			end, _ = strconv.ParseUint(to, 16, 64)
		case len(f) > 3 && strings.Contains(f[0], "-"):
			begin, end = 0, 0
		case len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0" && begin < end: // nothing in it was ever written
			_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, uintptr(begin), uintptr(end-begin), unix.MADV_DONTNEED) // at worst they stay
		}
	}
}
