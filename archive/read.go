package archive

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// visible reports whether the receipt at p may be shown: it is held, and
// durable.
func (a *Archive) visible(p record.Position) bool { return a.sight().has(p) }

// receipt reads the receipt at p.
func (a *Archive) receipt(p record.Position) (record.Receipt, error) {
	if !a.visible(p) {
		return record.Receipt{}, fmt.Errorf("%v: %w", p, ErrNotFound)
	}
	v, err := a.get(receiptKey(p))
	if errors.Is(err, pebble.ErrNotFound) {
		return record.Receipt{}, fmt.Errorf("%v: %w", p, ErrNotFound)
	}
	if err != nil {
		return record.Receipt{}, corrupt("receipt %v: %w", p, err)
	}
	r, err := record.DecodeReceipt(p, v)
	if err != nil {
		return record.Receipt{}, corrupt("%w", err)
	}
	return r, nil
}

// messageEntry reads where a message is kept; ErrNotFound when it is not.
func (a *Archive) messageEntry(h record.Hash) (messageEntry, error) {
	v, err := a.get(messageKey(h))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, fmt.Errorf("%v: %w", h, ErrNotFound)
	}
	if err != nil {
		return nil, corrupt("message %v: %w", h, err)
	}
	e, err := decodeMessageEntry(v)
	if err != nil {
		return nil, fmt.Errorf("message %v: %w", h, err)
	}
	return e, nil
}

// Message reads a message's receipts, the earliest first; ErrNotFound when
// there are none.
func (a *Archive) Message(h record.Hash) (record.Message, error) {
	done, err := a.use()
	if err != nil {
		return record.Message{}, err
	}
	defer done()
	return a.message(h)
}

func (a *Archive) message(h record.Hash) (record.Message, error) {
	entry, err := a.messageEntry(h)
	if err != nil {
		return record.Message{}, err
	}
	return a.messageOf(h, entry)
}

// messageOf reads the receipts of a message. Damaged ones are left out, and
// named in the findings, while there are others.
func (a *Archive) messageOf(h record.Hash, entry messageEntry) (record.Message, error) {
	var positions []record.Position
	for _, ref := range entry {
		positions = append(positions, ref.pos)
	}
	prefix := append([]byte{kindFurther}, h[:]...)
	err := a.scan(prefix, nil, func(k, _ []byte) error {
		positions = append(positions, positionAt(k))
		return nil
	})
	// A damaged table may have none of the message's keys. If it has, the check
	// of the receipt they belong to finds it.
	if err != nil && !isDamage(err) {
		return record.Message{}, fmt.Errorf("receipts of %v: %w", h, err)
	}
	slices.SortFunc(positions, record.Position.Compare)
	positions = slices.Compact(positions)
	m := record.Message{Hash: h}
	now := a.sight()
	var damage error
	for _, p := range positions {
		if !now.has(p) {
			continue
		}
		r, err := a.receipt(p)
		if err != nil {
			damage = err
			a.scrub.record(a, &Finding{Position: p, Hash: h, Problem: err.Error(), FoundAt: time.Now().UTC()})
			continue
		}
		m.Size = r.Size
		m.Receipts = append(m.Receipts, r)
	}
	if len(m.Receipts) == 0 {
		return record.Message{}, cmp.Or(damage, fmt.Errorf("%v: %w", h, ErrNotFound))
	}
	slices.SortStableFunc(m.Receipts, func(x, y record.Receipt) int {
		return cmp.Or(x.ReceivedAt.Compare(y.ReceivedAt), x.Position.Compare(y.Position))
	})
	return m, nil
}
