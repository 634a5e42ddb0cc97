package konnectivity

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// resolver asks for names as the node does: its /etc/hosts, then the servers of its
// /etc/resolv.conf. The agent's own copies of them may be those of another day.
type resolver struct{ root tree }

// lookup returns the addresses of a name; an address is its own.
func (r resolver) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{ip}, nil
	}
	if b, err := r.root.ReadFile("etc/hosts"); err == nil {
		if found := parseHosts(string(b), name); len(found) > 0 {
			return found, nil
		}
	}
	servers := []string{"127.0.0.1", "::1"} // resolv.conf(5): where none is named
	if b, err := r.root.ReadFile("etc/resolv.conf"); err == nil {
		if named := parseResolv(string(b)); len(named) > 0 {
			servers = named
		}
	}
	next := 0
	ask := net.Resolver{PreferGo: true, StrictErrors: false, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		server := servers[next%len(servers)]
		next++
		var d net.Dialer
		return d.DialContext(ctx, network, net.JoinHostPort(server, "53"))
	}}
	// A name that ends in a dot is looked up as it is.
	found, err := ask.LookupNetIP(ctx, "ip", strings.TrimSuffix(name, ".")+".")
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found, err
}

// parseHosts finds a name in an /etc/hosts (hosts(5)).
func parseHosts(text, name string) (found []netip.Addr) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		ip, err := netip.ParseAddr(f[0])
		if err == nil && slices.ContainsFunc(f[1:], func(s string) bool { return strings.EqualFold(s, strings.TrimSuffix(name, ".")) }) {
			found = append(found, ip)
		}
	}
	return found
}

// parseResolv finds the name servers in a resolv.conf(5): the first three count.
func parseResolv(text string) (servers []string) {
	const most = 3
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(servers) == most {
			continue
		}
		if ip, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, ip.String())
		}
	}
	return servers
}
