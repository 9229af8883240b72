package archive

import (
	"crypto/sha256"
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// incoming is what intakes are bringing in at this moment: of several peers
// that give the same, one is enough, and what it writes is nobody else's to
// alter or to remove.
type incoming struct {
	mu        sync.Mutex
	positions map[record.Position]*Intake
	bodies    map[bodyID]*Intake
}

// bodyID names a stored body: the same one on every node.
type bodyID struct {
	store record.StoreID
	body  record.BodyNo
}

// take claims a position; false when somebody brings it in already.
func (in *incoming) take(p record.Position, i *Intake) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.positions[p] != nil {
		return false
	}
	if in.positions == nil {
		in.positions, in.bodies = map[record.Position]*Intake{}, map[bodyID]*Intake{}
	}
	in.positions[p] = i
	return true
}

func (in *incoming) drop(p record.Position) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.positions, p)
}

// takeBody claims a body, and tells who has it then.
func (in *incoming) takeBody(b bodyID, i *Intake) *Intake {
	in.mu.Lock()
	defer in.mu.Unlock()
	if owner := in.bodies[b]; owner != nil {
		return owner
	}
	in.bodies[b] = i
	return i
}

func (in *incoming) dropBody(b bodyID) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.bodies, b)
}

// release gives up all that an intake claimed.
func (in *incoming) release(i *Intake) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for p := range i.claimed {
		delete(in.positions, p)
	}
	for b := range i.bodies {
		delete(in.bodies, b)
	}
	clear(i.claimed)
	clear(i.bodies)
}

// found is what is known of a body that a receipt names.
type found int

const (
	absent found = iota // nothing is there
	rotten              // what is there cannot be read
	whole               // it is there
	taken               // another message's bytes are in its place
)

// findBody looks for the body of a receipt; entry is what is known of its
// message. What an undamaged receipt vouches for is not read again; everything
// else is, because a body must neither be taken for well when it is not, nor
// overwritten when it is another's. occupant is the hash of what was read.
func (a *Archive) findBody(r *record.Receipt, entry messageEntry, doubtful bool) (f found, occupant record.Hash) {
	s := r.Position.Store
	ref, known := entry.at(s, r.Body)
	if known && !doubtful && a.scrub.finding(ref.pos) == nil {
		return whole, occupant
	}
	if !known && !doubtful {
		_, closer, err := a.db.Get(bodyKey(s, r.Body, 0))
		if errors.Is(err, pebble.ErrNotFound) {
			return absent, occupant
		}
		if err == nil {
			_ = closer.Close() // whether it can be read is seen below
		}
	}
	occupant, f = a.sumBody(s, r.Body)
	switch {
	case f == absent && (known || doubtful):
		return rotten, occupant // there may be chunks without the first one
	case f != whole || occupant == r.Hash:
		return f, occupant
	}
	if e, err := a.messageEntry(occupant); err == nil {
		if _, is := e.at(s, r.Body); is {
			return taken, occupant
		}
	}
	return rotten, occupant
}

// sumBody reads and hashes a stored body: it is absent, rotten or whole.
func (a *Archive) sumBody(s record.StoreID, b record.BodyNo) (record.Hash, found) {
	start, _ := bodyRange(s, b)
	sum, next := sha256.New(), uint32(0)
	z := a.compressors.Get().(*compressor)
	defer a.compressors.Put(z)
	raw := a.chunkBuffers.get()
	defer a.chunkBuffers.put(raw)
	err := a.scan(start, nil, func(k, v []byte) error {
		if chunkAt(k) != next {
			return corrupt("chunk %d is missing", next)
		}
		next++
		out, err := z.decodeChunk(*raw, v)
		if err == nil {
			*raw = out
			sum.Write(out)
		}
		return err
	})
	switch {
	case err != nil:
		return record.Hash{}, rotten
	case next == 0:
		return record.Hash{}, absent
	}
	return record.Hash(sum.Sum(nil)), whole
}
