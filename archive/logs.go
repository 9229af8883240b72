package archive

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// ownLog is the log under whose identity mail is accepted.
type ownLog struct {
	store    record.StoreID
	durable  atomic.Uint64 // receipts 1 … durable are synced; later ones are not shown to anybody
	nextBody atomic.Uint64
}

// advance makes receipts up to seq visible. Syncs finish in the order of the
// log, so when one is durable, all before it are.
func (o *ownLog) advance(seq record.Seq) {
	for {
		old := o.durable.Load()
		if uint64(seq) <= old || o.durable.CompareAndSwap(old, uint64(seq)) {
			return
		}
	}
}

// logInfo is the value of an o key, in JSON: what is known of a log beside
// what is held of it. It changes only when the cluster does, so it is kept
// apart from logState, which is written with every mail.
type logInfo struct {
	Origin     string             `json:"origin"`
	Placements []record.Placement `json:"placements,omitempty"`
}

// knownLogs are the logs of which the node holds or knows something. Held is
// what is durable; that of the own log is not kept here. A map in use is never
// changed: readers need no lock.
type knownLogs map[record.StoreID]record.Log

// know replaces what is known of a log.
func (a *Archive) know(s record.StoreID, change func(*record.Log)) {
	a.knowing.Lock()
	defer a.knowing.Unlock()
	next := maps.Clone(*a.known.Load())
	l := next[s]
	l.Store = s
	change(&l)
	next[s] = l
	a.known.Store(&next)
}

// sight is what may be shown at one moment: receipts may be in the database
// some milliseconds before they are durable.
type sight struct {
	own     record.StoreID
	durable record.Seq
	others  knownLogs
}

func (a *Archive) sight() sight {
	own := a.own.Load() // before known: StartLog makes the old log known first
	return sight{own.store, record.Seq(own.durable.Load()), *a.known.Load()}
}

func (s sight) held(store record.StoreID) record.Ranges {
	if store == s.own {
		return record.Of(1, s.durable)
	}
	return s.others[store].Held
}

func (s sight) has(p record.Position) bool {
	if p.Store == s.own {
		return p.Seq != 0 && p.Seq <= s.durable
	}
	return s.others[p.Store].Held.Has(p.Seq)
}

// stores are the logs in the order of their identity.
func (s sight) stores() []record.StoreID { return slices.Sorted(maps.Keys(s.others)) }

// next is the smallest position from p on that is held.
func (s sight) next(p record.Position) (record.Position, bool) {
	for _, store := range s.stores() {
		if store < p.Store {
			continue
		}
		from := record.Seq(1)
		if store == p.Store {
			from = max(from, p.Seq)
		}
		for _, r := range s.held(store) {
			if r.Last >= from {
				return record.Position{Store: store, Seq: max(from, r.First)}, true
			}
		}
	}
	return record.Position{}, false
}

// Logs tells what this node knows and holds of every log, in the order of
// their stores. Held is durable and leaves out what is known to be damaged: a
// peer that has such a receipt may give it back through an Intake.
func (a *Archive) Logs() []record.Log {
	s := a.sight()
	all := make([]record.Log, 0, len(s.others))
	for _, store := range s.stores() {
		all = append(all, a.log1(s, store))
	}
	return all
}

// Log tells the same of one log; false when the node never heard of it.
func (a *Archive) Log(s record.StoreID) (record.Log, bool) {
	now := a.sight()
	_, known := now.others[s]
	return a.log1(now, s), known
}

func (a *Archive) log1(now sight, s record.StoreID) record.Log {
	l := now.others[s]
	l.Held = now.held(s).Minus(a.scrub.damaged(s))
	return l
}

// Changed gives a channel that is closed at the next change of what Logs says.
// Ask for it before Logs, so that no change goes unseen.
func (a *Archive) Changed() <-chan struct{} { return a.changed.channel() }

// signal wakes everybody who waits for a change. It costs next to nothing
// while nobody does.
type signal struct{ ch atomic.Pointer[chan struct{}] }

func (s *signal) channel() <-chan struct{} {
	for {
		if c := s.ch.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		if s.ch.CompareAndSwap(nil, &c) {
			return c
		}
	}
}

func (s *signal) wake() {
	if s.ch.Load() == nil {
		return
	}
	if c := s.ch.Swap(nil); c != nil {
		close(*c)
	}
}

// Learn takes over what a peer says of a log's origin and placements; its Held
// is the peer's. A log's origin only ever adds placements, so the longer list
// is the newer one. What is said of the own log is ignored. It is on disk when
// Learn returns nil.
func (a *Archive) Learn(l record.Log) error {
	if err := checkLog(l); err != nil {
		return err
	}
	done, err := a.useToWrite()
	if err != nil {
		return err
	}
	defer done()
	b := a.db.NewBatch()
	defer b.Close()
	if !a.enterLog(b, l) {
		return nil
	}
	return a.synced(b)
}

// enterLog applies what changes in the knowledge of a log; false when nothing
// does.
func (a *Archive) enterLog(b *pebble.Batch, l record.Log) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, changed := a.learn(b, l)
	if !changed {
		return false
	}
	a.apply(b, pebble.Sync)
	a.learned(l)
	return true
}

// learn adds to a batch what is new in l; a.mu is held until learned is told
// of the result. False when nothing is new.
func (a *Archive) learn(b *pebble.Batch, l record.Log) (record.Log, bool) {
	if l.Store == a.Store() {
		return l, false
	}
	old, known := (*a.known.Load())[l.Store]
	if old.Origin != "" {
		l.Origin = old.Origin // a store never changes its node
	}
	if len(l.Placements) <= len(old.Placements) {
		l.Placements = old.Placements
	}
	if known && l.Origin == old.Origin && len(l.Placements) == len(old.Placements) {
		return l, false
	}
	set(b, infoKey(l.Store), encodeJSON(logInfo{l.Origin, l.Placements}))
	return l, true
}

func (a *Archive) learned(l record.Log) {
	a.know(l.Store, func(k *record.Log) { k.Origin, k.Placements = l.Origin, l.Placements })
	a.changed.wake()
}

// maxLogInfo bounds what a node keeps of a log's origin and placements, in
// bytes: a cluster of 50 nodes that changes a hundred times takes a tenth.
const maxLogInfo = 1 << 20

func checkLog(l record.Log) error {
	size, last := len(l.Origin), record.Seq(1)
	for _, p := range l.Placements {
		if p.From < last {
			return corrupt("log %v: the placement from %v comes after that from %v", l.Store, p.From, last)
		}
		last = p.From
		for _, name := range p.Nodes {
			size += 8 + len(name)
		}
	}
	if l.Store == 0 || size > maxLogInfo {
		return corrupt("log %v: it has no store, or %d bytes of placements", l.Store, size)
	}
	return nil
}

// Place says who is to keep the receipts of the own log from the next one on,
// the origin first. It is on disk when Place returns nil; nothing is written
// when nothing changes.
func (a *Archive) Place(nodes []string) error {
	done, err := a.useToWrite()
	if err != nil {
		return err
	}
	defer done()
	b := a.db.NewBatch()
	defer b.Close()
	if !a.place(b, slices.Clone(nodes)) {
		return nil
	}
	return a.synced(b)
}

func (a *Archive) place(b *pebble.Batch, nodes []string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := (*a.known.Load())[a.Store()]
	if n := len(l.Placements); n > 0 && slices.Equal(l.Placements[n-1].Nodes, nodes) {
		return false
	}
	next := record.Placement{From: a.states[l.Store].mark + 1, Nodes: nodes}
	l.Placements = append(slices.Clip(l.Placements), next)
	set(b, infoKey(l.Store), encodeJSON(logInfo{l.Origin, l.Placements}))
	a.apply(b, pebble.Sync)
	a.learned(l)
	return true
}

// synced waits until an applied batch is on disk.
func (a *Archive) synced(b *pebble.Batch) error {
	if err := b.SyncWait(); err != nil {
		a.fatal(fmt.Errorf("sync: %w", err))
	}
	return nil
}

// StartLog gives the archive a new identity and an empty log; the old log
// stays as one of another store. Mail that is coming in meanwhile is refused
// with ErrBusy.
func (a *Archive) StartLog() (record.StoreID, error) {
	done, err := a.useToWrite()
	if err != nil {
		return 0, err
	}
	defer done()
	a.starting.Lock()
	defer a.starting.Unlock()
	own := &ownLog{store: newStoreID()}
	b := a.db.NewBatch()
	defer b.Close()
	// The old log's last receipts become visible before it is an old one.
	a.mu.Lock()
	old := a.own.Load()
	last := a.states[old.store].mark
	set(b, metaStore, u64(0, uint64(own.store))[1:])
	set(b, logKey(own.store), logState{}.encode())
	set(b, infoKey(own.store), encodeJSON(logInfo{Origin: a.opts.Origin}))
	a.apply(b, pebble.Sync)
	a.states[own.store] = logState{}
	a.know(old.store, func(l *record.Log) { l.Held = record.Of(1, record.Seq(old.durable.Load())) })
	a.know(own.store, func(l *record.Log) { l.Origin = a.opts.Origin })
	a.own.Store(own)
	a.mu.Unlock()
	if err := a.synced(b); err != nil {
		return 0, err
	}
	// This sync covers receipts of the old log that were on their way to disk.
	a.know(old.store, func(l *record.Log) { l.Held = l.Held.Union(record.Of(1, last)) })
	a.changed.wake()
	// The identity must not share the fate of the end of the database's log, by
	// whose damage receipts are lost.
	if err := a.db.Flush(); err != nil {
		return 0, fmt.Errorf("start a log: %w", err)
	}
	if err := a.writeStoreFile(); err != nil {
		return 0, err
	}
	a.noteTide()
	a.log.Info("started a new log", "store", own.store, "origin", a.opts.Origin, "old", old.store)
	return own.store, nil
}

// loadLogs reads the states of all logs and what is known of them.
func (a *Archive) loadLogs() error {
	infos := map[record.StoreID]logInfo{}
	err := a.scan([]byte{kindInfo}, nil, func(k, v []byte) error {
		var info logInfo
		if err := json.Unmarshal(v, &info); err != nil {
			return corrupt("what is known of log %x: %v", k[1:], err)
		}
		infos[storeAt(k[1:])] = info
		return nil
	})
	if err != nil {
		return err
	}
	a.states = map[record.StoreID]logState{}
	err = a.scan([]byte{kindLog}, nil, func(k, v []byte) error {
		state, err := decodeLogState(v)
		a.states[storeAt(k[1:])] = state
		return err
	})
	if err != nil {
		return err
	}
	a.setLogs(infos)
	return nil
}

// setLogs makes known what a start found.
func (a *Archive) setLogs(infos map[record.StoreID]logInfo) {
	known := knownLogs{}
	for s, info := range infos {
		known[s] = record.Log{Store: s, Origin: info.Origin, Placements: info.Placements}
	}
	for s, state := range a.states {
		l := known[s]
		l.Store, l.Held = s, state.held()
		known[s] = l
	}
	a.known.Store(&known)
}
