package chain

import (
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"time"

	"chainmail/archive/record"
	"chainmail/membership/ring"
)

// What is known, and what follows from news of it. Four things are news: this
// node holds something else, a peer does, the view changed, a link came or
// went. Each may end the waiting of mail (copies.go) and give lanes work
// (batch.go), so each rings their bells; what exactly follows is computed anew
// by whom it concerns.

// peer is another data member.
type peer struct {
	name    string
	id      string // of the member: a new one means another disk
	address string

	belief  belief
	known   map[record.StoreID]record.Seq // the highest number of each log that it has heard of
	hello   hello                         // the last one, without its logs
	heardAt time.Time                     // when it came
	skew    time.Duration                 // its clock minus ours

	link     *link  // nil: not connected
	state    string // of the link: see LinkStatus
	since    time.Time
	problem  string // why it is not connected
	suspect  bool   // gossip thinks it is dead, and it has not shown the contrary since
	alive    bool   // gossip's opinion
	refusal  string // why it takes nothing now; empty: it does
	redial   chan struct{}
	rejected map[record.Position]string // receipts that cannot be given to it, and why

	traffic traffic
}

// live reports whether the peer can be given receipts now.
func (p *peer) live() bool { return p.link != nil && !p.suspect && p.refusal == "" }

func newPeer(m ring.Member) *peer {
	p := &peer{
		name: m.Name, id: m.ID, address: m.Addresses.Chain, alive: true,
		state: StateConnecting, since: time.Now(),
		redial:   make(chan struct{}, 1),
		rejected: map[record.Position]string{},
	}
	if p.address == "" {
		p.state = StateDisabled
	}
	return p
}

// readView takes the committed view and gossip's opinions.
func (c *Chain) readView() {
	view := c.opts.View()
	alive := map[string]bool{}
	for _, m := range view.Members {
		alive[m.Name] = c.opts.Alive(m.Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !reflect.DeepEqual(view, c.view) {
		c.view = view
		for _, l := range c.logs {
			l.duties = duties(view, l.Log)
		}
		c.readMembersLocked()
	}
	for _, p := range c.peers {
		c.opinionLocked(p, alive[p.name])
	}
	c.spreadLocked()
}

// readMembersLocked makes a peer of each other data member. Who moved is asked
// at the new address. Who has a new identity has a new disk: what was known of
// the old one is no copy any more.
func (c *Chain) readMembersLocked() {
	stay := map[string]bool{}
	for _, m := range c.view.Members {
		if m.Name == c.opts.Name || m.Role != ring.Data {
			continue
		}
		stay[m.Name] = true
		old := c.peers[m.Name]
		if old != nil && old.address == m.Addresses.Chain && old.id == m.ID {
			continue
		}
		p := newPeer(m)
		if old != nil && old.id == m.ID {
			p.belief, p.known, p.hello, p.heardAt, p.skew = old.belief, old.known, old.hello, old.heardAt, old.skew
		}
		c.peers[m.Name] = p
	}
	maps.DeleteFunc(c.peers, func(name string, _ *peer) bool { return !stay[name] })
}

// opinionLocked takes gossip's opinion of a peer. Death makes it suspect: it
// is routed around until the link, which is asked anew, shows the contrary.
func (c *Chain) opinionLocked(p *peer, alive bool) {
	switch {
	case p.alive && !alive:
		p.suspect = true
		if p.link != nil {
			p.link.end(errDead)
		}
	case alive && p.link == nil:
		ringBell(p.redial)
	}
	p.alive = alive
}

// others are the peers of the view.
func (c *Chain) others() map[*peer]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[*peer]bool{}
	for _, p := range c.peers {
		all[p] = true
	}
	return all
}

// readLogs takes what this node holds.
func (c *Chain) readLogs() {
	logs := c.opts.Archive.Logs()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range logs {
		known := c.logs[l.Store]
		if known == nil || known.Origin != l.Origin || !samePlacements(known.Log, l) {
			next := &ownLog{Log: l, duties: duties(c.view, l)}
			if known != nil {
				next.marks = known.marks
			}
			known = next
			c.logs[l.Store] = known
		}
		known.Held = l.Held
		c.heardOfLocked(l.Store, lastKnown(l))
	}
	if own := c.opts.Archive.Store(); own != c.own { // a new log has no placement yet
		c.own = own
		c.Wake()
	}
	for _, p := range c.peers {
		p.ring()
	}
}

// lastKnown is the highest number that a log is known to have had.
func lastKnown(l record.Log) record.Seq {
	last := l.Held.Last()
	if n := len(l.Placements); n > 0 {
		last = max(last, l.Placements[n-1].From-1)
	}
	return last
}

func (c *Chain) heardOfLocked(s record.StoreID, last record.Seq) {
	c.heard[s] = max(c.heard[s], last)
}

func samePlacements(a, b record.Log) bool {
	return slices.EqualFunc(a.Placements, b.Placements, func(p, q record.Placement) bool {
		return p.From == q.From && slices.Equal(p.Nodes, q.Nodes)
	})
}

// ring tells the peer's lanes to look for work.
func (p *peer) ring() {
	if p.link != nil {
		ringBell(p.link.live.bell)
		ringBell(p.link.bulk.bell)
	}
}

// spreadLocked tells everybody who may care that links or the view changed.
func (c *Chain) spreadLocked() {
	c.resolveAllLocked()
	for _, p := range c.peers {
		p.ring()
	}
	close(c.news)
	c.news = make(chan struct{})
}

// learn takes what a peer tells of itself: answered says that it is the answer
// to a question of this node, so that it comes from the process at the other
// end of the link now. A hello that a peer sends on its own may have been on
// its way while that process died; it counts only for a life that is known.
func (c *Chain) learn(name string, h hello, answered bool) {
	c.learnLogs(h)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range h.Logs {
		c.heardOfLocked(l.Store, max(l.Known, lastKnown(l.Log)))
	}
	p := c.peers[name]
	if p == nil {
		return
	}
	if p.link == nil && !answered {
		ringBell(p.redial)
	}
	if p.belief.boot != h.Boot && answered {
		for _, l := range h.Logs {
			c.before[l.Store] = max(c.before[l.Store], lastKnown(l.Log))
		}
	}
	if !answered && p.belief.boot != h.Boot || !p.belief.hello(h.Boot, h.Generation, h.held()) {
		return
	}
	p.heardAt = time.Now()
	p.skew = h.Time.Sub(p.heardAt)
	p.known = map[record.StoreID]record.Seq{}
	for _, l := range h.Logs {
		p.known[l.Store] = l.Known
	}
	for s := range p.belief.logs {
		c.resolveLocked(s)
	}
	for _, other := range c.peers { // what one holds decides what others are sent
		other.ring()
	}
	h.Logs = nil
	p.hello = h
	close(c.news)
	c.news = make(chan struct{})
}

// learnLogs hands the archive what a peer knows of logs beyond what this node
// knows.
func (c *Chain) learnLogs(h hello) {
	for _, l := range h.Logs {
		if l.Store == c.opts.Archive.Store() || l.Origin == "" {
			continue
		}
		mine, have := c.opts.Archive.Log(l.Store)
		if have && mine.Origin != "" && (samePlacements(mine, l.Log) || !newer(l.Log, mine)) {
			continue
		}
		told := l.Log
		told.Held = nil
		if err := c.opts.Archive.Learn(told); err != nil && !errors.Is(err, ErrFull) {
			c.log.Warn("cannot note who keeps a log", slog.String("store", l.Store.String()), slog.String("peer", h.Node), slog.Any("err", err))
		}
	}
}

// newer reports whether a's placements are more than b's.
func newer(a, b record.Log) bool {
	from := func(l record.Log) record.Seq {
		if n := len(l.Placements); n > 0 {
			return l.Placements[n-1].From
		}
		return 0
	}
	return len(a.Placements) > len(b.Placements) || from(a) > from(b)
}

// confirmedLocked takes a 250 for a container.
func (c *Chain) confirmedLocked(p *peer, boot string, generation uint64, held map[record.StoreID]record.Ranges) {
	for s, r := range held {
		if p.belief.confirm(boot, confirmation{generation, s, r}) {
			c.resolveLocked(s)
		}
	}
}

// passLocked does what is due every second.
func (c *Chain) passLocked(now time.Time) {
	for s, l := range c.logs {
		l.marks = append(l.marks, c.heard[s])
		l.marks = l.marks[max(0, len(l.marks)-settling):]
	}
	for _, p := range c.peers {
		p.traffic.pass()
		if p.link != nil {
			p.link.noteLocked(now)
			p.ring() // standbys' times may have come
		}
	}
}

// liveLocked reports whether a node can be given receipts; this one can.
func (c *Chain) liveLocked(name string) bool {
	p := c.peers[name]
	return name == c.opts.Name || p != nil && p.live()
}

// holdsLocked is what a node is known to hold of a log.
func (c *Chain) holdsLocked(name string, s record.StoreID) record.Ranges {
	if name == c.opts.Name {
		if l := c.logs[s]; l != nil {
			return l.Held
		}
		return nil
	}
	if p := c.peers[name]; p != nil {
		return p.belief.held(s)
	}
	return nil
}
