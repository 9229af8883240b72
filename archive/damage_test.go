package archive_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/archive"
	"chainmail/archive/record"
)

// fill makes an archive of several messages whose files are all written out,
// and closes it.
func fill(t *testing.T, dir string) (msgs [][]byte, rs []record.Receipt) {
	t.Helper()
	a := open(t, archive.Options{Dir: dir}.WithMemTable(256<<10))
	for i := range 40 {
		msgs = append(msgs, noise(uint64(i), 20_000+i*977))
		rs = append(rs, mustPut(t, a, msgs[i], record.Envelope{From: "a@example.com", Connector: "test"}))
	}
	rs = append(rs, mustPut(t, a, msgs[7], record.Envelope{Connector: "again"}))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return msgs, rs
}

// TestFlippedBytesAreFoundAndNeverServed damages one byte at a time in the
// middle of every file that holds mail, and reads everything back. Each
// message comes out as it went in, or not at all; and what does not come out
// is found by Verify, in a running node and offline.
func TestFlippedBytesAreFoundAndNeverServed(t *testing.T) {
	dir := t.TempDir()
	msgs, rs := fill(t, dir)
	files, err := filepath.Glob(filepath.Join(dir, "*.*"))
	if err != nil {
		t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(f string) bool {
		ext := filepath.Ext(f)
		return ext != ".sst" && ext != ".blob" && ext != ".log"
	})
	damaged := 0
	for _, f := range files {
		whole, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{len(whole) / 3, len(whole) / 2, len(whole) * 4 / 5} {
			if len(whole) == 0 {
				continue
			}
			bad := slices.Clone(whole)
			bad[at] ^= 0x10
			if err := os.WriteFile(f, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			damaged += readDamaged(t, dir, msgs, rs)
			if err := os.WriteFile(f, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if damaged == 0 {
		t.Error("no damage hit any message")
	}
	t.Logf("%d files, %d messages damaged in turn", len(files), damaged)
}

// readDamaged reads an archive with a flipped byte and tells how many
// messages it kept back.
func readDamaged(t *testing.T, dir string, msgs [][]byte, rs []record.Receipt) int {
	a, err := archive.OpenReadOnly(dir, nil)
	if err != nil {
		t.Logf("it does not open: %v", err)
		return 1 // loud enough
	}
	defer a.Close()
	lost := map[record.Position]bool{}
	for i, msg := range msgs {
		got, err := get(a, rs[i].Hash)
		switch {
		case err != nil:
			lost[rs[i].Position] = true
		case string(got) != string(msg):
			t.Errorf("message %v was served altered", rs[i].Position)
		}
	}
	found := verify(t, a)
	for _, f := range found {
		delete(lost, f.Position)
	}
	if len(lost) > 0 {
		t.Errorf("%d unreadable messages were not found by Verify: %v", len(lost), lost)
	}
	return len(found)
}

// TestDamagedLogTailIsNotSilent damages the database's write-ahead log of a
// node that crashed. The database itself would take the damage for the end of
// the log; every acknowledged message must be there or be named as lost, and
// new mail must not take the position of a lost one.
func TestDamagedLogTailIsNotSilent(t *testing.T) {
	disk := archive.NewDisk()
	a := open(t, archive.Options{Dir: "archive", Disk: disk})
	acked := map[record.Position]record.Hash{}
	for i := range 30 {
		r := mustPut(t, a, noise(uint64(i), 3000), record.Envelope{})
		acked[r.Position] = r.Hash
	}
	a.NoteTide()
	for _, part := range []float64{0.01, 0.3, 0.6, 0.9, 0.97, 0.999} {
		cut := disk.Crash(0, 1)
		if err := cut.FlipLog("archive", part); err != nil {
			t.Fatal(err)
		}
		b, err := archive.Open(archive.Options{Dir: "archive", Disk: cut})
		if err != nil {
			t.Logf("damage at %v: it does not open: %v", part, err)
			continue
		}
		lost := map[record.Position]bool{}
		for _, f := range b.Stats().Scrub.Findings {
			lost[f.Position] = true
		}
		for p, h := range acked {
			if _, err := get(b, h); (err != nil) != lost[p] {
				t.Errorf("damage at %v: message %v: %v, named as lost: %v", part, p, err, lost[p])
			}
		}
		for _, f := range verify(t, b) {
			delete(lost, f.Position)
		}
		if len(lost) > 0 {
			t.Errorf("damage at %v: Verify does not name %v", part, lost)
		}
		r := mustPut(t, b, []byte("new mail"), record.Envelope{})
		if _, used := acked[r.Position]; used {
			t.Errorf("damage at %v: position %v is used twice", part, r.Position)
		}
		t.Logf("damage at %v: %d lost and named, new store: %v", part, b.Stats().Scrub.Bad, b.Store() != a.Store())
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSharedBodyIsReportedForEveryReceipt: the second receipt of a damaged
// message is as bad as the first.
func TestSharedBodyIsReportedForEveryReceipt(t *testing.T) {
	dir := t.TempDir()
	_, rs := fill(t, dir)
	a := open(t, archive.Options{Dir: dir})
	if err := a.DamageBody(rs[7].Hash); err != nil {
		t.Fatal(err)
	}
	found := verify(t, a)
	if len(found) != 2 || found[0].Position != rs[7].Position || found[1].Position != rs[40].Position {
		t.Fatalf("findings: %+v", found)
	}
	if st := a.Stats().Scrub; st.Bad != 2 || len(st.Findings) != 2 {
		t.Errorf("the findings of a verification are not in the state: %+v", st)
	}
	body, err := a.Body(rs[7].Hash)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, body); !errors.Is(err, archive.ErrCorrupt) || n != 0 {
		t.Errorf("a damaged body gave %d bytes, %v", n, err)
	}
}

// TestScrubFindsDamage lets weeks pass: every body is read once a week, the
// place survives a restart, a finding stays until the damage is gone.
func TestScrubFindsDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const week = 10 * time.Hour // a short one: the database's own timers tick in it
		disk := archive.NewDisk()
		o := archive.Options{Dir: "archive", Disk: disk, ScrubPeriod: week}
		start := func() (*archive.Archive, func()) {
			a := open(t, o)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- a.Run(ctx) }()
			return a, func() {
				cancel()
				if err := <-done; err != nil {
					t.Errorf("run: %v", err)
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			}
		}
		a := open(t, o)
		var rs []record.Receipt
		for i := range 100 {
			rs = append(rs, mustPut(t, a, message(uint64(i), 2000), record.Envelope{}))
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}

		a, stop := start()
		time.Sleep(week / 2)
		if st := a.Stats().Scrub; st.Checked < 45 || st.Checked > 55 || st.Total != 100 {
			t.Errorf("half a period gave %+v", st)
		}
		stop()
		a, stop = start()
		time.Sleep(week / 10)
		if st := a.Stats().Scrub; st.Checked < 55 || st.Checked > 65 {
			t.Errorf("the place was lost in a restart: %+v", st)
		}
		time.Sleep(week / 2)
		if st := a.Stats().Scrub; st.FinishedAt.IsZero() || st.Bad != 0 {
			t.Errorf("a whole period gave %+v", st)
		}
		repair, err := a.SwapBody(rs[30].Hash, []byte("rot"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(week)
		if st := a.Stats().Scrub; st.Bad != 1 || st.Findings[0].Position != rs[30].Position {
			t.Errorf("damage was not found: %+v", st)
		}
		stop()
		a, stop = start()
		if st := a.Stats().Scrub; st.Bad != 1 {
			t.Errorf("the finding was lost in a restart: %+v", st)
		}
		if _, err := a.SwapBody(rs[30].Hash, repair); err != nil {
			t.Fatal(err)
		}
		time.Sleep(week + week/2)
		if st := a.Stats().Scrub; st.Bad != 0 {
			t.Errorf("the finding outlives the damage: %+v", st)
		}
		stop()
	})
}

// TestOneDamagedReceiptDoesNotEndTheList: the list leaves it out and names it
// in the findings, and goes on behind it.
func TestOneDamagedReceiptDoesNotEndTheList(t *testing.T) {
	a := open(t, archive.Options{})
	var rs []record.Receipt
	for i := range 5 {
		rs = append(rs, mustPut(t, a, message(uint64(i), 500), record.Envelope{}))
	}
	a.DamageReceipt(rs[2].Position)
	if ms := list(t, a, archive.Query{}); len(ms) != 4 || ms[2].Hash != rs[3].Hash {
		t.Errorf("%d messages listed", len(ms))
	}
	if f := a.Stats().Scrub.Findings; len(f) != 1 || f[0].Position != rs[2].Position {
		t.Errorf("findings: %+v", f)
	}
}

// TestCloseDuringVerify: Close waits for what is being read, and the
// verification ends instead of hanging or calling the rest damaged.
func TestCloseDuringVerify(t *testing.T) {
	for range 20 {
		a := open(t, archive.Options{Dir: "archive", Disk: archive.NewDisk()})
		for i := range 20 {
			mustPut(t, a, message(uint64(i), 300_000), record.Envelope{})
		}
		closed := make(chan error, 1)
		started := false
		err := a.Verify(t.Context(), func(p archive.Progress) {
			if p.Finding != nil {
				t.Errorf("finding: %+v", *p.Finding)
			}
			if !started {
				started = true
				go func() { closed <- a.Close() }()
			}
		})
		if err != nil && !errors.Is(err, archive.ErrClosed) {
			t.Errorf("verify: %v", err)
		}
		if err := <-closed; err != nil {
			t.Errorf("close: %v", err)
		}
	}
}
