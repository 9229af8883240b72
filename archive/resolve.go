package archive

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"

	"chainmail/archive/record"
)

// Resolve finds what an ID names: a SHA-256 or a prefix of at least four
// digits that belongs to one message only, or a position. The ID may also be
// that of a message inside journal reports; then the hashes of all those
// reports come back, and only then more than one. Errors: ErrBadID,
// ErrNotFound, ErrAmbiguous.
func (a *Archive) Resolve(id string) ([]record.Hash, error) {
	done, err := a.use()
	if err != nil {
		return nil, err
	}
	defer done()
	if strings.Contains(id, ":") {
		p, err := record.ParsePosition(id)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", id, ErrBadID)
		}
		r, err := a.receipt(p)
		if err != nil {
			return nil, err
		}
		return []record.Hash{r.Hash}, nil
	}
	low, high, err := hexRange(id)
	if err != nil {
		return nil, err
	}
	return a.resolvePrefix(id, low, high)
}

// hexRange gives the smallest and the largest hash that begin with the digits.
func hexRange(digits string) (low, high record.Hash, err error) {
	full := hex.EncodedLen(len(low))
	if len(digits) < 4 || len(digits) > full {
		return low, high, fmt.Errorf("%q: %w", digits, ErrBadID)
	}
	missing := full - len(digits)
	low, err1 := record.ParseHash(digits + strings.Repeat("0", missing))
	high, err2 := record.ParseHash(digits + strings.Repeat("f", missing))
	if err1 != nil || err2 != nil {
		return low, high, fmt.Errorf("%q: %w", digits, ErrBadID)
	}
	return low, high, nil
}

func (a *Archive) resolvePrefix(id string, low, high record.Hash) ([]record.Hash, error) {
	var messages, reports []record.Hash
	err := a.scan([]byte{kindMessage}, messageKey(low), func(k, v []byte) error {
		h := record.Hash(k[1:])
		if bytes.Compare(h[:], high[:]) > 0 || len(messages) > 1 {
			return errEnough
		}
		if e, err := decodeMessageEntry(v); err == nil && a.visible(e[0].pos) {
			messages = append(messages, h)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var inner record.Hash
	err = a.scan([]byte{kindJournal}, append([]byte{kindJournal}, low[:]...), func(k, _ []byte) error {
		in, report := record.Hash(k[1:33]), record.Hash(k[33:])
		switch {
		case bytes.Compare(in[:], high[:]) > 0:
			return errEnough
		case inner.IsZero():
			inner = in
		case inner != in:
			return ErrAmbiguous
		}
		reports = append(reports, report)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	switch {
	case len(messages) > 1, len(messages) == 1 && len(reports) > 0 && messages[0] != inner:
		return nil, fmt.Errorf("%s: %w", id, ErrAmbiguous)
	case len(messages) == 1: // also when the same message came inside reports
		return messages, nil
	case len(reports) > 0:
		return reports, nil
	}
	return nil, fmt.Errorf("%s: %w", id, ErrNotFound)
}
