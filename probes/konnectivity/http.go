package konnectivity

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/nodedrift/nodedrift/probes/host"
)

const (
	maxAnswer = 4 << 10 // of what is no metrics
	maxHead   = 16 << 10
)

// errNotAccepted says that nobody took the connection: dropped packets look the same
// as a host that is gone.
var errNotAccepted = errors.New("the connection is not taken")

// get asks an agent's health port and gives the answer to read. It follows nothing and
// unpacks nothing. An error while connecting wraps [errNotAccepted] unless the port
// was refused.
func get(ctx context.Context, root tree, address, path string, read func(status int, body io.Reader) error) error {
	conn, err := host.DialTCP(ctx, root, address)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errNotAccepted, err)
	}
	defer conn.Close()
	return exchange(ctx, conn, "GET "+path+" HTTP/1.1\r\nHost: "+address+"\r\nUser-Agent: nodedrift\r\nConnection: close\r\n\r\n", read)
}

// exchange sends a request over a connection and gives the answer to read.
func exchange(ctx context.Context, conn net.Conn, request string, read func(status int, body io.Reader) error) error {
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	// What comes before the body is bounded, too.
	head := &io.LimitedReader{R: conn, N: maxHead}
	answer, err := http.ReadResponse(bufio.NewReaderSize(head, maxAnswer), nil)
	if err != nil {
		if head.N <= 0 {
			return fmt.Errorf("the head of an answer: %w", host.ErrTooLarge)
		}
		return err
	}
	head.N = maxMetrics + maxHead
	if packed := answer.Header.Get("Content-Encoding"); packed != "" && packed != "identity" {
		return fmt.Errorf("the answer is packed (%.20q), which was not asked for", packed)
	}
	return read(answer.StatusCode, answer.Body)
}

// text reads an answer of a few words.
func text(status *int, body *string) func(int, io.Reader) error {
	return func(s int, r io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(r, maxAnswer))
		*status, *body = s, string(b)
		return err
	}
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || ok && t.Timeout()
}

// overTLS shakes hands and gives the connection back.
func overTLS(ctx context.Context, conn net.Conn, config *tls.Config) (*tls.Conn, error) {
	link := tls.Client(conn, config)
	if err := link.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return link, nil
}

// why says of an error what is the same at each look: no port, no time.
func why(err error) string {
	switch {
	case isTimeout(err):
		return "no answer"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the connection is refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the connection is reset"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "there is no route"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection is closed without a word"
	}
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number.Error()
	}
	return plain(err)
}

// plain is the innermost text of an error.
func plain(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// join is an address to call.
func join(ip netip.Addr, port uint16) string { return netip.AddrPortFrom(ip, port).String() }
