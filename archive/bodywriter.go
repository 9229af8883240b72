package archive

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// bodyWriter brings the stored chunks of one body into a batch, and writes
// them out ahead of their receipt when there are many. A body that was written
// ahead has a pending key until its receipt comes, by which a start removes
// what never got one.
type bodyWriter struct {
	a       *Archive
	batch   *pebble.Batch // chunks that are not written yet
	store   record.StoreID
	body    record.BodyNo
	chunks  uint32
	spilled bool // chunks were written ahead, under a pending key
}

// add appends the next chunk, in its stored form.
func (w *bodyWriter) add(chunk []byte) {
	if w.batch == nil {
		w.batch = w.a.db.NewBatch()
	}
	set(w.batch, bodyKey(w.store, w.body, w.chunks), chunk)
	w.chunks++
}

// full reports whether it is time to spill.
func (w *bodyWriter) full() bool { return w.batch.Len() >= spillSize }

// spill writes the chunks so far ahead of their receipt, without waiting for
// the disk: the sync of the receipt, later in the same log, covers them.
func (w *bodyWriter) spill() error {
	if w.batch.Empty() {
		return nil
	}
	done, err := w.a.use()
	if err != nil {
		return err
	}
	defer done()
	if _, err := w.a.space.check(); err != nil {
		return err
	}
	if !w.spilled {
		set(w.batch, pendingKey(w.store, w.body), nil)
		w.spilled = true
	}
	w.a.apply(w.batch, pebble.NoSync)
	w.batch.Reset()
	return nil
}

// drop forgets the chunks in the batch and adds to it what removes those
// written ahead.
func (w *bodyWriter) drop() {
	if w.batch == nil {
		return
	}
	w.batch.Reset()
	if w.spilled {
		dropBody(w.batch, w.store, w.body)
	}
}

// close gives the batch back. Chunks written ahead are removed, unless spilled
// was cleared because they have their receipt.
func (w *bodyWriter) close() {
	if w.batch == nil {
		return
	}
	if done, err := w.a.use(); err == nil {
		if w.spilled {
			w.drop()
			w.a.apply(w.batch, pebble.NoSync)
			w.spilled = false
		}
		w.batch.Close()
		done()
	}
	w.batch = nil
}

// dropBody adds to a batch what removes a body written ahead.
func dropBody(b *pebble.Batch, s record.StoreID, body record.BodyNo) {
	deleteBody(b, s, body)
	remove(b, pendingKey(s, body))
}

// deleteBody adds to a batch what removes the chunks of a body.
func deleteBody(b *pebble.Batch, s record.StoreID, body record.BodyNo) {
	start, end := bodyRange(s, body)
	grown(b.DeleteRange(start, end, nil))
}

// set and remove add to a batch.
func set(b *pebble.Batch, k, v []byte) { grown(b.Set(k, v, nil)) }

func remove(b *pebble.Batch, k []byte) { grown(b.Delete(k, nil)) }

// grown takes the error of adding to a batch, which cannot fail: a batch only
// grows in memory.
func grown(err error) {
	if err != nil {
		panic(fmt.Sprintf("archive: batch: %v", err))
	}
}
