package archive_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"chainmail/archive"
	"chainmail/archive/record"
)

// replay brings a log from one archive to another in containers, the next one
// read while the one before syncs, and keeps a record of what Sync promised.
type replay struct {
	from       *archive.Archive
	store      record.StoreID
	containers [][]record.Position

	mu       sync.Mutex
	promised record.Ranges
}

// newReplay makes an archive with mail of all sizes, much of it twice.
func newReplay(t *testing.T) *replay {
	r := &replay{from: open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})}
	r.store = r.from.Store()
	var ps []record.Position
	for i := range 21 {
		ps = append(ps, mustPut(t, r.from, noise(uint64(i*2/3), sizes[(i*2/3)%len(sizes)]), record.Envelope{From: fmt.Sprint(i)}).Position)
	}
	for n := 0; len(ps) > 0; n++ {
		size := min(len(ps), 1+n%5)
		if n%3 == 2 { // out of order
			ps[0], ps[len(ps)-1] = ps[len(ps)-1], ps[0]
		}
		r.containers = append(r.containers, ps[:size])
		ps = ps[size:]
	}
	return r
}

func (r *replay) run(to *archive.Archive) error {
	var last sync.WaitGroup
	defer last.Wait()
	var failed atomic.Pointer[error]
	for _, ps := range r.containers {
		i := to.NewIntake(context.Background(), "a")
		for _, p := range ps {
			if err := offer(i, r.from, p, true); err != nil {
				i.Discard()
				return err
			}
		}
		if err := i.Enter(); err != nil {
			i.Discard()
			return err
		}
		last.Wait()
		last.Go(func() {
			defer i.Discard()
			if _, err := i.Sync(); err != nil {
				failed.Store(&err)
				return
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, p := range ps {
				r.promised = r.promised.Add(p.Seq)
			}
		})
	}
	last.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (r *replay) sofar() record.Ranges {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.promised
}

// survives opens what a power cut left of the copy: what was promised is
// there, every container is there whole or not at all, and the rest can come
// again.
func (r *replay) survives(t *testing.T, promised record.Ranges, cut *archive.Disk) error {
	b, err := archive.Open(archive.Options{Dir: "b", Disk: cut, OnFatal: func(err error) { t.Error(err) }}.WithMemTable(256 << 10))
	if err != nil {
		if len(promised) == 0 {
			return nil // the directory was just being made
		}
		return err
	}
	err = r.complete(b, promised)
	return errors.Join(err, b.Close())
}

func (r *replay) complete(b *archive.Archive, promised record.Ranges) error {
	l, _ := b.Log(r.store)
	if lost := promised.Minus(l.Held); len(lost) > 0 {
		return fmt.Errorf("promised and gone: %v", lost)
	}
	if f := findings(b); f != nil {
		return f
	}
	for _, ps := range r.containers {
		held := 0
		for _, p := range ps {
			if l.Held.Has(p.Seq) {
				held++
				if err := sameReceipt(r.from, b, p); err != nil {
					return fmt.Errorf("%v: %w", p, err)
				}
			}
		}
		if held != 0 && held != len(ps) {
			return fmt.Errorf("%d of the %d receipts of a container are there", held, len(ps))
		}
	}
	if err := give(r.from, b, lacks(r.from, b, r.store)...); err != nil {
		return err
	}
	if left := lacks(r.from, b, r.store); len(left) > 0 {
		return fmt.Errorf("not taken again: %v", left)
	}
	return findings(b)
}

// TestPowerCutDuringIntake cuts the power before every sync, and many a
// write, while a log is replicated.
func TestPowerCutDuringIntake(t *testing.T) {
	r := newReplay(t)
	disk := archive.NewDisk()
	var (
		mu        sync.Mutex
		ops, cuts int
	)
	disk.OnOp(func(op archive.Op) error {
		if op.Kind != archive.OpSync && op.Kind != archive.OpWrite {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if ops++; op.Kind == archive.OpWrite && ops%6 != 0 {
			return nil
		}
		cuts++
		if err := r.survives(t, r.sofar(), disk.Crash([]int{0, 50, 100}[cuts%3], uint64(cuts))); err != nil {
			t.Errorf("power cut %d, before operation %d on %s: %v", cuts, op.Kind, op.Path, err)
		}
		return nil
	})
	b := open(t, archive.Options{Dir: "b", Disk: disk}.WithMemTable(256<<10))
	if err := r.run(b); err != nil {
		t.Error(err)
	}
	same(t, r.from, b, r.store)
	noFindings(t, b)
	if cuts < 50 {
		t.Errorf("only %d power cuts", cuts)
	}
	t.Logf("%d power cuts, %d operations", cuts, ops)
}

// TestFailedWriteEndsAnIntake fails the n-th write or sync, for many n. What
// was not synced is never promised.
func TestFailedWriteEndsAnIntake(t *testing.T) {
	for _, kind := range []archive.OpKind{archive.OpWrite, archive.OpSync} {
		for n := int64(1); n <= 40; n += 6 {
			t.Run(fmt.Sprintf("kind %d at %d", kind, n), func(t *testing.T) {
				t.Parallel()
				failIntake(t, kind, n)
			})
		}
	}
}

func failIntake(t *testing.T, kind archive.OpKind, n int64) {
	r := newReplay(t)
	disk := archive.NewDisk()
	fatal := make(chan error, 64)
	b, err := archive.Open(archive.Options{Dir: "b", Disk: disk, OnFatal: func(err error) { fatal <- err }}.WithMemTable(256 << 10))
	if err != nil {
		t.Fatal(err)
	}
	var count atomic.Int64
	disk.OnOp(func(op archive.Op) error {
		if op.Kind == kind && count.Add(1) >= n {
			return errors.New("injected fault")
		}
		return nil
	})
	go func() { _ = r.run(b) }() // it never returns once the process should have ended
	<-fatal
	promised := r.sofar()
	if err := r.survives(t, promised, disk.Crash(0, 1)); err != nil {
		t.Errorf("after %v: %v", promised, err)
	}
}

// TestRestartInTheMiddleOfABody: what was written ahead of a receipt that never
// came is gone after a restart, also when it was to replace a damaged body.
func TestRestartInTheMiddleOfABody(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	p := mustPut(t, a, noise(1, 3<<20), record.Envelope{}).Position
	disk := archive.NewDisk()
	b := open(t, archive.Options{Dir: "b", Disk: disk})
	begun := func() *archive.Disk {
		i := b.NewIntake(t.Context(), "a")
		defer i.Discard()
		x := mustExport(t, a, p)
		if want, err := i.Receipt(p, x.Encoded, true); !want || err != nil {
			t.Fatal(want, err)
		}
		left := 15
		err := a.Chunks(p.Store, x.Receipt.Body, func(c []byte) error {
			if left--; left < 0 {
				return nil
			}
			return i.Chunk(c)
		})
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, b, []byte("its sync takes the chunks along"), record.Envelope{})
		return disk.Crash(0, 1)
	}
	cut := begun()
	c := open(t, archive.Options{Dir: "b", Disk: cut})
	if l, known := c.Log(a.Store()); known {
		t.Errorf("log %v", l)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := archive.CountBodies(cut, "b"); err != nil || left != 1 {
		t.Errorf("%d chunks left, %v; want that of the small mail", left, err)
	}
	c = open(t, archive.Options{Dir: "b", Disk: cut})
	mustGive(t, a, c, p)
	same(t, a, c, a.Store())

	mustGive(t, a, b, p)
	if err := b.DamageBody(mustExport(t, b, p).Receipt.Hash); err != nil {
		t.Fatal(err)
	}
	verify(t, b)
	c = open(t, archive.Options{Dir: "b", Disk: begun()})
	if left := lacks(a, c, a.Store()); len(left) != 1 {
		t.Fatalf("a half repaired receipt is shown: %v", left)
	}
	for _, half := range []*archive.Archive{b, c} { // one broke off, one was restarted
		mustGive(t, a, half, p)
		same(t, a, half, a.Store())
		noFindings(t, half)
	}
}

func findings(a *archive.Archive) (err error) {
	verr := a.Verify(context.Background(), func(p archive.Progress) {
		if p.Finding != nil {
			err = errors.Join(err, fmt.Errorf("%+v", *p.Finding))
		}
	})
	return errors.Join(err, verr)
}
