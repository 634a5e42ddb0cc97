package bpf

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// The detectors of rare events, in the order in which they are loaded: whether
// exit has to join OOM victims with their pids is known after oom.
const (
	oomDetector    = "oom"
	exitDetector   = "exit"
	signalDetector = "signal"
	hangDetector   = "hang"
	clockDetector  = "clock"
	censusDetector = "census"
	sysctlDetector = "sysctl"
)

var rareDetectors = []string{oomDetector, exitDetector, signalDetector, hangDetector, clockDetector, censusDetector}

// attachRare loads and attaches one detector of rare events.
func (l *loader) attachRare(name string, join bool) (*detector, error) {
	spec, own := map[string]func() (*ebpf.CollectionSpec, error){
		oomDetector: loadOom, exitDetector: loadExit, signalDetector: loadSignal, hangDetector: loadHang, clockDetector: loadClock, censusDetector: loadCensus,
	}[name], map[string]any{"filter": commFilter(func(daemon) bool { return true }), "connected": commFilter(func(d daemon) bool { return d.connected })}
	if name == exitDetector {
		own[exitVarJoin] = join
	}
	d := &detector{}
	var errs []error
	for _, v := range variants(name) {
		own["names"] = v.names
		if err := l.loadRare(d, spec, v.without, own); err != nil {
			errs = append(errs, err)
			continue
		}
		if !v.names {
			d.walk = l.walk()
		}
		if err := l.attachTo(d); err != nil {
			d.close()
			return nil, err
		}
		return d, nil
	}
	if name == clockDetector {
		return nil, noFunction(errors.Join(errs...))
	}
	return nil, errors.Join(errs...)
}

// A variant of a detector is for kernels that refuse those before it.
type variant struct {
	names   bool   // strings are read in the kernel: not under lockdown=confidentiality
	without string // how the names of another variant's programs end
}

func variants(name string) []variant {
	if name == signalDetector || name == clockDetector {
		return []variant{{true, "_probed"}, {true, "_direct"}, {false, "_probed"}}
	}
	return []variant{{names: true}, {}}
}

func (l *loader) loadRare(d *detector, load func() (*ebpf.CollectionSpec, error), without string, own map[string]any) error {
	spec, err := load()
	if err != nil {
		return err
	}
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return without != "" && strings.HasSuffix(name, without) })
	if own[exitVarJoin] == false {
		delete(spec.Programs, exitProgMarkPid)
	}
	var shared map[string]*ebpf.Map
	if l.ring != nil {
		shared = map[string]*ebpf.Map{"events": l.ring}
	}
	if d.coll, err = l.load(spec, own, shared); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if l.ring == nil {
		l.ring = d.coll.Maps["events"]
	}
	return nil
}

func (l *loader) attachTo(d *detector) error {
	for name, p := range d.coll.Programs {
		var at link.Link
		var err error
		if name == censusProgCensus {
			at, err = link.AttachIter(link.IterOptions{Program: p})
		} else {
			at, err = link.AttachTracing(link.TracingOptions{Program: p})
		}
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, plain(err))
		}
		d.links = append(d.links, at)
	}
	return nil
}

// A daemon is a process whose end matters. Its name is only what the kernel sorts
// by: where it runs decides.
type daemon struct {
	comm  string
	units []string // as one of them,
	pod   string   // or in a pod of this namespace

	connected bool // its connections matter
}

var daemons = []daemon{
	{comm: "kubelet", units: []string{"kubelet.service"}, connected: true},
	{comm: "containerd", units: []string{"containerd.service"}},
	{comm: "chronyd", units: []string{"chrony.service", "chronyd.service"}},
	{comm: "kube-proxy", units: []string{"kube-proxy.service"}, pod: "kube-system/"},
	{comm: "proxy-agent", pod: "kube-system/", connected: true}, // konnectivity-agent
}

// commFilter is the filter of headers/event.h, of some daemons.
func commFilter(of func(daemon) bool) []byte {
	filter := make([]byte, 1024/8)
	for _, d := range daemons {
		if !of(d) {
			continue
		}
		h := hashKey(d.comm) % 1024
		filter[h/8] |= 1 << (h % 8)
	}
	return filter
}

const (
	// A census costs the kernel a walk through all its threads. It also finds whose
	// connections matter, so it is taken sooner while a daemon may be started again,
	// and while a thread is known to be blocked.
	censusEvery = 40 * time.Second
	censusSoon  = 10 * time.Second
	hungAfter   = time.Minute // kubelet's own witness takes five
)

// A stuck thread is one that has been blocked since.
type stuck struct {
	since    time.Duration // monotonic
	switches uint64
	told     bool
}

// A ward is what successive censuses say.
type ward map[uint64]*stuck // by thread and its start

// hung takes in a census and returns who has been blocked, without running once,
// for long enough, each once.
func (w ward) hung(all []blocked, now time.Duration) (out []blocked) {
	seen := make(map[uint64]bool, len(all))
	for _, b := range all {
		key := b.Start ^ uint64(b.Thread)<<40
		seen[key] = true
		s := w[key]
		if s == nil || s.switches != b.Switches {
			w[key] = &stuck{since: now, switches: b.Switches}
			continue
		}
		if !s.told && now-s.since >= hungAfter {
			s.told = true
			out = append(out, b)
		}
	}
	for key := range w {
		if !seen[key] {
			delete(w, key)
		}
	}
	return out
}
