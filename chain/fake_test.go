package chain_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"chainmail/archive/record"
	"chainmail/chain"
)

// fakeArchive is an archive in memory that does what the real one promises.
type fakeArchive struct {
	name  string
	store record.StoreID

	mu      sync.Mutex
	logs    map[record.StoreID]*fakeLog
	changed chan struct{}

	full     error // Accepting and intakes
	intake   error // intakes only
	syncTime time.Duration
	work     int                      // how often an intake hashes what comes in, beside what it must
	rotten   map[record.Position]bool // bodies that cannot be read
	bodiesIn int                      // bodies that came with chunks
	twice    int                      // receipts that came although they were held
	largest  int                      // receipts of one intake
	intakes  int
}

type fakeLog struct {
	record.Log
	receipts map[record.Seq][]byte
	bodies   map[record.BodyNo][]byte
	byHash   map[record.Hash]record.BodyNo
	first    map[record.BodyNo]record.Seq
	lost     record.Ranges // damaged: punched out
}

func newFakeArchive(name string, store record.StoreID) *fakeArchive {
	a := &fakeArchive{
		name: name, store: store, syncTime: time.Millisecond,
		logs: map[record.StoreID]*fakeLog{}, changed: make(chan struct{}), rotten: map[record.Position]bool{},
	}
	a.logLocked(store).Origin = name
	return a
}

func (a *fakeArchive) logLocked(s record.StoreID) *fakeLog {
	l := a.logs[s]
	if l == nil {
		l = &fakeLog{Log: record.Log{Store: s}, receipts: map[record.Seq][]byte{}, bodies: map[record.BodyNo][]byte{}, first: map[record.BodyNo]record.Seq{}, byHash: map[record.Hash]record.BodyNo{}}
		a.logs[s] = l
	}
	return l
}

func (a *fakeArchive) changeLocked() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// add takes a mail as a client's; the result is durable.
func (a *fakeArchive) add(body []byte) record.Position {
	time.Sleep(a.syncTime)
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.logLocked(a.store)
	seq := l.Held.Union(l.lost).Last() + 1
	hash := record.Hash(sha256.Sum256(body))
	no := l.byHash[hash]
	if no == 0 {
		no = record.BodyNo(len(l.byHash) + 1)
		l.byHash[hash] = no
	}
	l.bodies[no] = body
	r := record.Receipt{
		Position: record.Position{Store: a.store, Seq: seq}, ReceivedAt: time.Now().UTC(),
		Hash: hash, Size: int64(len(body)), Body: no,
		Envelope: record.Envelope{From: "a@example.org", To: []string{"b@example.org"}},
	}
	l.put(&r, record.AppendReceipt(nil, &r))
	l.Held = l.Held.Add(seq)
	a.changeLocked()
	return r.Position
}

func (l *fakeLog) put(r *record.Receipt, encoded []byte) {
	l.receipts[r.Position.Seq] = encoded
	if first := l.first[r.Body]; first == 0 || r.Position.Seq < first {
		l.first[r.Body] = r.Position.Seq
	}
}

// damage punches a receipt out, as a finding of a check does.
func (a *fakeArchive) damage(p record.Position) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.logs[p.Store]
	delete(l.receipts, p.Seq)
	l.Held = l.Held.Minus(record.Of(p.Seq, p.Seq))
	l.lost = l.lost.Add(p.Seq)
	a.changeLocked()
}

// setBack makes the own log what it was at a receipt, as the return to a
// snapshot of a virtual machine does.
func (a *fakeArchive) setBack(last record.Seq) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.logs[a.store]
	l.Held = record.Of(1, last)
	for seq := range l.receipts {
		if seq > last {
			delete(l.receipts, seq)
		}
	}
	a.changeLocked()
}

// wipe forgets all receipts.
func (a *fakeArchive) wipe() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for s, l := range a.logs {
		delete(a.logs, s)
		a.logLocked(s).Log = record.Log{Store: s, Origin: l.Origin, Placements: l.Placements}
	}
	a.changeLocked()
}

// forgetBodies leaves the receipts without their bodies.
func (a *fakeArchive) forgetBodies() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.logs {
		clear(l.bodies)
	}
}

// forge gives a receipt a hash that is not its body's.
func (a *fakeArchive) forge(seq record.Seq) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.logs[a.store]
	r, _ := record.DecodeReceipt(record.Position{Store: a.store, Seq: seq}, l.receipts[seq])
	r.Hash[0] ^= 1
	l.receipts[seq] = record.AppendReceipt(nil, &r)
}

// last is the highest number of a log that was ever held; everHeld includes
// what was damaged since.
func (a *fakeArchive) last(s record.StoreID) record.Seq { return a.everHeld(s).Last() }

func (a *fakeArchive) everHeld(s record.StoreID) record.Ranges {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.logs[s]; l != nil {
		return l.Held.Union(l.lost)
	}
	return nil
}

func (a *fakeArchive) refuse(full, intake error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.full, a.intake = full, intake
}

func (a *fakeArchive) rot(p record.Position) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rotten[p] = true
}

func (a *fakeArchive) held(s record.StoreID) record.Ranges {
	l, _ := a.Log(s)
	return l.Held
}

func (a *fakeArchive) Store() record.StoreID { return a.store }

func (a *fakeArchive) Logs() []record.Log {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []record.Log
	for _, s := range slices.Sorted(maps.Keys(a.logs)) {
		all = append(all, a.logs[s].Log)
	}
	return all
}

func (a *fakeArchive) Log(s record.StoreID) (record.Log, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.logs[s]; l != nil {
		return l.Log, true
	}
	return record.Log{}, false
}

func (a *fakeArchive) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

func (a *fakeArchive) Learn(l record.Log) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.learnLocked(l)
	return nil
}

func (a *fakeArchive) learnLocked(l record.Log) {
	mine := a.logLocked(l.Store)
	if l.Store == a.store || len(l.Placements) <= len(mine.Placements) && mine.Origin != "" {
		return
	}
	mine.Origin, mine.Placements = l.Origin, slices.Clone(l.Placements)
	a.changeLocked()
}

func (a *fakeArchive) Place(nodes []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.logs[a.store]
	if n := len(l.Placements); n > 0 && slices.Equal(l.Placements[n-1].Nodes, nodes) {
		return nil
	}
	from := l.Held.Last() + 1
	l.Placements = slices.DeleteFunc(slices.Clone(l.Placements), func(p record.Placement) bool { return p.From == from })
	l.Placements = append(l.Placements, record.Placement{From: from, Nodes: slices.Clone(nodes)})
	a.changeLocked()
	return nil
}

func (a *fakeArchive) Accepting() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.full
}

func (a *fakeArchive) Export(p record.Position) (e chain.Exported, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.logs[p.Store]
	if l == nil || l.receipts[p.Seq] == nil {
		return e, chain.ErrNotHeld
	}
	e.Encoded = l.receipts[p.Seq]
	if e.Receipt, err = record.DecodeReceipt(p, e.Encoded); err != nil {
		return e, err
	}
	e.BodyAt = record.Position{Store: p.Store, Seq: l.first[e.Receipt.Body]}
	return e, nil
}

func (a *fakeArchive) Chunks(s record.StoreID, b record.BodyNo, f func([]byte) error) error {
	a.mu.Lock()
	body := a.logs[s].bodies[b]
	rotten := false
	for p := range a.rotten {
		if r, _ := record.DecodeReceipt(p, a.logs[s].receipts[p.Seq]); p.Store == s && r.Body == b {
			rotten = true
		}
	}
	a.mu.Unlock()
	for chunk := range slices.Chunk(body, 128<<10) {
		if err := f(chunk); err != nil {
			return err
		}
	}
	if rotten { // found at the end
		return fmt.Errorf("body %d: %w", b, chain.ErrCorrupt)
	}
	return nil
}

func (a *fakeArchive) Weigh(s record.StoreID, r record.Range) (sum int64, oldest time.Time, err error) {
	for seq := r.First; seq <= r.Last; seq++ {
		e, err := a.Export(record.Position{Store: s, Seq: seq})
		if err != nil {
			return 0, oldest, err
		}
		sum += e.Receipt.Size
		if oldest.IsZero() || e.Receipt.ReceivedAt.Before(oldest) {
			oldest = e.Receipt.ReceivedAt
		}
	}
	return sum, oldest, nil
}

func (a *fakeArchive) NewIntake(context.Context, string) chain.Intake { return &fakeIntake{a: a} }

type fakeIntake struct {
	a       *fakeArchive
	logs    []record.Log
	taken   []*fakeReceipt
	last    *fakeReceipt
	entered bool
}

type fakeReceipt struct {
	record.Receipt
	encoded []byte
	body    []byte
	hasBody bool
}

func (i *fakeIntake) Log(l record.Log) error {
	i.logs = append(i.logs, l)
	return nil
}

func (i *fakeIntake) Receipt(p record.Position, encoded []byte, hasBody bool) (bool, error) {
	if err := i.end(); err != nil {
		return false, err
	}
	i.a.mu.Lock()
	defer i.a.mu.Unlock()
	if err := cmp.Or(i.a.full, i.a.intake); err != nil {
		return false, err
	}
	l := i.a.logLocked(p.Store)
	if l.Held.Has(p.Seq) {
		i.a.twice++
		return false, nil
	}
	r, err := record.DecodeReceipt(p, encoded)
	if err != nil {
		return false, err
	}
	if !hasBody && l.bodies[r.Body] == nil && !slices.ContainsFunc(i.taken, func(f *fakeReceipt) bool { return f.Body == r.Body }) {
		return false, chain.ErrNoBody
	}
	i.last = &fakeReceipt{Receipt: r, encoded: bytes.Clone(encoded), hasBody: hasBody}
	if hasBody {
		i.a.bodiesIn++
	}
	return hasBody, nil
}

func (i *fakeIntake) Chunk(b []byte) error {
	for range i.a.work {
		sha256.Sum256(b)
	}
	i.last.body = append(i.last.body, b...)
	return nil
}

func (i *fakeIntake) end() error {
	if i.last == nil {
		return nil
	}
	if i.last.hasBody && sha256.Sum256(i.last.body) != i.last.Hash {
		return chain.ErrCorrupt
	}
	i.taken = append(i.taken, i.last)
	i.last = nil
	return nil
}

func (i *fakeIntake) Enter() error {
	err := i.end()
	i.entered = err == nil
	return err
}

func (i *fakeIntake) Sync() ([]record.StoreID, error) {
	if !i.entered {
		return nil, chain.ErrCorrupt
	}
	time.Sleep(i.a.syncTime)
	a := i.a
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range i.logs {
		a.learnLocked(l)
	}
	stores := map[record.StoreID]bool{}
	for _, r := range i.taken {
		l := a.logLocked(r.Position.Store)
		l.put(&r.Receipt, r.encoded)
		if r.hasBody {
			l.bodies[r.Body] = r.body
		}
		l.Held = l.Held.Add(r.Position.Seq)
		l.lost = l.lost.Minus(record.Of(r.Position.Seq, r.Position.Seq))
		delete(a.rotten, r.Position)
		stores[r.Position.Store] = true
	}
	a.largest = max(a.largest, len(i.taken))
	a.intakes++
	a.changeLocked()
	return slices.Sorted(maps.Keys(stores)), nil
}

func (i *fakeIntake) Discard() {}
