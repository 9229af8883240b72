package node

import (
	"context"

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
// client sends the message again, and it will be a second receipt.
func (d *draft) Commit(e record.Envelope) (record.Receipt, error) {
	r, err := d.Draft.Commit(e)
	if err != nil {
		return r, err
	}
	_, short := d.node.chain.Wait(d.ctx, r.Position)
	if short && d.node.members.View().Policies.WhenShort == ring.Tempfail {
		return r, smtpd.ErrShort
	}
	return r, nil
}
