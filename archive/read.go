package archive

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// visible reports whether the receipt at p may be shown: receipts of the own
// log may be in the database some milliseconds before they are durable.
func (a *Archive) visible(p record.Position) bool {
	return p.Store != a.store || uint64(p.Seq) <= a.durable.Load()
}

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
	positions := []record.Position{entry[0].pos}
	prefix := append([]byte{kindFurther}, h[:]...)
	err = a.scan(prefix, nil, func(k, _ []byte) error {
		positions = append(positions, positionAt(k))
		return nil
	})
	if err != nil {
		return record.Message{}, fmt.Errorf("receipts of %v: %w", h, err)
	}
	m := record.Message{Hash: h}
	for _, p := range positions {
		if !a.visible(p) {
			continue
		}
		r, err := a.receipt(p)
		if err != nil {
			return record.Message{}, err
		}
		m.Size = r.Size
		m.Receipts = append(m.Receipts, r)
	}
	if len(m.Receipts) == 0 {
		return record.Message{}, fmt.Errorf("%v: %w", h, ErrNotFound)
	}
	slices.SortStableFunc(m.Receipts, func(x, y record.Receipt) int {
		return cmp.Or(x.ReceivedAt.Compare(y.ReceivedAt), x.Position.Compare(y.Position))
	})
	return m, nil
}
