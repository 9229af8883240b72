package chain

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"chainmail/archive/record"
	"chainmail/membership/ring"
)

// The states of a link.
const (
	StateConnected  = "connected"
	StateConnecting = "connecting" // it is tried; Problem says why there is none yet
	StateRefused    = "refused"    // the peer answers, but takes nothing; Problem says why
	StateDisabled   = "disabled"   // the member has no address for it
)

// Status is what a node knows of the replication at a moment.
type Status struct {
	Boot  string // names this life of the process
	Peers []PeerStatus
	// Backlog is what this node itself lacks; nil: no peer has said yet what
	// it holds.
	Backlog *Backlog
	// ShortNow counts receipts of this node's mail, older than some seconds,
	// of which fewer copies are known than the policy asks for. Keepers that
	// have not spoken since the start of this node (Unheard) may hold more.
	ShortNow  uint64
	ShortEver uint64 // calls of Wait that ended short
	Waiting   int    // calls of Wait that go on
	Unheard   []string
}

// PeerStatus is what a node knows of another data member.
type PeerStatus struct {
	Name       string
	Address    string
	Link       LinkStatus
	HeardAt    time.Time // when it last said what it holds; what follows is zero before
	Boot       string
	Version    string
	Epoch      ring.Epoch
	MaxMessage int64
	ClockSkew  *time.Duration // its clock minus this node's; nil: unknown
	Logs       []record.Log   // what it holds, by its own account
	Backlog    *Backlog       // what it lacks; nil: unknown
	// Rejected are receipts that it cannot be given, each with the reason; the
	// first hundred.
	Rejected map[record.Position]string
}

// LinkStatus is the state of the link from this node to a peer.
type LinkStatus struct {
	State     string
	Since     time.Time
	Problem   string        // why it is not connected or refused
	Live      bool          // receipts can go over it
	Feeding   bool          // this node is the first to send the peer what it lacks of some log
	Receipts  uint64        // sent and confirmed since the start
	Bytes     int64         // of their containers
	ByteRate  float64       // a second, of late
	RoundTrip time.Duration // from a container of new mail to the word that it is on disk
}

// Backlog is what a member should hold and does not.
type Backlog struct {
	Receipts uint64
	InFlight uint64     // of Receipts: not lost, and so new that they are on their way
	Bytes    *int64     // nil: not known
	Oldest   *time.Time // when the oldest came into the cluster; nil: not known
	Lost     uint64     // of Receipts: held by no member that can be reached
	LostAt   []string   // "store:first-last", the first 100
	Logs     []LogBacklog
}

// LogBacklog is the part of one log.
type LogBacklog struct {
	Store    record.StoreID
	Origin   string
	Receipts uint64
	Bytes    *int64
	Oldest   *time.Time
	Lost     uint64
}

// Status gives the state of this moment.
func (c *Chain) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Boot: c.boot, ShortNow: c.shortNowLocked(), ShortEver: c.shortEver}
	for _, queue := range c.waiters {
		s.Waiting += len(queue)
	}
	for _, name := range c.view.From(c.opts.Name) {
		p := c.peers[name]
		if p == nil {
			continue
		}
		s.Peers = append(s.Peers, c.peerStatusLocked(p))
		if !p.belief.known() {
			s.Unheard = append(s.Unheard, name)
		}
	}
	if len(s.Unheard) < len(s.Peers) || len(s.Peers) == 0 {
		s.Backlog = c.backlogLocked(c.opts.Name)
	}
	return s
}

func (c *Chain) peerStatusLocked(p *peer) PeerStatus {
	s := PeerStatus{Name: p.name, Address: p.address, Link: c.linkStatusLocked(p)}
	if p.belief.known() {
		skew := p.skew
		s.HeardAt, s.Boot, s.ClockSkew = p.heardAt, p.belief.boot, &skew
		s.Version, s.Epoch, s.MaxMessage = p.hello.Version, p.hello.Epoch, p.hello.MaxMessage
		s.Backlog = c.backlogLocked(p.name)
		s.Logs = slices.SortedFunc(maps.Values(p.belief.logs), func(a, b record.Log) int { return cmp.Compare(a.Store, b.Store) })
	}
	s.Rejected = maps.Clone(p.rejected)
	return s
}

func (c *Chain) linkStatusLocked(p *peer) LinkStatus {
	s := LinkStatus{
		State: p.state, Since: p.since, Problem: p.problem, Live: p.live(),
		Receipts: p.traffic.receipts, Bytes: p.traffic.bytes, ByteRate: p.traffic.rate, RoundTrip: p.traffic.roundTrip,
	}
	if p.link != nil && p.refusal != "" {
		s.State, s.Problem = StateRefused, p.refusal
	}
	for _, l := range c.logs {
		keepers := l.duties[len(l.duties)-1].keepers
		if all := feeders(keepers, l.Origin, p.name, c.liveLocked); p.live() && len(all) > 0 && all[0] == c.opts.Name {
			s.Feeding = true
		}
	}
	return s
}

// backlogLocked is what a member lacks of all logs.
func (c *Chain) backlogLocked(name string) *Backlog {
	sum := &Backlog{}
	complete := true
	var bytes int64
	for _, s := range slices.Sorted(maps.Keys(c.logs)) {
		lacks, lost := c.lackingLocked(name, s)
		if len(lacks) == 0 {
			continue
		}
		l := LogBacklog{Store: s, Origin: c.logs[s].Origin, Receipts: lacks.Count(), Lost: lost.Count()}
		if w, ok := c.weighed[peerLog{name, s}]; ok {
			l.Bytes, l.Oldest = &w.bytes, &w.oldest
			bytes += w.bytes
			if sum.Oldest == nil || w.oldest.Before(*sum.Oldest) {
				sum.Oldest = &w.oldest
			}
		} else {
			complete = false
		}
		sum.Logs = append(sum.Logs, l)
		sum.Receipts += l.Receipts
		sum.Lost += l.Lost
		sum.InFlight += above(lacks.Minus(lost), c.endSettledLocked(s)).Count()
		for _, r := range lost {
			if len(sum.LostAt) < 100 {
				sum.LostAt = append(sum.LostAt, s.String()+":"+r.String())
			}
		}
	}
	if complete {
		sum.Bytes = &bytes
	} else {
		sum.Oldest = nil
	}
	return sum
}

// shortNowLocked counts own receipts with too few copies, but for those that
// are so new that they may be on their way.
func (c *Chain) shortNowLocked() (n uint64) {
	for s, l := range c.logs {
		if l.Origin != c.opts.Name {
			continue
		}
		var others []record.Ranges
		for _, p := range c.peers {
			others = append(others, p.belief.held(s))
		}
		old := l.Held.Intersect(record.Of(1, c.endSettledLocked(s)))
		for _, w := range c.waiters[s] {
			old = old.Minus(record.Of(w.position.Seq, w.position.Seq))
		}
		for _, d := range l.duties {
			want := min(c.view.Policies.Copies, max(1, len(d.keepers)))
			n += thin(old.Intersect(record.Ranges{d.Range}), others, want).Count()
		}
	}
	return n
}

// traffic counts what is sent to a peer.
type traffic struct {
	receipts  uint64
	bytes     int64
	rate      float64 // bytes a second, smoothed over some seconds
	roundTrip time.Duration
	before    int64 // bytes at the last second
}

func (t *traffic) sent(x *transaction) {
	t.receipts += x.receipts
	t.bytes += int64(x.bytes)
	took := time.Since(x.begun)
	if t.roundTrip == 0 {
		t.roundTrip = took
	}
	t.roundTrip += (took - t.roundTrip) / 8
}

// pass is called every second.
func (t *traffic) pass() {
	t.rate += (float64(t.bytes-t.before) - t.rate) / 3
	t.before = t.bytes
	if t.rate < 1 {
		t.rate = 0
	}
}
