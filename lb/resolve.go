package lb

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	// lookupEvery is how long an address of a name is believed without asking again.
	lookupEvery = 10 * time.Second
	lookupTime  = time.Second
)

// resolver gives names their addresses, so that a name that the DNS does not
// know for a while is no configuration that the balancer refuses, and one that
// moves is followed.
type resolver struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	known  map[string]resolved
}

type resolved struct {
	ip netip.Addr // invalid: never known
	at time.Time
}

// resolve returns the cluster with IP addresses in place of names. Nodes whose
// names never had one are left out, and named in problems.
func (r *resolver) resolve(ctx context.Context, c Cluster, l Layout) (_ Cluster, problems []string) {
	if r.lookup == nil {
		return c, nil
	}
	var nodes []Node
	for _, n := range c.Nodes {
		err := r.address(ctx, &n.SMTP, l)
		if err == nil {
			err = r.address(ctx, &n.HTTP, l)
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("member %s is left out: %v", n.Name, err))
			continue
		}
		nodes = append(nodes, n)
	}
	c.Nodes = nodes
	return c, problems
}

func (r *resolver) address(ctx context.Context, a *Address, l Layout) error {
	if a.IP().IsValid() {
		return nil
	}
	k := r.known[a.host]
	if k.at.IsZero() || time.Since(k.at) >= lookupEvery {
		ctx, cancel := context.WithTimeout(ctx, lookupTime)
		all, err := r.lookup(ctx, a.host)
		cancel()
		k.at = time.Now()
		if ip, ok := choose(all, k.ip, l); err == nil && ok {
			k.ip = ip
		}
		if r.known == nil {
			r.known = map[string]resolved{}
		}
		r.known[a.host] = k
	}
	if !k.ip.IsValid() {
		return fmt.Errorf("no address is known for its name %s: see the DNS or /etc/hosts of this machine, or let the node advertise an IP address", a.host)
	}
	a.host = k.ip.String()
	return nil
}

// choose takes the address before, as long as it is one of them; else one that is
// reachable from the layout's source, IPv4 first.
func choose(all []netip.Addr, before netip.Addr, l Layout) (netip.Addr, bool) {
	var usable []netip.Addr
	for _, ip := range all {
		if ip = ip.Unmap(); ip.Zone() == "" && !ip.IsUnspecified() && (!l.Source.IsValid() || l.Source.Is4() == ip.Is4()) {
			usable = append(usable, ip)
		}
	}
	if len(usable) == 0 {
		return netip.Addr{}, false
	}
	if slices.Contains(usable, before) {
		return before, true
	}
	return slices.MinFunc(usable, netip.Addr.Compare), true
}
