package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"chainmail/archive/record"
)

// sender is the sending half of a lane's connection: it makes containers and
// sends them, each as a transaction, without waiting for replies. It never has
// more than a segment of a container in memory, however large a mail is.
type sender struct {
	lane    *lane
	conn    *client
	ctx     context.Context
	replies chan expected // what the receiving half waits for

	// Of the container that is being made.
	w       *containerWriter
	t       *transaction
	history bool // its bytes count against the rate
	bodies  map[record.Position]bool
}

// run sends until the connection or the link ends.
func (s *sender) run() error {
	for s.ctx.Err() == nil {
		if b := s.lane.next(); b != nil {
			if err := s.send(b); err != nil {
				return err
			}
			continue
		}
		idle := time.NewTimer(keepalive)
		select {
		case <-s.ctx.Done():
		case <-s.lane.bell:
		case <-idle.C:
			if err := s.command("NOOP"); err != nil {
				return err
			}
		}
		idle.Stop()
	}
	return s.ctx.Err()
}

// expect announces a reply to the receiving half, before its command is sent.
func (s *sender) expect(e expected) error {
	select {
	case s.replies <- e:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// command sends a command that only keeps things in order.
func (s *sender) command(verb string) error {
	if err := s.expect(expected{to: verb}); err != nil {
		return err
	}
	return s.write(verb+"\r\n", nil)
}

func (s *sender) write(head string, body []byte) error {
	_ = s.conn.conn.SetWriteDeadline(time.Now().Add(allowance(len(body))))
	if s.ctx.Err() != nil { // after the deadline, which interrupt then overrides
		return s.ctx.Err()
	}
	_, err := s.conn.w.WriteString(head)
	if err == nil {
		_, err = s.conn.w.Write(body)
	}
	if err == nil {
		err = s.conn.w.Flush()
	}
	if err != nil {
		return overdue(err, "sending to the peer")
	}
	return nil
}

// Why a container is given up while it is made; the connection goes on.
var (
	errRefused = errors.New("the peer refused the container before its end")
	errSpoilt  = errors.New("a body could not be read to its end")
)

// send makes and sends a container of a batch. Its error is the connection's.
func (s *sender) send(b batch) error {
	s.t = &transaction{sent: map[record.StoreID]record.Ranges{}, bare: map[record.StoreID]record.Ranges{}}
	s.w = newContainerWriter(segment, func(bytes []byte) error { return s.segment(bytes, false) })
	defer s.w.release()
	s.history = s.lane.to == toBulk && !b[0].live
	s.bodies = map[record.Position]bool{}
	err := s.fill(b)
	for _, p := range b { // what was left out
		s.lane.unmark(p.log.Store, p.seqs.Minus(s.t.sent[p.log.Store]))
	}
	if err == nil && s.t.receipts > 0 {
		err = s.finish()
	}
	if err == nil {
		return nil
	}
	for store, seqs := range s.t.sent {
		s.lane.unmark(store, seqs)
	}
	switch {
	case errors.Is(err, errRefused):
		s.lane.refusedEarly(s.t)
	case !errors.Is(err, errSpoilt):
		return err
	}
	return s.command("RSET")
}

// fill puts the receipts of a batch into the container until it is full.
func (s *sender) fill(b batch) error {
	for _, p := range b {
		if err := s.w.log(p.log); err != nil {
			return err
		}
		for _, r := range p.seqs {
			for seq := r.First; seq <= r.Last; seq++ {
				if s.t.bytes+s.w.size() >= s.lane.bytes {
					return nil
				}
				if err := s.add(record.Position{Store: p.log.Store, Seq: seq}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// add puts a receipt into the container. One that cannot be read is put aside
// and leaves no trace: it must not hold up the others.
func (s *sender) add(p record.Position) error {
	archive := s.lane.link.c.opts.Archive
	e, err := archive.Export(p)
	if err != nil {
		return s.lane.unreadable(p, err)
	}
	if s.lane.to == toLive && e.Receipt.Size > largeMail {
		s.lane.tooLarge(p)
		return nil
	}
	body := !s.bodies[e.BodyAt] && s.lane.needsBody(p, e.BodyAt)
	mark, flushes := s.w.size(), s.w.flushes
	if err := s.w.receipt(p, e.Encoded, body); err != nil {
		return s.lane.unreadable(p, err)
	}
	s.t.sent[p.Store] = extend(s.t.sent[p.Store], p.Seq)
	if !body {
		s.t.bare[p.Store] = extend(s.t.bare[p.Store], p.Seq)
	} else {
		var sending error
		err := archive.Chunks(p.Store, e.Receipt.Body, func(stored []byte) error {
			sending = s.w.chunk(stored)
			return sending
		})
		switch {
		case sending != nil:
			return sending
		case err != nil && s.w.flushes != flushes:
			return cmp.Or(s.lane.unreadable(p, err), errSpoilt)
		case err != nil:
			s.w.truncate(mark)
			s.t.sent[p.Store] = retract(s.t.sent[p.Store])
			return s.lane.unreadable(p, err)
		}
		s.bodies[e.BodyAt] = true
	}
	s.t.receipts++
	return nil
}

// extend adds a number above all others to a set that is the caller's alone:
// in place, so that the sets of a container with gaps cost no square of them.
func extend(r record.Ranges, s record.Seq) record.Ranges {
	if n := len(r); n > 0 && r[n-1].Last+1 == s {
		r[n-1].Last = s
		return r
	}
	return append(r, record.Range{First: s, Last: s})
}

// retract takes back the last extend.
func retract(r record.Ranges) record.Ranges {
	last := &r[len(r)-1]
	if last.First == last.Last {
		return r[:len(r)-1]
	}
	last.Last--
	return r
}

// segment sends a part of the container.
func (s *sender) segment(bytes []byte, last bool) error {
	if s.t.refusal.Load() != nil && !last {
		return errRefused
	}
	if s.history {
		if err := s.lane.limit.WaitN(s.ctx, min(len(bytes), s.lane.limit.Burst())); err != nil {
			return err
		}
	}
	head := ""
	if s.t.bytes == 0 {
		s.t.begun = time.Now()
		head = s.conn.envelope(s.lane.to)
		for _, verb := range []string{"MAIL", "RCPT"} {
			if err := s.expect(expected{to: verb, of: s.t}); err != nil {
				return err
			}
		}
	}
	head += fmt.Sprintf("BDAT %d", len(bytes))
	if last {
		head += " LAST"
	}
	s.t.bytes += len(bytes)
	if err := s.expect(expected{to: "BDAT", of: s.t, last: last, size: len(bytes)}); err != nil {
		return err
	}
	return s.write(head+"\r\n", bytes)
}

// finish sends the rest of the container. From now on it is on its way, until
// the receiving half settles it or the connection breaks.
func (s *sender) finish() error {
	l := s.lane
	c := l.link.c
	rest := s.w.end()
	c.mu.Lock()
	l.flying = append(l.flying, s.t)
	l.mean = (s.t.bytes + len(rest)) / int(s.t.receipts)
	c.mu.Unlock()
	return s.segment(rest, true)
}

// refusedEarly takes a refusal that came before the container's end.
func (l *lane) refusedEarly(t *transaction) {
	c := l.link.c
	c.mu.Lock()
	defer c.mu.Unlock()
	l.refusedLocked(t, *t.refusal.Load())
}

// unreadable puts a receipt aside that this node cannot read. Its error is
// one that is about more than this receipt.
func (l *lane) unreadable(p record.Position, err error) error {
	c := l.link.c
	if errors.Is(err, ErrCorrupt) {
		c.opts.Damaged(p) // may change what is held
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l.link.onTheWay[p.Store] = l.link.onTheWay[p.Store].Minus(record.Of(p.Seq, p.Seq))
	switch {
	case errors.Is(err, ErrNotHeld): // the next look at the holdings will show it
		l.link.setAsideLocked(p.Store, record.Of(p.Seq, p.Seq), asideShort)
		return nil
	case errors.Is(err, context.Canceled):
		return err
	}
	c.log.Error("a receipt cannot be read here, so the peer does not get it from this node; the others go on",
		slog.String("position", p.String()), slog.String("peer", l.link.peer.name), slog.Any("err", err))
	l.link.peer.reject(p, "cannot be read on this node: "+err.Error())
	l.link.setAsideLocked(p.Store, record.Of(p.Seq, p.Seq), asideLong)
	return nil
}

// tooLarge gives a mail to the bulk lane.
func (l *lane) tooLarge(p record.Position) {
	c := l.link.c
	c.mu.Lock()
	defer c.mu.Unlock()
	l.link.large[p.Store] = l.link.large[p.Store].Add(p.Seq)
	l.link.onTheWay[p.Store] = l.link.onTheWay[p.Store].Minus(record.Of(p.Seq, p.Seq))
	ringBell(l.link.bulk.bell)
}

// needsBody reports whether a receipt must be sent with its body: not where the
// peer holds another receipt with it, or gets one before by this lane.
func (l *lane) needsBody(p, bodyAt record.Position) bool {
	if p == bodyAt {
		return true
	}
	c := l.link.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.link.needBody[p.Store].Has(p.Seq) {
		return true
	}
	return !l.link.peer.belief.held(bodyAt.Store).Has(bodyAt.Seq) &&
		!slices.ContainsFunc(l.flying, func(t *transaction) bool { return t.has(bodyAt) })
}

// reject remembers why the peer does not get a receipt.
func (p *peer) reject(at record.Position, why string) {
	if len(p.rejected) >= 100 {
		for old := range p.rejected {
			delete(p.rejected, old)
			break
		}
	}
	p.rejected[at] = why
}
