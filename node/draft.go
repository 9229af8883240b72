package node

import (
	"context"
	"sync"

	"chainmail/archive"
	"chainmail/archive/record"
	"chainmail/membership/ring"
	"chainmail/node/smtpd"
)

// draft is a message on its way into the archive and onto the disks of as many
// nodes as the policy asks for.
type draft struct {
	*archive.Draft
	ctx  context.Context
	node *Node
}

func (n *Node) newDraft(ctx context.Context) *draft {
	return &draft{n.archive.NewDraft(ctx), ctx, n}
}

// Commit makes the message durable here, then waits for the other copies. With
// the policy tempfail and too few of them, its error is smtpd.ErrShort: the
// client sends the message again, and it will be a second receipt. So it is with
// smtpd.ErrLeaving, when the node is no member any more: a copy here is none then.
func (d *draft) Commit(e record.Envelope) (record.Receipt, error) {
	if !d.node.sluice.enter() {
		d.Discard()
		return record.Receipt{}, smtpd.ErrLeaving
	}
	defer d.node.sluice.leave()
	r, err := d.Draft.Commit(e)
	if err != nil {
		return r, err
	}
	_, short := d.node.chain.Wait(d.ctx, r.Position)
	view := d.node.members.View()
	switch _, member := view.Member(d.node.config.Name); {
	case !member || d.node.members.Removed():
		return r, smtpd.ErrLeaving
	case short && view.Policies.WhenShort == ring.Tempfail:
		return r, smtpd.ErrShort
	}
	return r, nil
}

// sluice is what commits of mail pass through. A node that leaves closes it
// first: so it knows that no mail is acknowledged after it has seen that the
// others hold all that was.
type sluice struct {
	mu     sync.Mutex
	inside int
	closed bool
}

// enter reports whether a commit may begin; leave ends it.
func (s *sluice) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.inside++
	}
	return !s.closed
}

func (s *sluice) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inside--
}

// close lets nobody in any more, and counts those who are inside.
func (s *sluice) close() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.inside
}

func (s *sluice) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = false
}
