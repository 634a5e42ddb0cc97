package chrony

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelClock is the kernel's own word on its clock (adjtimex(2)): a witness that
// needs no chronyd.
type kernelClock struct {
	unsynchronized bool          // STA_UNSYNC
	maxError       time.Duration // grows by 0.5 ms a second unless somebody says otherwise
	ppm            float64       // how much faster than its oscillator the clock is made to run
}

// readKernel only reads: no mode is set, so no right is needed.
func readKernel() (kernelClock, error) {
	var t unix.Timex
	// Raw: it does not wait, and an ordinary system call wakes Go's monitor thread.
	if _, _, err := unix.RawSyscall(unix.SYS_ADJTIMEX, uintptr(unsafe.Pointer(&t)), 0, 0); err != 0 {
		return kernelClock{}, fmt.Errorf("adjtimex: %w", err)
	}
	return kernelOf(&t), nil
}

func kernelOf(t *unix.Timex) kernelClock {
	// freq is in 2^-16 ppm; a tick is nominally 10000 us, and one more is 100 ppm.
	return kernelClock{
		unsynchronized: t.Status&unix.STA_UNSYNC != 0,
		maxError:       time.Duration(t.Maxerror) * time.Microsecond,
		ppm:            float64(t.Freq)/65536 + float64(t.Tick-10000)*100,
	}
}
