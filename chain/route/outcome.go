package route

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// attempt is what became of one attempt to send a mail.
type attempt struct {
	result
	err     error // of the connection, or an *unreadable
	begun   bool  // there was a connection, which worked until this mail
	stopped bool  // the route was stopped under it
}

// trouble is what is wrong with the connection to the server.
type trouble struct {
	failures int       // in a row; 0: nothing is wrong
	until    time.Time // nothing is tried before
	problem  string
}

// begin reports whether a mail may be tried now; if not, it goes back. Trouble
// may have come up since the feed gave it out.
func (r *Route) begin(m *mail) bool {
	r.mu.Lock()
	if r.trouble.failures == 0 || !r.trouble.until.After(time.Now()) {
		r.mu.Unlock()
		return true
	}
	delete(r.inFlight, m)
	m.due = r.trouble.until
	r.deferred.push(m)
	r.mu.Unlock()
	r.wake()
	return false
}

// finish draws the conclusions of an attempt.
func (r *Route) finish(m *mail, a attempt) {
	r.mu.Lock()
	delete(r.inFlight, m)
	var own *unreadable
	switch {
	case a.err != nil && a.stopped:
		r.deferred.push(m)
	case errors.As(a.err, &own):
		r.postponeUnreadable(m, own.err)
	case a.err != nil:
		m.attempts++
		r.suffer(m, a)
	default:
		m.attempts++
		if a.begun {
			r.recover()
		}
		r.conclude(m, a.result)
	}
	r.mu.Unlock()
	r.wake()
}

// suffer is the end of an attempt by trouble with the connection. The whole
// route waits. If it may have been the mail that broke the connection, that
// one waits longer, so that others come first.
func (r *Route) suffer(m *mail, a attempt) {
	now := time.Now()
	r.counts.connection++
	if t := &r.trouble; t.failures == 0 || !t.until.After(now) {
		if t.failures == 0 {
			r.log.Warn("the route is in trouble and tries again until it works", slog.Any("err", a.err))
		}
		t.failures++
		t.until = now.Add(backoff(t.failures))
		t.problem = printable(a.err.Error())
	}
	m.reason = printable(a.err.Error())
	m.due = r.trouble.until
	if a.begun {
		m.delay++
		m.due = m.due.Add(backoff(m.delay))
	}
	r.deferOrPark(m)
}

// recover notes that the server answers.
func (r *Route) recover() {
	if r.trouble.failures > 0 {
		r.log.Info("the route works again", slog.Int("failures", r.trouble.failures))
		r.trouble = trouble{}
	}
}

// conclude draws the conclusions of a server's answers.
func (r *Route) conclude(m *mail, res result) {
	m.refused = append(m.refused, res.refused...)
	m.to = res.later
	if res.delivered > 0 {
		m.partly = true
		m.delay = 0 // it makes progress
	}
	switch {
	case len(res.later) > 0:
		m.delay++
		m.due = time.Now().Add(backoff(m.delay))
		m.reason = res.why
		r.counts.deferred++
		r.deferOrPark(m)
	case len(m.refused) > 0:
		r.park(m, m.refused[0].why)
	default:
		r.done(m)
	}
}

// deferOrPark decides about a mail that could not be sent for now.
func (r *Route) deferOrPark(m *mail) {
	if most := r.opts.MaxRetries; most > 0 && m.attempts > most {
		r.park(m, fmt.Sprintf("given up after %d attempts, the last: %s", m.attempts, m.reason))
		return
	}
	r.deferred.push(m)
}

// postponeUnreadable keeps a mail that this node cannot read just now: it may be
// repaired from another node.
func (r *Route) postponeUnreadable(m *mail, err error) {
	r.counts.unreadable++
	m.unreadable = true
	m.delay++
	m.due = time.Now().Add(backoff(m.delay))
	m.reason = (&unreadable{err}).Error()
	if m.delay == 1 {
		r.log.Error("a mail cannot be read and is not sent until it can", slog.String("position", m.at.String()), slog.Any("err", err))
	}
	r.deferred.push(m)
}

// park keeps a mail until someone asks for it.
func (r *Route) park(m *mail, why string) {
	entry := &Parked{
		Position: m.at, Hash: m.receipt.Hash, Size: m.receipt.Size,
		Reply: why, At: time.Now().UTC(), Attempts: m.earlier + m.attempts,
	}
	if m.partly { // else the route's own recipient may change until it is tried again
		entry.Recipients = m.to
		for _, refused := range m.refused {
			entry.Recipients = append(entry.Recipients, refused.to)
		}
	}
	r.log.Warn("a mail is parked", slog.String("position", m.at.String()), slog.String("reply", why),
		slog.Int("attempts", entry.Attempts), slog.Int("recipients_left", len(entry.Recipients)))
	r.parked[m.at] = entry
	r.waiting++
	r.counts.parked++
	r.settle(m)
}

// done is the end of a mail's way.
func (r *Route) done(m *mail) {
	delete(r.parked, m.at)
	r.counts.sent++
	r.counts.bytes += uint64(m.receipt.Size)
	r.settle(m)
}

// settle makes the cursor pass a mail.
func (r *Route) settle(m *mail) {
	r.track(m.at.Store).settle(m.at.Seq)
	r.changed()
	if r.unnoted >= noteMails {
		signal(r.many)
	}
}
