package smtpd

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// clientRules is the allow-list of clients; empty it allows all.
type clientRules struct {
	prefixes []netip.Prefix
	domains  []string // lower case, without final dot
}

func parseClientRules(list []string) (clientRules, error) {
	var rules clientRules
	for _, entry := range list {
		if prefix, err := parsePrefix(entry); err == nil {
			rules.prefixes = append(rules.prefixes, prefix)
		} else if isDomain(entry) {
			rules.domains = append(rules.domains, normalDomain(entry))
		} else {
			return rules, fmt.Errorf("%q is no IP address, CIDR block or domain: write for example 192.0.2.7, 10.0.0.0/8, 2001:db8::/32 or mail.example.com", entry)
		}
	}
	return rules, nil
}

func (r clientRules) empty() bool { return len(r.prefixes) == 0 && len(r.domains) == 0 }

// allow looks up the client's name only when its address does not decide. The
// name counts when it leads back to the address: anybody can claim any name
// for an address of his own.
func (r clientRules) allow(ctx context.Context, resolver Resolver, client netip.Addr) bool {
	if r.empty() || !client.IsValid() || contains(r.prefixes, client) {
		return true
	}
	if len(r.domains) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	names, err := resolver.LookupAddr(ctx, client.String())
	if err != nil {
		return false
	}
	for _, name := range names {
		if !inDomains(r.domains, name) {
			continue
		}
		addrs, err := resolver.LookupNetIP(ctx, "ip", name)
		if err != nil {
			continue
		}
		for _, addr := range addrs {
			if addr.Unmap() == client.WithZone("") {
				return true
			}
		}
	}
	return false
}

// addressRules is an allow-list of senders or recipients; empty it allows all.
type addressRules struct {
	addresses map[string]bool // lower case
	domains   []string
	some      bool
}

func parseAddressRules(list []string) (addressRules, error) {
	rules := addressRules{addresses: map[string]bool{}, some: len(list) > 0}
	for _, entry := range list {
		local, domain, isAddress := cutLast(strings.ToLower(entry), "@")
		switch {
		case entry == "<>":
			rules.addresses[""] = true
		case isAddress && local != "" && domain != "":
			rules.addresses[local+"@"+domain] = true
		case isAddress && local == "" && isDomain(domain), !isAddress && isDomain(entry):
			rules.domains = append(rules.domains, normalDomain(strings.TrimPrefix(entry, "@")))
		default:
			return rules, fmt.Errorf("%q is no address or domain: write for example journal@example.com, example.com, or <> for the null sender", entry)
		}
	}
	return rules, nil
}

// allows compares without regard to case, also in the local part: RFC 5321 2.4
// would have it otherwise, no mail system does.
func (r addressRules) allows(path string) bool {
	if !r.some {
		return true
	}
	path = strings.ToLower(path)
	// A source route (RFC 5321 appendix C) is not part of the mailbox.
	if strings.HasPrefix(path, "@") {
		if _, mailbox, ok := strings.Cut(path, ":"); ok {
			path = mailbox
		}
	}
	if r.addresses[path] {
		return true
	}
	_, domain, ok := cutLast(path, "@")
	return ok && inDomains(r.domains, domain)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// inDomains reports whether name is one of the domains or lies below one.
func inDomains(domains []string, name string) bool {
	name = normalDomain(name)
	for _, domain := range domains {
		if name == domain || strings.HasSuffix(name, "."+domain) {
			return true
		}
	}
	return false
}

func normalDomain(name string) string {
	return strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(name, "."), "."))
}

func isDomain(s string) bool {
	s = normalDomain(s)
	return s != "" && !strings.ContainsAny(s, " \t<>@/:,;\"()") && !strings.Contains(s, "..")
}

func parsePrefixes(list []string) ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, 0, len(list))
	for _, entry := range list {
		prefix, err := parsePrefix(entry)
		if err != nil {
			return nil, fmt.Errorf("%q is no IP address or CIDR block: write for example 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32", entry)
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

// parsePrefix reads a CIDR block, or an address as the block of it alone.
func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	addr = addr.WithZone("")
	for _, prefix := range prefixes {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}
