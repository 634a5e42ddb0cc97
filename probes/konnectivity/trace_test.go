package konnectivity

import (
	"errors"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/nodedrift/nodedrift/probes/host"
)

// fakeTracer tells what a test says.
type fakeTracer struct {
	sockets []Socket
	err     error
	left    time.Duration // 0: not
	told    int           // times
	addrs   []netip.AddrPort
	pods    []uint32
}

func (f *fakeTracer) Sockets(take func(Socket)) error {
	for _, s := range f.sockets {
		take(s)
	}
	return f.err
}
func (f *fakeTracer) Left(uint32) (time.Duration, bool) { return f.left, f.left > 0 }
func (f *fakeTracer) Peers(addrs []netip.AddrPort, pods []uint32) {
	f.told, f.addrs, f.pods = f.told+1, addrs, pods
}

var (
	near   = netip.MustParseAddrPort("10.244.0.7:40000")
	server = netip.MustParseAddrPort("203.0.113.9:8132")
)

// tracedAgent is an agent, which is this process, and a probe of it.
func tracedAgent(t *testing.T, f *fakeTracer) (*Probe, *agent) {
	t.Helper()
	process, err := host.OpenProcesses("/proc").Process(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Close() })
	a := &agent{process: process, flags: flags{server: "api", serverPort: server.Port()}}
	return &Probe{traced: traced{tracer: f}, agents: []*agent{a}}, a
}

func TestReadTrace(t *testing.T) {
	t.Parallel()
	own := Socket{PID: os.Getpid(), Process: program, Netns: 7}
	to := func(remote netip.AddrPort, state uint8) Socket {
		s := own
		s.Local, s.Remote, s.State, s.Retransmits = near, remote, state, 2
		return s
	}
	elsewhere := to(server, host.TCPEstablished)
	elsewhere.PID++
	connected := host.TCPSocket{Local: near, Remote: server, State: host.TCPEstablished, Retransmits: 2}
	closed := host.TCPSocket{Remote: server, State: tcpFinWait2}
	for name, c := range map[string]struct {
		f    fakeTracer
		want []host.TCPSocket // nil: the table is to be read
	}{
		"connected":                         {fakeTracer{sockets: []Socket{own, to(server, host.TCPEstablished), to(netip.AddrPortFrom(server.Addr(), 10250), host.TCPEstablished)}}, []host.TCPSocket{connected}},
		"no connection":                     {fakeTracer{sockets: []Socket{own, elsewhere}}, []host.TCPSocket{}},
		"it ended the last one":             {fakeTracer{sockets: []Socket{own}, left: 10 * time.Second}, []host.TCPSocket{closed}},
		"it ended the last one long ago":    {fakeTracer{sockets: []Socket{own}, left: 2 * time.Minute}, []host.TCPSocket{}},
		"it ended one, and has another one": {fakeTracer{sockets: []Socket{own, to(server, host.TCPEstablished)}, left: time.Second}, []host.TCPSocket{connected, closed}},
		"not listed yet":                    {fakeTracer{sockets: []Socket{elsewhere}}, nil},
		"cannot be told":                    {fakeTracer{sockets: []Socket{own}, err: errors.New("no")}, nil},
	} {
		p, a := tracedAgent(t, &c.f)
		a.peers = []netip.AddrPort{server}
		if ok := p.readTrace(a); ok != (c.want != nil) || !reflect.DeepEqual(a.table, c.want) {
			t.Errorf("%s: %v, %+v, want %+v", name, ok, a.table, c.want)
		}
	}
}

// kubelet's connections are those of its cgroup, whatever else calls itself kubelet.
func TestKubelets(t *testing.T) {
	t.Parallel()
	of := func(process string, state uint8) Socket {
		return Socket{PID: 1, Process: process, Cgroup: 5, Local: near, Remote: server, State: state}
	}
	for name, c := range map[string]struct {
		sockets []Socket
		n       int // -1: an error
	}{
		"connected":     {[]Socket{of(kubelet, 0), of(kubelet, host.TCPEstablished), of(kubelet, host.TCPSynSent)}, 1},
		"not connected": {[]Socket{of(kubelet, 0)}, 0},
		"another":       {[]Socket{of(program, 0), of(program, host.TCPEstablished)}, -1},
		"none":          {nil, -1},
	} {
		p := &Probe{traced: traced{tracer: &fakeTracer{sockets: c.sockets}}}
		list, err := p.kubelets()
		if n := len(list); err == nil && n != c.n || err != nil && c.n >= 0 {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
	if _, err := (&Probe{}).kubelets(); err == nil {
		t.Error("connections are listed by nobody")
	}
}

// Whose connections matter is told when it changes.
func TestTellPeers(t *testing.T) {
	t.Parallel()
	f := &fakeTracer{}
	p, a := tracedAgent(t, f)
	api := netip.MustParseAddrPort("10.0.0.1:443")
	p.trips.answer = trip{addrs: []netip.AddrPort{api}}
	for range 2 {
		if p.tellPeers(); f.told != 1 || !slices.Equal(f.addrs, []netip.AddrPort{api}) || f.pods != nil {
			t.Errorf("without an agent's connection: %+v", f)
		}
	}
	a.peers, a.netns = []netip.AddrPort{server, api}, 7
	for range 2 {
		if p.tellPeers(); f.told != 2 || !slices.Equal(f.addrs, []netip.AddrPort{api, server}) || !slices.Equal(f.pods, []uint32{7}) {
			t.Errorf("with one: %+v", f)
		}
	}
	a.sandbox.HostNetwork = true // the node's network is listened to anyway
	if p.tellPeers(); f.told != 3 || len(f.pods) > 0 {
		t.Errorf("in the node's network: %+v", f)
	}
}
