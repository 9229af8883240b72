package chain

import (
	"slices"

	"chainmail/archive/record"
)

// belief is what a peer is known to hold. It must never exceed what the peer
// has on disk, or mail would be acknowledged that does not exist: so what is
// older than a hello never adds to it.
//
//	generation   5          6           7            8
//	peer looks   hello ───┐ 250 ──┐     hello ─┐     250 ──┐
//	             {1-9}    │ {10}  │     {1-8}  │     {11}  │
//	arrives here          │       └► +10       │           └► +11
//	                      └► {1-9} ∪ {10}      └► {1-8}: 9 was damaged, 10 too;
//	                                              a late {10} adds nothing
//
// The numbers are the peer's: it reads its holdings and counts in one step, so
// of two looks the one with the higher number is the later one. They begin
// anew with each life of its process, which "boot" names.
type belief struct {
	boot       string
	generation uint64 // of the last hello; 0: there was none yet
	logs       map[record.StoreID]record.Log
	later      []confirmation // already in logs, newer than the last hello
}

// confirmation is what a 250 says.
type confirmation struct {
	generation uint64
	store      record.StoreID
	held       record.Ranges
}

// hello takes what a peer says of all its logs. It reports false for one that
// is older than what is known.
func (b *belief) hello(boot string, generation uint64, logs []record.Log) bool {
	if boot == b.boot && generation <= b.generation {
		return false
	}
	if boot != b.boot {
		b.later = nil
	}
	b.boot, b.generation = boot, generation
	b.logs = make(map[record.StoreID]record.Log, len(logs))
	for _, l := range logs {
		b.logs[l.Store] = l
	}
	b.later = slices.DeleteFunc(b.later, func(c confirmation) bool { return c.generation <= generation })
	for _, c := range b.later {
		b.add(c)
	}
	return true
}

// confirm takes what a 250 says. It reports false when it is of another life
// of the peer, or older than its last hello.
func (b *belief) confirm(boot string, c confirmation) bool {
	if boot != b.boot || c.generation <= b.generation {
		return false
	}
	b.later = append(b.later, c)
	b.add(c)
	return true
}

func (b *belief) add(c confirmation) {
	l := b.logs[c.store]
	l.Store = c.store
	l.Held = l.Held.Union(c.held)
	b.logs[c.store] = l
}

// held is what the peer holds of a log.
func (b *belief) held(s record.StoreID) record.Ranges { return b.logs[s].Held }

// known reports whether the peer has ever said what it holds.
func (b *belief) known() bool { return b.generation > 0 }
