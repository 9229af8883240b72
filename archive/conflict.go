package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"chainmail/archive/record"
)

// Conflict is a position with two contents: somebody's disk was rolled back,
// and mail took a position that other mail had. The node keeps what it held
// there first; the other mail is not lost, it has a receipt in the own log.
type Conflict struct {
	Position   record.Position `json:"position"`
	Held       record.Hash     `json:"held_sha256"`    // of the message that stays at the position
	Refused    record.Hash     `json:"refused_sha256"` // of the message that does not
	ReceivedAt time.Time       `json:"received_at"`    // of the refused receipt
	Receipt    record.Hash     `json:"receipt_sha256"` // of the stored form of the refused receipt
	Peer       string          `json:"peer"`           // who sent it first
	At         time.Time       `json:"at"`
	Kept       record.Position `json:"kept"` // the refused message's receipt in the log of this node
}

func (c *Conflict) key() []byte { return conflictKey(c.Position, c.Receipt) }

// quarantine is what is known of conflicts: the q keys.
type quarantine struct {
	mu  sync.Mutex
	all []Conflict
}

func (q *quarantine) load(a *Archive) error {
	err := a.scan([]byte{kindConflict}, nil, func(_, v []byte) error {
		var c Conflict
		err := json.Unmarshal(v, &c)
		q.all = append(q.all, c)
		return err
	})
	if isDamage(err) {
		a.log.Error("the list of quarantined receipts cannot be read whole", "dir", a.opts.Dir, "err", err)
		return nil
	}
	return err
}

func (q *quarantine) count() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return uint64(len(q.all))
}

// has reports whether a receipt was refused before.
func (q *quarantine) has(p record.Position, receipt record.Hash) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.ContainsFunc(q.all, func(c Conflict) bool { return c.Position == p && c.Receipt == receipt })
}

// Quarantined tells all positions with two contents, in their order.
func (a *Archive) Quarantined() []Conflict {
	a.refused.mu.Lock()
	all := slices.Clone(a.refused.all)
	a.refused.mu.Unlock()
	slices.SortStableFunc(all, func(x, y Conflict) int { return x.Position.Compare(y.Position) })
	return all
}

// keepRefused archives a refused message in the own log. It is on disk
// together with the record of the conflict, so that a peer that sends it again
// does not make a further copy.
func (a *Archive) keepRefused(d *Draft, c Conflict, e record.Envelope) error {
	c.At = time.Now().UTC()
	d.refuse = &c
	r, err := d.Commit(e)
	if err != nil {
		return fmt.Errorf("keep what was refused at %v: %w", c.Position, err)
	}
	c.Kept = r.Position
	a.refused.mu.Lock()
	a.refused.all = append(a.refused.all, c)
	a.refused.mu.Unlock()
	a.log.Error("a position has two contents: the disk of the node it came from was rolled back; the mail that came second is kept in the log of this node",
		"store", c.Position.Store, "seq", c.Position.Seq, "peer", c.Peer, "held", c.Held, "refused", c.Refused, "kept", r.Position)
	return nil
}

// refuseHeld keeps a refused message whose bytes are on this node.
func (a *Archive) refuseHeld(d *Draft, c Conflict, e record.Envelope) error {
	defer d.Discard()
	body, err := a.Body(c.Refused)
	if errors.Is(err, ErrNotFound) {
		return ErrNoBody
	}
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(d, body); err != nil {
		return err
	}
	return a.keepRefused(d, c, e)
}
