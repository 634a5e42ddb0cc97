package host

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
)

// States of a TCP socket (the kernel's include/net/tcp_states.h).
const (
	TCPEstablished = 1
	TCPSynSent     = 2
	TCPListen      = 10
)

// TCPSocket is one TCP socket of a network namespace, as /proc/PID/net/tcp tells it
// (the kernel's Documentation/networking/proc_net_tcp.rst).
type TCPSocket struct {
	Local, Remote netip.AddrPort // an IPv4 address in IPv6's form is told as IPv4
	State         uint8          // [TCPEstablished] and others
	Unacked       uint32         // bytes sent and not acknowledged, or not sent yet
	Retransmits   uint32         // of what waits to be acknowledged, in a row
}

// maxTCPTable bounds a table: about 7000 sockets.
const maxTCPTable = 1 << 20

// TCP lists the TCP sockets of the process's network namespace, also of another
// one than the reader's: no right is needed. The namespace of a pod is its own; that
// of a process on the node's network has the sockets of all others, too.
func (p *Process) TCP() ([]TCPSocket, error) {
	return readProcess(p, "net/tcp", func() (all []TCPSocket, err error) {
		for _, name := range []string{"tcp", "tcp6"} {
			more, err := appendTable(all, filepath.Join(p.dir, "net", name))
			switch {
			case err == nil:
				all = more
			case name == "tcp" || !errors.Is(err, fs.ErrNotExist): // a node may have no IPv6
				return nil, err
			}
		}
		return all, nil
	})
}

func appendTable(all []TCPSocket, name string) ([]TCPSocket, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseTCP(all, io.LimitReader(f, maxTCPTable+1))
}

// parseTCP reads a table behind what is there already. A line that is none is an error.
func parseTCP(all []TCPSocket, r io.Reader) ([]TCPSocket, error) {
	lines := bufio.NewScanner(r)
	read := 0
	for first := true; lines.Scan(); first = false {
		if read += len(lines.Bytes()) + 1; read > maxTCPTable {
			return nil, fmt.Errorf("a table of TCP sockets: %w", ErrTooLarge)
		}
		if first {
			continue // names of the columns
		}
		s, err := parseTCPLine(lines.Bytes())
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, lines.Err()
}

// parseTCPLine reads a line such as
// "0: 0100007F:1F9D 0200000A:01BB 01 00000000:00000000 02:00000F62 00000000 0 0 4242 2 ffff 20 4 30 10 -1".
func parseTCPLine(line []byte) (s TCPSocket, err error) {
	var field [7][]byte
	n := 0
	for part := range bytes.FieldsSeq(line) {
		if n == len(field) {
			break
		}
		field[n] = part
		n++
	}
	bad := fmt.Errorf("a table of TCP sockets has the line %.80q", line)
	if n < len(field) {
		return s, bad
	}
	var okLocal, okRemote bool
	s.Local, okLocal = tableAddress(field[1])
	s.Remote, okRemote = tableAddress(field[2])
	state, errState := strconv.ParseUint(string(field[3]), 16, 8)
	queue, _, _ := bytes.Cut(field[4], []byte(":"))
	unacked, errQueue := strconv.ParseUint(string(queue), 16, 32)
	again, errAgain := strconv.ParseUint(string(field[6]), 16, 32)
	if !okLocal || !okRemote || errors.Join(errState, errQueue, errAgain) != nil {
		return s, bad
	}
	s.State, s.Unacked, s.Retransmits = uint8(state), uint32(unacked), uint32(again)
	return s, nil
}

// tableAddress reads an address such as 0100007F:1F9D: 32-bit words in the
// machine's order, and the port as one writes it. Go runs little-endian on every
// node that AKS has.
func tableAddress(text []byte) (netip.AddrPort, bool) {
	address, port, ok := bytes.Cut(text, []byte(":"))
	number, err := strconv.ParseUint(string(port), 16, 16)
	if !ok || err != nil || len(address) != 8 && len(address) != 32 {
		return netip.AddrPort{}, false
	}
	var b [16]byte
	if _, err := hex.Decode(b[:], address); err != nil {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(address)/2; i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	ip := netip.AddrFrom16(b).Unmap()
	if len(address) == 8 {
		ip = netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrPortFrom(ip, uint16(number)), true
}

// TCPCounters are of the process's network namespace, since that began.
type TCPCounters struct {
	Established   uint64 // connections now
	Failed, Reset uint64 // attempts that failed, connections that were reset
	Retransmitted uint64 // segments
}

// TCPCounters reads /proc/PID/net/snmp, which costs a hundredth of [Process.TCP]:
// the kernel walks its whole hash table for each of those.
func (p *Process) TCPCounters() (TCPCounters, error) {
	return readProcess(p, "net/snmp", func() (c TCPCounters, err error) {
		all, err := p.proc.Snmp()
		if err != nil {
			return c, err
		}
		for _, n := range []struct {
			to   *uint64
			from *float64
		}{{&c.Established, all.CurrEstab}, {&c.Failed, all.AttemptFails}, {&c.Reset, all.EstabResets}, {&c.Retransmitted, all.RetransSegs}} {
			if n.from != nil && *n.from > 0 {
				*n.to = uint64(*n.from)
			}
		}
		return c, nil
	})
}
