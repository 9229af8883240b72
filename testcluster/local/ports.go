package local

import (
	"errors"
	"fmt"
	"net"
	"slices"
)

// Services are what a node listens for, in the order of its ports.
var Services = []string{"smtp", "chain", "gossip", "raft", "http"}

const (
	portStep = 10 // from one node to the next
	maxNodes = 26 // named by letters
	maxPort  = 1<<16 - 1
)

// Name is the name of node i, from 0.
func Name(i int) string { return string(rune('a' + i)) }

// Index is the number of a node by its name, -1 when it has another form.
func Index(name string) int {
	if len(name) != 1 || name[0] < 'a' || name[0] >= 'a'+maxNodes {
		return -1
	}
	return int(name[0] - 'a')
}

// Addr is where a node listens for one of the Services.
func (p *Processes) Addr(name, service string) string {
	return fmt.Sprintf("127.0.0.1:%d", p.options.BasePort+portStep*Index(name)+slices.Index(Services, service))
}

// CheckPorts says which ports of the named nodes are taken by others.
func (p *Processes) CheckPorts(names ...string) error {
	for _, name := range names {
		if last := p.options.BasePort + portStep*Index(name) + len(Services) - 1; p.options.BasePort < 1 || last > maxPort {
			return fmt.Errorf("base port %d: node %s would need ports up to %d: choose one from 1 to %d", p.options.BasePort, name, last, p.options.BasePort-last+maxPort)
		}
		for _, service := range Services {
			if err := tryPort(p.Addr(name, service), service == "gossip"); err != nil {
				return fmt.Errorf("cannot have the %s port of node %s: %w: choose another base port, or stop what uses it", service, name, err)
			}
		}
	}
	return nil
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
// free. Others may take them before they are used.
func FreeBasePort(nodes int) (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // spreads processes that look at the same time
	if err != nil {
		return 0, err
	}
	start := l.Addr().(*net.TCPAddr).Port
	l.Close()
	names := make([]string, nodes)
	for i := range names {
		names[i] = Name(i)
	}
	const first, last = 10000, 30000 // below the ports that systems give to clients
	for i := range 200 {
		p := &Processes{options: Options{BasePort: first + (start*7+i*portStep*nodes)%(last-first)}}
		if p.CheckPorts(names...) == nil {
			return p.options.BasePort, nil
		}
	}
	return 0, errors.New("no free ports for the nodes on loopback")
}
