package archive

import (
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"chainmail/archive/record"
)

// WithMemTable makes the memtable n bytes, so that little mail causes flushes
// and compactions.
func (o Options) WithMemTable(n uint64) Options {
	o.memTable = n
	return o
}

// CountBodies counts the stored chunks, of whatever message, on a disk that
// nobody uses.
func CountBodies(d *Disk, dir string) (n int, err error) {
	a, err := Open(Options{Dir: dir, Disk: d})
	if err != nil {
		return 0, err
	}
	defer a.Close()
	err = a.scan([]byte{kindBody}, nil, func(_, _ []byte) error {
		n++
		return nil
	})
	return n, err
}

// SwapBody puts other stored bytes in the place of a message's first chunk and
// gives back what was there.
func (a *Archive) SwapBody(h record.Hash, chunk []byte) ([]byte, error) {
	e, err := a.messageEntry(h)
	if err != nil {
		return nil, err
	}
	k := bodyKey(e[0].pos.Store, e[0].body, 0)
	old, err := a.get(k)
	a.put(k, chunk)
	return old, err
}

// DamageBody alters the stored bytes of a message's first chunk.
func (a *Archive) DamageBody(h record.Hash) error {
	old, err := a.SwapBody(h, []byte("rot"))
	if err != nil {
		return err
	}
	old[len(old)/2] ^= 1
	_, err = a.SwapBody(h, old)
	return err
}

// NoteTide notes the progress of the log now.
func (a *Archive) NoteTide() { a.noteTide() }

// FlipLog flips a bit in the newest write-ahead log, at a part of its length.
func (d *Disk) FlipLog(dir string, part float64) error {
	names, err := d.mem.List(dir)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".log") })
	f, err := d.mem.OpenReadWrite(d.mem.PathJoin(dir, slices.Max(names)), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	at, b := int64(part*float64(st.Size())), make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		return err
	}
	return f.Sync()
}

// DamageReceipt puts bytes that are no receipt at a position.
func (a *Archive) DamageReceipt(p record.Position) { a.put(receiptKey(p), []byte("rot")) }

// LoseEntry removes the index entry of a message; DamageEntry makes it
// unreadable.
func (a *Archive) LoseEntry(h record.Hash) { a.put(messageKey(h), nil) }

// DamageEntry puts bytes that are no entry in the index of messages.
func (a *Archive) DamageEntry(h record.Hash) { a.put(messageKey(h), []byte("rot")) }

// LoseIndexes removes the entries by which the receipt at p is found, but for
// that of its message.
func (a *Archive) LoseIndexes(p record.Position) error {
	r, err := a.receipt(p)
	if err != nil {
		return err
	}
	for _, k := range [][]byte{timeKey(r.ReceivedAt, p), furtherKey(r.Hash, p)} {
		a.put(k, nil)
	}
	if j := r.Envelope.Journal; j != nil {
		a.put(journalKey(j.Inner, r.Hash), nil)
	}
	return nil
}

// LoseBody removes the chunks of a receipt's body.
func (a *Archive) LoseBody(p record.Position) error {
	r, err := a.receipt(p)
	if err != nil {
		return err
	}
	b := a.db.NewBatch()
	defer b.Close()
	deleteBody(b, p.Store, r.Body)
	a.apply(b, pebble.NoSync)
	return nil
}

// IntakeBatch is how much an Intake keeps in memory beside a body.
const IntakeBatch = intakeBatch

// Reopen gives the options by which the archive is opened again.
func (a *Archive) Reopen() Options { return a.opts }
