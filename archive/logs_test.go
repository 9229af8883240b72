package archive_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"chainmail/archive"
	"chainmail/archive/record"
)

// TestStartLog: the archive goes on under a new identity; the old log is one
// like those of other nodes, also after a restart.
func TestStartLog(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk(), Origin: "a"})
	old := a.Store()
	msg := noise(1, 700_000)
	mustPut(t, a, msg, record.Envelope{})
	if err := a.Place([]string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	late := a.NewDraft(t.Context()) // begins under the old identity
	defer late.Discard()
	if _, err := late.Write(noise(2, 900_000)); err != nil {
		t.Fatal(err)
	}
	changed := a.Changed()
	id, err := a.StartLog()
	if err != nil || id == old || id != a.Store() {
		t.Fatalf("new log %v, store %v, %v", id, a.Store(), err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the new log")
	}
	if _, err := late.Commit(record.Envelope{}); !errors.Is(err, archive.ErrBusy) {
		t.Errorf("mail that came in meanwhile: %v", err)
	}
	again := mustPut(t, a, msg, record.Envelope{})
	if again.Position != (record.Position{Store: id, Seq: 1}) {
		t.Errorf("first position %v", again.Position)
	}
	want := []record.Log{
		{Store: old, Origin: "a", Placements: []record.Placement{{From: 2, Nodes: []string{"a", "b"}}}, Held: record.Of(1, 1)},
		{Store: id, Origin: "a", Held: record.Of(1, 1)},
	}
	slices.SortFunc(want, func(x, y record.Log) int { return strings.Compare(x.Store.String(), y.Store.String()) })
	for range 2 {
		if d := cmp.Diff(want, a.Logs()); d != "" {
			t.Errorf("logs (-want +got):\n%s", d)
		}
		noFindings(t, a)
		if m, err := a.Message(again.Hash); err != nil || len(m.Receipts) != 2 {
			t.Errorf("%d receipts, %v", len(m.Receipts), err)
		}
		a = restart(t, a)
	}
}

// TestAnotherNamesLog: a directory that another node takes over begins a log of
// that node's.
func TestAnotherNamesLog(t *testing.T) {
	disk := archive.NewDisk()
	a := open(t, archive.Options{Dir: "a", Disk: disk, Origin: "a"})
	old := a.Store()
	mustPut(t, a, []byte("x"), record.Envelope{})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b := open(t, archive.Options{Dir: "a", Disk: disk, Origin: "b"})
	if b.Store() == old {
		t.Error("a log of two nodes")
	}
	if l, _ := b.Log(old); l.Origin != "a" || l.Held.String() != "1" {
		t.Errorf("the old log: %+v", l)
	}
	if l, _ := b.Log(b.Store()); l.Origin != "b" {
		t.Errorf("the new log: %+v", l)
	}
}

// TestPlaceAndLearn: what is known of logs is on disk when the call returns.
func TestPlaceAndLearn(t *testing.T) {
	disk := archive.NewDisk()
	a := open(t, archive.Options{Dir: "a", Disk: disk, Origin: "a"})
	place := func(nodes ...string) {
		t.Helper()
		if err := a.Place(nodes); err != nil {
			t.Fatal(err)
		}
	}
	place("a")
	place("a", "b")
	mustPut(t, a, []byte("x"), record.Envelope{})
	place("a", "b")
	changed := a.Changed()
	place("a", "b")
	select {
	case <-changed:
		t.Error("a change without a change")
	default:
	}
	place("a", "c")
	other := record.StoreID(7)
	one := []record.Placement{{From: 1, Nodes: []string{"o", "a"}}}
	two := append(slices.Clone(one), record.Placement{From: 9, Nodes: []string{"o", "c"}})
	for _, l := range []record.Log{
		{Store: other, Origin: "o", Placements: one, Held: record.Of(1, 100)},
		{Store: other, Origin: "o", Placements: two},
		{Store: other, Placements: one}, // older
		{Store: a.Store(), Origin: "evil", Placements: append(two, two...)},
	} {
		if err := a.Learn(l); err != nil && l.Origin != "evil" {
			t.Fatal(err)
		}
	}
	want := []record.Log{
		{Store: other, Origin: "o", Placements: two},
		{Store: a.Store(), Origin: "a", Held: record.Of(1, 1), Placements: []record.Placement{
			{From: 1, Nodes: []string{"a"}}, {From: 1, Nodes: []string{"a", "b"}}, {From: 2, Nodes: []string{"a", "c"}},
		}},
	}
	if d := cmp.Diff(want, a.Logs()); d != "" {
		t.Errorf("logs (-want +got):\n%s", d)
	}
	b := open(t, archive.Options{Dir: "a", Disk: disk.Crash(0, 1), Origin: "a"})
	if d := cmp.Diff(want, b.Logs()); d != "" {
		t.Errorf("logs after a power cut (-want +got):\n%s", d)
	}
	for _, bad := range []record.Log{
		{Origin: "no store"},
		{Store: other, Placements: []record.Placement{{From: 0}}},
		{Store: other, Placements: []record.Placement{{From: 3}, {From: 2}}},
		{Store: other, Origin: strings.Repeat("x", 2<<20)},
	} {
		if err := a.Learn(bad); !errors.Is(err, archive.ErrCorrupt) {
			t.Errorf("%.100v: %v", bad, err)
		}
	}
}

// TestChanged: whoever asks before a change is told of it; nothing is told
// twice.
func TestChanged(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	for i := range 3 {
		one, two := a.Changed(), a.Changed()
		select {
		case <-one:
			t.Fatal("told of nothing")
		default:
		}
		mustPut(t, a, message(uint64(i), 100), record.Envelope{})
		<-one
		<-two
		if l, _ := a.Log(a.Store()); l.Held.Last() != record.Seq(i+1) {
			t.Errorf("held %v after %d", l.Held, i+1)
		}
	}
}

// TestLostTailIsRefilled: receipts that were acknowledged and are gone from the
// end of the own log come back from a peer, into the old log.
func TestLostTailIsRefilled(t *testing.T) {
	disk := archive.NewDisk()
	a := open(t, archive.Options{Dir: "a", Disk: disk})
	for i := range 30 {
		mustPut(t, a, noise(uint64(i%20), 3000), record.Envelope{})
	}
	a.NoteTide()
	cut := disk.Crash(0, 1)
	if err := cut.FlipLog("a", 0.6); err != nil {
		t.Fatal(err)
	}
	b := open(t, archive.Options{Dir: "a", Disk: cut})
	lost := lacks(a, b, a.Store())
	if len(lost) == 0 || b.Stats().Scrub.Bad != uint64(len(lost)) || b.Store() == a.Store() {
		t.Fatalf("%d lost, %d findings", len(lost), b.Stats().Scrub.Bad)
	}
	mustPut(t, b, noise(29%20, 3000), record.Envelope{}) // comes again from its sender meanwhile
	mustGive(t, a, b, lost[len(lost)/2:]...)             // the newest first
	if got := b.Stats().Scrub.Bad; got != uint64(len(lost)/2) {
		t.Errorf("%d findings left, want %d", got, len(lost)/2)
	}
	b = restart(t, b)
	mustGive(t, a, b, lost...)
	if got := b.Stats().Scrub; got.Bad != 0 {
		t.Errorf("findings left: %+v", got.Findings)
	}
	same(t, a, b, a.Store())
	noFindings(t, b)
	b = restart(t, b)
	if b.Stats().Scrub.Bad != 0 {
		t.Error("findings come back in a restart")
	}
	same(t, a, b, a.Store())
}

// TestListingLimit: a listing that is resumed after its last message misses
// none, although the syncs of two messages finish while it runs: what was not
// durable when it began is not listed, nor what came after that.
func TestListingLimit(t *testing.T) {
	disk := archive.NewDisk()
	a := open(t, archive.Options{Dir: "a", Disk: disk})
	const page = 256
	for i := range page - 1 {
		mustPut(t, a, message(uint64(i), 50), record.Envelope{})
	}
	held := make(chan struct{})
	disk.OnOp(func(op archive.Op) error {
		if op.Kind == archive.OpSync && strings.HasSuffix(op.Path, ".log") {
			<-held
		}
		return nil
	})
	var slow sync.WaitGroup
	for i := range uint64(2) { // the last of one page, and the first of the next
		slow.Go(func() {
			if _, err := put(a, message(1000+i, 50), record.Envelope{}); err != nil {
				t.Error(err)
			}
		})
	}
	for a.Stats().Receipts < page+1 { // they are in the database now, and not durable
		runtime.Gosched()
	}
	var listed []record.Hash
	for m, err := range a.Messages(t.Context(), archive.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if len(listed) == 0 {
			close(held)
			slow.Wait()
		}
		listed = append(listed, m.Hash)
	}
	for m, err := range a.Messages(t.Context(), archive.Query{After: listed[len(listed)-1].String()}) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, m.Hash)
	}
	if len(listed) != page+1 {
		t.Errorf("%d messages listed, want %d", len(listed), page+1)
	}
}

// TestStartsWithoutItsSmallKeys flips a bit in every table in turn. The node
// starts, serves what it can read, takes mail under a new identity, and its
// peer gives back the rest.
func TestStartsWithoutItsSmallKeys(t *testing.T) {
	dir := t.TempDir()
	peer := open(t, archive.Options{Dir: "peer", Disk: archive.NewDisk()})
	a := open(t, archive.Options{Dir: dir, Origin: "a"}.WithMemTable(256<<10))
	for i := range 6 {
		mustPut(t, peer, noise(uint64(i), 5000), record.Envelope{})
	}
	for i := range 16 {
		mustPut(t, a, noise(uint64(i), 20_000+i/2*977), record.Envelope{})
	}
	if err := a.Place([]string{"a", "peer"}); err != nil {
		t.Fatal(err)
	}
	mustGive(t, a, peer, lacks(a, peer, a.Store())...)
	mustGive(t, peer, a, lacks(peer, a, peer.Store())...)
	old := a.Store()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	recovered := 0
	for _, table := range tables {
		for _, part := range []float64{0.1, 0.4, 0.7} {
			copied := filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(copied, filepath.Base(table))
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			b[int(part*float64(len(b)))] ^= 0x10
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if startsDamaged(t, copied, peer, old) {
				recovered++
			}
		}
	}
	if recovered == 0 {
		t.Error("no start needed the file STORE")
	}
	t.Logf("%d tables, %d starts from the file STORE", len(tables), recovered)
}

// startsDamaged reports whether the node began a new log.
func startsDamaged(t *testing.T, dir string, peer *archive.Archive, old record.StoreID) bool {
	b, err := archive.Open(archive.Options{Dir: dir, Origin: "a", MinFree: 1})
	if err != nil {
		t.Errorf("it does not start: %v", err)
		return false
	}
	defer b.Close()
	if l, _ := b.Log(old); l.Origin != "a" || len(l.Placements) != 1 {
		t.Errorf("the old log: %+v", l)
	}
	r, err := put(b, []byte("new mail"), record.Envelope{})
	if err != nil {
		t.Errorf("no mail is taken: %v", err)
	}
	if r.Position.Store == old && r.Position.Seq != 17 {
		t.Errorf("position %v is used twice", r.Position)
	}
	verify(t, b)
	for _, store := range []record.StoreID{old, peer.Store()} {
		l, _ := peer.Log(store)
		for seq := range l.Held.Last() {
			p := record.Position{Store: store, Seq: seq + 1}
			if p.Store == b.Store() {
				continue
			}
			if err := give(peer, b, p); err != nil {
				t.Errorf("%v is not taken back: %v", p, err)
				continue
			}
			if err := sameReceipt(peer, b, p); err != nil {
				t.Errorf("%v: %v", p, err)
			}
		}
	}
	return b.Store() != old
}

// TestStoreFileRotten: a start does not need it.
func TestStoreFileRotten(t *testing.T) {
	dir := t.TempDir()
	a := open(t, archive.Options{Dir: dir})
	msg := message(1, 100)
	r := mustPut(t, a, msg, record.Envelope{})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "STORE"), []byte("rot"), 0o600); err != nil {
		t.Fatal(err)
	}
	a = open(t, archive.Options{Dir: dir})
	if got, err := get(a, r.Hash); err != nil || !bytes.Equal(got, msg) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
