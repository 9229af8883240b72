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
	ctx  context.Context
	hash hash.Hash
	size int64
	err  error // of a failed Write; every later call gives it again

	share *semaphore.Weighted // of memory that cost is taken from
	cost  int64
	raw   *[]byte  // bytes that make up no whole chunk yet
	pool  *buffers // where raw came from

	batch   *pebble.Batch // chunks that are not written yet
	body    record.BodyNo // 0 until the first chunk
	chunks  uint32
	spilled bool // chunks were written ahead, under a pending key
}

// NewDraft begins a message. ctx ends its waiting for memory.
func (a *Archive) NewDraft(ctx context.Context) *Draft {
	return &Draft{a: a, ctx: ctx, hash: sha256.New()}
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
	if d.batch.Len() < spillSize {
		return nil
	}
	return d.spill()
}

// hold takes memory of a share, moves raw there and gives back what was held.
func (d *Draft) hold(share *semaphore.Weighted, cost int64, pool *buffers) error {
	if err := d.a.memory.take(d.ctx, share, cost); err != nil {
		return err
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
		d.a.memory.give(d.share, d.cost)
		d.raw = nil
	}
}

// pack compresses raw into the batch as the next chunk.
func (d *Draft) pack() {
	a := d.a
	if d.batch == nil {
		d.batch = a.db.NewBatch()
	}
	if d.body == 0 {
		d.body = record.BodyNo(a.nextBody.Add(1))
	}
	packed := a.packBuffers.get()
	z := a.compressors.Get().(*compressor)
	*packed = z.appendChunk(*packed, *d.raw)
	a.compressors.Put(z)
	d.set(bodyKey(a.store, d.body, d.chunks), *packed)
	a.packBuffers.put(packed)
	d.chunks++
	*d.raw = (*d.raw)[:0]
}

// set adds to the batch, which cannot fail: it only grows in memory.
func (d *Draft) set(k, v []byte) {
	if err := d.batch.Set(k, v, nil); err != nil {
		panic(fmt.Sprintf("archive: batch: %v", err))
	}
}

// spill writes the chunks so far ahead of their receipt, without waiting for
// the disk: the sync of the receipt, later in the same log, covers them.
func (d *Draft) spill() error {
	done, err := d.a.use()
	if err != nil {
		return err
	}
	defer done()
	if _, err := d.a.space.check(); err != nil {
		return err
	}
	if !d.spilled {
		d.set(pendingKey(d.a.store, d.body), nil)
		d.spilled = true
	}
	d.a.apply(d.batch, pebble.NoSync)
	d.batch.Reset()
	return nil
}

var errEnded = errors.New("archive: the draft was committed or discarded before")

// Discard forgets the message unless it was committed.
func (d *Draft) Discard() {
	d.letGo()
	d.err = cmp.Or(d.err, errEnded)
	if d.batch == nil {
		return
	}
	if done, err := d.a.use(); err == nil {
		if d.spilled {
			d.batch.Reset()
			d.dropBody()
			d.a.apply(d.batch, pebble.NoSync)
			d.spilled = false
		}
		d.batch.Close()
		done()
	}
	d.batch = nil
}

// dropBody adds to the batch what removes the chunks written ahead.
func (d *Draft) dropBody() {
	start, end := bodyRange(d.a.store, d.body)
	if err := errors.Join(d.batch.DeleteRange(start, end, nil), d.batch.Delete(pendingKey(d.a.store, d.body), nil)); err != nil {
		panic(fmt.Sprintf("archive: batch: %v", err))
	}
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
	r := record.Receipt{Position: record.Position{Store: a.store}, Size: d.size, Envelope: e}
	d.hash.Sum(r.Hash[:0])
	err = d.enter(&r)
	if err == nil {
		synced := time.Now()
		if err := d.batch.SyncWait(); err != nil {
			a.fatal(fmt.Errorf("sync of receipt %v: %w", r.Position, err))
		}
		a.metrics.committed(&r, start, synced)
		a.advance(r.Position.Seq)
		d.spilled = false
	}
	done()
	return r, err
}

// enter brings the message into the log: all it needs in one batch, which is
// visible at once and durable when the batch's SyncWait returns.
func (d *Draft) enter(r *record.Receipt) error {
	a := d.a
	lock := &a.stripes[r.Hash[0]]
	lock.Lock()
	defer lock.Unlock()

	entry, err := a.messageEntry(r.Hash)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	known, have := entry.in(a.store)
	if have {
		d.forgetBody()
		r.Body = known.body
	} else {
		if d.raw != nil && len(*d.raw) > 0 {
			d.pack()
		}
		r.Body = d.body
	}
	if d.batch == nil {
		d.batch = a.db.NewBatch()
	}
	if d.spilled && !have {
		if err := d.batch.Delete(pendingKey(a.store, d.body), nil); err != nil {
			return err
		}
	}
	if j := r.Envelope.Journal; j != nil && !j.Inner.IsZero() {
		d.set(journalKey(j.Inner, r.Hash), nil)
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	state := a.states[a.store]
	state.mark++
	r.Position.Seq = state.mark
	// The clock is read here so that receipts have the same order by time as in
	// the log: a listing that is resumed would miss one that came out of order.
	r.ReceivedAt = time.Now().UTC()
	d.set(receiptKey(r.Position), record.AppendReceipt(nil, r))
	if !have {
		d.set(messageKey(r.Hash), append(entry, bodyRef{r.Position, r.Body}).encode())
	}
	if len(entry) > 0 {
		d.set(furtherKey(r.Hash, r.Position), nil)
		a.metrics.duplicates.Inc()
	} else {
		state.messages++
		state.rawBytes += uint64(r.Size)
		d.set(timeKey(r.ReceivedAt, r.Position), nil)
	}
	d.set(logKey(a.store), state.encode())
	a.apply(d.batch, pebble.Sync)
	a.states[a.store] = state
	return nil
}

// forgetBody drops the chunks: the log has this message already.
func (d *Draft) forgetBody() {
	if d.batch == nil {
		return
	}
	d.batch.Reset()
	if d.spilled {
		d.dropBody()
	}
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

// advance makes own receipts up to seq visible. Syncs finish in the order of
// the log, so when one is durable, all before it are.
func (a *Archive) advance(seq record.Seq) {
	for {
		old := a.durable.Load()
		if uint64(seq) <= old || a.durable.CompareAndSwap(old, uint64(seq)) {
			return
		}
	}
}
