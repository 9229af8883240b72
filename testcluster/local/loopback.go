package local

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
)

const (
	portStep = 10 // from one node to the next
	maxPort  = 1<<16 - 1

	// BalancerBefore is how many ports before those of the first node the
	// balancer has its own.
	BalancerBefore = 100

	// balancerSource is an address of loopback from which nobody else connects:
	// nodes believe what it says of its clients, and no other client on 127.0.0.1
	// has to say anything.
	balancerSource = "127.0.0.2"
)

// loopback is the site of nodes that share the machine's own network.
type loopback struct{ basePort int }

func (s loopback) first(name string) int {
	if name == Balancer {
		return s.basePort - BalancerBefore
	}
	return s.basePort + portStep*Index(name)
}

func (s loopback) addr(name, service string) (addr, bind string) {
	addr = fmt.Sprintf("127.0.0.1:%d", s.first(name)+slices.Index(Services, service))
	return addr, addr
}

func (loopback) sources() (addrs []string, fixed bool) { return []string{balancerSource}, true }

func (loopback) do(_ string, f func() error) error { return f() }

func (loopback) prefix(string) string { return "" }

func (loopback) explain(io.Writer, []string) {}

// check says which ports are taken by others.
func (s loopback) check(names ...string) error {
	for _, name := range names {
		first := s.first(name)
		switch last := first + len(Services) - 1; {
		case first < 1:
			return fmt.Errorf("base port %d: %s would need the ports from %d: choose one from %d", s.basePort, what(name), first, s.basePort-first+1)
		case last > maxPort:
			return fmt.Errorf("base port %d: %s would need ports up to %d: choose one up to %d", s.basePort, what(name), last, s.basePort-last+maxPort)
		}
		for _, service := range services(name) {
			addr, _ := s.addr(name, service)
			if err := tryPort(addr, service == "gossip"); err != nil {
				return fmt.Errorf("cannot have the %s port of %s: %w: choose another base port, or stop what uses it", service, what(name), err)
			}
		}
	}
	return nil
}

// services are those that somebody has.
func services(name string) []string {
	if name == Balancer {
		return []string{"smtp", "http"}
	}
	return Services
}

// tryPort listens for a moment.
func tryPort(addr string, packets bool) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer l.Close()
	if !packets {
		return nil
	}
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	return u.Close()
}

// FreeBasePort finds a base port from which this many nodes have their ports
// free, and a balancer its own. Others may take them before they are used.
func FreeBasePort(nodes int) (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // spreads processes that look at the same time
	if err != nil {
		return 0, err
	}
	start := l.Addr().(*net.TCPAddr).Port
	l.Close()
	names := []string{Balancer}
	for i := range nodes {
		names = append(names, Name(i))
	}
	const first, last = 10000, 30000 // below the ports that systems give to clients
	for i := range 200 {
		s := loopback{first + (start*7+i*portStep*nodes)%(last-first)}
		if s.check(names...) == nil {
			return s.basePort, nil
		}
	}
	return 0, errors.New("no free ports for the nodes on loopback")
}
