package route

import (
	"fmt"
	"slices"
	"time"

	"chainmail/archive/record"
)

// Parked is a receipt that is not tried any more until someone asks for it: the
// server refused it for good, or too often.
type Parked struct {
	Position record.Position `json:"position"`
	Hash     record.Hash     `json:"sha256"`
	Size     int64           `json:"size"`
	// Recipients are those it is owed to, when the server took it for others;
	// empty for all.
	Recipients []string  `json:"recipients,omitempty"`
	Reply      string    `json:"reply"` // what the server said last
	At         time.Time `json:"at"`
	Attempts   int       `json:"attempts"`
	// Retrying: it was asked for, and is being tried again.
	Retrying bool `json:"retrying,omitempty"`
}

// Parked lists what is parked, ordered by position: up to limit entries behind
// after. A limit of 0 means all, and the zero position is before all.
func (r *Route) Parked(after record.Position, limit int) []Parked {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Parked
	for p, entry := range r.parked {
		if !entry.Retrying && p.Compare(after) > 0 {
			all = append(all, *entry)
		}
	}
	slices.SortFunc(all, func(a, b Parked) int { return a.Position.Compare(b.Position) })
	if limit > 0 && len(all) > limit {
		all = all[:limit]
	}
	return all
}

// Retry tries parked receipts again, all of them when none is named, and tells
// how many. When one that is named is not parked, none is tried. The answer is
// durable.
func (r *Route) Retry(positions ...record.Position) (n int, err error) {
	r.mu.Lock()
	for _, p := range positions {
		if entry := r.parked[p]; entry == nil || entry.Retrying {
			r.mu.Unlock()
			return 0, fmt.Errorf("%v is not parked on route %q", p, r.opts.Name)
		}
	}
	if len(positions) == 0 {
		for p, entry := range r.parked {
			if !entry.Retrying {
				positions = append(positions, p)
			}
		}
		slices.SortFunc(positions, record.Position.Compare)
	}
	for _, p := range positions {
		if entry := r.parked[p]; !entry.Retrying { // named twice
			entry.Retrying = true
			r.waiting--
			r.resume(entry)
			r.changed()
			n++
		}
	}
	r.mu.Unlock()
	r.wake()
	if n == 0 {
		return 0, nil
	}
	if err := r.note(); err != nil {
		return n, fmt.Errorf("they are tried again, but this could not be noted: %w", err)
	}
	return n, nil
}

// resume makes a mail of a parked entry that is tried again. The caller holds
// the mutex.
func (r *Route) resume(entry *Parked) {
	r.deferred.push(&mail{
		at: entry.Position, to: entry.Recipients, partly: len(entry.Recipients) > 0,
		again: true, earlier: entry.Attempts, reason: entry.Reply,
	})
}
