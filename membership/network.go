package membership

import (
	"cmp"
	"context"
	"net"
	"net/netip"
)

// Network is where the sockets come from: package net, unless a test puts a
// network of its own in its place. Fields that are nil are those of package
// net.
type Network struct {
	Listen       func(network, addr string) (net.Listener, error)
	ListenPacket func(network, addr string) (net.PacketConn, error)
	Dial         func(ctx context.Context, network, addr string) (net.Conn, error)
	// Lookup resolves a host name; it is not asked for IP addresses.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

func (n Network) complete() Network {
	if n.Listen == nil {
		n.Listen = net.Listen
	}
	if n.ListenPacket == nil {
		n.ListenPacket = net.ListenPacket
	}
	if n.Dial == nil {
		n.Dial = new(net.Dialer).DialContext
	}
	if n.Lookup == nil {
		n.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return n
}

// bindAttempts is how often a free port is looked for that both TCP and UDP
// can have.
const bindAttempts = 20

// listenBoth binds TCP and UDP to the same port. Port 0 chooses one.
func (n Network) listenBoth(addr string) (net.Listener, net.PacketConn, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, nil, err
	}
	for attempt := 1; ; attempt++ {
		l, err := n.Listen("tcp", addr)
		if err != nil {
			return nil, nil, err
		}
		p, err := n.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, p, nil
		}
		l.Close()
		if cmp.Or(port, "0") != "0" || attempt == bindAttempts {
			return nil, nil, err
		}
	}
}
