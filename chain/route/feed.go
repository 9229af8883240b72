package route

import (
	"context"
	"time"

	"chainmail/archive/record"
)

// feed gives the senders one mail after the other: those that are due again
// first, for they are the older ones, then the oldest that was not tried.
func (r *Route) feed(ctx context.Context) {
	for {
		changed := r.source.Changed()
		tracks := r.look(r.source.Logs())
		looked := time.Now()
		for time.Since(looked) < lookInterval {
			m := r.next(ctx, tracks)
			if m == nil {
				if !r.rest(ctx, changed) {
					return
				}
				break
			}
			select {
			case r.jobs <- m:
			case <-ctx.Done():
				return
			}
		}
	}
}

// lookInterval is how long the feed works on what it knows before it asks what
// the node holds; while there is work, the news are younger than that work.
const lookInterval = time.Second

// look takes over what the node holds, of the logs that the route sends.
func (r *Route) look(logs []record.Log) (tracks []*track) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.wanted(logs) {
		t := r.track(l.Store)
		t.held = l.Held
		tracks = append(tracks, t)
	}
	return tracks
}

// wanted picks the logs that the route sends. A node's own are all that bear
// its name: after it had to begin a new one, it still owes the mail of the old.
func (r *Route) wanted(logs []record.Log) []record.Log {
	if !r.opts.Own {
		return logs
	}
	store, name := r.source.Store(), ""
	for _, l := range logs {
		if l.Store == store {
			name = l.Origin
		}
	}
	var own []record.Log
	for _, l := range logs {
		if l.Store == store || name != "" && l.Origin == name {
			own = append(own, l)
		}
	}
	return own
}

// rest waits until there may be something to do; false means that ctx ended.
func (r *Route) rest(ctx context.Context, changed <-chan struct{}) bool {
	var due <-chan time.Time
	if next := r.nextAttempt(); !next.IsZero() {
		timer := time.NewTimer(time.Until(next))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-changed:
	case <-r.poke:
	case <-due:
	case <-ctx.Done():
		return false
	}
	return true
}

// nextAttempt is when a time alone gives the feed something to do; zero for
// never.
func (r *Route) nextAttempt() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.trouble.failures > 0 && len(r.inFlight) > 0:
		return time.Time{} // the mail in flight decides
	case r.trouble.failures > 0 && r.trouble.until.After(time.Now()):
		return r.trouble.until
	case len(r.deferred.mails) > 0:
		return r.deferred.mails[0].due
	}
	return time.Time{}
}

// next gives out a mail; nil when there is none for now.
func (r *Route) next(ctx context.Context, tracks []*track) *mail {
	now := time.Now()
	if m, final := r.again(now); m != nil || final {
		return m
	}
	var oldest *track
	for _, t := range tracks {
		if r.readHead(ctx, t); t.head != nil && (oldest == nil || t.head.ReceivedAt.Before(oldest.head.ReceivedAt)) {
			oldest = t
		}
	}
	if oldest == nil || ctx.Err() != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &mail{at: oldest.head.Position, receipt: oldest.head}
	oldest.claim(m.at.Seq)
	r.inFlight[m] = true
	return m
}

// again gives out a mail that is due again. final means that no other mail may
// be begun either.
func (r *Route) again(now time.Time) (m *mail, final bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trouble.failures > 0 && (len(r.inFlight) > 0 || r.trouble.until.After(now)) {
		return nil, true
	}
	if m = r.deferred.pop(now); m != nil {
		r.inFlight[m] = true
		return m, true
	}
	return nil, r.deferred.full() || r.waiting >= maxParked
}

// readHead reads the first receipt of a log that was not begun with. What it
// passes over on the way is history, or cannot be read.
func (r *Route) readHead(ctx context.Context, t *track) {
	for ctx.Err() == nil {
		r.mu.Lock()
		seq := t.first()
		if seq == 0 || r.deferred.full() || t.head != nil && t.head.Position.Seq != seq {
			t.head = nil
		}
		done := seq == 0 || r.deferred.full() || t.head != nil
		r.mu.Unlock()
		if done {
			return
		}
		p := record.Position{Store: t.store, Seq: seq}
		receipt, err := r.source.Receipt(p)
		r.mu.Lock()
		switch {
		case err != nil:
			t.claim(seq)
			r.postponeUnreadable(&mail{at: p}, err)
		case r.isHistory(&receipt):
			t.settle(seq)
			r.changed()
		default:
			t.head = &receipt
		}
		r.mu.Unlock()
	}
}

// isHistory reports whether a receipt was there before the route. What the
// node accepts now never is, whatever its clock says.
func (r *Route) isHistory(receipt *record.Receipt) bool {
	return !r.since.IsZero() && receipt.Position.Store != r.source.Store() &&
		receipt.ReceivedAt.Before(r.since.Add(-historyMargin))
}
