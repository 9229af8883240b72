package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// Finding is a receipt that cannot be read whole, or that an index has lost.
type Finding struct {
	Position record.Position `json:"position"`
	Hash     record.Hash     `json:"sha256,omitzero"` // zero when the receipt is unreadable
	Problem  string          `json:"problem"`
	FoundAt  time.Time       `json:"found_at"`
}

// Progress tells how far a verification is.
type Progress struct {
	Checked, Total uint64   // receipts
	Bytes          int64    // of messages read and hashed
	Finding        *Finding // what was just found, nil for plain progress
}

// Verify reads every receipt, every body and every index entry that should
// lead to them, and checks each body against its SHA-256. Receipts that are
// known to be gone from the end of a log are findings too. It tells progress
// after every receipt; report must not keep p.Finding's address. An error
// means that it could not go on, not that something was found.
func (a *Archive) Verify(ctx context.Context, report func(Progress)) error {
	now := a.sight()
	gone := a.scrub.beyond(now)
	p := Progress{Total: uint64(len(gone))}
	for _, store := range now.stores() {
		p.Total += now.held(store).Count()
	}
	for _, store := range now.stores() {
		for seq := range each(now.held(store)) {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, finding, err := a.check(record.Position{Store: store, Seq: seq})
			if err != nil {
				return err
			}
			p.Checked++
			p.Bytes += n
			p.Finding = finding
			report(p)
		}
	}
	for i := range gone {
		p.Checked++
		p.Finding = &gone[i]
		report(p)
	}
	return nil
}

// each gives the numbers of a set in rising order.
func each(r record.Ranges) iter.Seq[record.Seq] {
	return func(yield func(record.Seq) bool) {
		for _, x := range r {
			for seq := x.First; ; seq++ {
				if !yield(seq) {
					return
				}
				if seq == x.Last {
					break
				}
			}
		}
	}
}

// Check reads the receipt at p, its index entries and its body now, as Verify
// does with all. It gives what is wrong, which Logs leaves out from then on,
// or nil.
func (a *Archive) Check(p record.Position) (*Finding, error) {
	if !a.visible(p) {
		return nil, fmt.Errorf("%v: %w", p, ErrNotFound)
	}
	_, f, err := a.check(p)
	return f, err
}

// check verifies the receipt at p and, when it is the first of its message in
// its log, the message's bytes. It records what it finds, and takes back what
// an earlier check found and is well now. n is the number of bytes read.
func (a *Archive) check(p record.Position) (n int64, _ *Finding, err error) {
	h, n, problem := a.examine(p)
	if errors.Is(problem, ErrClosed) {
		return n, nil, problem
	}
	done, err := a.use()
	if err != nil {
		return n, nil, err
	}
	defer done()
	if problem == nil {
		a.scrub.clear(a, p)
		return n, nil, nil
	}
	f := &Finding{Position: p, Hash: h, Problem: problem.Error(), FoundAt: time.Now().UTC()}
	a.scrub.record(a, f)
	return n, f, nil
}

func (a *Archive) examine(p record.Position) (h record.Hash, n int64, problem error) {
	r, first, problem := a.examineReceipt(p)
	if problem != nil || !first {
		return r.Hash, 0, problem
	}
	// The database is not held here: the reader takes it for each chunk, and
	// taking it twice would hang when Close comes in between.
	body := a.openBody(p.Store, r.Body, r.Hash, r.Size)
	n, problem = io.Copy(io.Discard, body)
	return r.Hash, n, problem
}

// examineReceipt checks all of a receipt but its body, and tells whether it is
// the first of its message in its log, with which the body is read.
func (a *Archive) examineReceipt(p record.Position) (r record.Receipt, isFirst bool, problem error) {
	done, err := a.use()
	if err != nil {
		return r, false, err
	}
	defer done()
	r, err = a.receipt(p)
	if err != nil {
		return r, false, fmt.Errorf("the receipt cannot be read: %w", err)
	}
	entry, err := a.messageEntry(r.Hash)
	if err != nil {
		return r, false, fmt.Errorf("the index of messages lacks it: %w", err)
	}
	first, ok := entry.at(p.Store, r.Body)
	if !ok {
		return r, false, corrupt("the index of messages does not name its body")
	}
	if problem := a.examineIndexes(&r, entry); problem != nil {
		return r, false, problem
	}
	if first.pos != p {
		// The body was read with the first receipt; this one shares its fate.
		if a.scrub.finding(first.pos) != nil {
			return r, false, corrupt("it shares the body of %v, which is damaged", first.pos)
		}
		return r, false, nil
	}
	return r, true, nil
}

// examineIndexes checks that the entries exist by which the receipt is found.
func (a *Archive) examineIndexes(r *record.Receipt, entry messageEntry) error {
	keys := map[string][]byte{}
	if entry[0].pos == r.Position {
		keys["time"] = timeKey(r.ReceivedAt, r.Position)
	} else {
		keys["further receipts"] = furtherKey(r.Hash, r.Position)
	}
	if j := r.Envelope.Journal; j != nil && !j.Inner.IsZero() {
		keys["journal reports"] = journalKey(j.Inner, r.Hash)
	}
	for name, k := range keys {
		if _, err := a.get(k); errors.Is(err, pebble.ErrNotFound) {
			return corrupt("the index of %s lacks it", name)
		} else if err != nil {
			return fmt.Errorf("the index of %s cannot be read: %w", name, err)
		}
	}
	return nil
}
