package netsim

import "time"

// Link is the quality of the way between two hosts. It holds in each direction
// for itself.
type Link struct {
	Latency   time.Duration // of a packet, one way
	Jitter    time.Duration // up to so much more, at random
	Loss      float64       // of packets, 0 to 1; for TCP it costs time only
	Bandwidth int64         // bytes a second, of all that is sent; 0: no bound
}

const (
	defaultLatency = 200 * time.Microsecond // of a switched network
	localLatency   = 10 * time.Microsecond  // within a host

	// retransmission is when TCP sends again what was not acknowledged.
	retransmission = 200 * time.Millisecond
	// keepAliveIdle and keepAliveLimit are what package net asks of TCP: a
	// probe after 15 s without data, and an end after 9 without an answer.
	keepAliveIdle  = 15 * time.Second
	keepAliveLimit = keepAliveIdle + 9*15*time.Second
	// synLimit is how long Linux tries to connect.
	synLimit = 127 * time.Second
)

// way is one direction between two machines.
type way struct {
	n       *Network
	from    *machine
	to      *machine
	link    Link
	own     bool      // link was set for this pair
	cutAt   time.Time // zero: it is not cut
	refused bool
	free    time.Time // when all that was sent has left, at its bandwidth
}

func (w *way) cut() bool { return !w.cutAt.IsZero() }

// quality is the link's, or the network's where the pair has none.
func (w *way) quality() Link {
	switch {
	case w.from == w.to:
		return Link{Latency: localLatency}
	case w.own:
		return w.link
	}
	return w.n.link
}

// arrival is when a packet that is sent now gets there, and whether it does
// get there at the first attempt. It uses up bandwidth.
func (w *way) arrival(size int, now time.Time) (at time.Time, ok bool) {
	l := w.quality()
	at = now
	if l.Bandwidth > 0 {
		if w.free.After(at) {
			at = w.free
		}
		at = at.Add(time.Duration(float64(size) / float64(l.Bandwidth) * float64(time.Second)))
		w.free = at
	}
	at = at.Add(l.Latency)
	if l.Jitter > 0 {
		at = at.Add(time.Duration(w.n.random.Int64N(int64(l.Jitter))))
	}
	return at, l.Loss == 0 || w.n.random.Float64() >= l.Loss
}

// way is the direction from one machine to another.
func (n *Network) way(from, to *machine) *way {
	w := n.ways[[2]*machine{from, to}]
	if w == nil {
		w = &way{n: n, from: from, to: to}
		n.ways[[2]*machine{from, to}] = w
	}
	return w
}

// both are the two directions between two hosts.
func (n *Network) both(a, b string) [2]*way {
	x, y := n.machine(a), n.machine(b)
	return [2]*way{n.way(x, y), n.way(y, x)}
}

// SetLinks gives all pairs of hosts that have no own link this quality.
func (n *Network) SetLinks(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link = l
}

// SetLink gives the way between two hosts, in both directions, a quality of
// its own.
func (n *Network) SetLink(a, b string, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.both(a, b) {
		w.link, w.own = l, true
	}
}

// Cut lets everything between two hosts vanish, in both directions: packets
// are lost, connections and dials hang.
func (n *Network) Cut(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.both(a, b) {
		n.cut(w)
	}
}

// CutOneWay lets everything from one host to another vanish. What the other
// sends still arrives, but its acknowledgements do not.
func (n *Network) CutOneWay(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut(n.way(n.machine(from), n.machine(to)))
}

func (n *Network) cut(w *way) {
	if w.cut() || w.from == w.to {
		return
	}
	w.cutAt = time.Now()
	for wire := range n.wires {
		if wire.uses(w) {
			for _, c := range wire.ends {
				c.giveUpLater()
			}
		}
	}
}

// Refuse puts a firewall between two hosts that answers for the other one:
// connections are reset, new ones refused, packets dropped.
func (n *Network) Refuse(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ways := n.both(a, b)
	for _, w := range ways {
		w.refused = w.from != w.to
	}
	for wire := range n.wires {
		if ways[0].refused && wire.uses(ways[0]) {
			for _, c := range wire.ends {
				c.reset(time.Now())
			}
		}
	}
	n.changed.Broadcast()
}

// Heal ends what Cut, CutOneWay and Refuse did between two hosts. The quality
// of their link stays.
func (n *Network) Heal(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.both(a, b) {
		n.heal(w)
	}
}

// HealAll heals all pairs of hosts.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.ways {
		n.heal(w)
	}
}

func (n *Network) heal(w *way) {
	w.refused = false
	if w.cut() {
		since := w.cutAt
		w.cutAt = time.Time{}
		for wire := range n.wires {
			if wire.uses(w) {
				wire.healed(w, since)
			}
		}
	}
	n.changed.Broadcast()
}
