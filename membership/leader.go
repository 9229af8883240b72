package membership

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"chainmail/membership/ring"
)

// Pauses of the leader's duties.
const (
	dutyEvery   = time.Second
	stableAfter = 10 * time.Second // alive for so long before a member votes
	dutyTimeout = 5 * time.Second  // for a change of Raft's configuration to be taken
)

// runDuties does what only the leader does, whenever this node leads: Raft's
// configuration follows the view, and a rotation of the gossip keys goes on.
func (m *Membership) runDuties(ctx context.Context) {
	ticker := time.NewTicker(dutyEvery)
	defer ticker.Stop()
	for {
		changed := m.Changed()
		if c := m.raft(); c != nil && c.leading() {
			m.duties(c)
		}
		m.saveAgain()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-ticker.C:
			continue
		}
		select { // changes come in bursts
		case <-ctx.Done():
			return
		case <-time.After(dutyEvery / 10):
		}
	}
}

// saveAgain writes the view that a full disk kept from being written.
func (m *Membership) saveAgain() {
	m.mu.Lock()
	_, failed := m.problems[aboutView]
	m.mu.Unlock()
	if failed {
		_ = m.save()
	}
}

// duties takes the next step, if there is one.
func (m *Membership) duties(c *consensus) {
	if c.raft.Barrier(dutyTimeout).Error() != nil {
		return // the view must be that of all that was committed before
	}
	if m.reconcile(c) {
		m.changed.fire()
		return // one change at a time, each looked at anew
	}
	m.rotateKeys(c)
}

// reconcile makes one step of Raft's configuration towards the view.
func (m *Membership) reconcile(c *consensus) bool {
	view := c.fsm.get().View
	servers := c.servers()
	has := func(id string) bool {
		return slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == id })
	}
	for _, s := range servers {
		gone := !slices.ContainsFunc(view.Members, func(x ring.Member) bool { return x.ID == string(s.ID) })
		if gone && string(s.ID) != m.id {
			return m.step("removed", string(s.ID), c.raft.RemoveServer(s.ID, 0, dutyTimeout))
		}
	}
	for _, x := range view.Members {
		if !has(x.ID) {
			return m.step("added", x.Name, c.raft.AddNonvoter(raft.ServerID(x.ID), raft.ServerAddress(x.ID), 0, dutyTimeout))
		}
	}
	next := view.NextVoterChange(ring.Votes{Voters: m.votersOf(c), Alive: m.Alive, Stable: m.stable})
	if x, ok := view.Member(next.Promote); ok {
		return m.step("votes", x.Name, c.raft.AddVoter(raft.ServerID(x.ID), raft.ServerAddress(x.ID), 0, dutyTimeout))
	}
	if x, ok := view.Member(next.Demote); ok && x.ID != m.id {
		return m.step("votes no more", x.Name, c.raft.DemoteVoter(raft.ServerID(x.ID), 0, dutyTimeout))
	}
	return false
}

func (m *Membership) step(what, who string, f raft.IndexFuture) bool {
	if err := f.Error(); err != nil {
		m.log.Debug("change of the voters not made", "change", what, "peer", who, "err", err)
		return false
	}
	m.log.Info("voters changed", "change", what, "peer", who)
	return true
}

// stable reports whether a member has been alive for a while. The node itself
// is.
func (m *Membership) stable(name string) bool {
	l := m.Liveness(name)
	return l.Alive && (name == m.name || time.Since(l.Since) >= stableAfter)
}

// rotateKeys moves a rotation of the gossip keys on when every live member has
// reached the phase.
func (m *Membership) rotateKeys(c *consensus) {
	s := c.fsm.get()
	if s.Gossip.Phase == steady || !m.reached(s.Gossip.Since) {
		return
	}
	cmd := command{ID: newID(), Keys: &keysPhase{From: s.Gossip.Phase, Since: s.Gossip.Since}}
	if _, err := m.commit(c, cmd); err != nil {
		m.log.Debug("rotation of the gossip keys waits", "err", err)
	}
}

// reached reports whether every live member said that it knows the epoch.
func (m *Membership) reached(e ring.Epoch) bool {
	for _, x := range m.View().Members {
		if l := m.Liveness(x.Name); l.Alive && l.Epoch < e {
			return false
		}
	}
	return true
}
