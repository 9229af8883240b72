package archive

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/sync/semaphore"

	"chainmail/archive/record"
)

// Draft is a message that is coming in. Write its bytes, then Commit or
// Discard it; Discard after Commit does nothing, so defer it. A Draft serves
// one goroutine at a time.
type Draft struct {
	a    *Archive
	own  *ownLog
	ctx  context.Context
	hash hash.Hash
	size int64
	err  error // of a failed Write; every later call gives it again

	share *semaphore.Weighted // of memory that cost is taken from
	cost  int64
	raw   *[]byte  // bytes that make up no whole chunk yet
	pool  *buffers // where raw came from
	paid  bool     // somebody else took the memory for it

	body   bodyWriter // its number is 0 until the first chunk
	refuse *Conflict  // written with the receipt when the message was refused at a position of another
}

// NewDraft begins a message. ctx ends its waiting for memory.
func (a *Archive) NewDraft(ctx context.Context) *Draft {
	own := a.own.Load()
	return &Draft{a: a, own: own, ctx: ctx, hash: sha256.New(), body: bodyWriter{a: a, store: own.store}}
}

// Write adds to the message. It may wait for memory; ErrBusy when there is
// none in time, ErrDiskFull when the disk is nearly full.
func (d *Draft) Write(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	d.hash.Write(p)
	d.size += int64(len(p))
	for rest := p; len(rest) > 0; {
		if d.raw == nil || len(*d.raw) == cap(*d.raw) {
			if d.err = d.room(); d.err != nil {
				return 0, d.err
			}
		}
		raw := *d.raw
		n := min(len(rest), cap(raw)-len(raw))
		*d.raw = append(raw, rest[:n]...)
		rest = rest[n:]
	}
	return len(p), nil
}

// room makes room in raw: at first it is small, then it is as large as a
// chunk, and a full chunk is packed.
func (d *Draft) room() error {
	switch {
	case d.raw == nil:
		return d.hold(d.a.memory.small, smallCost, d.a.smallBuffers)
	case cap(*d.raw) == smallBuffer:
		return d.hold(d.a.memory.large, largeCost, d.a.chunkBuffers)
	}
	d.pack()
	if !d.body.full() {
		return nil
	}
	return d.body.spill()
}

// hold takes memory of a share, moves raw there and gives back what was held.
func (d *Draft) hold(share *semaphore.Weighted, cost int64, pool *buffers) error {
	if !d.paid {
		if err := d.a.memory.take(d.ctx, share, cost); err != nil {
			return err
		}
	}
	raw := pool.get()
	if d.raw != nil {
		*raw = append(*raw, *d.raw...)
	}
	d.letGo()
	d.share, d.cost, d.raw, d.pool = share, cost, raw, pool
	return nil
}

func (d *Draft) letGo() {
	if d.raw != nil {
		d.pool.put(d.raw)
		if !d.paid {
			d.a.memory.give(d.share, d.cost)
		}
		d.raw = nil
	}
}

// pack compresses raw into the batch as the next chunk.
func (d *Draft) pack() {
	a := d.a
	if d.body.body == 0 {
		d.body.body = record.BodyNo(d.own.nextBody.Add(1))
	}
	packed := a.packBuffers.get()
	z := a.compressors.Get().(*compressor)
	*packed = z.appendChunk(*packed, *d.raw)
	a.compressors.Put(z)
	d.body.add(*packed)
	a.packBuffers.put(packed)
	*d.raw = (*d.raw)[:0]
}

// errOtherLog: the message began to come in before StartLog.
var errOtherLog = fmt.Errorf("%w: a new log was started while the mail came in", ErrBusy)

var errEnded = errors.New("archive: the draft was committed or discarded before")

// Discard forgets the message unless it was committed.
func (d *Draft) Discard() {
	d.letGo()
	d.err = cmp.Or(d.err, errEnded)
	d.body.close()
}

// Commit makes the message and a receipt with envelope e durable. When it
// returns nil they are on disk; when it returns an error, nothing of them is
// ever seen. The error may be that of an earlier Write.
func (d *Draft) Commit(e record.Envelope) (record.Receipt, error) {
	defer d.Discard()
	if d.err != nil {
		return record.Receipt{}, d.err
	}
	a := d.a
	done, err := a.use()
	if err != nil {
		return record.Receipt{}, err
	}
	if _, err := a.space.check(); err != nil {
		done()
		return record.Receipt{}, err
	}
	a.committing.Add(1)
	defer a.committing.Add(-1)
	start := time.Now()
	r := record.Receipt{Position: record.Position{Store: d.own.store}, Size: d.size, Envelope: e}
	d.hash.Sum(r.Hash[:0])
	err = d.enter(&r)
	if err == nil {
		synced := time.Now()
		if err := d.body.batch.SyncWait(); err != nil {
			a.fatal(fmt.Errorf("sync of receipt %v: %w", r.Position, err))
		}
		a.metrics.committed(&r, start, synced)
		d.own.advance(r.Position.Seq)
		a.changed.wake()
		d.body.spilled = false
	}
	done()
	return r, err
}

// enter brings the message into the log: all it needs in one batch, which is
// visible at once and durable when the batch's SyncWait returns.
func (d *Draft) enter(r *record.Receipt) error {
	a := d.a
	stripe := a.stripe(r.Hash)
	stripe.lock()
	defer stripe.unlock()

	// Where the index is damaged, the mail is archived as if it were new: a rotten
	// block must not keep mail out.
	entry, err := a.messageEntry(r.Hash)
	if err != nil && !errors.Is(err, ErrNotFound) && !isDamage(err) {
		return err
	}
	known, have := a.goodBody(entry, d.own.store)
	if have {
		d.body.drop()
		r.Body = known.body
	} else {
		if d.raw != nil && len(*d.raw) > 0 {
			d.pack()
		}
		r.Body = d.body.body
	}
	if d.body.batch == nil {
		d.body.batch = a.db.NewBatch()
	}
	b := d.body.batch
	if d.body.spilled && !have {
		remove(b, pendingKey(d.own.store, r.Body))
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	if a.own.Load() != d.own {
		return errOtherLog
	}
	state := a.states[d.own.store]
	state.mark++
	r.Position.Seq = state.mark
	// The clock is read here so that receipts have the same order by time as in
	// the log: a listing that is resumed would miss one that came out of order.
	r.ReceivedAt = time.Now().UTC()
	if len(entry) > 0 {
		a.metrics.duplicates.Inc()
	} else {
		state.messages++
		state.rawBytes += uint64(r.Size)
	}
	index(b, r, record.AppendReceipt(nil, r), entry, false)
	if d.refuse != nil {
		d.refuse.Kept = r.Position
		set(b, d.refuse.key(), encodeJSON(d.refuse))
	}
	set(b, logKey(d.own.store), state.encode())
	a.apply(b, pebble.Sync)
	a.states[d.own.store] = state
	return nil
}

// apply enters a batch into the write-ahead log and the memtable, or ends the
// process. With pebble.Sync the caller waits for the disk by SyncWait.
func (a *Archive) apply(b *pebble.Batch, o *pebble.WriteOptions) {
	defer func() {
		if p := recover(); p != nil {
			a.fatal(fmt.Errorf("write: %v", p))
		}
	}()
	var err error
	if o.Sync {
		err = a.db.ApplyNoSyncWait(b, o)
	} else {
		err = a.db.Apply(b, o)
	}
	if err != nil {
		a.fatal(fmt.Errorf("write: %w", err))
	}
}
