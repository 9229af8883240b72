package membership

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"chainmail/membership/ring"
	"chainmail/node/api"
)

// How long a change looks for a leader: a short while when the voters that are
// alive are too few to elect one, and longer than an election takes when they
// are enough.
const (
	waitNoQuorum = 2500 * time.Millisecond
	waitElection = 10 * time.Second
	retryAfter   = 100 * time.Millisecond
)

// defaultToken is how long a join token is valid unless somebody says.
const defaultToken = time.Hour

// maxTokenTime bounds it.
const maxTokenTime = 30 * 24 * time.Hour

// SetPolicies sets those policies that are given, and returns the epoch at
// which they hold.
func (m *Membership) SetPolicies(ctx context.Context, p api.PolicyChange) (ring.Epoch, error) {
	c := setPolicies{Copies: p.Copies, Replicas: p.Replicas, BackfillRate: p.BackfillRate}
	if p.WhenShort != nil {
		w := ring.WhenShort(*p.WhenShort)
		c.WhenShort = &w
	}
	if p.AckTimeout != nil {
		d := time.Duration(*p.AckTimeout * float64(time.Second))
		c.AckTimeout = &d
	}
	if p.Balancers != nil {
		balancers, err := ring.ParseBalancers(*p.Balancers)
		if err != nil {
			return 0, refuse(reasonRefused, "%v", err)
		}
		c.Balancers = &balancers
	}
	return m.change(ctx, command{Policies: &c})
}

// SetState moves a data member on in its life.
func (m *Membership) SetState(ctx context.Context, name string, s ring.State) (ring.Epoch, error) {
	return m.change(ctx, command{State: &setState{Name: name, State: s}})
}

// Remove takes a member out of the cluster: from then on its certificate is
// refused everywhere, and the gossip key changes. What mail may be lost with it
// is the caller's business: see ring.RemoveRefusal. When a node has removed
// itself, its View and its cluster directory are without it.
func (m *Membership) Remove(ctx context.Context, name string) (ring.Epoch, error) {
	return m.remove(ctx, remove{Name: name, Key: newGossipKey()})
}

// RemoveDrained is Remove for this node itself, if it is draining at the moment
// when the cluster commits it; else it is an ErrRefused, and the node stays.
func (m *Membership) RemoveDrained(ctx context.Context) (ring.Epoch, error) {
	return m.remove(ctx, remove{Name: m.name, Key: newGossipKey(), Drained: m.id})
}

func (m *Membership) remove(ctx context.Context, r remove) (ring.Epoch, error) {
	a, err := m.ask(ctx, controlRequest{Change: &command{ID: newID(), Remove: &r}})
	if err != nil {
		return 0, err
	}
	if r.Name == m.name {
		return a.Result.Epoch, m.left(a.View)
	}
	m.await(ctx, a.Result.Epoch)
	return a.Result.Epoch, nil
}

// left takes over the view in which this node is no member. Raft need not bring
// it: the leader sends nothing to who was removed.
func (m *Membership) left(v *ring.View) error {
	if v != nil && v.Check() == nil {
		s := m.current.Load().clone()
		s.View = *v
		m.publish(s)
	}
	if hasID(m.View(), m.id) {
		return fmt.Errorf("%s was removed from the cluster, but the leader did not send the view without it: stop this node", m.name)
	}
	if err := m.save(); err != nil {
		return fmt.Errorf("%s was removed from the cluster, but that could not be written to %s: %w: free space there", m.name, m.dir, err)
	}
	return nil
}

// Move gives a member the place after another one in the ring.
func (m *Membership) Move(ctx context.Context, name, after string) (ring.Epoch, error) {
	return m.change(ctx, command{Move: &move{Name: name, After: after}})
}

// UpdateSelf tells the cluster where this node is reached and what it runs.
// Run does so by itself for what Options and SetAdvertised say.
func (m *Membership) UpdateSelf(ctx context.Context, a ring.Addresses, version string) (ring.Epoch, error) {
	m.SetAdvertised(a)
	return m.updateSelf(ctx, a, version)
}

func (m *Membership) updateSelf(ctx context.Context, a ring.Addresses, version string) (ring.Epoch, error) {
	return m.change(ctx, command{Update: &update{Name: m.name, Addresses: a, Version: version}})
}

// RotateKeys begins to replace the gossip key and the certificates of all
// members; it goes on by itself. The epoch returned is that of its beginning.
func (m *Membership) RotateKeys(ctx context.Context) (ring.Epoch, error) {
	return m.change(ctx, command{Rotate: &rotate{Key: newGossipKey()}})
}

// Rotating says how far a rotation of the keys is; empty when none is under
// way.
func (m *Membership) Rotating() string {
	s := m.current.Load()
	switch s.Gossip.Phase {
	case adding:
		return fmt.Sprintf("a new gossip key is being given to all members since epoch %d", s.Gossip.Since)
	case using:
		return fmt.Sprintf("the new gossip key is being taken into use since epoch %d", s.Gossip.Since)
	}
	for _, member := range s.View.Members {
		if len(member.Certificates) > 1 {
			return fmt.Sprintf("%s is replacing its certificate", member.Name)
		}
	}
	return ""
}

// NewJoinToken makes a secret that lets one node join while it is valid. Zero
// means one hour.
func (m *Membership) NewJoinToken(ctx context.Context, valid time.Duration) (api.JoinToken, error) {
	if valid == 0 {
		valid = defaultToken
	}
	if valid < time.Second || valid > maxTokenTime {
		return api.JoinToken{}, refuse(reasonRefused, "a join token can be valid for 1 s to %v, not %v", maxTokenTime, valid)
	}
	t := newSecret(m.current.Load().CA.fingerprint())
	expires := time.Now().Add(valid).UTC().Truncate(time.Second)
	_, err := m.change(ctx, command{Token: &addToken{Hash: t.Hash(), Expires: expires}})
	if err != nil {
		return api.JoinToken{}, err
	}
	return api.JoinToken{Token: t.Text(api.JoinTokenPrefix), ExpiresAt: expires}, nil
}

// change has a command committed, by whoever leads, and waits until this node
// sees the result.
func (m *Membership) change(ctx context.Context, c command) (ring.Epoch, error) {
	c.ID = newID()
	a, err := m.ask(ctx, controlRequest{Change: &c})
	if err != nil {
		return 0, err
	}
	m.await(ctx, a.Result.Epoch)
	return a.Result.Epoch, nil
}

// await waits a moment until this node's own view has the epoch, so that who
// changed something sees it.
func (m *Membership) await(ctx context.Context, e ring.Epoch) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for {
		changed := m.Changed()
		if m.View().Epoch >= e {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// ask puts a request to the leader: this node, or another one. Repeating it is
// safe: see controlRequest.
func (m *Membership) ask(ctx context.Context, r controlRequest) (controlAnswer, error) {
	start := time.Now()
	begun := false // a leader took it, and then did not answer
	for {
		changed := m.Changed()
		a, err := m.askOnce(ctx, r)
		switch {
		case err == nil && a.Result.Refused != nil:
			return a, a.Result.Refused
		case err == nil:
			return a, nil
		case errors.Is(err, ErrUnknownOutcome):
			begun = true
		case !errors.Is(err, errNoLeader):
			return a, err
		}
		if time.Since(start) > m.patience() {
			return a, m.nobodyLeads(begun)
		}
		select {
		case <-ctx.Done():
			if begun {
				return a, errors.Join(ErrUnknownOutcome, ctx.Err())
			}
			return a, fmt.Errorf("no leader took the change: %w", ctx.Err())
		case <-changed:
		case <-time.After(retryAfter):
		}
		select { // changes come in bursts
		case <-ctx.Done():
		case <-time.After(retryAfter / 4):
		}
	}
}

// nobodyLeads explains why no leader took a change.
func (m *Membership) nobodyLeads(begun bool) error {
	m.mu.Lock()
	stranger := m.problems[aboutMembership]
	m.mu.Unlock()
	if stranger != "" {
		return &textError{ErrNotMember, stranger}
	}
	return noQuorum(m.Voters(), m.Alive, begun)
}

// patience is how long it makes sense to wait for a leader.
func (m *Membership) patience() time.Duration {
	voters := m.Voters()
	alive := 0
	for _, v := range voters {
		if m.Alive(v) {
			alive++
		}
	}
	if alive > len(voters)/2 {
		return waitElection
	}
	return waitNoQuorum
}

// errNoLeader is why a request could not be put to anybody.
var errNoLeader = errors.New("no leader is known")

func (m *Membership) askOnce(ctx context.Context, r controlRequest) (controlAnswer, error) {
	if c := m.raft(); c != nil && c.leading() {
		return m.lead(ctx, c, r, m.selfPeer())
	}
	for _, id := range m.mayLead() {
		a, err := m.callControl(ctx, id, r)
		if err == nil && a.NotLeader {
			continue
		}
		if errors.Is(err, errNotReached) {
			m.log.Debug("change not taken", "peer", m.nameOf(id), "err", err)
			continue
		}
		return a, err
	}
	return controlAnswer{}, errNoLeader
}

// mayLead lists who to ask: the leader, or, when this node does not know it, as
// without a Raft of its own, every member that is alive. A node that moved
// cannot tell who is: their answers go to its old address.
func (m *Membership) mayLead() []string {
	if c := m.raft(); c != nil {
		if id := c.leader(); id != "" && id != m.id {
			return []string{id}
		}
	}
	var ids []string
	moved := m.moved()
	for _, member := range m.View().Members {
		if member.ID != m.id && (moved || m.Alive(member.Name)) {
			ids = append(ids, member.ID)
		}
	}
	return ids
}

// moved reports whether the others look for this node at other addresses than
// its own.
func (m *Membership) moved() bool {
	member, ok := m.View().Member(m.name)
	a := *m.advertised.Load()
	return ok && a != (ring.Addresses{}) && a != member.Addresses
}

// commit puts a command into Raft's log on the leader, and waits for what it
// comes to. Losing the lead meanwhile is an ErrUnknownOutcome.
func (m *Membership) commit(c *consensus, cmd command) (result, error) {
	cmd.At = time.Now().UTC()
	b, err := encodeCommand(cmd)
	if err != nil {
		return result{}, err
	}
	f := c.raft.Apply(b, waitNoQuorum)
	switch err := f.Error(); {
	case err == nil:
		return f.Response().(result), nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return result{}, fmt.Errorf("%w: %w", errNoLeader, err)
	default: // the lead was lost, or Raft stopped, with the entry in the log
		return result{}, fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
}
