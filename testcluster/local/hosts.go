package local

import (
	"fmt"
	"io"
	"net"

	"chainmail/testcluster/netns"
)

// ports are those of a real node. The balancer has those of smtp and http.
var ports = map[string]string{"smtp": "25", "chain": "8091", "gossip": "8092", "raft": "8093", "http": "8025"}

// The last numbers of addresses; those of nodes begin with 1.
const (
	balancerNumber = 100
	clientNumber   = 200
)

// NewLab makes hosts for nodes, the balancer and clients, and more. Clients have a
// card on the front network only. The caller closes it.
func NewLab(nodes int, more ...netns.Host) (*netns.Lab, error) {
	both := []netns.Card{netns.Front, netns.Chain}
	hosts := []netns.Host{
		{Name: Balancer, Number: balancerNumber, Cards: both},
		{Name: Client, Number: clientNumber, Cards: both[:1]},
	}
	for i := range nodes {
		hosts = append(hosts, netns.Host{Name: Name(i), Number: byte(i + 1), Cards: both})
	}
	return netns.New(append(hosts, more...)...)
}

// hosts are the site of nodes that have machines of their own.
type hosts struct{ lab *netns.Lab }

// addr: clients and the balancer reach nodes on the front network, nodes one
// another on the chain network. HTTP is for both: nodes listen on both cards and
// tell the address on the chain network, where the balancer has a card, too.
func (s hosts) addr(name, service string) (addr, bind string) {
	card := netns.Chain
	if service == "smtp" || name == Balancer {
		card = netns.Front
	}
	addr = net.JoinHostPort(s.lab.Addr(card, name).String(), ports[service])
	if service == "http" && name != Balancer {
		return addr, ":" + ports[service]
	}
	return addr, addr
}

func (s hosts) sources() (addrs []string, fixed bool) {
	return []string{s.lab.Addr(netns.Front, Balancer).String(), s.lab.Addr(netns.Chain, Balancer).String()}, false
}

func (hosts) check(...string) error { return nil } // hosts are new and have all ports free

func (s hosts) do(name string, f func() error) error { return s.lab.Do(name, f) }

func (s hosts) prefix(name string) string {
	space, err := s.lab.Space(name)
	if err != nil {
		return ""
	}
	return "ip netns exec " + space + " "
}

func (s hosts) explain(w io.Writer, names []string) {
	first, last, bridges := names[0], names[len(names)-1], s.lab.Switch()
	fmt.Fprintf(w, "Each node is a host with two cards: front for clients, chain for the other nodes.\n")
	fmt.Fprintf(w, "Pull a cable, chain-%[2]s or front-%[2]s, and put it back:\n  ip -n %[1]s link set chain-%[2]s down\n  ip -n %[1]s link set chain-%[2]s up\n", bridges, last)
	if first == last {
		return
	}
	fmt.Fprintf(w, "Let what %s and %s send one another vanish, and heal that:\n", first, last)
	for _, verb := range []string{"add", "delete"} {
		fmt.Fprintf(w, "  ip netns exec %[1]s nft %[4]s element bridge faults cut '{ chain-%[2]s . chain-%[3]s, chain-%[3]s . chain-%[2]s }'\n", bridges, first, last, verb)
	}
}
