package archive_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"chainmail/archive"
	"chainmail/archive/record"
)

// senders archives mail of many sizes from several goroutines at once and
// keeps a record of what was acknowledged.
type senders struct {
	mu    sync.Mutex
	sent  map[record.Hash]bool
	acked map[record.Hash]record.Position
}

func newSenders() *senders {
	return &senders{sent: map[record.Hash]bool{}, acked: map[record.Hash]record.Position{}}
}

// sizes have single chunks, several in one batch, and bodies that are written
// ahead of their receipt.
var sizes = []int{0, 700, 5000, 70 << 10, 200 << 10, 700 << 10}

func (s *senders) run(a *archive.Archive, workers, each int) {
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				n := w*each + i
				msg := noise(uint64(n), sizes[n%len(sizes)])
				h := record.Hash(sha256.Sum256(msg))
				s.mu.Lock()
				s.sent[h] = true
				s.mu.Unlock()
				r, err := put(a, msg, record.Envelope{From: fmt.Sprint(n), Connector: "crash"})
				if err != nil {
					continue
				}
				s.mu.Lock()
				s.acked[h] = r.Position
				s.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// promises are the acknowledgements given so far.
func (s *senders) promises() map[record.Hash]record.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[record.Hash]record.Position, len(s.acked))
	for h, p := range s.acked {
		m[h] = p
	}
	return m
}

// holds checks an archive against what was promised: every acknowledged mail
// is there, whole and at its position; every other is there whole or not at
// all; the log has no gaps and every index is right.
func (s *senders) holds(a *archive.Archive, promised map[record.Hash]record.Position) error {
	listed := map[record.Hash]bool{}
	for m, err := range a.Messages(context.Background(), archive.Query{}) {
		if err != nil {
			return err
		}
		s.mu.Lock()
		sent := s.sent[m.Hash]
		s.mu.Unlock()
		if !sent { // that its bytes have this SHA-256 is for Verify to say
			return fmt.Errorf("listed message %v was never sent", m.Hash)
		}
		listed[m.Hash] = true
	}
	for h, p := range promised {
		if hs, err := a.Resolve(p.String()); err != nil || hs[0] != h || !listed[h] {
			return fmt.Errorf("acknowledged message %v at %v is missing: %v, %w", h, p, hs, err)
		}
	}
	if st := a.Stats(); st.Messages != uint64(len(listed)) {
		return fmt.Errorf("%d messages listed, %d counted", len(listed), st.Messages)
	}
	return a.Verify(context.Background(), func(p archive.Progress) {
		if p.Finding != nil {
			panic(fmt.Sprintf("verify: %+v", *p.Finding))
		}
	})
}

// TestPowerCutAtEverySync cuts the power before every sync of every file,
// while mail comes in from several senders and the memtable is small enough
// for flushes and compactions to take part. What was not synced is lost
// wholly, partly, or not at all. After the cut the archive takes mail again.
func TestPowerCutAtEverySync(t *testing.T) {
	disk := archive.NewDisk()
	all := newSenders()
	var (
		mu   sync.Mutex
		cuts int
	)
	disk.OnOp(func(op archive.Op) error {
		if op.Kind != archive.OpSync {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		promised := all.promises()
		cut := disk.Crash([]int{0, 50, 100}[cuts%3], uint64(cuts))
		cuts++
		if err := survives(all, promised, cut, t); err != nil {
			t.Errorf("power cut %d, before the sync of %s: %v", cuts, op.Path, err)
		}
		return nil
	})
	a := open(t, archive.Options{Dir: "archive", Disk: disk}.WithMemTable(256<<10))
	all.run(a, 4, 9)
	if got := len(all.promises()); got != len(all.sent) {
		t.Errorf("%d of %d messages acknowledged without any fault", got, len(all.sent))
	}
	if err := all.holds(a, all.promises()); err != nil {
		t.Error(err)
	}
	if cuts < 50 {
		t.Errorf("only %d power cuts", cuts)
	}
	t.Logf("%d power cuts, %d messages", cuts, len(all.sent))
}

// survives opens what a power cut left.
func survives(all *senders, promised map[record.Hash]record.Position, cut *archive.Disk, t *testing.T) error {
	a, err := archive.Open(archive.Options{Dir: "archive", Disk: cut, OnFatal: func(err error) { t.Error(err) }}.WithMemTable(256 << 10))
	if err != nil {
		if len(promised) == 0 {
			return nil // the directory was just being made
		}
		return err
	}
	if err := all.holds(a, promised); err != nil {
		return errors.Join(err, a.Close())
	}
	if _, err := put(a, []byte("after the power cut"), record.Envelope{}); err != nil {
		return errors.Join(err, a.Close())
	}
	return a.Close()
}

// TestFailedWriteIsNeverAcknowledged fails the n-th write or sync, for many n,
// and keeps failing. No mail is acknowledged that is not there after a power
// cut, and the archive ends its process.
func TestFailedWriteIsNeverAcknowledged(t *testing.T) {
	for _, kind := range []archive.OpKind{archive.OpWrite, archive.OpSync} {
		for n := int64(1); n <= 40; n += 3 {
			t.Run(fmt.Sprintf("kind %d at %d", kind, n), func(t *testing.T) {
				t.Parallel()
				failWrite(t, kind, n)
			})
		}
	}
}

func failWrite(t *testing.T, kind archive.OpKind, n int64) {
	disk := archive.NewDisk()
	var count atomic.Int64
	fatal := make(chan error, 64)
	a, err := archive.Open(archive.Options{Dir: "archive", Disk: disk, OnFatal: func(err error) { fatal <- err }}.WithMemTable(256 << 10))
	if err != nil {
		t.Fatal(err)
	}
	injected := errors.New("injected fault")
	disk.OnOp(func(op archive.Op) error {
		if op.Kind == kind && count.Add(1) >= n {
			return injected
		}
		return nil
	})
	all := newSenders()
	go all.run(a, 4, 9) // those that meet the end of the process never return
	if err := <-fatal; err == nil {
		t.Error("the end has no reason")
	}
	promised := all.promises()
	if _, err := put(a, []byte("late"), record.Envelope{}); !errors.Is(err, archive.ErrClosed) {
		t.Errorf("mail after a failed write: %v", err)
	}
	if err := survives(all, promised, disk.Crash(0, 1), t); err != nil {
		t.Errorf("after %d acknowledgements: %v", len(promised), err)
	}
}

// TestPendingBodiesAreRemoved cuts the power in the middle of a large mail
// whose first chunks are on disk already.
func TestPendingBodiesAreRemoved(t *testing.T) {
	disk := archive.NewDisk()
	a := open(t, archive.Options{Dir: "archive", Disk: disk})
	d := a.NewDraft(t.Context())
	defer d.Discard()
	if _, err := d.Write(noise(1, 8<<20)); err != nil {
		t.Fatal(err)
	}
	mustPut(t, a, []byte("its sync takes the chunks along"), record.Envelope{})
	cut := disk.Crash(0, 1)
	b := open(t, archive.Options{Dir: "archive", Disk: cut})
	if ms := list(t, b, archive.Query{}); len(ms) != 1 {
		t.Errorf("%d messages, want 1", len(ms))
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := archive.CountBodies(cut, "archive"); err != nil || left != 1 {
		t.Errorf("%d chunks left, %v; want the one of the small mail", left, err)
	}
}
