package host

import (
	"context"
	"net"
)

// DialTCP connects to a TCP address as the node sees it ("127.0.0.1:10248"): the
// agent shares the node's network. A recorded node's root answers for it.
func DialTCP(ctx context.Context, root any, address string) (net.Conn, error) {
	if d, ok := root.(interface {
		DialTCP(context.Context, string) (net.Conn, error)
	}); ok {
		return d.DialTCP(ctx, address)
	}
	return dial(ctx, "tcp", address)
}

// DialUDP makes a socket that hears a UDP address alone, as the node sees it
// ("127.0.0.1:323").
func DialUDP(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "udp", address) }

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return quietly(conn), nil
}
