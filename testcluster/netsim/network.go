package netsim

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Network joins hosts. Its methods may be called from any goroutine.
type Network struct {
	// mu is over everything in the network: it is held for moments only, and
	// one lock needs no order.
	mu       sync.Mutex
	random   *rand.Rand
	machines map[string]*machine
	byIP     map[string]*machine
	ways     map[[2]*machine]*way
	wires    map[*wire]struct{}
	changed  *sync.Cond // of dials that wait for an answer
	link     Link       // of pairs that have no own
}

// New makes a network without hosts. The seed decides which packets are lost
// and how much they jitter.
func New(seed uint64) *Network {
	n := &Network{
		random:   rand.New(rand.NewPCG(seed, seed)),
		machines: map[string]*machine{},
		byIP:     map[string]*machine{},
		ways:     map[[2]*machine]*way{},
		wires:    map[*wire]struct{}{},
		link:     Link{Latency: defaultLatency},
	}
	n.changed = sync.NewCond(&n.mu)
	return n
}

// machine is what outlives the processes that run on it.
type machine struct {
	name    string
	ip      net.IP
	off     bool
	host    *Host // of the process that runs now
	nextTCP int
	nextUDP int
}

// machine finds a host's machine and makes it when it is new.
func (n *Network) machine(name string) *machine {
	m := n.machines[name]
	if m == nil {
		i := len(n.machines) + 1
		m = &machine{name: name, ip: net.IPv4(10, 0, byte(i>>8), byte(i)), nextTCP: firstEphemeral, nextUDP: firstEphemeral}
		n.machines[name], n.byIP[m.ip.String()] = m, m
		m.host = newHost(n, m)
	}
	return m
}

// Host is the process that runs on the machine of that name, which is made
// when it is new. After a Crash or a PowerOff it is another one.
func (n *Network) Host(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machine(name).host
}

// Crash ends the process on a host abruptly, as kill -9 does: what it had
// written is still delivered, then its connections are reset. The next
// process asks for its own Host; the old one cannot do anything any more.
func (n *Network) Crash(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.machine(name)
	n.end(m)
	for c := range n.ends(m) {
		if !c.closed {
			c.vanish()
			c.peer.resetAfterData()
		}
	}
}

// PowerOff ends the machine: nobody is told anything. What it had sent and
// what is sent to it is lost.
func (n *Network) PowerOff(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.machine(name)
	m.off = true
	n.end(m)
	for c := range n.ends(m) {
		c.vanish()
		c.gone = true
		c.out.lose()
		c.peer.giveUpLater()
	}
}

// PowerOn lets the machine boot. It knows nothing of its connections, and says
// so to peers that still believe in them: soon to those that wait for an
// acknowledgement, at the next keep-alive probe to the others.
func (n *Network) PowerOn(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.machine(name)
	if !m.off {
		return
	}
	m.off = false
	for c := range n.ends(m) {
		if c.gone {
			c.peer.disown()
		}
	}
	n.changed.Broadcast()
}

// end closes listeners and packet sockets of a machine's process, and puts a
// new process in its place. The caller deals with its connections.
func (n *Network) end(m *machine) {
	old := m.host
	m.host = newHost(n, m)
	old.dead = true
	for l := range old.listeners {
		l.shut()
	}
	for p := range old.packets {
		p.shut()
	}
	n.changed.Broadcast() // its own dials end
}

// Sockets counts the open listeners, connections and packet sockets of the
// process on a host: a process that ended well has none.
func (n *Network) Sockets(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.machine(name)
	count := len(m.host.listeners) + len(m.host.packets)
	for c := range n.ends(m) {
		if c.host == m.host && !c.closed {
			count++
		}
	}
	return count
}

// ends are the ends of connections on a machine, those of earlier processes
// too.
func (n *Network) ends(m *machine) iter.Seq[*conn] {
	return func(yield func(*conn) bool) {
		for w := range n.wires {
			for _, c := range w.ends {
				if c.host.machine == m && !yield(c) {
					return
				}
			}
		}
	}
}

func (m *machine) String() string { return fmt.Sprintf("%s (%s)", m.name, m.ip) }

// sooner is the earlier of two times, where zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// due reports whether a time has come; the zero time never comes.
func due(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }
