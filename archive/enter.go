package archive

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// gain is what an intake adds to one log.
type gain struct {
	seqs               []record.Seq
	messages, rawBytes uint64
}

// Enter ends the last receipt and enters all into the database's log, in one
// write: after a crash all are there, or none. Sync makes them durable.
func (i *Intake) Enter() error {
	if err := i.ready(); err != nil {
		return err
	}
	done, err := i.a.use()
	if err != nil {
		return i.fail(err)
	}
	defer done()
	hashes := make([]record.Hash, len(i.taken))
	for n, t := range i.taken {
		hashes[n] = t.Hash
	}
	unlock := i.a.lockStripes(hashes)
	defer unlock()
	gains, err := i.index()
	if err != nil {
		return i.fail(err)
	}
	i.enter(gains)
	i.entered = true
	i.a.incoming.release(i)
	return nil
}

// look reads what is known of the message; nothing where the index is damaged.
func (t *arrival) look(a *Archive) (err error) {
	t.changes = a.stripe(t.Hash).changes.Load()
	t.entry, err = a.messageEntry(t.Hash)
	if err != nil && !errors.Is(err, ErrNotFound) && !isDamage(err) {
		return err
	}
	t.looked = true
	return nil
}

// index adds the receipts and their index entries to the batch.
func (i *Intake) index() (map[record.StoreID]*gain, error) {
	gains := map[record.StoreID]*gain{}
	entries := map[record.Hash]messageEntry{} // as they will be
	for _, t := range i.taken {
		entry, seen := entries[t.Hash]
		if !seen {
			if !t.looked || t.changes != i.a.stripe(t.Hash).changes.Load() {
				if err := t.look(i.a); err != nil {
					return nil, err
				}
			}
			entry = t.entry
		}
		g := gains[t.Position.Store]
		if g == nil {
			g = new(gain)
			gains[t.Position.Store] = g
		}
		if !t.held {
			g.seqs = append(g.seqs, t.Position.Seq)
			if len(entry) == 0 {
				g.messages++
				g.rawBytes += uint64(t.Size)
			}
		}
		entries[t.Hash] = index(i.batch, &t.Receipt, t.encoded, entry, t.again)
		if t.verified {
			remove(i.batch, pendingKey(t.Position.Store, t.Body))
		}
		if t.damaged {
			remove(i.batch, findingKey(t.Position))
		}
	}
	return gains, nil
}

// enter applies the batch together with the new states of the logs.
func (i *Intake) enter(gains map[record.StoreID]*gain) {
	a := i.a
	a.mu.Lock()
	defer a.mu.Unlock()
	states := map[record.StoreID]logState{}
	for s, g := range gains {
		if len(g.seqs) == 0 {
			continue
		}
		slices.Sort(g.seqs)
		var r record.Ranges
		for _, seq := range g.seqs {
			r = appendSeq(r, seq)
		}
		state := a.states[s]
		state.hold(r)
		state.messages += g.messages
		state.rawBytes += g.rawBytes
		states[s] = state
		set(i.batch, logKey(s), state.encode())
	}
	var news []record.Log
	for _, l := range i.logs {
		if l, changed := a.learn(i.batch, l); changed {
			news = append(news, l)
		}
	}
	if i.batch.Empty() {
		return
	}
	a.apply(i.batch, pebble.Sync)
	i.applied = true
	maps.Copy(a.states, states)
	for _, l := range news {
		a.learned(l)
	}
}

// Sync waits until what was entered is on disk; then Logs shows it. It names
// the logs that the intake was about, in their order, also those of which
// everything was held already.
func (i *Intake) Sync() ([]record.StoreID, error) {
	switch {
	case !i.entered:
		return nil, errors.Join(errNotEntered, i.err)
	case i.synced:
		return i.stores(), nil
	}
	done, err := i.a.use()
	if err != nil {
		return nil, err
	}
	if i.applied {
		if err := i.batch.SyncWait(); err != nil {
			i.a.fatal(fmt.Errorf("sync of %d receipts of %s: %w", len(i.taken), i.peer, err))
		}
	}
	i.synced = true
	i.publish()
	repaired := i.repaired()
	i.letGo()
	done()
	for _, h := range repaired {
		if err := i.a.recheck(h); err != nil {
			return nil, err
		}
	}
	return i.stores(), nil
}

func (i *Intake) stores() []record.StoreID { return slices.Sorted(maps.Keys(i.touched)) }

// publish shows what is durable now.
func (i *Intake) publish() {
	held := map[record.StoreID][]record.Seq{}
	for _, t := range i.taken {
		if !t.held {
			held[t.Position.Store] = append(held[t.Position.Store], t.Position.Seq)
		}
		i.a.metrics.replicated.Inc()
		i.a.metrics.replicatedBytes.Add(float64(t.Size))
	}
	for s, seqs := range held {
		slices.Sort(seqs)
		var r record.Ranges
		for _, seq := range seqs {
			r = appendSeq(r, seq)
		}
		i.a.know(s, func(l *record.Log) { l.Held = l.Held.Union(r) })
	}
	if len(i.taken) > 0 {
		i.a.changed.wake()
	}
}

// repaired takes back the findings about receipts that came again whole, and
// gives the messages whose other findings may be over with that.
func (i *Intake) repaired() (hashes []record.Hash) {
	for _, t := range i.taken {
		if t.damaged {
			i.a.scrub.clear(i.a, t.Position)
			i.a.metrics.repairs.Inc()
			i.a.log.Info("repaired from a peer", "store", t.Position.Store, "seq", t.Position.Seq, "peer", i.peer)
		}
		if t.damaged || t.rotten {
			hashes = append(hashes, t.Hash)
		}
	}
	return slices.CompactFunc(hashes, func(x, y record.Hash) bool { return x == y })
}

// recheck examines the findings about a message again, until no more of them
// are over: one receipt may be well as soon as another is.
func (a *Archive) recheck(h record.Hash) error {
	for last := -1; ; {
		findings := a.scrub.sharing(h)
		if len(findings) == 0 || len(findings) == last {
			return nil
		}
		last = len(findings)
		for _, f := range findings {
			if !a.visible(f.Position) {
				continue
			}
			if _, _, err := a.check(f.Position); err != nil {
				return err
			}
		}
	}
}
