package archive_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"chainmail/archive"
	"chainmail/archive/record"
)

// offer hands one receipt to an intake, its body when it is wanted.
func offer(i *archive.Intake, from *archive.Archive, p record.Position, hasBody bool) error {
	x, err := from.Export(p)
	if err != nil {
		return err
	}
	encoded := bytes.Clone(x.Encoded)
	want, err := i.Receipt(p, encoded, hasBody)
	for n := range encoded {
		encoded[n] = 0xff // the intake must not keep it
	}
	if err != nil || !want {
		return err
	}
	return from.Chunks(p.Store, x.Receipt.Body, i.Chunk)
}

// give brings receipts from one archive to another in one intake, bodies
// whenever they are wanted.
func give(from, to *archive.Archive, ps ...record.Position) error {
	i := to.NewIntake(context.Background(), "a")
	defer i.Discard()
	for _, p := range ps {
		if err := offer(i, from, p, true); err != nil {
			return err
		}
	}
	if err := i.Enter(); err != nil {
		return err
	}
	_, err := i.Sync()
	return err
}

func mustGive(t *testing.T, from, to *archive.Archive, ps ...record.Position) {
	t.Helper()
	if err := give(from, to, ps...); err != nil {
		t.Fatal(err)
	}
}

// lacks are the receipts of a log that one archive has and another has not.
func lacks(from, to *archive.Archive, s record.StoreID) (ps []record.Position) {
	have, _ := from.Log(s)
	held, _ := to.Log(s)
	for _, r := range have.Held.Minus(held.Held) {
		for seq := r.First; seq <= r.Last; seq++ {
			ps = append(ps, record.Position{Store: s, Seq: seq})
		}
	}
	return ps
}

// same compares two archives' copies of a log to the last byte.
func same(t *testing.T, a, b *archive.Archive, s record.StoreID) {
	t.Helper()
	la, _ := a.Log(s)
	lb, known := b.Log(s)
	if d := gocmp.Diff(la, lb); d != "" || !known {
		t.Errorf("log %v (-a +b):\n%s", s, d)
	}
	for n := uint64(0); n*archive.SegmentSize < uint64(la.Held.Last()); n++ {
		sa, err := a.Segment(s, n)
		if err != nil {
			t.Fatal(err)
		}
		sb, err := b.Segment(s, n)
		if err != nil {
			t.Fatal(err)
		}
		if d := gocmp.Diff(sa, sb); d != "" || sa.Receipts == 0 {
			t.Errorf("segment %d of %v (-a +b):\n%s", n, s, d)
		}
	}
	for _, r := range la.Held {
		for seq := r.First; seq <= r.Last; seq++ {
			p := record.Position{Store: s, Seq: seq}
			if err := sameReceipt(a, b, p); err != nil {
				t.Errorf("%v: %v", p, err)
			}
		}
	}
}

func sameReceipt(a, b *archive.Archive, p record.Position) error {
	x, err := a.Export(p)
	if err != nil {
		return err
	}
	y, err := b.Export(p)
	if err != nil {
		return err
	}
	if d := gocmp.Diff(x.Receipt, y.Receipt); d != "" || !bytes.Equal(x.Encoded, y.Encoded) {
		return fmt.Errorf("receipts differ (-a +b): %s", d)
	}
	var body [2][]byte
	for n, from := range []*archive.Archive{a, b} {
		err := from.Chunks(p.Store, x.Receipt.Body, func(c []byte) error {
			body[n] = append(body[n], c...)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if !bytes.Equal(body[0], body[1]) {
		return errors.New("stored bodies differ")
	}
	raw, err := get(b, x.Receipt.Hash)
	if err != nil || sha256.Sum256(raw) != x.Receipt.Hash || int64(len(raw)) != x.Receipt.Size {
		return fmt.Errorf("the copy's body: %d bytes, %w", len(raw), err)
	}
	return nil
}

func noFindings(t *testing.T, as ...*archive.Archive) {
	t.Helper()
	for _, a := range as {
		if f := verify(t, a); len(f) > 0 {
			t.Errorf("verify: %+v", f)
		}
		if st := a.Stats(); st.Messages != uint64(len(list(t, a, archive.Query{}))) {
			t.Errorf("%d messages counted, %d listed", st.Messages, len(list(t, a, archive.Query{})))
		}
	}
}

// mixed archives mail of all kinds: of every size, twice in one log, in journal
// reports.
func mixed(t *testing.T, a *archive.Archive) (ps []record.Position) {
	t.Helper()
	inner := record.Hash{7}
	sizes := []int{0, 1, 0, 500, 60_000, 128<<10 - 1, 128 << 10, 128<<10 + 1, 300 << 10, 1<<20 + 17, 30 << 20}
	for i, n := range sizes {
		msg := noise(uint64(i), n)
		for again := range 2 - i%2 {
			e := record.Envelope{From: "a@example.com", To: []string{fmt.Sprint(again)}, Connector: "smtp"}
			if i == 3 {
				e.Journal = &record.Journal{Inner: inner, Sender: "a@example.com"}
			}
			ps = append(ps, mustPut(t, a, msg, e).Position)
		}
	}
	for i := range 150 {
		ps = append(ps, mustPut(t, a, message(uint64(i%120), 200+i%120), record.Envelope{Connector: "smtp"}).Position)
	}
	return ps
}

// TestReplicateInAnyOrder: whatever the order and the containers in which
// receipts arrive, the copy is the same in the end, also after a restart, and
// at every moment the holdings tell the truth.
func TestReplicateInAnyOrder(t *testing.T) {
	dir := t.TempDir()
	a := open(t, archive.Options{Origin: "a"})
	o := archive.Options{Dir: dir, Origin: "b"}.WithMemTable(1 << 20)
	b := open(t, o)
	if err := a.Place([]string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	ps := mixed(t, a)
	own := mustPut(t, b, noise(4, 60_000), record.Envelope{Connector: "smtp"}) // it came to both
	rng := rand.New(rand.NewPCG(1, 1))
	order := slices.Clone(ps)
	rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	log, _ := a.Log(a.Store())
	if err := b.Learn(log); err != nil {
		t.Fatal(err)
	}
	var arrived record.Ranges
	for len(order) > 0 {
		n := min(len(order), 1+rng.IntN(60))
		mustGive(t, a, b, order[:n]...)
		for _, p := range order[:n] {
			arrived = arrived.Add(p.Seq)
		}
		order = order[n:]
		if got, _ := b.Log(a.Store()); got.Held.String() != arrived.String() {
			t.Fatalf("holdings %v, want %v", got.Held, arrived)
		}
		if got := b.Stats().Receipts; got != arrived.Count()+1 {
			t.Fatalf("%d receipts counted, want %d", got, arrived.Count()+1)
		}
	}
	noFindings(t, a)
	for round := range 2 {
		if round > 0 {
			same(t, a, b, a.Store())
		}
		noFindings(t, b)
		if got, err := b.Resolve(record.Hash{7}.String()); err != nil || len(got) != 1 {
			t.Errorf("the message inside a journal report: %v, %v", got, err)
		}
		m, err := b.Message(own.Hash)
		if err != nil || len(m.Receipts) != 3 {
			t.Errorf("the message that came to both nodes: %d receipts, %v", len(m.Receipts), err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		b = open(t, o)
	}
	ms := slices.DeleteFunc(list(t, b, archive.Query{}), func(m record.Message) bool { return len(m.Receipts) > 1 })
	if !slices.IsSortedFunc(ms, func(x, y record.Message) int { return x.ReceivedAt().Compare(y.ReceivedAt()) }) || len(ms) < 80 {
		t.Error("late arrivals are not sorted in")
	}
	logs := b.Logs()
	if len(logs) != 2 || !slices.IsSortedFunc(logs, func(x, y record.Log) int { return cmp.Compare(x.Store, y.Store) }) {
		t.Errorf("logs: %v", logs)
	}
}

// TestBodyGoesOnce: a body that the log has here is not wanted again, and a
// receipt without one is refused when it has not.
func TestBodyGoesOnce(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	b := open(t, archive.Options{Dir: "b", Disk: archive.NewDisk()})
	msg := noise(1, 200_000)
	first := mustPut(t, a, msg, record.Envelope{}).Position
	second := mustPut(t, a, msg, record.Envelope{}).Position
	third := mustPut(t, a, msg, record.Envelope{}).Position
	if x, err := a.Export(third); err != nil || x.BodyAt != first {
		t.Fatalf("body at %v, %v; want %v", x.BodyAt, err, first)
	}

	i := b.NewIntake(t.Context(), "a")
	defer i.Discard()
	err := offer(i, a, second, false)
	if !errors.Is(err, archive.ErrNoBody) || !strings.Contains(err.Error(), second.String()) {
		t.Fatalf("a receipt whose body is nowhere: %v", err)
	}
	if err := offer(i, a, first, true); err != nil {
		t.Fatal(err)
	}
	if err := offer(i, a, second, false); err != nil { // it comes in the same intake
		t.Fatal(err)
	}
	if err := i.Enter(); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Sync(); err != nil {
		t.Fatal(err)
	}
	i = b.NewIntake(t.Context(), "a")
	defer i.Discard()
	x, _ := a.Export(third)
	if want, err := i.Receipt(third, x.Encoded, true); want || err != nil {
		t.Errorf("a body that is here: wanted %v, %v", want, err)
	}
	if want, err := i.Receipt(first, mustExport(t, a, first).Encoded, true); want || err != nil {
		t.Errorf("a receipt that is here: wanted %v, %v", want, err)
	}
	if err := i.Enter(); err != nil {
		t.Fatal(err)
	}
	if touched, err := i.Sync(); err != nil || !slices.Equal(touched, []record.StoreID{a.Store()}) {
		t.Errorf("touched %v, %v", touched, err)
	}
	same(t, a, b, a.Store())
	noFindings(t, b)
}

func mustExport(t *testing.T, a *archive.Archive, p record.Position) archive.Exported {
	t.Helper()
	x, err := a.Export(p)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestNothingShownBeforeSync: what is entered shows when it is durable.
func TestNothingShownBeforeSync(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	b := open(t, archive.Options{Dir: "b", Disk: archive.NewDisk()})
	r := mustPut(t, a, message(1, 1000), record.Envelope{})
	i := b.NewIntake(t.Context(), "a")
	defer i.Discard()
	if err := offer(i, a, r.Position, true); err != nil {
		t.Fatal(err)
	}
	if err := i.Enter(); err != nil {
		t.Fatal(err)
	}
	if ls := b.Logs(); len(ls) != 1 {
		t.Errorf("logs before the sync: %v", ls)
	}
	if ms := list(t, b, archive.Query{}); len(ms) != 0 {
		t.Errorf("%d messages before the sync", len(ms))
	}
	if _, err := b.Body(r.Hash); !errors.Is(err, archive.ErrNotFound) {
		t.Errorf("body before the sync: %v", err)
	}
	changed := b.Changed()
	if _, err := i.Sync(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the change")
	}
	same(t, a, b, a.Store())
}

// TestWrongBodyIsNotTaken: nothing of an intake is entered when a body in it is
// not what its receipt says, and nothing of it is left.
func TestWrongBodyIsNotTaken(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	good := mustPut(t, a, message(1, 1000), record.Envelope{}).Position
	for _, size := range []int{1, 5000, 128<<10 + 1, 3 << 20} {
		p := mustPut(t, a, noise(uint64(size), size), record.Envelope{}).Position
		x := mustExport(t, a, p)
		var chunks [][]byte
		if err := a.Chunks(p.Store, x.Receipt.Body, func(c []byte) error { chunks = append(chunks, c); return nil }); err != nil {
			t.Fatal(err)
		}
		last := len(chunks) - 1
		flipped := bytes.Clone(chunks[last])
		flipped[len(flipped)-1] ^= 1
		bad := map[string][][]byte{
			"flipped bit":     append(slices.Clone(chunks[:last]), flipped),
			"other bytes":     append(slices.Clone(chunks[:last]), otherChunk(t, size-last*(128<<10))),
			"missing end":     chunks[:last],
			"too much":        append(slices.Clone(chunks), chunks[last]),
			"no chunk at all": nil,
			"empty chunk":     append(slices.Clone(chunks[:last]), []byte{}),
		}
		if last > 1 {
			bad["two swapped"] = append([][]byte{chunks[1], chunks[0]}, chunks[2:]...)
		}
		for name, chunks := range bad {
			disk := archive.NewDisk()
			b := open(t, archive.Options{Dir: "b", Disk: disk})
			i := b.NewIntake(t.Context(), "a")
			if err := offer(i, a, good, true); err != nil {
				t.Fatal(err)
			}
			want, err := i.Receipt(p, x.Encoded, true)
			if !want || err != nil {
				t.Fatal(want, err)
			}
			for _, c := range chunks {
				err = cmp.Or(err, i.Chunk(c))
			}
			if err = cmp.Or(err, i.Enter()); !errors.Is(err, archive.ErrCorrupt) {
				t.Errorf("%d bytes, %s: %v", size, name, err)
			}
			if err := i.Enter(); err == nil {
				t.Errorf("%d bytes, %s: entered after all", size, name)
			}
			if _, err := i.Sync(); err == nil {
				t.Errorf("%d bytes, %s: synced after all", size, name)
			}
			i.Discard()
			if st := b.Stats(); st.Receipts != 0 || st.InFlight != 0 {
				t.Errorf("%d bytes, %s: %+v", size, name, st)
			}
			mustGive(t, a, b, good, p) // the right one still comes in
			if err := sameReceipt(a, b, p); err != nil {
				t.Errorf("%d bytes, %s: then the right one: %v", size, name, err)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// otherChunk is the stored form of n bytes that nobody sent.
func otherChunk(t *testing.T, n int) (chunk []byte) {
	c := open(t, archive.Options{Dir: "c", Disk: archive.NewDisk()})
	r := mustPut(t, c, noise(99, n), record.Envelope{})
	if err := c.Chunks(c.Store(), r.Body, func(b []byte) error { chunk = b; return nil }); err != nil {
		t.Fatal(err)
	}
	return chunk
}

// TestMalformedReceipts are refused for good.
func TestMalformedReceipts(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	b := open(t, archive.Options{Dir: "b", Disk: archive.NewDisk()})
	x := mustExport(t, a, mustPut(t, a, message(1, 100), record.Envelope{}).Position)
	hollow := x.Receipt
	hollow.Size = 0
	for name, tt := range map[string]struct {
		p       record.Position
		encoded []byte
		err     error
	}{
		"no receipt":        {x.Receipt.Position, []byte("rot"), archive.ErrCorrupt},
		"no bytes":          {x.Receipt.Position, nil, archive.ErrCorrupt},
		"no store":          {record.Position{Seq: 1}, x.Encoded, archive.ErrCorrupt},
		"no sequence":       {record.Position{Store: a.Store()}, x.Encoded, archive.ErrCorrupt},
		"endless sequence":  {record.Position{Store: a.Store(), Seq: ^record.Seq(0)}, x.Encoded, archive.ErrCorrupt},
		"hash of no bytes":  {x.Receipt.Position, record.AppendReceipt(nil, &hollow), archive.ErrCorrupt},
		"own log, not made": {record.Position{Store: b.Store(), Seq: 1}, x.Encoded, archive.ErrAhead},
	} {
		i := b.NewIntake(t.Context(), "a")
		if want, err := i.Receipt(tt.p, tt.encoded, true); want || !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, %v", name, want, err)
		}
		if err := i.Enter(); !errors.Is(err, tt.err) {
			t.Errorf("%s: Enter: %v", name, err)
		}
		i.Discard()
	}
	i := b.NewIntake(t.Context(), "a")
	defer i.Discard()
	if err := i.Chunk([]byte("x")); err == nil {
		t.Error("a chunk without a receipt was taken")
	}
	if st := b.Stats(); st.Receipts != 0 || st.InFlight != 0 {
		t.Errorf("%+v", st)
	}
}

// TestIntakeMemoryIsBounded: many mails in one intake, and many intakes at
// once, stay below the limit.
func TestIntakeMemoryIsBounded(t *testing.T) {
	const limit = 8 << 20
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	disk := archive.NewDisk()
	b := open(t, archive.Options{Dir: "b", Disk: disk, MemoryInFlight: limit, MemoryWait: time.Millisecond})
	var ps []record.Position
	for n := range uint64(200) {
		ps = append(ps, mustPut(t, a, noise(n, 30_000), record.Envelope{}).Position)
	}
	mustGive(t, a, b, ps...)
	same(t, a, b, a.Store())
	noFindings(t, b)
	busy := 0
	var all []*archive.Intake
	for n := range 20 {
		p := mustPut(t, a, noise(uint64(1000+n), 1000), record.Envelope{}).Position
		i := b.NewIntake(t.Context(), "a")
		all = append(all, i)
		if err := offer(i, a, p, true); errors.Is(err, archive.ErrBusy) {
			busy++
		} else if err != nil {
			t.Fatal(err)
		}
		if s := b.Stats(); s.InFlight > limit {
			t.Fatalf("%d bytes in flight", s.InFlight)
		}
	}
	if busy == 0 || busy == len(all) {
		t.Errorf("%d of %d intakes found no memory", busy, len(all))
	}
	for _, i := range all {
		i.Discard()
		i.Discard()
	}
	if n := b.Stats().InFlight; n != 0 {
		t.Errorf("%d bytes in flight in the end", n)
	}
}

func TestIntakeOnAFullDisk(t *testing.T) {
	free := int64(1 << 40)
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	b := open(t, archive.Options{Dir: "b", Disk: archive.NewDisk(), MinFree: 1 << 30, FreeSpace: func(string) (int64, error) { return free, nil }})
	first := mustPut(t, a, message(1, 100), record.Envelope{}).Position
	second := mustPut(t, a, message(2, 100), record.Envelope{}).Position
	mustGive(t, a, b, first)
	free = 1 << 20
	time.Sleep(20 * time.Millisecond) // the guard asks every 10 ms
	mustGive(t, a, b, first)          // nothing to write
	if err := give(a, b, first, second); !errors.Is(err, archive.ErrDiskFull) {
		t.Errorf("a full disk: %v", err)
	}
}

// TestTwoPeersAtOnce: two peers send the same at the same moment, break off and
// try again. Every receipt comes in once, whole, and what one leaves unfinished
// takes nothing from the other.
func TestTwoPeersAtOnce(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	b := open(t, archive.Options{Dir: "b", Disk: archive.NewDisk()}.WithMemTable(1<<20))
	for i := range 60 {
		mustPut(t, a, noise(uint64(i%45), []int{0, 300, 50_000, 900_000}[i%4]), record.Envelope{To: []string{fmt.Sprint(i)}})
	}
	var peers sync.WaitGroup
	for peer := range uint64(4) {
		peers.Go(func() {
			rng := rand.New(rand.NewPCG(peer, 2))
			for missing := lacks(a, b, a.Store()); len(missing) > 0; missing = lacks(a, b, a.Store()) {
				i := b.NewIntake(context.Background(), fmt.Sprint(peer))
				for _, p := range missing[:min(len(missing), 1+rng.IntN(8))] {
					if err := offer(i, a, p, true); err != nil {
						t.Errorf("%v: %v", p, err)
					}
				}
				if rng.IntN(3) > 0 {
					if err := i.Enter(); err != nil {
						t.Error(err)
					}
					if rng.IntN(2) > 0 {
						if _, err := i.Sync(); err != nil {
							t.Error(err)
						}
					}
				}
				i.Discard()
			}
		})
	}
	peers.Go(func() { // own mail, some of it the same
		for i := range 40 {
			if _, err := put(b, noise(uint64(i), []int{0, 300, 50_000, 900_000}[i%4]), record.Envelope{}); err != nil {
				t.Error(err)
			}
		}
	})
	peers.Wait()
	same(t, a, b, a.Store())
	noFindings(t, a, b)
	if got := b.Stats().Receipts; got != 100 {
		t.Errorf("%d receipts, want 100", got)
	}
	if q := b.Quarantined(); len(q) != 0 {
		t.Errorf("quarantined: %v", q)
	}
}

// TestSecondIntakeIsTold: what one intake is bringing, another is not asked
// for, until the first gives up.
func TestSecondIntakeIsTold(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	b := open(t, archive.Options{Dir: "b", Disk: archive.NewDisk()})
	msg := noise(1, 2<<20)
	p := mustPut(t, a, msg, record.Envelope{}).Position
	again := mustPut(t, a, msg, record.Envelope{}).Position
	x, y := mustExport(t, a, p), mustExport(t, a, again)

	first, second := b.NewIntake(t.Context(), "a"), b.NewIntake(t.Context(), "c")
	defer first.Discard()
	defer second.Discard()
	if err := offer(first, a, p, true); err != nil {
		t.Fatal(err)
	}
	for q, encoded := range map[record.Position][]byte{p: x.Encoded, again: y.Encoded} {
		if want, err := second.Receipt(q, encoded, true); want || err != nil {
			t.Errorf("%v, which another intake brings: %v, %v", q, want, err)
		}
	}
	if err := second.Enter(); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Sync(); err != nil {
		t.Fatal(err)
	}
	if l, _ := b.Log(a.Store()); len(l.Held) != 0 {
		t.Errorf("held: %v", l.Held)
	}
	first.Discard()
	third := b.NewIntake(t.Context(), "c")
	defer third.Discard()
	if err := offer(third, a, p, true); err != nil {
		t.Fatal(err)
	}
	if err := third.Enter(); err != nil {
		t.Fatal(err)
	}
	first.Discard() // nothing of the other's is removed
	if _, err := third.Sync(); err != nil {
		t.Fatal(err)
	}
	mustGive(t, a, b, again)
	same(t, a, b, a.Store())
	noFindings(t, b)
}

// TestRepair: whatever rots, a peer gives it back, in a replica's copy and in
// the log of the origin itself.
func TestRepair(t *testing.T) {
	for name, damage := range map[string]func(a *archive.Archive, r record.Receipt) error{
		"body":          func(a *archive.Archive, r record.Receipt) error { return a.DamageBody(r.Hash) },
		"body lost":     func(a *archive.Archive, r record.Receipt) error { return a.LoseBody(r.Position) },
		"receipt":       func(a *archive.Archive, r record.Receipt) error { a.DamageReceipt(r.Position); return nil },
		"entry":         func(a *archive.Archive, r record.Receipt) error { a.DamageEntry(r.Hash); return nil },
		"entry lost":    func(a *archive.Archive, r record.Receipt) error { a.LoseEntry(r.Hash); return nil },
		"other indexes": func(a *archive.Archive, r record.Receipt) error { return a.LoseIndexes(r.Position) },
		"everything": func(a *archive.Archive, r record.Receipt) error {
			return errors.Join(a.LoseBody(r.Position), lose(a, r))
		},
		"body and entry": func(a *archive.Archive, r record.Receipt) error {
			defer a.LoseEntry(r.Hash)
			return a.DamageBody(r.Hash)
		},
		"receipt unheard": func(a *archive.Archive, r record.Receipt) error { a.DamageReceipt(r.Position); return nil },
	} {
		for _, size := range []int{0, 900, 1_500_000} {
			if size == 0 && strings.Contains(name, "body") {
				continue
			}
			t.Run(fmt.Sprintf("%s of %d bytes", name, size), func(t *testing.T) { repair(t, size, name != "receipt unheard", damage) })
		}
	}
}

func lose(a *archive.Archive, r record.Receipt) error {
	err := a.LoseIndexes(r.Position)
	a.LoseEntry(r.Hash)
	a.DamageReceipt(r.Position)
	return err
}

func repair(t *testing.T, size int, noticed bool, damage func(*archive.Archive, record.Receipt) error) {
	reg := prometheus.NewRegistry()
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk(), Registerer: reg})
	disk := archive.NewDisk()
	b := open(t, archive.Options{Dir: "b", Disk: disk})
	journal := record.Envelope{Journal: &record.Journal{Inner: record.Hash{1}}}
	var rs []record.Receipt
	for range 3 { // one body, three receipts
		rs = append(rs, mustPut(t, a, noise(1, size), journal))
	}
	mustPut(t, a, message(2, 500), record.Envelope{})
	mustPut(t, b, noise(1, size), journal) // the message has another body in b's own log
	log, _ := a.Log(a.Store())
	if err := b.Learn(log); err != nil {
		t.Fatal(err)
	}
	mustGive(t, a, b, lacks(a, b, a.Store())...)
	mustGive(t, b, a, lacks(b, a, b.Store())...)
	before := a.Stats()

	if err := damage(a, rs[1]); err != nil {
		t.Fatal(err)
	}
	changed := a.Changed()
	if noticed {
		if f := verify(t, a); len(f) == 0 {
			t.Fatal("no damage")
		}
		select {
		case <-changed:
		default:
			t.Error("nobody was told of the damage")
		}
		if len(lacks(b, a, a.Store())) == 0 {
			t.Error("the damaged receipts are shown as held")
		}
		for _, p := range lacks(b, a, a.Store()) {
			if _, err := a.Export(p); !errors.Is(err, archive.ErrCorrupt) {
				t.Errorf("export of damaged %v: %v", p, err)
			}
		}
	} else { // the peer offers it although nobody knows of the damage
		mustGive(t, b, a, rs[1].Position)
	}
	for round := 0; noticed; round++ {
		missing := append(lacks(b, a, a.Store()), lacks(b, a, b.Store())...)
		if len(missing) == 0 {
			break
		}
		if round == 5 {
			t.Fatalf("not repaired: %v", missing)
		}
		mustGive(t, b, a, missing...)
		verify(t, a)
	}
	same(t, b, a, a.Store())
	same(t, b, a, b.Store())
	noFindings(t, a, b)
	if m, err := a.Message(rs[0].Hash); err != nil || len(m.Receipts) != 4 {
		t.Errorf("%d receipts, %v", len(m.Receipts), err)
	}
	after := a.Stats()
	if before.Receipts != after.Receipts || before.Messages != after.Messages || before.RawBytes != after.RawBytes {
		t.Errorf("counted before %+v, after %+v", before, after)
	}
	if got, err := a.Resolve(record.Hash{1}.String()); err != nil || len(got) != 1 {
		t.Errorf("the journal's message: %v, %v", got, err)
	}
	if n, err := testutil.GatherAndCount(reg, "chainmail_archive_repairs_total"); n != 1 || err != nil {
		t.Errorf("repairs metric: %d, %v", n, err)
	}
}

// TestDamagedBodyIsNotReferredTo: mail that comes in while the body of the same
// message is known to be damaged is stored again.
func TestDamagedBodyIsNotReferredTo(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	msg := noise(1, 3000)
	old := mustPut(t, a, msg, record.Envelope{})
	if err := a.DamageBody(old.Hash); err != nil {
		t.Fatal(err)
	}
	verify(t, a)
	fresh := mustPut(t, a, msg, record.Envelope{})
	if got, err := get(a, old.Hash); err != nil || !bytes.Equal(got, msg) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if f := verify(t, a); len(f) != 1 || f[0].Position != old.Position {
		t.Errorf("findings %v", f)
	}
	if fresh.Body == old.Body {
		t.Error("the damaged body was referred to")
	}
	b := open(t, archive.Options{Dir: "b", Disk: archive.NewDisk()})
	mustGive(t, a, b, fresh.Position)
	if err := sameReceipt(a, b, fresh.Position); err != nil {
		t.Error(err)
	}
}

// TestConflict: two contents of one position. The node keeps what it has there,
// and the other mail in its own log, once.
func TestConflict(t *testing.T) {
	for _, size := range []int{0, 4000, 2_000_000} {
		for _, atHand := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d bytes, body sent: %v", size, atHand), func(t *testing.T) { conflict(t, size, atHand) })
		}
	}
}

func conflict(t *testing.T, size int, atHand bool) {
	disk := archive.NewDisk()
	a := open(t, archive.Options{Dir: "a", Disk: disk})
	mustPut(t, a, message(1, 100), record.Envelope{})
	rolledBack := disk.Crash(100, 1)
	ours := mustPut(t, a, message(2, 4000), record.Envelope{})
	b := open(t, archive.Options{Dir: "b", Disk: archive.NewDisk()})
	mustGive(t, a, b, lacks(a, b, a.Store())...)

	evil := open(t, archive.Options{Dir: "a", Disk: rolledBack})
	theirs := mustPut(t, evil, noise(3, size), record.Envelope{From: "refused@example.com", To: []string{"x"}})
	next := mustPut(t, evil, message(4, min(size, 50)), record.Envelope{})
	if theirs.Position != ours.Position {
		t.Fatal("no conflict")
	}
	receipts := b.Stats().Receipts
	offerIt := func() error {
		i := b.NewIntake(t.Context(), "evil")
		defer i.Discard()
		if err := offer(i, evil, theirs.Position, atHand); err != nil {
			return err
		}
		if err := offer(i, evil, next.Position, true); err != nil {
			return err
		}
		if err := i.Enter(); err != nil {
			return err
		}
		_, err := i.Sync()
		return err
	}
	if !atHand && size > 0 {
		if err := offerIt(); !errors.Is(err, archive.ErrNoBody) {
			t.Fatalf("the refused mail has no bytes: %v", err)
		}
		mustPut(t, b, noise(3, size), record.Envelope{}) // now they are here
		receipts++
	}
	for round := range 3 {
		if err := offerIt(); err != nil {
			t.Fatal(err)
		}
		q := b.Quarantined()
		if len(q) != 1 || b.Stats().Quarantined != 1 {
			t.Fatalf("round %d: quarantined %+v", round, q)
		}
		c := q[0]
		if c.Position != ours.Position || c.Held != ours.Hash || c.Refused != theirs.Hash || c.Peer != "evil" || !c.ReceivedAt.Equal(theirs.ReceivedAt) {
			t.Errorf("conflict %+v", c)
		}
		if got := b.Stats().Receipts; got != receipts+2 {
			t.Errorf("round %d: %d receipts, want %d", round, got, receipts+2)
		}
		kept := mustExport(t, b, c.Kept).Receipt
		if c.Kept.Store != b.Store() || kept.Hash != theirs.Hash || !gocmp.Equal(kept.Envelope, theirs.Envelope) {
			t.Errorf("kept %+v", kept)
		}
		if err := sameReceipt(a, b, ours.Position); err != nil {
			t.Error(err)
		}
		if err := sameReceipt(evil, b, next.Position); err != nil {
			t.Error(err)
		}
		noFindings(t, b)
		if round == 1 {
			restarted := restart(t, b)
			b = restarted
		}
	}
}

// restart closes an archive and opens it again.
func restart(t *testing.T, a *archive.Archive) *archive.Archive {
	t.Helper()
	o := a.Reopen()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, o)
}

// TestBodyOfAnotherIsNotOverwritten: a rolled back log gave a new message the
// body number of an old one.
func TestBodyOfAnotherIsNotOverwritten(t *testing.T) {
	disk := archive.NewDisk()
	a := open(t, archive.Options{Dir: "a", Disk: disk})
	mustPut(t, a, message(1, 100), record.Envelope{})
	rolledBack := disk.Crash(100, 1)
	mustPut(t, a, nil, record.Envelope{}) // takes a position and no body
	ours := mustPut(t, a, message(2, 4000), record.Envelope{})
	b := open(t, archive.Options{Dir: "b", Disk: archive.NewDisk()})
	mustGive(t, a, b, ours.Position)

	evil := open(t, archive.Options{Dir: "a", Disk: rolledBack})
	theirs := mustPut(t, evil, message(3, 5000), record.Envelope{})
	if theirs.Body != ours.Body || theirs.Position == ours.Position {
		t.Fatal("no conflict")
	}
	for range 2 {
		mustGive(t, evil, b, theirs.Position)
		if q := b.Quarantined(); len(q) != 1 || q[0].Held != ours.Hash || q[0].Refused != theirs.Hash {
			t.Errorf("quarantined %+v", q)
		}
		if err := sameReceipt(a, b, ours.Position); err != nil {
			t.Error(err)
		}
		if got, err := get(b, theirs.Hash); err != nil || !bytes.Equal(got, message(3, 5000)) {
			t.Errorf("the refused mail: %d bytes, %v", len(got), err)
		}
		noFindings(t, b)
	}
}

// TestOwnLogIsGivenBack: a peer may give back what rotted, and no more.
func TestOwnLogIsGivenBack(t *testing.T) {
	disk := archive.NewDisk()
	a := open(t, archive.Options{Dir: "a", Disk: disk})
	mustPut(t, a, message(1, 100), record.Envelope{})
	rolledBack := disk.Crash(100, 1)
	ahead := mustPut(t, a, message(2, 100), record.Envelope{})
	old := open(t, archive.Options{Dir: "a", Disk: rolledBack})
	i := old.NewIntake(t.Context(), "b")
	defer i.Discard()
	if err := offer(i, a, ahead.Position, true); !errors.Is(err, archive.ErrAhead) || !strings.Contains(err.Error(), "restart the node") {
		t.Errorf("a receipt that the own log never made: %v", err)
	}
	if err := i.Enter(); !errors.Is(err, archive.ErrAhead) {
		t.Errorf("enter: %v", err)
	}
	// As an old log it is one like others.
	if _, err := old.StartLog(); err != nil {
		t.Fatal(err)
	}
	mustGive(t, a, old, ahead.Position)
	same(t, a, old, a.Store())
	noFindings(t, old)
}

func TestSizesAndTimes(t *testing.T) {
	a := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	var rs []record.Receipt
	for n := range 10 {
		rs = append(rs, mustPut(t, a, message(uint64(n), 100+n), record.Envelope{}))
	}
	for _, tt := range []struct {
		set      record.Ranges
		limit    int
		bytes    int64
		complete bool
	}{
		{record.Of(1, 10), 100, 1045, true},
		{record.Of(1, 10), 10, 1045, true},
		{record.Of(1, 10), 2, 201, false},
		{record.Of(9, 11), 100, 217, false},
		{nil, 0, 0, true},
	} {
		bytes, complete, err := a.Sizes(a.Store(), tt.set, tt.limit)
		if bytes != tt.bytes || complete != tt.complete || err != nil {
			t.Errorf("%v, at most %d: %d %v %v", tt.set, tt.limit, bytes, complete, err)
		}
	}
	if at, err := a.ReceivedAt(rs[4].Position); err != nil || !at.Equal(rs[4].ReceivedAt) {
		t.Errorf("received at %v, %v", at, err)
	}
	if _, err := a.ReceivedAt(record.Position{Store: a.Store(), Seq: 11}); !errors.Is(err, archive.ErrNotFound) {
		t.Errorf("received at: %v", err)
	}
	ds, err := a.Digests(a.Store(), record.Range{First: 3, Last: 99})
	if err != nil || len(ds) != 8 || ds[0].Digest != sha256.Sum256(mustExport(t, a, rs[2].Position).Encoded) {
		t.Errorf("digests: %v, %v", ds, err)
	}
	seg, err := a.Segment(a.Store(), 0)
	if err != nil || seg.Receipts != 10 || seg.Bytes != 1045 || seg.Held.String() != "1-10" {
		t.Errorf("segment: %+v, %v", seg, err)
	}
	a.DamageReceipt(rs[6].Position)
	if seg, err := a.Segment(a.Store(), 0); err != nil || seg.Held.String() != "1-6,8-10" {
		t.Errorf("segment with a damaged receipt: %+v, %v", seg, err)
	}
	if l, _ := a.Log(a.Store()); l.Held.String() != "1-6,8-10" {
		t.Errorf("held: %v", l.Held)
	}
}

// FuzzIntake: whatever a peer sends, nothing panics, and nothing is entered
// but what is whole.
func FuzzIntake(f *testing.F) {
	a, err := archive.Open(archive.Options{Dir: "a", Disk: archive.NewDisk()})
	if err != nil {
		f.Fatal(err)
	}
	r, err := put(a, message(1, 300), record.Envelope{To: []string{"a"}, Journal: &record.Journal{Inner: record.Hash{1}}})
	if err != nil {
		f.Fatal(err)
	}
	x, err := a.Export(r.Position)
	if err != nil {
		f.Fatal(err)
	}
	var chunk []byte
	if err := a.Chunks(a.Store(), r.Body, func(c []byte) error { chunk = c; return nil }); err != nil {
		f.Fatal(err)
	}
	f.Add(uint64(1), uint64(1), x.Encoded, chunk, true)
	f.Add(uint64(1), uint64(2), x.Encoded, chunk[:20], true)
	f.Add(uint64(0), uint64(0), []byte{1}, []byte{}, false)
	b, err := archive.Open(archive.Options{Dir: "b", Disk: archive.NewDisk()})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, store, seq uint64, encoded, chunk []byte, hasBody bool) {
		i := b.NewIntake(context.Background(), "a")
		defer i.Discard()
		p := record.Position{Store: record.StoreID(store), Seq: record.Seq(seq)}
		want, err := i.Receipt(p, encoded, hasBody)
		if want {
			err = i.Chunk(chunk)
		}
		if err := cmp.Or(err, i.Enter()); err != nil {
			return
		}
		if _, err := i.Sync(); err != nil {
			t.Fatal(err)
		}
		if l, _ := b.Log(p.Store); !l.Held.Has(p.Seq) {
			return
		}
		y, err := b.Export(p)
		if err != nil {
			t.Fatal(err)
		}
		body, err := b.Body(y.Receipt.Hash)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, body); err != nil || n != y.Receipt.Size {
			t.Fatalf("%v: %d bytes of %d, %v", p, n, y.Receipt.Size, err)
		}
	})
}

// TestMailThatComesDuringAnIntakeStaysFound commits the message of a receipt
// that an intake has looked at and not entered yet: the index must name both.
func TestMailThatComesDuringAnIntakeStaysFound(t *testing.T) {
	from := open(t, archive.Options{Dir: "a", Disk: archive.NewDisk()})
	to := open(t, archive.Options{Dir: "b", Disk: archive.NewDisk()})
	msg := message(1, 3000)
	theirs := mustPut(t, from, msg, record.Envelope{})
	i := to.NewIntake(t.Context(), "a")
	defer i.Discard()
	if err := offer(i, from, theirs.Position, true); err != nil {
		t.Fatal(err)
	}
	ours := mustPut(t, to, msg, record.Envelope{})
	if err := i.Enter(); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Sync(); err != nil {
		t.Fatal(err)
	}
	m, err := to.Message(theirs.Hash)
	if err != nil || len(m.Receipts) != 2 {
		t.Errorf("receipts of the message: %+v, %v; want %v and %v", m.Receipts, err, theirs.Position, ours.Position)
	}
	if s := to.Stats(); s.Messages != 1 || s.Receipts != 2 {
		t.Errorf("%d messages, %d receipts, want 1 and 2", s.Messages, s.Receipts)
	}
	if found := verify(t, to); len(found) > 0 {
		t.Errorf("found %+v", found)
	}
}
