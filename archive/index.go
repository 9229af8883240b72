package archive

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// stripe is the lock that whoever changes the entry of a message must hold.
// Who read an entry without it asks it for changes before, and again when he
// holds it: while they are the same, the entry is.
type stripe struct {
	mu      sync.Mutex
	changes atomic.Uint64
}

func (s *stripe) lock() { s.mu.Lock() }

func (s *stripe) unlock() {
	s.changes.Add(1)
	s.mu.Unlock()
}

func (a *Archive) stripe(h record.Hash) *stripe { return &a.stripes[h[0]] }

// lockStripes locks those of several messages, always in the same order.
func (a *Archive) lockStripes(hashes []record.Hash) (unlock func()) {
	var wanted [len(a.stripes)]bool
	for _, h := range hashes {
		wanted[h[0]] = true
	}
	for i, w := range wanted {
		if w {
			a.stripes[i].lock()
		}
	}
	return func() {
		for i, w := range wanted {
			if w {
				a.stripes[i].unlock()
			}
		}
	}
}

// index adds to a batch a receipt and the entries by which it is found. entry
// is what is known of its message; what is known then is given back. again
// says that the position may have been indexed before, in another way.
func index(b *pebble.Batch, r *record.Receipt, encoded []byte, entry messageEntry, again bool) messageEntry {
	set(b, receiptKey(r.Position), encoded)
	if j := r.Envelope.Journal; j != nil && !j.Inner.IsZero() {
		set(b, journalKey(j.Inner, r.Hash), nil)
	}
	if _, known := entry.at(r.Position.Store, r.Body); !known {
		entry = entry.with(bodyRef{r.Position, r.Body})
		set(b, messageKey(r.Hash), entry.encode())
	} else if again {
		set(b, messageKey(r.Hash), entry.encode())
	}
	first, further := timeKey(r.ReceivedAt, r.Position), furtherKey(r.Hash, r.Position)
	if entry[0].pos != r.Position {
		first, further = further, first
	}
	set(b, first, nil)
	if again {
		remove(b, further)
	}
	return entry
}

// goodBody finds a body of a message in the log of s that is not known to be
// damaged.
func (a *Archive) goodBody(entry messageEntry, s record.StoreID) (bodyRef, bool) {
	i := slices.IndexFunc(entry, func(r bodyRef) bool {
		return r.pos.Store == s && a.scrub.finding(r.pos) == nil
	})
	if i < 0 {
		return bodyRef{}, false
	}
	return entry[i], true
}
