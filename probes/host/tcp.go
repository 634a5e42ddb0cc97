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
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}
