package bpf

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/nodedrift/nodedrift/probes"
)

// other is a program of somebody else's, which counts how often it runs and
// returns a number.
func other(t *testing.T, spec *ebpf.ProgramSpec, result int32) (program *ebpf.Program, ran func() uint64) {
	t.Helper()
	counter, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { counter.Close() })
	spec.License = "GPL"
	spec.Instructions = asm.Instructions{
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, counter.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, result).WithSymbol("out"),
		asm.Return(),
	}
	if program, err = ebpf.NewProgram(spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program, func() (n uint64) {
		if err := counter.Lookup(uint32(0), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// Programs that others attached to the same hooks, before ours and after, go on to
// run, and so do ours; when ours go, theirs stay.
func TestBesideProgramsOfOthers(t *testing.T) {
	needBPF(t)
	at, err := findTrees("/")
	if err != nil {
		t.Fatal(err)
	}
	var counts []func() uint64
	attach := func() {
		writes, ran := other(t, &ebpf.ProgramSpec{Type: ebpf.CGroupSysctl, AttachType: ebpf.AttachCGroupSysctl}, 1)
		l, err := link.AttachCgroup(link.CgroupOptions{Path: at.unified.dir, Attach: ebpf.AttachCGroupSysctl, Program: writes})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		counts = append(counts, ran)
		for _, hook := range []string{"sched_process_exit", "signal_generate"} {
			program, ran := other(t, &ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: hook}, 0)
			l, err := link.AttachTracing(link.TracingOptions{Program: program})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			counts = append(counts, ran)
		}
	}
	act := func() {
		shell(t, "sleep 10 & kill -9 $!; read v </proc/sys/kernel/printk_ratelimit_burst; echo $v >/proc/sys/kernel/printk_ratelimit_burst")
	}
	all := func(what string) {
		t.Helper()
		before := make([]uint64, len(counts))
		for i, n := range counts {
			before[i] = n()
		}
		act()
		for i, n := range counts {
			if n() == before[i] {
				t.Errorf("%s: program %d of others does not run", what, i)
			}
		}
	}
	attach()
	all("alone")
	t.Run("with ours", func(t *testing.T) {
		tr := traced(t, "kernel/printk_ratelimit_burst")
		attach()
		before := monotonic()
		all("beside ours")
		for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			if _, ok := tr.Who(probes.Key{Domain: "sysctl", Name: someKey}, before); ok {
				break
			}
			if time.Since(began) > 2*time.Second {
				t.Fatal("ours does not hear a write beside others")
			}
		}
		for _, why := range missing(tr) {
			t.Error("beside others:", why)
		}
		// Those attached here end with this subtest, the first ones stay.
		t.Cleanup(func() { counts = counts[:3] })
	})
	all("after ours")
}

// ids are what a process holds in the kernel.
type ids struct {
	Programs []ebpf.ProgramID
	Links    []link.ID
	Maps     []ebpf.MapID
}

// After kill -9 no program, link or map of ours is left: nothing is pinned.
func TestNothingIsLeftAfterAKill(t *testing.T) {
	if os.Getenv("NODEDRIFT_TEST_KILLED") != "" {
		beKilled(t)
		return
	}
	needBPF(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestNothingIsLeftAfterAKill$")
	cmd.Env = append(os.Environ(), "NODEDRIFT_TEST_KILLED=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var held ids
	if err := json.Unmarshal(line, &held); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if len(held.Links) < 6 || len(held.Programs) < 6 || len(held.Maps) == 0 {
		t.Fatalf("it holds %+v", held)
	}
	if p, l, m := left(t, held); p != len(held.Programs) || l != len(held.Links) || m != len(held.Maps) {
		t.Fatalf("while it lives %d programs, %d links and %d maps of %+v are there", p, l, m, held)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) { // the kernel frees some after a grace period
		p, l, m := left(t, held)
		if p+l+m == 0 {
			t.Logf("%d programs, %d links and %d maps are gone %s after the kill", len(held.Programs), len(held.Links), len(held.Maps), time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%d programs, %d links and %d maps are left", p, l, m)
		}
	}
}

// left counts what is still in the kernel.
func left(t *testing.T, held ids) (programs, links, maps int) {
	t.Helper()
	for _, id := range held.Programs {
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			programs++
			p.Close()
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	for _, id := range held.Links {
		if l, err := link.NewFromID(id); err == nil {
			links++
			l.Close()
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	for _, id := range held.Maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			maps++
			m.Close()
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return programs, links, maps
}

// beKilled attaches everything, says what it holds, and waits.
func beKilled(t *testing.T) {
	tr := New(Config{Root: "/", Sysctl: true, TCP: true, Log: slog.New(slog.DiscardHandler)})
	go func() { _ = tr.Run(context.Background()) }()
	<-tr.Tried()
	var held ids
	for _, s := range tr.states {
		d := s.d.Load()
		if d == nil {
			continue
		}
		for _, l := range d.links {
			info, err := l.Info()
			if err != nil {
				t.Fatal(err)
			}
			held.Links, held.Programs = append(held.Links, info.ID), append(held.Programs, info.Program)
		}
		for _, m := range d.coll.Maps {
			info, err := m.Info()
			if err != nil {
				t.Fatal(err)
			}
			if id, ok := info.ID(); ok {
				held.Maps = append(held.Maps, id)
			}
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(held); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
}
