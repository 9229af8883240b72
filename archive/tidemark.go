package archive

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"chainmail/archive/record"
)

// The database takes damage at the end of its write-ahead log for the end of
// the log: after a crash, what follows a rotten byte there would vanish without
// a word. So the node notes, beside the database and once a second, how far its
// log was durable. When the log is found to end before that, receipts that were
// acknowledged are gone from this disk. They are then shown as findings, and
// mail goes on under a new store identity, so that no position is used twice.
//
// The file TIDEMARK has two slots of 28 bytes, written in turn so that one is
// always whole:
//
//	| store 8 | seq 8 | counter 8 | CRC-32C of those 4 |
type tidemark struct {
	mu      sync.Mutex
	file    vfs.File
	counter uint64
	written record.Position
}

const (
	tidemarkName   = "TIDEMARK"
	tidemarkSlot   = 28
	tidemarkPeriod = time.Second
)

// open reads the last note; the zero position when there is none.
func (t *tidemark) open(fs vfs.FS, dir string, readOnly bool) (last record.Position, err error) {
	name := fs.PathJoin(dir, tidemarkName)
	_, err = fs.Stat(name)
	missing := errors.Is(err, os.ErrNotExist)
	switch {
	case missing && readOnly:
		return last, nil
	case missing:
		if t.file, err = fs.Create(name, vfs.WriteCategoryUnspecified); err == nil {
			err = syncDir(fs, dir)
		}
	case readOnly:
		t.file, err = fs.Open(name)
	default:
		t.file, err = fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	}
	if err != nil {
		return last, err
	}
	var b [2 * tidemarkSlot]byte
	n, _ := t.file.ReadAt(b[:], 0) // a short or damaged slot has no valid checksum
	for slot := b[:n]; len(slot) >= tidemarkSlot; slot = slot[tidemarkSlot:] {
		sum := crc32.Checksum(slot[:24], castagnoli)
		if counter := binary.BigEndian.Uint64(slot[16:]); sum == binary.BigEndian.Uint32(slot[24:]) && counter > t.counter {
			t.counter, last = counter, positionAt(slot[:16])
		}
	}
	return last, nil
}

// syncDir makes the names in a directory durable.
func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// write notes that the log is durable up to p.
func (t *tidemark) write(p record.Position) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p == t.written {
		return nil
	}
	t.counter++
	b := appendPosition(make([]byte, 0, tidemarkSlot), p)
	b = binary.BigEndian.AppendUint64(b, t.counter)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if _, err := t.file.WriteAt(b, int64(t.counter%2*tidemarkSlot)); err != nil {
		return err
	}
	if err := t.file.SyncData(); err != nil {
		return err
	}
	t.written = p
	return nil
}

func (t *tidemark) close() error {
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}

// compareTidemark compares the log with what was noted of it. It reports
// whether receipts of the own log are gone, so that a new one must be started.
// A peer that has them may give them back.
func (a *Archive) compareTidemark(noted record.Position) (lost bool) {
	held := a.states[noted.Store].held()
	gone := record.Of(held.Last()+1, noted.Seq)
	if len(gone) == 0 {
		return false
	}
	a.log.Error("receipts that were acknowledged are gone from this disk: the end of the database's log is damaged; their positions are in 'chainmail status'",
		"store", noted.Store, "seqs", gone)
	for seq := range each(gone) {
		a.scrub.record(a, &Finding{
			Position: record.Position{Store: noted.Store, Seq: seq},
			Problem:  "it was acknowledged and is gone: the end of the database's log was damaged in a crash",
			FoundAt:  time.Now().UTC(),
		})
	}
	return noted.Store == a.Store()
}

// keepTidemark notes the progress of the log until ctx ends.
func (a *Archive) keepTidemark(ctx context.Context) error {
	saved := time.Now()
	for sleep(ctx, tidemarkPeriod) {
		a.noteTide()
		if time.Since(saved) > storeFilePeriod {
			saved = time.Now()
			if err := a.writeStoreFile(); err != nil {
				return err
			}
		}
	}
	a.noteTide()
	return nil
}

func (a *Archive) noteTide() {
	own := a.own.Load()
	if err := a.tide.write(record.Position{Store: own.store, Seq: record.Seq(own.durable.Load())}); err != nil {
		a.fatal(fmt.Errorf("note the progress of the log in %s: %w", tidemarkName, err))
	}
}
