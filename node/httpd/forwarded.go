package httpd

import (
	"net/http"
	"net/netip"
	"strings"
)

// believeBalancer makes a request that came through one of the cluster's
// balancers that of the balancer's client: for limits and logs. Of
// X-Forwarded-For only the last element counts, which the balancer itself has
// written; what is before it may be the client's invention. Rights do not
// depend on it.
func (s *Server) believeBalancer(r *http.Request) {
	if s.opts.Balancer == nil {
		return
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !s.opts.Balancer(from.Addr().Unmap()) {
		return
	}
	lines := r.Header.Values("X-Forwarded-For")
	if len(lines) == 0 {
		return
	}
	last := lines[len(lines)-1]
	if client, ok := forwardedAddr(last[strings.LastIndex(last, ",")+1:]); ok {
		r.RemoteAddr = client.String()
	}
}

// forwardedAddr reads an address with or without a port.
func forwardedAddr(text string) (netip.Addr, bool) {
	text = strings.TrimSpace(text)
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil {
		var both netip.AddrPort
		if both, err = netip.ParseAddrPort(text); err != nil {
			return netip.Addr{}, false
		}
		a = both.Addr()
	}
	return a.Unmap().WithZone(""), true
}
