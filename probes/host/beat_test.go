package host_test

import (
	"context"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes/host"
)

// TestBeats holds that all who listen hear what they asked for, that one who leaves
// takes nobody along, and that it beats again after all have left.
func TestBeats(t *testing.T) {
	t.Parallel()
	heard := func(beats <-chan struct{}, each time.Duration) {
		t.Helper()
		select {
		case <-beats:
			if late := host.Monotonic() % each; late > 500*time.Millisecond {
				t.Errorf("a beat %s late", late)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no beat")
		}
	}
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		other, leave := context.WithCancel(t.Context())
		first, err := host.Beats(ctx, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		second, err := host.Beats(other, 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		heard(first, time.Second)
		heard(second, 2*time.Second)
		leave()
		heard(first, time.Second)
		cancel()
	}
}
