package chain

import (
	"context"
	"maps"
	"slices"
	"time"

	"chainmail/archive/record"
)

// holder is what somebody holds of a log, for the decisions below.
type holder struct {
	held  record.Ranges
	reach bool // it can be asked for it now
}

// lacking is what a node should hold of a log and does not, and the part of it
// that nobody who can be reached holds. Logs have no holes, so all numbers up
// to the highest that anybody has heard of did exist.
func lacking(all []duty, name string, heard record.Seq, held record.Ranges, holders []holder) (lacks, lost record.Ranges) {
	lacks = record.Of(1, heard).Intersect(kept(all, name)).Minus(held)
	lost = lacks
	for _, h := range holders {
		if h.reach {
			lost = lost.Minus(h.held)
		}
	}
	return lacks, lost
}

// thin is what of mine has fewer than want copies, mine being the first.
func thin(mine record.Ranges, others []record.Ranges, want int) record.Ranges {
	if want <= 1 {
		return nil
	}
	atLeast := make([]record.Ranges, want+1) // by number of copies
	atLeast[1] = mine
	for _, held := range others {
		for n := want; n > 1; n-- {
			atLeast[n] = atLeast[n].Union(atLeast[n-1].Intersect(held))
		}
	}
	return mine.Minus(atLeast[want])
}

// Adding up bytes reads the disk, so it is done in the background, whole
// stretches once.

// stretch is how many receipts are weighed at a time and remembered.
const stretch = 1024

type peerLog struct {
	peer  string
	store record.StoreID
}

// weighed is what is known of the receipts that a peer lacks of a log.
type weighed struct {
	seqs   record.Ranges
	bytes  int64
	oldest time.Time
}

type stretchOf struct {
	store record.StoreID
	first record.Seq
}

// weighBacklogs keeps Chain.weighed up to date while there are backlogs.
func (c *Chain) weighBacklogs(ctx context.Context) error {
	whole := map[stretchOf]weighed{}
	for {
		wanted, some := c.toWeigh()
		if !some {
			clear(whole)
		}
		for key, seqs := range wanted {
			w, ok := c.weigh(ctx, key.store, seqs, whole)
			c.mu.Lock()
			if ok {
				c.weighed[key] = w
			} else {
				delete(c.weighed, key)
			}
			c.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// toWeigh is what each peer lacks and is not weighed, where this node holds all
// of it.
func (c *Chain) toWeigh() (wanted map[peerLog]record.Ranges, some bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted = map[peerLog]record.Ranges{}
	stay := map[peerLog]bool{}
	for name, p := range c.peers {
		if !p.belief.known() {
			continue
		}
		for s, l := range c.logs {
			lacks, _ := c.lackingLocked(name, s)
			if len(lacks) == 0 || len(lacks.Minus(l.Held)) > 0 {
				continue
			}
			key := peerLog{name, s}
			stay[key] = true
			if w, ok := c.weighed[key]; !ok || !slices.Equal(w.seqs, lacks) {
				wanted[key] = lacks
			}
		}
	}
	maps.DeleteFunc(c.weighed, func(k peerLog, _ weighed) bool { return !stay[k] })
	return wanted, len(stay) > 0
}

// weigh adds up receipts; false when one cannot be read. It takes half of the
// time at most, so that it does not slow down what it measures.
func (c *Chain) weigh(ctx context.Context, s record.StoreID, seqs record.Ranges, whole map[stretchOf]weighed) (sum weighed, ok bool) {
	sum.seqs = seqs
	for _, r := range seqs {
		for first := r.First; first <= r.Last; {
			last := min(r.Last, (first-1)/stretch*stretch+stretch)
			key := stretchOf{s, first}
			isWhole := last-first+1 == stretch
			w, known := whole[key]
			if !known || !isWhole {
				begin := time.Now()
				var err error
				if w.bytes, w.oldest, err = c.opts.Archive.Weigh(s, record.Range{First: first, Last: last}); err != nil {
					return sum, false
				}
				if isWhole {
					whole[key] = w
				}
				select {
				case <-ctx.Done():
					return sum, false
				case <-time.After(time.Since(begin)):
				}
			}
			sum.bytes += w.bytes
			if sum.oldest.IsZero() || !w.oldest.IsZero() && w.oldest.Before(sum.oldest) {
				sum.oldest = w.oldest
			}
			first = last + 1
		}
	}
	return sum, true
}

// lackingLocked is what a member should hold of a log and does not; lost is
// the part that no reachable member holds.
func (c *Chain) lackingLocked(name string, s record.StoreID) (lacks, lost record.Ranges) {
	holders := []holder{{c.holdsLocked(c.opts.Name, s), true}}
	for _, p := range c.peers {
		holders = append(holders, holder{p.belief.held(s), p.link != nil && !p.suspect})
	}
	return lacking(c.logs[s].duties, name, c.heard[s], c.holdsLocked(name, s), holders)
}
