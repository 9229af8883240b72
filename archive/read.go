package archive

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

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
			return nil, fmt.Errorf("%w: %w", ErrBadID, err)
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

// Body opens the exact bytes of a message. They are checked while they are
// read: damage is an ErrCorrupt from Read, at the latest in the place of
// io.EOF, and a damaged chunk is never given out.
func (a *Archive) Body(h record.Hash) (io.ReadCloser, error) {
	m, err := a.Message(h)
	if err != nil {
		return nil, err
	}
	r := m.Receipts[0]
	return a.openBody(r.Position.Store, r.Body, r.Hash, r.Size), nil
}

func (a *Archive) openBody(s record.StoreID, b record.BodyNo, h record.Hash, size int64) *bodyReader {
	return &bodyReader{a: a, store: s, body: b, want: h, left: size, sum: sha256.New()}
}

// bodyReader reads one body chunk by chunk. It holds nothing of the database
// between reads, so a slow reader holds nothing up.
type bodyReader struct {
	a     *Archive
	store record.StoreID
	body  record.BodyNo
	want  record.Hash
	left  int64 // raw bytes in chunks that are not read yet
	next  uint32
	sum   hash.Hash
	buf   []byte
	chunk []byte // of buf, not given out yet
	err   error
}

func (r *bodyReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 && r.err == nil {
		r.chunk, r.err = r.nextChunk()
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// WriteTo makes io.Copy pass whole chunks on.
func (r *bodyReader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		if len(r.chunk) > 0 {
			m, err := w.Write(r.chunk)
			n += int64(m)
			r.chunk = r.chunk[m:]
			if err != nil {
				return n, err
			}
		}
		if r.err == nil {
			r.chunk, r.err = r.nextChunk()
		}
		if r.err == io.EOF {
			return n, nil
		}
		if r.err != nil {
			return n, r.err
		}
	}
}

func (r *bodyReader) nextChunk() ([]byte, error) {
	if r.left == 0 {
		if sum := record.Hash(r.sum.Sum(nil)); sum != r.want {
			return nil, corrupt("message %v: its bytes have the SHA-256 %v", r.want, sum)
		}
		return nil, io.EOF
	}
	done, err := r.a.use()
	if err != nil {
		return nil, err
	}
	defer done()
	packed, err := r.a.get(bodyKey(r.store, r.body, r.next))
	if err != nil {
		return nil, corrupt("message %v: chunk %d: %w", r.want, r.next, err)
	}
	z := r.a.compressors.Get().(*compressor)
	r.buf, err = z.decodeChunk(r.buf, packed)
	r.a.compressors.Put(z)
	if err == nil && int64(len(r.buf)) > r.left {
		err = corrupt("it is longer than the message")
	}
	if err != nil {
		return nil, fmt.Errorf("message %v: chunk %d: %w", r.want, r.next, err)
	}
	r.next++
	r.left -= int64(len(r.buf))
	r.sum.Write(r.buf)
	if r.left == 0 && record.Hash(r.sum.Sum(nil)) != r.want {
		return nil, corrupt("message %v: its bytes have another SHA-256", r.want)
	}
	return r.buf, nil
}

// Close ends the reading.
func (r *bodyReader) Close() error {
	r.err, r.chunk = ErrClosed, nil
	return nil
}

// Query selects messages by the time of their first receipt.
type Query struct {
	After string    // an ID as for Resolve: only messages listed after this one
	Since time.Time // only from this time on; zero: from the beginning
	Until time.Time // only before this time; zero: to the end
}

// Messages lists messages in the order of their first receipts. It may be
// stopped and resumed after the last message seen; what arrives meanwhile
// comes at the end.
func (a *Archive) Messages(ctx context.Context, q Query) iter.Seq2[record.Message, error] {
	return func(yield func(record.Message, error) bool) {
		from, to, err := a.timeRange(q)
		for err == nil {
			var page []record.Message
			page, from, err = a.page(from, to)
			for _, m := range page {
				if !yield(m, nil) {
					return
				}
			}
			if err == nil && from == nil {
				return
			}
			err = cmp.Or(err, ctx.Err())
		}
		yield(record.Message{}, err)
	}
}

// timeRange turns a query into the bounds of its time keys.
func (a *Archive) timeRange(q Query) (from, to []byte, err error) {
	from, to = []byte{kindTime}, []byte{kindTime + 1}
	if !q.Since.IsZero() {
		from = u64(kindTime, sortableTime(q.Since))
	}
	if !q.Until.IsZero() {
		to = u64(kindTime, sortableTime(q.Until))
	}
	if q.After == "" {
		return from, to, nil
	}
	hashes, err := a.Resolve(q.After)
	if err != nil {
		return nil, nil, fmt.Errorf("after: %w", err)
	}
	m, err := a.Message(hashes[0])
	if err != nil {
		return nil, nil, fmt.Errorf("after: %w", err)
	}
	next := append(timeKey(m.ReceivedAt(), m.Receipts[0].Position), 0)
	if bytes.Compare(next, from) > 0 {
		from = next
	}
	return from, to, nil
}

const pageSize = 256

// page reads some messages whose time keys are in [from, to), and where to go
// on, nil at the end. Between pages nothing of the database is held.
func (a *Archive) page(from, to []byte) (page []record.Message, next []byte, err error) {
	done, err := a.use()
	if err != nil {
		return nil, nil, err
	}
	defer done()
	it, err := a.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return nil, nil, err
	}
	for ok := it.First(); ok && next == nil && err == nil; ok = it.Next() {
		p := positionAt(it.Key())
		switch {
		case len(page) == pageSize:
			next = slices.Clone(it.Key())
		case a.visible(p):
			var m record.Message
			if m, err = a.messageAt(p); err == nil {
				page = append(page, m)
			} else if errors.Is(err, ErrCorrupt) {
				// One damaged receipt must not hide all that follow; it is
				// named in the findings.
				a.scrub.record(a, &Finding{Position: p, Problem: err.Error(), FoundAt: time.Now().UTC()})
				err = nil
			}
		}
	}
	return page, next, cmp.Or(err, it.Error(), it.Close())
}

func (a *Archive) messageAt(p record.Position) (record.Message, error) {
	r, err := a.receipt(p)
	if err != nil {
		return record.Message{}, err
	}
	return a.message(r.Hash)
}
