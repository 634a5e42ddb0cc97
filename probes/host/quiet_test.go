package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pairOf is a quiet connection and its far end.
func pairOf(t testing.TB, network string) (near, far net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	near = quietly(c)
	t.Cleanup(func() { near.Close(); far.Close() })
	if _, ok := near.(*quiet); !ok {
		t.Fatalf("%T is not quiet", near)
	}
	return near, far
}

func TestQuietMovesAll(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		near, far := pairOf(t, network)
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // more than any buffer of the kernel
		go func() {
			if n, err := near.Write(sent); n != len(sent) || err != nil {
				t.Errorf("%s: wrote %d of %d: %v", network, n, len(sent), err)
			}
		}()
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(far, got); err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
			t.Fatalf("%s: the far end did not get what was written: %v", network, err)
		}
		go func() {
			far.Write(sent)
			far.(interface{ CloseWrite() error }).CloseWrite()
		}()
		if back, err := io.ReadAll(near); err != nil || !bytes.Equal(back, sent) {
			t.Fatalf("%s: read %d of %d until the end: %v", network, len(back), len(sent), err)
		}
		// The far end has only ended its own direction.
		if _, err := near.Write([]byte("x")); err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		if _, err := io.ReadFull(far, got[:1]); err != nil || got[0] != 'x' {
			t.Fatalf("%s: half closed, read %q: %v", network, got[:1], err)
		}
	}
}

func TestQuietDeadline(t *testing.T) {
	t.Parallel()
	near, _ := pairOf(t, "tcp")
	b := make([]byte, 1<<20)
	near.SetDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := near.Read(b)
	timed, ok := errors.AsType[net.Error](err)
	if !ok || !timed.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v, want a deadline's error", err)
	}
	sum := 0
	for err = nil; err == nil; { // until the kernel's buffers are full, and nobody reads
		var n int
		n, err = near.Write(b)
		sum += n
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v, want a deadline's error", err)
	}
	near.SetDeadline(time.Now().Add(20 * time.Millisecond))
	for err = nil; err == nil; {
		var n int
		n, err = near.Write(b)
		sum += n
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) || sum == 0 {
		t.Errorf("write of what was full after %d: %v", sum, err)
	}
	near.SetDeadline(time.Time{})
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "write" {
		t.Errorf("%v, want a write's error", err)
	}
}

func TestQuietCloses(t *testing.T) {
	t.Parallel()
	near, _ := pairOf(t, "unix")
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read: %v, want closed", err)
			}
		})
		all.Go(func() {
			for {
				if _, err := near.Write(make([]byte, 1<<20)); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("write: %v, want closed", err)
					}
					return
				}
			}
		})
	}
	near.SetReadDeadline(time.Now().Add(time.Hour))
	near.Close()
	all.Wait()
}

func TestQuietTellsErrors(t *testing.T) {
	t.Parallel()
	near, far := pairOf(t, "tcp")
	far.(*net.TCPConn).SetLinger(0)
	far.Close()
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want reset", err)
	}
	if _, err := near.Write(make([]byte, 1)); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v, want a broken pipe", err)
	}
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	refused, err := DialUDP(context.Background(), gone.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	refused.SetDeadline(time.Now().Add(time.Minute))
	if _, err := refused.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := refused.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("read: %v, want refused", err)
	}
}

func TestQuietDatagrams(t *testing.T) {
	t.Parallel()
	far, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := DialUDP(context.Background(), far.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far.SetDeadline(time.Now().Add(time.Minute))
	near.SetDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 8)
	for _, sent := range []string{"four", ""} {
		if n, err := near.Write([]byte(sent)); n != len(sent) || err != nil {
			t.Fatalf("write %q: %d, %v", sent, n, err)
		}
		n, from, err := far.ReadFrom(b)
		if err != nil || string(b[:n]) != sent {
			t.Fatalf("%q: %v", b[:n], err)
		}
		far.WriteTo(b[:n], from)
		if n, err := near.Read(b); err != nil || string(b[:n]) != sent {
			t.Fatalf("back %q: %v", b[:n], err)
		}
	}
}

func TestQuietMakesNoGarbage(t *testing.T) { // not beside others, which do
	near, far := pairOf(t, "unix")
	b := make([]byte, 8)
	if n := testing.AllocsPerRun(100, func() {
		near.Write(b)
		far.Read(b)
		far.Write(b)
		near.Read(b)
	}); n != 0 {
		t.Errorf("%v allocations for a question and its answer", n)
	}
}
