package local

import "io"

// Services are what a node listens for, in the order of its ports.
var Services = []string{"smtp", "chain", "gossip", "raft", "http"}

// Balancer and Client stand beside the names of nodes. There is a process for
// the one, and a place for the other from which mail comes.
const (
	Balancer = "lb"
	Client   = "client"
)

const maxNodes = 26 // named by letters

// Name is the name of node i, from 0.
func Name(i int) string { return string(rune('a' + i)) }

// Index is the number of a node by its name, -1 when it has another form.
func Index(name string) int {
	if len(name) != 1 || name[0] < 'a' || name[0] >= 'a'+maxNodes {
		return -1
	}
	return int(name[0] - 'a')
}

// what is how people call somebody.
func what(name string) string {
	if name == Balancer {
		return "the balancer"
	}
	return "node " + name
}

// site is where nodes, the balancer and clients are.
type site interface {
	// addr is where others reach a service of somebody, and bind where they
	// listen for it.
	addr(name, service string) (addr, bind string)
	// sources are the addresses from which the balancer connects to nodes. With
	// fixed, it must be told to do so; else they are what its host has.
	sources() (addrs []string, fixed bool)
	// check says what keeps them from listening.
	check(names ...string) error
	// do calls a function where somebody is: a process that it starts and a
	// connection that it makes are there.
	do(name string, f func() error) error
	// prefix is what a person puts before a command that shall run there.
	prefix(name string) string
	// explain tells a person what harm can be done to the networks.
	explain(w io.Writer, names []string)
}
