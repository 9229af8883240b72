package node

import (
	"context"
	"fmt"
	"net"
	"slices"

	"chainmail/membership/ring"
)

// Network is how a node reaches others and is reached; the zero value is the
// machine's own. Tests give it a network in memory.
type Network struct {
	Listen       func(network, address string) (net.Listener, error)
	ListenPacket func(network, address string) (net.PacketConn, error)
	Dial         func(ctx context.Context, network, address string) (net.Conn, error)
}

func (n *Network) complete() Network {
	var own Network
	if n != nil {
		own = *n
	}
	if own.Listen == nil {
		own.Listen = net.Listen
	}
	if own.ListenPacket == nil {
		own.ListenPacket = net.ListenPacket
	}
	if own.Dial == nil {
		own.Dial = new(net.Dialer).DialContext
	}
	return own
}

// advertised is where others reach the listeners of c. real gives the
// addresses that are bound, by their keys in the configuration, where they are
// known; they stand in for a port 0.
func (c Config) advertised(real map[string]string) (ring.Addresses, error) {
	var a ring.Addresses
	for _, l := range []struct {
		key, bind, told string
		to              *string
	}{
		{"smtp", c.smtpAddress(), c.Advertise.SMTP, &a.SMTP},
		{"chain", c.Chain, c.Advertise.Chain, &a.Chain},
		{"gossip", c.Gossip, c.Advertise.Gossip, &a.Gossip},
		{"raft", c.Raft, c.Advertise.Raft, &a.Raft},
		{"http", c.HTTP, c.Advertise.HTTP, &a.HTTP},
	} {
		if c.Role == RoleWitness && (l.key == "smtp" || l.key == "chain") {
			continue
		}
		bound := l.bind
		if r := real[l.key]; r != "" {
			bound = r
		}
		if bound == "" {
			continue // no connector named smtp
		}
		var err error
		if *l.to, err = reachableAt(bound, l.told); err != nil {
			return a, fmt.Errorf("%s: %w", l.key, err)
		}
	}
	return a, nil
}

func (c Config) smtpAddress() string {
	i := slices.IndexFunc(c.Connectors, func(k Connector) bool { return k.Name == smtpConnector })
	if i < 0 {
		return ""
	}
	if _, _, err := net.SplitHostPort(c.Connectors[i].Listen); err != nil {
		return "" // a unix socket
	}
	return c.Connectors[i].Listen
}

// reachableAt joins where a listener is bound with what the operator says of
// it, which may be a whole address or only a host.
func reachableAt(bound, told string) (string, error) {
	host, port, err := net.SplitHostPort(bound)
	if err != nil {
		return "", err
	}
	if told != "" {
		if h, p, err := net.SplitHostPort(told); err == nil {
			return net.JoinHostPort(h, p), nil
		}
		return net.JoinHostPort(told, port), nil
	}
	if wildcard(host) {
		host = machineAddress()
	}
	return net.JoinHostPort(host, port), nil
}

// machineAddress is the address from which this machine would reach others by
// its default route, or loopback when it reaches nobody. No packet is sent:
// the kernel only looks up the route to an address kept for documentation
// (RFC 5737). On a machine with several networks the operator names the one
// that the nodes share.
func machineAddress() string {
	conn, err := net.Dial("udp4", "192.0.2.1:9")
	if err != nil {
		return "127.0.0.1"
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}
