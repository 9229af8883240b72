package chain

import (
	"maps"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"chainmail/archive/record"
)

// What goes into a lane's next container.

// batch are receipts to be put into a container, in this order.
type batch []part

type part struct {
	log  record.Log // without what is held
	seqs record.Ranges
	live bool // new mail, which no rate bounds
}

// arrival is when a receipt came into the cluster.
type arrival struct {
	seq record.Seq
	at  time.Time
}

// next marks the receipts of the next container as on the way; nil: there is
// nothing to send now.
func (l *lane) next() batch {
	c := l.link.c
	c.mu.Lock()
	now := time.Now()
	pending := l.pendingLocked(now)
	if len(pending) == 0 || !l.mayFlyLocked(pending, now) {
		c.mu.Unlock()
		return nil
	}
	if l.to == toLive {
		defer c.mu.Unlock()
		return l.markLocked(l.inTurn(pending))
	}
	l.rateLocked()
	if b := largeFirst(pending); b != nil {
		defer c.mu.Unlock()
		return l.markLocked(b)
	}
	c.mu.Unlock()
	oldest := l.oldest(pending) // reads the disk
	c.mu.Lock()
	defer c.mu.Unlock()
	return l.markLocked(batch{oldest})
}

// pendingLocked is what this lane should send and has not.
func (l *lane) pendingLocked(now time.Time) (all []part) {
	k := l.link
	if k.peer.link != k || k.peer.refusal != "" || now.Before(l.resume) {
		return nil
	}
	k.aside = slices.DeleteFunc(k.aside, func(a aside) bool { return !now.Before(a.until) })
	for s, log := range k.c.logs {
		owed := k.owedLocked(s, log, now)
		if len(owed) == 0 {
			continue
		}
		told := log.Log
		told.Held = nil
		fresh := above(owed, k.horizon[s])
		if fresh.Count() > liveDepth { // a lane that long is no longer live
			k.horizon[s] = log.Held.Last()
			fresh = nil
		}
		big := fresh.Intersect(k.large[s])
		fresh = fresh.Minus(big)
		mine := []part{{told, fresh, true}}
		if l.to == toBulk {
			mine = []part{{told, big, true}, {told, owed.Minus(fresh).Minus(big), false}}
		}
		for _, p := range mine {
			if len(p.seqs) > 0 {
				all = append(all, p)
			}
		}
	}
	return all
}

// owedLocked is what this node is to send the peer of a log, without what is
// on its way.
func (k *link) owedLocked(s record.StoreID, log *ownLog, now time.Time) record.Ranges {
	if len(log.Held) == 0 {
		return nil
	}
	c := k.c
	q := question{
		self: c.opts.Name, to: k.peer.name, origin: log.Origin, duties: log.duties,
		mine: log.Held, held: k.peer.belief.held(s), given: k.given[s],
		live:  c.liveLocked,
		holds: func(name string) record.Ranges { return c.holdsLocked(name, s) },
		past: func(ago time.Duration) (record.Ranges, bool) {
			if h := k.history[s]; h != nil {
				return h.at(now.Add(-ago))
			}
			return nil, false
		},
	}
	owed := q.answer().Minus(k.onTheWay[s])
	for _, a := range k.aside {
		if a.store == s {
			owed = owed.Minus(a.seqs)
		}
	}
	return owed
}

// mayFlyLocked reports whether one more container may be sent.
func (l *lane) mayFlyLocked(pending []part, now time.Time) bool {
	count := uint64(0)
	for _, p := range pending {
		count += p.seqs.Count()
	}
	full := count >= l.receipts || count*uint64(l.mean) >= uint64(l.bytes)
	may := len(l.flying) < l.eager || full && len(l.flying) < l.window
	if l.to == toLive {
		l.link.liveFull = full
		return may
	}
	return may && l.yieldsLocked(now)
}

// yieldsLocked makes history wait for new mail, but not for ever.
func (l *lane) yieldsLocked(now time.Time) bool {
	switch {
	case !l.link.liveFull:
		l.yielded = time.Time{}
		return true
	case l.yielded.IsZero():
		l.yielded = now
		time.AfterFunc(bulkYield, func() { ringBell(l.bell) })
		return false
	case now.Sub(l.yielded) < bulkYield:
		return false
	}
	l.yielded = time.Time{}
	return true
}

// rateLocked sets the bound on history to that of the policies. A container
// takes no more than about a second, so that others see headway.
func (l *lane) rateLocked() {
	want := rate.Inf
	l.bytes = laneBounds[l.to].bytes
	if r := l.link.c.view.Policies.BackfillRate; r > 0 {
		want = rate.Limit(r)
		l.bytes = int(min(int64(l.bytes), max(r, 64<<10)))
	}
	if l.limit.Limit() != want {
		l.limit.SetLimit(want)
	}
}

// inTurn orders the logs so that each is the first one as often as the others.
func (l *lane) inTurn(pending []part) batch {
	slices.SortFunc(pending, func(a, b part) int { return cmpStore(a.log.Store, b.log.Store) })
	i := slices.IndexFunc(pending, func(p part) bool { return p.log.Store > l.turn })
	if i > 0 {
		pending = append(slices.Clone(pending[i:]), pending[:i]...)
	}
	l.turn = pending[0].log.Store
	return pending
}

func cmpStore(a, b record.StoreID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// largeFirst is new mail that is too large for the live lane, a mail at a time.
func largeFirst(pending []part) batch {
	for _, p := range pending {
		if p.live {
			p.seqs = cut(p.seqs, 1)
			return batch{p}
		}
	}
	return nil
}

// oldest is the log whose first receipt to be sent came first.
func (l *lane) oldest(pending []part) part {
	if len(pending) == 1 {
		return pending[0]
	}
	maps.DeleteFunc(l.first, func(s record.StoreID, a arrival) bool {
		i := slices.IndexFunc(pending, func(p part) bool { return p.log.Store == s })
		return i < 0 || pending[i].seqs.First() != a.seq
	})
	for _, p := range pending {
		if _, known := l.first[p.log.Store]; known {
			continue
		}
		a := arrival{seq: p.seqs.First()} // one that cannot be read is put aside when it is its turn
		if e, err := l.link.c.opts.Archive.Export(record.Position{Store: p.log.Store, Seq: a.seq}); err == nil {
			a.at = e.Receipt.ReceivedAt
		}
		l.first[p.log.Store] = a
	}
	return slices.MinFunc(pending, func(a, b part) int {
		if c := l.first[a.log.Store].at.Compare(l.first[b.log.Store].at); c != 0 {
			return c
		}
		return cmpStore(a.log.Store, b.log.Store)
	})
}

// markLocked cuts a batch to what a container may hold, and marks it.
func (l *lane) markLocked(b batch) batch {
	room := l.receipts
	for i := range b {
		b[i].seqs = cut(b[i].seqs, room)
		room -= b[i].seqs.Count()
		s := b[i].log.Store
		l.link.onTheWay[s] = l.link.onTheWay[s].Union(b[i].seqs)
		if room == 0 {
			return b[:i+1]
		}
	}
	return b
}

// unmark says of receipts that they are not on the way after all.
func (l *lane) unmark(s record.StoreID, seqs record.Ranges) {
	if len(seqs) == 0 {
		return
	}
	c := l.link.c
	c.mu.Lock()
	defer c.mu.Unlock()
	l.link.onTheWay[s] = l.link.onTheWay[s].Minus(seqs)
}
