package archive

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// Exported is a receipt as it is given to a peer.
type Exported struct {
	Receipt record.Receipt
	Encoded []byte // its stored form
	// BodyAt is the first receipt of this log that has the same body: who
	// holds that holds the body.
	BodyAt record.Position
}

// Export gives the receipt at p; ErrNotFound when it is not held, ErrCorrupt
// when it is damaged.
func (a *Archive) Export(p record.Position) (Exported, error) {
	done, err := a.use()
	if err != nil {
		return Exported{}, err
	}
	defer done()
	if !a.visible(p) {
		return Exported{}, fmt.Errorf("%v: %w", p, ErrNotFound)
	}
	if f := a.scrub.finding(p); f != nil {
		return Exported{}, corrupt("receipt %v: %s", p, f.Problem)
	}
	x := Exported{BodyAt: p}
	if x.Receipt, x.Encoded, err = a.stored(p); err != nil {
		return Exported{}, err
	}
	entry, err := a.messageEntry(x.Receipt.Hash)
	ref, known := entry.at(p.Store, x.Receipt.Body)
	switch {
	case err == nil && known:
		x.BodyAt = ref.pos
	case err == nil || errors.Is(err, ErrNotFound) || isDamage(err):
		a.suspect(p, x.Receipt.Hash, corrupt("the index of messages lacks it"))
	default:
		return Exported{}, err
	}
	return x, nil
}

// stored reads a receipt that is held. Damage becomes a finding.
func (a *Archive) stored(p record.Position) (r record.Receipt, encoded []byte, err error) {
	encoded, err = a.get(receiptKey(p))
	if err == nil {
		r, err = record.DecodeReceipt(p, encoded)
	}
	if err != nil {
		err = corrupt("receipt %v: %w", p, err)
		a.suspect(p, record.Hash{}, err)
	}
	return r, encoded, err
}

// suspect makes a finding of what was noticed in passing.
func (a *Archive) suspect(p record.Position, h record.Hash, problem error) {
	if a.scrub.finding(p) == nil {
		a.log.Error("a damaged receipt was found", "store", p.Store, "seq", p.Seq, "err", problem)
		a.scrub.record(a, &Finding{Position: p, Hash: h, Problem: problem.Error(), FoundAt: time.Now().UTC()})
	}
}

// Chunks gives the chunks of a body in their stored form, in their order; an
// empty message has none. Each is checked against its CRC, but whether they are
// all is for the receiver to see. f may keep the slice. ErrCorrupt when one is
// damaged: then let Check look at the receipt.
func (a *Archive) Chunks(s record.StoreID, b record.BodyNo, f func(chunk []byte) error) error {
	for n := uint32(0); b != 0; n++ {
		chunk, err := a.chunk(s, b, n)
		switch {
		case errors.Is(err, pebble.ErrNotFound) && n > 0:
			return nil
		case errors.Is(err, ErrClosed):
			return err
		case err != nil:
			return corrupt("body %d of log %v: chunk %d: %w", b, s, n, err)
		}
		if err := f(chunk); err != nil {
			return err
		}
		if rawLength(chunk) < chunkSize {
			return nil // only the last one is shorter
		}
	}
	return nil
}

// chunk reads one chunk. Nothing of the database is held between chunks, so a
// slow peer holds nothing up.
func (a *Archive) chunk(s record.StoreID, b record.BodyNo, n uint32) ([]byte, error) {
	done, err := a.use()
	if err != nil {
		return nil, err
	}
	defer done()
	chunk, err := a.get(bodyKey(s, b, n))
	if err == nil {
		err = checkChunk(chunk)
	}
	return chunk, err
}

// SegmentSize is how many sequence numbers a segment has.
const SegmentSize = 1024

// Segment sums up a stretch of a log, so that two nodes can compare what they
// hold of it.
type Segment struct {
	// Digest is the SHA-256 over, for each receipt held, its sequence number
	// (8 bytes, big endian) and its digest. Nodes that hold the same receipts
	// have the same one.
	Digest   [32]byte
	Receipts int
	Bytes    int64 // of the messages, as received
	Held     record.Ranges
}

// ReceiptDigest is the SHA-256 of a receipt's stored form.
type ReceiptDigest struct {
	Position record.Position `json:"position"`
	Digest   record.Hash     `json:"sha256"`
}

// Segment sums up the receipts n·1024+1 … (n+1)·1024 of a log, but for those
// that are damaged.
func (a *Archive) Segment(s record.StoreID, n uint64) (Segment, error) {
	if n > maxSeq/SegmentSize {
		return Segment{}, nil
	}
	first := record.Seq(n*SegmentSize + 1)
	var seg Segment
	sum := sha256.New()
	err := a.each(s, record.Of(first, first+SegmentSize-1), func(r *record.Receipt, digest record.Hash) {
		seq := r.Position.Seq
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(seq)))
		sum.Write(digest[:])
		seg.Receipts++
		seg.Bytes += r.Size
		seg.Held = appendSeq(seg.Held, seq)
	})
	seg.Digest = [32]byte(sum.Sum(nil))
	return seg, err
}

// Digests gives a digest for each receipt of a range that is held and not
// damaged.
func (a *Archive) Digests(s record.StoreID, r record.Range) (ds []ReceiptDigest, err error) {
	err = a.each(s, record.Of(r.First, r.Last), func(r *record.Receipt, digest record.Hash) {
		ds = append(ds, ReceiptDigest{r.Position, digest})
	})
	return ds, err
}

// each reads those receipts of a set that are held. Damaged ones are left out;
// they become findings.
func (a *Archive) each(s record.StoreID, r record.Ranges, f func(*record.Receipt, record.Hash)) error {
	done, err := a.use()
	if err != nil {
		return err
	}
	defer done()
	l, _ := a.Log(s)
	for seq := range each(l.Held.Intersect(r)) {
		receipt, encoded, err := a.stored(record.Position{Store: s, Seq: seq})
		if isDamage(err) {
			continue
		}
		if err != nil {
			return err
		}
		f(&receipt, sha256.Sum256(encoded))
	}
	return nil
}

// Sizes adds up the messages of at most limit receipts of a set. It is complete
// when these are all, and all are held.
func (a *Archive) Sizes(s record.StoreID, r record.Ranges, limit int) (bytes int64, complete bool, err error) {
	l, _ := a.Log(s)
	held := l.Held.Intersect(r)
	complete = held.Count() == r.Count()
	var few record.Ranges
	for seq := range each(held) {
		if limit--; limit < 0 {
			complete = false
			break
		}
		few = appendSeq(few, seq)
	}
	read := uint64(0)
	err = a.each(s, few, func(r *record.Receipt, _ record.Hash) {
		bytes += r.Size
		read++
	})
	return bytes, complete && read == few.Count(), err
}

// ReceivedAt is when the receipt at p was made; ErrNotFound when it is not
// held.
func (a *Archive) ReceivedAt(p record.Position) (time.Time, error) {
	done, err := a.use()
	if err != nil {
		return time.Time{}, err
	}
	defer done()
	r, err := a.receipt(p)
	return r.ReceivedAt, err
}
