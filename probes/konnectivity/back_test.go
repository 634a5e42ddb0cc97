package konnectivity

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes"
)

// TestBackOutOfDate restarts kubelet just after the API server was refused by it: what
// the API server said then is no word about the kubelet that listens now.
func TestBackOutOfDate(t *testing.T) {
	t.Parallel()
	p := &Probe{self: Self{Namespace: "a", Pod: "b", Token: func() (string, error) { return "", nil }}}
	p.back.within = time.Minute
	p.back.start(func(context.Context) line { return line{id: refused, text: "the connection is refused"} }, func() {})
	p.back.wait(t.Context())
	var look probes.Look
	p.toldBack(&look)
	if len(look.Findings) != 1 || look.Findings[0].Reason != KubeletUnreachable {
		t.Errorf("refused: %+v", look)
	}
	p.back.moved = true
	look = probes.Look{}
	p.toldBack(&look)
	if len(look.Findings) > 0 || len(look.NotJudged) != 1 || !strings.HasPrefix(look.NotJudged[0], KubeletUnreachable+": ") {
		t.Errorf("refused before kubelet was started again: %+v", look)
	}
}
