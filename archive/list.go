package archive

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// Query selects messages by the time of their first receipt, and orders them.
type Query struct {
	After  string    // an ID as for Resolve: only messages listed after this one
	Since  time.Time // only from this time on; zero: from the beginning
	Until  time.Time // only before this time; zero: to the end
	Newest bool      // the newest first; After goes on towards older ones
}

// Messages lists the messages archived when it begins, in the order of their
// first receipts. It may be stopped and resumed after the last message seen:
// no message comes twice and none is left out. Mail that this node accepts
// meanwhile follows the last one, oldest first, and is not met, newest first;
// what peers bring is sorted in where its time belongs, which may be a place
// that was passed.
func (a *Archive) Messages(ctx context.Context, q Query) iter.Seq2[record.Message, error] {
	return func(yield func(record.Message, error) bool) {
		l, err := a.list(q)
		for err == nil && !l.done() {
			var page []record.Message
			page, err = a.page(l)
			for _, m := range page {
				if !yield(m, nil) {
					return
				}
			}
			err = cmp.Or(err, ctx.Err())
		}
		if err != nil {
			yield(record.Message{}, err)
		}
	}
}

// listing is what a query has yet to read: the time keys in [low, high).
type listing struct {
	low, high []byte
	newest    bool
	sight     sight // what is not in it came after the listing began
}

func (l *listing) done() bool { return bytes.Compare(l.low, l.high) >= 0 }

// pass leaves out a key and all that are listed before it.
func (l *listing) pass(key []byte) {
	if l.newest {
		l.high = slices.MinFunc([][]byte{l.high, key}, bytes.Compare)
		return
	}
	l.low = slices.MaxFunc([][]byte{l.low, append(key, 0)}, bytes.Compare)
}

func (a *Archive) list(q Query) (*listing, error) {
	l := &listing{
		low: []byte{kindTime}, high: []byte{kindTime + 1}, newest: q.Newest,
		sight: a.sight(),
	}
	if !q.Since.IsZero() {
		l.low = u64(kindTime, sortableTime(q.Since))
	}
	if !q.Until.IsZero() {
		l.high = u64(kindTime, sortableTime(q.Until))
	}
	if q.After == "" {
		return l, nil
	}
	key, err := a.listedAt(q.After)
	if err != nil {
		return nil, fmt.Errorf("after: %w", err)
	}
	l.pass(key)
	return l, nil
}

// listedAt finds the time key of a message. It is that of the receipt which
// made the message known, and so stays whatever receipts follow.
func (a *Archive) listedAt(id string) ([]byte, error) {
	hashes, err := a.Resolve(id)
	if err != nil {
		return nil, err
	}
	done, err := a.use()
	if err != nil {
		return nil, err
	}
	defer done()
	entry, err := a.messageEntry(hashes[0])
	if err != nil {
		return nil, err
	}
	r, err := a.receipt(entry[0].pos)
	return timeKey(r.ReceivedAt, r.Position), err
}

// pageSize bounds the work of a page.
const pageSize = 256

// page reads the messages of the next time keys of a listing, and passes them.
// Between pages nothing of the database is held.
func (a *Archive) page(l *listing) (page []record.Message, err error) {
	done, err := a.use()
	if err != nil {
		return nil, err
	}
	defer done()
	it, err := a.db.NewIter(&pebble.IterOptions{LowerBound: l.low, UpperBound: l.high})
	if err != nil {
		return nil, err
	}
	first, next := it.First, it.Next
	if l.newest {
		first, next = it.Last, it.Prev
	}
	ok := first()
	for n := 0; ok && n < pageSize && err == nil; n++ {
		l.pass(slices.Clone(it.Key()))
		if p := positionAt(it.Key()); l.sight.has(p) {
			page, err = a.appendAt(page, p, it.Key())
		}
		ok = next()
	}
	if !ok {
		l.low = l.high
	}
	return page, cmp.Or(err, it.Error(), it.Close())
}

// appendAt adds the message with the receipt at p to a page. One damaged
// receipt must not hide all that follow: it is left out, and named in the
// findings.
func (a *Archive) appendAt(page []record.Message, p record.Position, key []byte) ([]record.Message, error) {
	m, err := a.messageAt(p, key)
	if errors.Is(err, ErrCorrupt) {
		a.scrub.record(a, &Finding{Position: p, Problem: err.Error(), FoundAt: time.Now().UTC()})
		return page, nil
	}
	if err != nil || m == nil {
		return page, err
	}
	return append(page, *m), nil
}

// messageAt reads the message that a time key leads to; nil when the message
// has another time key since it was repaired.
func (a *Archive) messageAt(p record.Position, key []byte) (*record.Message, error) {
	r, err := a.receipt(p)
	if err != nil {
		return nil, err
	}
	entry, err := a.messageEntry(r.Hash)
	if err != nil {
		return nil, err
	}
	if entry[0].pos != p || !bytes.Equal(timeKey(r.ReceivedAt, p), key) {
		return nil, nil
	}
	m, err := a.messageOf(r.Hash, entry)
	return &m, err
}
