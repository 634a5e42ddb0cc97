package host

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseTCP(t *testing.T) {
	t.Parallel()
	// Typed from this kernel's tables (6.18), of IPv4 and IPv6.
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F9D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 ffff 100 0 0 10 0
   1: 0200000A:9C40 0100000A:01BB 01 00000120:00000000 01:00000F62 00000003     0        0 4243 2 ffff 20 4 30 10 -1
   2: 0000000000000000FFFF00000200000A:9C42 0000000000000000FFFF00000300000A:01BB 02 00000000:00000000 01:00000F62 00000001     0        0 0 2 ffff
`
	all, err := parseTCP(nil, strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	want := []TCPSocket{
		{netip.MustParseAddrPort("0.0.0.0:8093"), netip.MustParseAddrPort("0.0.0.0:0"), TCPListen, 0, 0},
		{netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("10.0.0.1:443"), TCPEstablished, 288, 3},
		{netip.MustParseAddrPort("10.0.0.2:40002"), netip.MustParseAddrPort("10.0.0.3:443"), TCPSynSent, 0, 1},
	}
	if len(all) != len(want) {
		t.Fatalf("%+v", all)
	}
	for i := range want {
		if all[i] != want[i] {
			t.Errorf("%+v, want %+v", all[i], want[i])
		}
	}
	for _, wrong := range []string{"x\n 0: a b c\n", "x\n\n", "x\n 0: 0200000A:9C40 0100000A:01BB 0101 0:0 0:0 0\n", "x\n" + strings.Repeat("a", 70<<10)} {
		if _, err := parseTCP(nil, strings.NewReader(wrong)); err == nil {
			t.Errorf("%.40q is taken for a table", wrong)
		}
	}
}

func FuzzParseTCP(f *testing.F) {
	f.Add([]byte("x\n   1: 0200000A:9C40 0100000A:01BB 01 00000120:00000000 01:00000F62 00000003     0        0 4243\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseTCP(nil, bytes.NewReader(b))
		if err == nil && len(all) > bytes.Count(b, []byte("\n")) {
			t.Errorf("%d sockets", len(all))
		}
	})
}

func FuzzDiagReplies(f *testing.F) {
	f.Add(make([]byte, 100), true)
	f.Fuzz(func(_ *testing.T, b []byte, dump bool) {
		replies(b, dump, func(_ *diagReply, a []byte) { received(a) })
	})
}

// pair is a TCP connection over loopback.
func pair(t *testing.T, network, address string) (client, server net.Conn, at netip.AddrPort) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	client, err = net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server, l.Addr().(*net.TCPAddr).AddrPort()
}

// The kernel is asked about real connections.
func TestTCPReceived(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ network, address string }{{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}} {
		client, server, at := pair(t, c.network, c.address)
		var k TCP
		t.Cleanup(func() { k.Close() })
		if _, ok, err := k.Received([]netip.AddrPort{netip.AddrPortFrom(at.Addr(), 9)}, 0, time.Second); ok || err != nil {
			t.Errorf("a connection to nowhere: %v, %v", ok, err)
		}
		began := time.Now()
		server.Write([]byte("x"))
		if _, err := client.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // by a dump, and by name
			age, ok, err := k.Received([]netip.AddrPort{at}, 0, time.Minute)
			if !ok || err != nil || age > time.Since(began)+100*time.Millisecond {
				t.Errorf("%s: %v, %v, %v", c.network, age, ok, err)
			}
		}
		if _, ok, err := k.Received([]netip.AddrPort{at}, 1<<60, time.Minute); ok || err != nil {
			t.Errorf("%s: a connection of a cgroup that is not there (%v)", c.network, err)
		}
		client.Close()
		server.Close()
		if age, ok, err := k.Received([]netip.AddrPort{at}, 0, time.Minute); ok || err != nil {
			t.Errorf("%s: a closed connection heard %v ago (%v)", c.network, age, err)
		}
		id, ok, err := k.Listens(at.Port())
		if again, _, _ := k.Listens(at.Port()); !ok || err != nil || id == 0 || again != id {
			t.Errorf("%s: nobody listens on %s: %v, %v", c.network, at, ok, err)
		}
		if _, ok, err := k.Listens(1); ok || err != nil {
			t.Errorf("somebody listens on port 1: %v", err)
		}
	}
}

// With a list of what may count the kernel walks no table, and without one it does so
// now and then only.
func TestTCPReceivedFromAList(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ network, address string }{{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}} {
		client, server, at := pair(t, c.network, c.address)
		near := client.LocalAddr().(*net.TCPAddr).AddrPort()
		server.Write([]byte("x"))
		if _, err := client.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		failed := error(nil)
		list := [][2]netip.AddrPort{{at, near}, {netip.AddrPortFrom(near.Addr(), 1), at}, {near, at}}
		k := TCP{Rest: time.Hour, Candidates: func() ([][2]netip.AddrPort, error) { return list, failed }}
		t.Cleanup(func() { k.Close() })
		for range 2 { // of the list, and as the one that is known
			if age, ok, err := k.Received([]netip.AddrPort{at}, 0, time.Minute); !ok || err != nil || age > time.Minute {
				t.Errorf("%s: %v, %v, %v", c.network, age, ok, err)
			}
		}
		if !k.walked.IsZero() {
			t.Errorf("%s: the kernel has walked its table", c.network)
		}
		if _, ok, err := k.Received([]netip.AddrPort{at}, 1<<60, time.Minute); ok || err != nil {
			t.Errorf("%s: a connection of a cgroup that is not there (%v)", c.network, err)
		}
		list = list[:2]
		if _, ok, err := k.Received([]netip.AddrPort{at}, 0, time.Minute); ok || err != nil {
			t.Errorf("%s: a connection that is not in the list (%v)", c.network, err)
		}
		failed = os.ErrNotExist
		if _, ok, err := k.Received([]netip.AddrPort{at}, 0, time.Minute); !ok || err != nil || k.walked.IsZero() {
			t.Errorf("%s: without a list: %v, %v", c.network, ok, err)
		}
		k.last = nil
		if _, ok, err := k.Received([]netip.AddrPort{at}, 0, time.Minute); ok || err != nil {
			t.Errorf("%s: the kernel walks its table again within an hour (%v)", c.network, err)
		}
	}
}

func TestProcessTCP(t *testing.T) {
	t.Parallel()
	_, _, at := pair(t, "tcp4", "127.0.0.1:0")
	p, err := OpenProcesses("/proc").Process(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	all, err := p.TCP()
	if err != nil {
		t.Fatal(err)
	}
	listens, established := false, false
	for _, s := range all {
		listens = listens || s.Local == at && s.State == TCPListen
		established = established || s.Remote == at && s.State == TCPEstablished
	}
	if !listens || !established {
		t.Errorf("%s is not among %d sockets: %v %v", at, len(all), listens, established)
	}
}

func BenchmarkTCPReceived(b *testing.B) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	at := []netip.AddrPort{l.Addr().(*net.TCPAddr).AddrPort()}
	for _, how := range []string{"by name", "dump"} {
		b.Run(how, func(b *testing.B) {
			b.ReportAllocs()
			var k TCP
			defer k.Close()
			for b.Loop() {
				if how == "dump" {
					k.last = nil
				}
				if _, ok, err := k.Received(at, 0, time.Hour); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

func BenchmarkProcessTCP(b *testing.B) {
	p, err := OpenProcesses("/proc").Process(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.TCP(); err != nil {
			b.Fatal(err)
		}
	}
}
