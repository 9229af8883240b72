package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"chainmail/archive/record"
	"chainmail/chain"
	"chainmail/membership/ring"
	"chainmail/node/api"
	"chainmail/node/client"
)

const (
	// askTimeout is how long a peer may take to tell of itself: people wait.
	askTimeout = time.Second
	// askTimeoutDead is the same for one that gossip calls dead: it is asked all
	// the same, since gossip may be wrong, but nobody waits for it.
	askTimeoutDead = askTimeout / 4
	// maxSkew between two clocks is shown from here on: times of receipts come
	// from the clocks of the nodes that took them.
	maxSkew = 2 * time.Second
)

// cluster asks every member what it says of itself, and puts together what
// this node knows.
func (n *Node) cluster(ctx context.Context) api.Cluster {
	view := n.members.View()
	if n.witness() {
		if c, ok := n.askData(ctx, view); ok {
			return c
		}
	}
	c := api.Cluster{
		ID: view.Cluster, Node: n.config.Name, Epoch: uint64(view.Epoch),
		Leader: n.members.Leader(), Voters: n.members.Voters(), Quorum: n.members.Quorum(),
		Policies: policies(view.Policies), Routes: routes(n.routes).Routes(), At: time.Now().UTC(),
	}
	var replication chain.Status
	if n.chain != nil {
		replication = n.chain.Status()
	}
	reports := n.reports(ctx, view)
	for _, m := range inOrder(view) {
		member := n.member(view, m, replication)
		member.Voter = slices.Contains(c.Voters, m.Name)
		if r, ok := reports[m.Name]; ok {
			member.Self = &r
		} else {
			member.State = api.StateUnreachable
			member.OutOfReach = n.outOfReach(view, m.Name)
		}
		member.Warnings = n.warnings(member, view)
		c.Members = append(c.Members, member)
	}
	problems := n.members.Problems()
	if r := n.members.Rotating(); r != "" {
		problems = append(problems, r)
	}
	if k := n.differ.Load(); k > 0 {
		problems = append(problems, fmt.Sprintf("the last comparison found %d stretches of logs with other contents on another node: 'chainmail verify --cluster' names them", k))
	}
	for _, p := range problems {
		own := slices.IndexFunc(c.Members, func(m api.Member) bool { return m.Name == n.config.Name })
		if own >= 0 {
			c.Members[own].Warnings = append(c.Members[own].Warnings, p)
		}
	}
	judge(&c)
	return c
}

// askData asks the data members for the cluster, until one answers: a witness
// does not know who lacks what.
func (n *Node) askData(ctx context.Context, view ring.View) (api.Cluster, bool) {
	for _, m := range view.Members {
		if m.Role != ring.Data || !n.members.Alive(m.Name) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 2*askTimeout) // it asks the others in its turn
		c := n.peer(m)
		state, err := c.Cluster(ctx)
		c.Close()
		cancel()
		if err == nil {
			state.Node = n.config.Name
			return state, true
		}
	}
	return api.Cluster{}, false
}

// inOrder is the members in the order of the ring, witnesses last.
func inOrder(view ring.View) []ring.Member {
	members := slices.Clone(view.Members)
	slices.SortStableFunc(members, func(a, b ring.Member) int {
		return btoi(a.Role == ring.Witness) - btoi(b.Role == ring.Witness)
	})
	return members
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func policies(p ring.Policies) api.Policies {
	return api.Policies{
		Copies: p.Copies, Replicas: p.Replicas, WhenShort: string(p.WhenShort),
		AckTimeout: p.AckTimeout.Seconds(), BackfillRate: p.BackfillRate, Balancers: p.Balancers,
	}
}

// reports asks all other members at once, and answers for this one.
func (n *Node) reports(ctx context.Context, view ring.View) map[string]api.SelfReport {
	var (
		mu  sync.Mutex
		all = map[string]api.SelfReport{n.config.Name: n.self()}
		wg  sync.WaitGroup
	)
	for _, m := range view.Members {
		if m.Name == n.config.Name {
			continue
		}
		wg.Go(func() {
			limit := askTimeout
			if !n.members.Alive(m.Name) {
				limit = askTimeoutDead
			}
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			c := n.peer(m)
			defer c.Close()
			if r, err := c.Self(ctx); err == nil {
				mu.Lock()
				all[m.Name] = r
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all
}

// peer is a client for another member's HTTP port.
func (n *Node) peer(m ring.Member) *client.Client {
	return client.NewPeer(n.members.AddressOf(m.Name).HTTP, n.members.ClientTLS(m.Name), n.options.Network.complete().Dial)
}

// member is what this node knows of a member.
func (n *Node) member(view ring.View, m ring.Member, replication chain.Status) api.Member {
	out := api.Member{
		Name: m.Name, Role: string(m.Role), State: string(m.State), Version: m.Version,
		Addresses: addresses(m.Addresses),
	}
	if m.Role == ring.Data {
		out.Successor = view.Successor(m.Name)
	}
	if m.Name == n.config.Name {
		if out.Backlog = backlog(replication.Backlog); out.Backlog != nil {
			out.Backlog.Receipts -= replication.Backlog.InFlight
		}
		out.Seen = time.Now().UTC()
		return out
	}
	i := slices.IndexFunc(replication.Peers, func(p chain.PeerStatus) bool { return p.Name == m.Name })
	if i < 0 {
		return out
	}
	p := replication.Peers[i]
	out.Backlog, out.Seen = backlog(p.Backlog), p.HeardAt.UTC()
	if out.Backlog != nil && p.Link.Live {
		out.Backlog.Receipts -= p.Backlog.InFlight // on their way: nothing to tell people of
	}
	if p.ClockSkew != nil {
		seconds := p.ClockSkew.Seconds()
		out.ClockSkew = &seconds
	}
	out.Reason = p.Link.Problem
	out.Link = &api.Link{
		State: p.Link.State, Since: p.Link.Since.UTC(), Problem: p.Link.Problem, Feeding: p.Link.Feeding,
		Receipts: p.Link.Receipts, Bytes: p.Link.Bytes, ByteRate: p.Link.ByteRate, RoundTrip: p.Link.RoundTrip.Seconds(),
	}
	return out
}

func addresses(a ring.Addresses) map[string]string {
	return map[string]string{"smtp": a.SMTP, "chain": a.Chain, "gossip": a.Gossip, "raft": a.Raft, "http": a.HTTP}
}

func backlog(b *chain.Backlog) *api.Backlog {
	if b == nil {
		return nil
	}
	return &api.Backlog{Receipts: b.Receipts, Bytes: b.Bytes, Oldest: b.Oldest, Lost: b.Lost, LostAt: b.LostAt}
}

// warnings is what a member has other than its peers, and should not.
func (n *Node) warnings(m api.Member, view ring.View) (all []string) {
	say := func(format string, a ...any) { all = append(all, fmt.Sprintf(format, a...)) }
	if m.ClockSkew != nil && (*m.ClockSkew > maxSkew.Seconds() || *m.ClockSkew < -maxSkew.Seconds()) {
		say("its clock differs by %.1f s from that of %s: let both follow a time server", *m.ClockSkew, n.config.Name)
	}
	if m.Self == nil {
		return all
	}
	if own := n.options.Version; m.Self.Version != own {
		say("it runs version %s, and %s runs %s: upgrade all nodes, one after the other", m.Self.Version, n.config.Name, own)
	}
	if own := int64(n.config.Limits.MaxMessageSize); m.Role == string(ring.Data) && !n.witness() && m.Self.MaxMessage != own {
		say("it takes mail of up to %d bytes, and %s up to %d: set limits.max_message_size alike", m.Self.MaxMessage, n.config.Name, own)
	}
	if m.Self.Epoch+1 < uint64(view.Epoch) {
		say("it knows the cluster as of epoch %d only", m.Self.Epoch)
	}
	return all
}

// self is what this node tells its peers.
func (n *Node) self() api.SelfReport {
	s := api.SelfReport{
		Node: n.config.Name, Version: n.options.Version, Epoch: uint64(n.members.View().Epoch), Time: time.Now().UTC(),
		MaxMessage: int64(n.config.Limits.MaxMessageSize), Logs: []api.LogHeld{},
	}
	s.State, s.Reason = n.condition()
	if n.witness() {
		return s
	}
	stats, replication := n.archive.Stats(), n.chain.Status()
	s.Store, s.Receipts, s.Messages = stats.Store.String(), stats.Receipts, stats.Messages
	s.Bad, s.Quarantined, s.DiskFree = stats.Scrub.Bad, stats.Quarantined, stats.Free
	s.ShortNow, s.ShortEver = replication.ShortNow, replication.ShortEver
	if view := n.members.View(); s.State == api.StateDraining {
		left := notHanded(view, n.config.Name, n.archive.Logs(), n.known())
		s.ToHandOver = &left
	}
	for _, l := range n.archive.Logs() {
		s.Logs = append(s.Logs, api.LogHeld{Store: l.Store.String(), Origin: l.Origin, Held: l.Held.String()})
	}
	return s
}

// outOfReach counts the receipts that an unreachable member held when it last
// spoke, and that no other one that lives holds; nil when that is not known.
func (n *Node) outOfReach(view ring.View, name string) *uint64 {
	if n.chain == nil {
		return nil
	}
	held := n.known()
	gone, ok := held[name]
	if !ok {
		return nil
	}
	there := map[string][]record.Log{n.config.Name: n.archive.Logs()}
	for _, other := range view.Ring() {
		if logs, ok := held[other]; ok && other != name && n.members.Alive(other) {
			there[other] = logs
		}
	}
	var alone uint64
	all := union(there)
	for _, l := range gone {
		alone += l.Held.Minus(heldBy(all, l.Store)).Count()
	}
	return &alone
}

// known is what each other data member holds, by its own last word.
func (n *Node) known() map[string][]record.Log {
	held := map[string][]record.Log{}
	for _, p := range n.chain.Status().Peers {
		if !p.HeardAt.IsZero() {
			held[p.Name] = p.Logs
		}
	}
	return held
}
