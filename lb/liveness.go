package lb

import (
	"slices"
	"time"
)

// Liveness turns what is seen from second to second into what a balancer should
// do: it waits before it believes that a node is gone or well again, so that a
// lost packet is no reload. It has no clock of its own.
type Liveness struct {
	down, up time.Duration
	nodes    map[string][]standing // by name, then as services
	told     map[string]Node       // what Update returned last
}

// standing is a node in one service.
type standing struct {
	shown Out
	since time.Time // when what is seen began to differ from shown; zero: it does not
}

// NewLiveness waits for down before a node goes out that does not answer, and for
// up before one comes in again.
func NewLiveness(down, up time.Duration) *Liveness {
	return &Liveness{down: down, up: up, nodes: map[string][]standing{}, told: map[string]Node{}}
}

// Update takes what is seen now and returns what should be.
func (l *Liveness) Update(now time.Time, seen Cluster) Cluster {
	c := Cluster{ID: seen.ID, Nodes: slices.Clone(seen.Nodes)}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		standings, known := l.nodes[n.Name]
		if !known {
			standings = make([]standing, len(services))
			for j, s := range services {
				standings[j].shown = *s.of(n)
			}
			l.nodes[n.Name] = standings
		}
		gone := n.Mail == Unreachable && n.Web == Unreachable
		for j, s := range services {
			out := s.of(n)
			*out = l.debounce(&standings[j], now, *out)
		}
		if gone && (n.Mail == Unreachable || n.Web == Unreachable) {
			l.goneWhole(standings, n)
		}
	}
	l.hold(&c)
	l.told = map[string]Node{}
	for _, n := range c.Nodes {
		l.told[n.Name] = n
	}
	for name := range l.nodes {
		if _, stays := l.told[name]; !stays {
			delete(l.nodes, name)
		}
	}
	return c
}

// goneWhole takes a node that is silent everywhere out of all services, when the
// time is over for one of them: the others would be one more reload.
func (l *Liveness) goneWhole(standings []standing, n *Node) {
	for j, s := range services {
		if out := s.of(n); *out == In {
			*out = Unreachable
			standings[j] = standing{shown: Unreachable}
		}
	}
}

// debounce moves a standing. Of a node that is out already, the reason stays the
// first one: another would be a reload that changes nothing.
func (l *Liveness) debounce(s *standing, now time.Time, seen Out) Out {
	if (s.shown == In) == (seen == In) {
		s.since = time.Time{}
		return s.shown
	}
	if s.since.IsZero() {
		s.since = now
	}
	var wait time.Duration
	switch seen {
	case In:
		wait = l.up
	case Unreachable, Starting, CutOff, NoSMTP:
		wait = l.down
	case Draining, Full: // its own word, and mail would be refused
	}
	if now.Sub(s.since) >= wait {
		s.shown, s.since = seen, time.Time{}
	}
	return s.shown
}

// hold leaves a service as it was when no node is left in it: when all are gone,
// it is more likely that this balancer cannot see them; and if not, nothing is
// lost.
func (l *Liveness) hold(c *Cluster) {
	for _, s := range services {
		in := func(n Node) bool { return *s.of(&n) == In }
		if slices.ContainsFunc(c.Nodes, in) {
			continue
		}
		for i := range c.Nodes {
			if before, ok := l.told[c.Nodes[i].Name]; ok {
				*s.of(&c.Nodes[i]) = *s.of(&before)
			}
		}
	}
	*c = c.kept()
}
