package konnectivity

import (
	"context"
	"os/exec"
	"testing"

	"github.com/nodedrift/nodedrift/probes/host"
)

// oneUnit is a systemd with one unit, which counts how often it is asked.
type oneUnit struct {
	unit  host.Unit
	asked int
}

func (u *oneUnit) Unit(context.Context, string) (host.Unit, error) {
	u.asked++
	return u.unit, nil
}

// TestKubeletsOwn holds that systemd is asked for kubelet once while it runs, and at
// once when it is another one.
func TestKubeletsOwn(t *testing.T) {
	t.Parallel()
	systemd := &oneUnit{}
	p := &Probe{procs: host.OpenProcesses("/proc"), units: systemd}
	runs := func(kubeconfig string) *exec.Cmd {
		t.Helper()
		kubelet := exec.Command("sh", "-c", "echo; read line", "--kubeconfig=/"+kubeconfig)
		in, err := kubelet.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := kubelet.StdoutPipe()
		if err == nil {
			err = kubelet.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); kubelet.Wait() })
		if _, err := out.Read(make([]byte, 1)); err != nil { // it has become what it is to be
			t.Fatal(err)
		}
		systemd.unit = host.Unit{MainPID: uint32(kubelet.Process.Pid)}
		return kubelet
	}
	is := func(want string, asked int) {
		t.Helper()
		if name, ok := p.kubeletsOwn(t.Context()); name != want || !ok || systemd.asked != asked {
			t.Errorf("%q, %v after %d questions, want %q after %d", name, ok, systemd.asked, want, asked)
		}
	}
	first := runs("a")
	is("a", 1)
	is("a", 1)
	first.Process.Kill()
	first.Wait()
	runs("b")
	is("b", 2)
	is("b", 2)
}
