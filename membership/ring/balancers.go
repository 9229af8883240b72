package ring

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxBalancers bounds the list: it is looked through for each connection.
const maxBalancers = 64

// ParseBalancers reads IP addresses and CIDR blocks, and returns them in their
// canonical form and order, each once: what Policies keep. A block of all
// addresses is refused: it would let everybody invent a client's address.
func ParseBalancers(texts []string) ([]string, error) {
	blocks := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		b, err := parseBlock(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		blocks = append(blocks, b)
	}
	slices.SortFunc(blocks, netip.Prefix.Compare)
	blocks = slices.Compact(blocks)
	if len(blocks) > maxBalancers {
		return nil, fmt.Errorf("balancers names %d addresses: at most %d are possible; use blocks such as 192.0.2.0/28", len(blocks), maxBalancers)
	}
	canonical := make([]string, 0, len(blocks))
	for _, b := range blocks {
		if b.IsSingleIP() {
			canonical = append(canonical, b.Addr().String())
		} else {
			canonical = append(canonical, b.String())
		}
	}
	return canonical, nil
}

// parseBlock reads an address, or a block of them.
func parseBlock(text string) (netip.Prefix, error) {
	wrong := func(why string) error {
		return fmt.Errorf("balancers: %q %s: give IP addresses and blocks of them, such as 192.0.2.10,192.0.2.16/28,2001:db8::1", text, why)
	}
	if !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			return netip.Prefix{}, wrong("is no IP address")
		case a.Zone() != "":
			return netip.Prefix{}, wrong("has a zone, which means something on one machine only")
		case a.IsUnspecified():
			return netip.Prefix{}, wrong("is nobody's address")
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	b, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, wrong("is no block of IP addresses")
	case b.Addr().Is4In6():
		return netip.Prefix{}, wrong("is an IPv4 block in IPv6 clothes")
	case b.Bits() == 0:
		return netip.Prefix{}, wrong("is everybody, who could then invent the addresses of clients")
	}
	return b.Masked(), nil
}

// TrustsBalancer reports whether the address is that of a balancer: its word on
// a client's address is believed.
func (p Policies) TrustsBalancer(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(p.Balancers, func(text string) bool {
		b, err := parseBlock(text)
		return err == nil && b.Contains(a)
	})
}
