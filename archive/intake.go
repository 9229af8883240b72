package archive

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// Intake takes receipts of other nodes' logs, and what rotted of the own one,
// from a peer: many at a time, in one write and one sync. Call Receipt for
// each, and Chunk for each chunk of those whose body is wanted; then Enter and
// Sync, or Discard, which does nothing after Sync, so defer it. While one
// Intake syncs, the next may already read. An Intake serves one goroutine at a
// time.
//
// A body is checked before its receipt is entered: what comes wrong is an
// ErrCorrupt, after which nothing of the intake can be entered. So are all
// errors final, except ErrNoBody.
type Intake struct {
	a    *Archive
	ctx  context.Context
	peer string
	err  error
	cost int64 // of the memory for large mail

	touched map[record.StoreID]bool
	logs    []record.Log
	claimed map[record.Position]bool
	bodies  map[bodyID]record.Hash // whose bodies come with this intake
	taken   []*arrival
	size    int64 // of the receipts in taken, as stored
	batch   *pebble.Batch

	open    *arrival // whose body is coming in
	left    int64    // raw bytes of it that are still to come
	sum     hash.Hash
	raw     *[]byte
	body    bodyWriter
	draft   *Draft   // takes the body in the place of the writer: its receipt is refused
	spilled []bodyID // complete bodies that were written ahead

	entered, applied, synced bool
}

// arrival is a receipt that comes in.
type arrival struct {
	record.Receipt
	encoded  []byte
	fate     fate
	held     bool // the position was held before
	again    bool // the position may be in the indexes already
	damaged  bool // there is a finding about it
	rotten   bool // its body takes the place of a damaged one
	verified bool // its body was found here by reading it
	conflict Conflict

	looked  bool         // entry is what is known of the message
	entry   messageEntry // while its stripe has these changes
	changes uint64
}

// fate is what becomes of an arrival.
type fate int

const (
	skip   fate = iota // it is held already, or another intake brings it
	enter              // it is entered, and needs no body
	fetch              // it is entered when its body has come
	refuse             // its position, or the place of its body, is taken by other mail
)

const (
	// intakeBatch is how much an intake keeps in memory beside the body that
	// comes in; further bodies are written ahead.
	intakeBatch = 512 << 10
	intakeCost  = largeCost + intakeBatch
)

// NewIntake begins to take receipts that peer sends. ctx ends its waiting for
// memory.
func (a *Archive) NewIntake(ctx context.Context, peer string) *Intake {
	return &Intake{
		a: a, ctx: ctx, peer: peer, sum: sha256.New(),
		touched: map[record.StoreID]bool{},
		claimed: map[record.Position]bool{},
		bodies:  map[bodyID]record.Hash{},
	}
}

var (
	errIntakeEnded = errors.New("archive: the intake was entered or discarded before")
	errNoChunk     = errors.New("archive: a chunk came for a receipt that wants none")
	errNotEntered  = errors.New("archive: the intake was not entered")
)

// fail makes an error final.
func (i *Intake) fail(err error) error {
	if err != nil {
		i.err = cmp.Or(i.err, err)
	}
	return err
}

// ready ends the body of the last receipt and makes sure that there is memory
// for what comes next.
func (i *Intake) ready() error {
	switch {
	case i.err != nil:
		return i.err
	case i.entered:
		return errIntakeEnded
	case i.a.readOnly:
		return errReadOnly
	}
	if err := i.endBody(); err != nil {
		return i.fail(err)
	}
	need := int64(intakeCost)
	if i.batch != nil {
		need += max(0, int64(i.batch.Len())+3*i.size-intakeBatch)
	}
	if need > i.cost {
		if err := i.a.memory.take(i.ctx, i.a.memory.large, need-i.cost); err != nil {
			return i.fail(err)
		}
		i.cost = need
	}
	if i.batch == nil {
		i.batch = i.a.db.NewBatch()
		i.raw = i.a.chunkBuffers.get()
	}
	return nil
}

// Log is Learn as a part of the intake.
func (i *Intake) Log(l record.Log) error {
	if err := cmp.Or(i.ready(), checkLog(l)); err != nil {
		return i.fail(err)
	}
	i.touched[l.Store] = true
	i.logs = append(i.logs, l)
	return nil
}

// Receipt takes the receipt at p in its stored form, which it does not keep.
// hasBody says that the sender has its chunks at hand. When they are wanted,
// pass them to Chunk before the next call; otherwise the node holds the body or
// the receipt already, or another intake is bringing it. A body that is needed
// and not at hand is an ErrNoBody: the receipt is left out, and the intake can
// go on.
func (i *Intake) Receipt(p record.Position, encoded []byte, hasBody bool) (want bool, err error) {
	if err := i.ready(); err != nil {
		return false, err
	}
	r, err := record.DecodeReceipt(p, encoded)
	if err != nil {
		return false, i.fail(corrupt("%w", err))
	}
	if p.Store == 0 || p.Seq == 0 || p.Seq > maxSeq {
		return false, i.fail(corrupt("%v is no position", p))
	}
	if r.Size == 0 && r.Hash != emptyHash {
		return false, i.fail(corrupt("receipt %v: a message without bytes has the SHA-256 %v", p, r.Hash))
	}
	i.touched[p.Store] = true
	t, err := i.judge(r, encoded, hasBody)
	switch {
	case errors.Is(err, ErrNoBody):
		return false, err
	case err != nil:
		return false, i.fail(err)
	case t.fate == refuse:
		return i.refuse(t, hasBody)
	case t.fate == skip:
		return false, nil
	}
	t.encoded = bytes.Clone(encoded)
	if t.fate == enter {
		i.keep(t)
		return false, nil
	}
	i.begin(t)
	return true, nil
}

// maxSeq is far beyond any log; larger numbers are damage.
const maxSeq = 1 << 62

var emptyHash = record.Hash(sha256.Sum256(nil))

// judge claims a receipt and decides what becomes of it.
func (i *Intake) judge(r record.Receipt, encoded []byte, hasBody bool) (*arrival, error) {
	done, err := i.a.use()
	if err != nil {
		return nil, err
	}
	defer done()
	t := &arrival{Receipt: r, encoded: encoded}
	if !i.a.incoming.take(r.Position, i) {
		return t, nil
	}
	i.claimed[r.Position] = true
	err = i.compare(t)
	if err == nil && t.fate == enter {
		_, err = i.a.space.check()
	}
	if err == nil && t.fate == enter && t.Size > 0 {
		err = i.place(t, hasBody)
	}
	if err != nil || t.fate == skip {
		i.a.incoming.drop(r.Position)
		delete(i.claimed, r.Position)
	}
	return t, err
}

// compare sets a receipt against what is stored at its position: its fate is
// skip, enter or refuse.
func (i *Intake) compare(t *arrival) error {
	a, p := i.a, t.Position
	own := p.Store == a.Store()
	a.mu.Lock()
	state := a.states[p.Store]
	a.mu.Unlock()
	if own && p.Seq > state.mark {
		return fmt.Errorf("receipt %v: %w", p, ErrAhead)
	}
	t.held = state.has(p.Seq)
	t.damaged = a.scrub.finding(p) != nil
	stored, err := a.get(receiptKey(p))
	switch {
	case err == nil && bytes.Equal(stored, t.encoded):
		if t.held && !t.damaged {
			return nil
		}
	case err == nil:
		if s, err := record.DecodeReceipt(p, stored); err == nil {
			t.collide(s.Hash, i.peer)
			return nil
		}
		t.damaged = true
	case errors.Is(err, pebble.ErrNotFound):
		t.damaged = t.damaged || t.held
	case isDamage(err):
		t.damaged = true
	default:
		return fmt.Errorf("receipt %v: %w", p, err)
	}
	if t.damaged && a.scrub.finding(p) == nil {
		a.scrub.record(a, &Finding{Position: p, Hash: t.Hash, Problem: "the receipt cannot be read", FoundAt: time.Now().UTC()})
	}
	t.again = t.held || t.damaged || err == nil
	t.fate = enter
	return nil
}

func (t *arrival) collide(held record.Hash, peer string) {
	t.fate = refuse
	t.conflict = Conflict{
		Position: t.Position, Held: held, Refused: t.Hash, ReceivedAt: t.ReceivedAt,
		Receipt: sha256.Sum256(t.encoded), Peer: peer,
	}
}

// place finds out whether the body of a receipt must come.
func (i *Intake) place(t *arrival, hasBody bool) error {
	id := bodyID{t.Position.Store, t.Body}
	if h, mine := i.bodies[id]; mine {
		if h != t.Hash {
			return corrupt("receipt %v has the body of another message of this intake", t.Position)
		}
		return nil
	}
	if i.a.incoming.takeBody(id, i) != i {
		t.fate = skip
		return nil
	}
	err := t.look(i.a)
	found, occupant := absent, record.Hash{}
	if err == nil {
		found, occupant = i.a.findBody(&t.Receipt, t.entry, t.damaged)
	}
	switch {
	case err != nil:
	case found == whole:
		i.a.incoming.dropBody(id)
		t.verified = occupant == t.Hash
		return nil
	case found == taken:
		i.a.incoming.dropBody(id)
		t.collide(occupant, i.peer)
		return nil
	case hasBody:
		t.fate, t.rotten = fetch, found == rotten
		i.bodies[id] = t.Hash
		return nil
	default:
		err = fmt.Errorf("receipt %v: body %d: %w", t.Position, t.Body, ErrNoBody)
	}
	i.a.incoming.dropBody(id)
	return err
}

// refuse keeps the mail of a receipt that cannot have its position.
func (i *Intake) refuse(t *arrival, hasBody bool) (want bool, err error) {
	c := t.conflict
	if i.a.refused.has(c.Position, c.Receipt) {
		return false, nil
	}
	d := i.a.NewDraft(i.ctx)
	d.paid = true // by the intake, whose own body is not coming in meanwhile
	switch {
	case t.Size == 0:
		return false, i.fail(i.a.keepRefused(d, c, t.Envelope))
	case hasBody:
		i.draft = d
		i.begin(t)
		return true, nil
	}
	err = i.a.refuseHeld(d, c, t.Envelope)
	if errors.Is(err, ErrNoBody) {
		return false, fmt.Errorf("receipt %v: %w", t.Position, err)
	}
	return false, i.fail(err)
}

// begin makes ready for the body of a receipt.
func (i *Intake) begin(t *arrival) {
	i.open, i.left = t, t.Size
	i.sum.Reset()
	if i.draft != nil {
		return
	}
	i.body.a, i.body.store, i.body.body, i.body.chunks, i.body.spilled = i.a, t.Position.Store, t.Body, 0, false
	if i.body.batch == nil {
		i.body.batch = i.a.db.NewBatch()
	}
	if t.rotten {
		deleteBody(i.body.batch, i.body.store, i.body.body)
	}
}

// Chunk takes the next chunk, in its stored form, of the body of the receipt
// before. It is not kept.
func (i *Intake) Chunk(stored []byte) error {
	switch {
	case i.err != nil:
		return i.err
	case i.open == nil:
		return i.fail(errNoChunk)
	}
	return i.fail(i.chunk(stored))
}

func (i *Intake) chunk(stored []byte) error {
	z := i.a.compressors.Get().(*compressor)
	raw, err := z.decodeChunk(*i.raw, stored)
	i.a.compressors.Put(z)
	p := i.open.Position
	if err != nil {
		return fmt.Errorf("body of receipt %v: %w", p, err)
	}
	*i.raw = raw
	if want := min(i.left, chunkSize); int64(len(raw)) != want || len(stored) > chunkSize+maxChunkHeader {
		return corrupt("body of receipt %v: a chunk of %d bytes in %d, want %d in no more", p, len(raw), len(stored), want)
	}
	i.left -= int64(len(raw))
	i.sum.Write(raw)
	if i.draft != nil {
		_, err := i.draft.Write(raw)
		return err
	}
	i.body.add(stored)
	if !i.body.full() {
		return nil
	}
	return i.body.spill()
}

// endBody checks that the body of the last receipt is whole, and keeps both.
func (i *Intake) endBody() error {
	t := i.open
	if t == nil {
		return nil
	}
	if sum := record.Hash(i.sum.Sum(nil)); i.left != 0 || sum != t.Hash {
		return corrupt("body of receipt %v: %d bytes are missing, or its SHA-256 is %v and not %v", t.Position, i.left, sum, t.Hash)
	}
	i.open = nil
	if d := i.draft; d != nil {
		i.draft = nil
		return i.a.keepRefused(d, t.conflict, t.Envelope)
	}
	if i.body.spilled || i.batch.Len()+i.body.batch.Len() > intakeBatch {
		if err := i.body.spill(); err != nil {
			i.open = t // Discard removes what was written ahead
			return err
		}
		remove(i.batch, pendingKey(i.body.store, i.body.body))
		i.spilled = append(i.spilled, bodyID{i.body.store, i.body.body})
		i.body.spilled = false
	} else {
		grown(i.batch.Apply(i.body.batch, nil))
		i.body.batch.Reset()
	}
	i.keep(t)
	return nil
}

// keep holds a receipt until Enter.
func (i *Intake) keep(t *arrival) {
	i.size += int64(len(t.encoded))
	i.taken = append(i.taken, t)
}

// Discard forgets what was not entered, and removes what was written ahead of
// it. What was entered stays; Discard waits for the disk when Sync did not.
func (i *Intake) Discard() {
	if i.entered && !i.synced {
		_, _ = i.Sync() // the archive has ended, or it is on disk
	}
	i.err = cmp.Or(i.err, errIntakeEnded)
	if i.draft != nil {
		i.draft.Discard()
		i.draft = nil
	}
	i.body.close()
	if len(i.spilled) > 0 && !i.entered {
		if done, err := i.a.use(); err == nil {
			b := i.a.db.NewBatch()
			for _, id := range i.spilled {
				dropBody(b, id.store, id.body)
			}
			i.a.apply(b, pebble.NoSync)
			b.Close()
			done()
		}
		i.spilled = nil
	}
	i.a.incoming.release(i)
	i.letGo()
}

// letGo gives the memory back.
func (i *Intake) letGo() {
	if i.raw != nil {
		i.a.chunkBuffers.put(i.raw)
		i.raw = nil
	}
	if i.batch != nil && (!i.applied || i.synced) {
		i.batch.Close()
		i.batch = nil
	}
	if i.cost > 0 {
		i.a.memory.give(i.a.memory.large, i.cost)
		i.cost = 0
	}
	i.taken, i.logs = nil, nil
}
