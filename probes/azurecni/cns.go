package azurecni

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

const (
	cnsDeadline = time.Second
	maxCNS      = 1 << 20
)

// cnsClient speaks to the node's loopback and follows nothing elsewhere.
var cnsClient = &http.Client{
	Timeout:       cnsDeadline,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{Proxy: nil, DisableCompression: true, DisableKeepAlives: true},
}

// addCNS asks azure-cns which addresses it has given away: they have an owner,
// whatever the runtime says of it.
func (e *expectation) addCNS(ctx context.Context, base string) error {
	ips, err := askCNS(ctx, base)
	if err != nil {
		return fmt.Errorf("ask azure-cns: %w", err)
	}
	for _, ip := range ips {
		e.ownedIP[ip] = true
	}
	return nil
}

// cnsURL is where azure-cns answers: on loopback, and nowhere else.
func cnsURL(base string) (*url.URL, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" {
		return nil, fmt.Errorf("is %q, want http://localhost:10090", base)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%q is not on this node", u.Host)
	}
	return u, nil
}

func askCNS(ctx context.Context, base string) ([]netip.Addr, error) {
	u, err := cnsURL(base)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.JoinPath("debug/ipaddresses").String(), strings.NewReader(`{"IPConfigStateFilter":["Assigned"]}`))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := cnsClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxCNS+1))
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK || len(b) > maxCNS {
		return nil, fmt.Errorf("answered %s with %d bytes", answer.Status, len(b))
	}
	return parseCNSAddresses(b)
}

// parseCNSAddresses reads IPConfigurationStatus[] or an object that holds it.
func parseCNSAddresses(b []byte) (ips []netip.Addr, err error) {
	type config struct{ IPAddress string }
	var list []config
	if err := json.Unmarshal(b, &list); err != nil {
		var wrapped struct{ IPConfigurationStatus []config }
		if err := json.Unmarshal(b, &wrapped); err != nil {
			return nil, plainJSON(err)
		}
		list = wrapped.IPConfigurationStatus
	}
	for _, c := range list {
		if ip, err := netip.ParseAddr(c.IPAddress); err == nil {
			ips = append(ips, ip.Unmap())
		}
	}
	return ips, nil
}
