package chain

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"chainmail/archive/record"
)

// The recipients of the link's transactions.
const (
	toHello = "hello"
	toLive  = "live"
	toBulk  = "bulk"
)

// bounds are what a lane may do at once.
type bounds struct {
	receipts uint64 // in a container
	bytes    int    // of a container; the receipt that passes it is the last
	eager    int    // containers on the way while a further one need not be full
	window   int    // containers on the way
}

// New mail goes out at once, and while a container is on its way the next one
// collects: so one client is answered after one round trip, and a thousand
// clients share syncs. History is sent in large containers.
var laneBounds = map[string]bounds{
	toLive: {receipts: 256, bytes: 1 << 20, eager: 2, window: 8},
	toBulk: {receipts: 4096, bytes: 4 << 20, eager: 4, window: 4},
}

const (
	largeMail = 4 << 20 // bytes of a mail from which on it does not go by the live lane
	liveDepth = 8192    // receipts behind the live lane from which on they are history
	segment   = 1 << 20 // bytes of a container that are in memory
)

// lane is one of the two ways on which a link sends receipts.
type lane struct {
	link *link
	to   string
	bounds
	bell  chan struct{} // rings when there may be work
	limit *rate.Limiter // of history

	// Guarded by Chain.mu.
	flying  []*transaction // unanswered, in their order
	resume  time.Time      // after a refusal: not before
	refused int            // refusals in a row
	turn    record.StoreID // the log that was first in the last container
	mean    int            // bytes of a receipt, about
	yielded time.Time      // bulk: since when it makes room for live

	first map[record.StoreID]arrival // bulk: of each log's first receipt to send; the sender's own
}

func newLane(l *link, to string) *lane {
	return &lane{
		link: l, to: to, bounds: laneBounds[to], bell: make(chan struct{}, 1),
		limit: rate.NewLimiter(rate.Inf, 2*segment),
		first: map[record.StoreID]arrival{},
	}
}

// transaction is a container on its way.
type transaction struct {
	sent     map[record.StoreID]record.Ranges
	bare     map[record.StoreID]record.Ranges // of them, without the body
	receipts uint64
	bytes    int
	begun    time.Time
	refusal  atomic.Pointer[reply] // the first one, if any
}

func (t *transaction) has(p record.Position) bool { return t.sent[p.Store].Has(p.Seq) }

// expected is a reply that must come.
type expected struct {
	to   string // the command
	of   *transaction
	last bool // it decides
	size int  // bytes sent with the command
}

// keep keeps the lane open until ctx ends. A live lane that breaks ends the
// link: new mail must take another way. A bulk lane is opened when there is
// history to send, and again after a pause when it breaks.
func (l *lane) keep(ctx context.Context) error {
	if l.to == toLive {
		return l.converse(ctx)
	}
	for pause := firstBackoff; ; {
		for !l.work() {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-l.bell:
			}
		}
		begin := time.Now()
		err := l.converse(ctx)
		if ctx.Err() != nil || errors.Is(err, errNewBoot) {
			return err
		}
		l.link.c.log.Warn("the connection for history and large mail broke", slog.String("peer", l.link.peer.name), slog.Any("err", err))
		if time.Since(begin) > lastBackoff {
			pause = firstBackoff
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, lastBackoff)
	}
}

// work reports whether there is anything to send.
func (l *lane) work() bool {
	c := l.link.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(l.pendingLocked(time.Now())) > 0
}

// converse is one connection of the lane.
func (l *lane) converse(ctx context.Context) error {
	c, p := l.link.c, l.link.peer
	conn, err := c.connect(ctx, p.name, p.address)
	if err != nil {
		return err
	}
	defer conn.quit()
	if conn.peer.Boot != l.link.boot {
		return errNewBoot
	}
	work, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, conn.interrupt)()
	out := &sender{lane: l, conn: conn, ctx: ctx, replies: make(chan expected, 64)}
	work.Go(out.run)
	work.Go(func() error { return l.receive(ctx, conn, out.replies) })
	err = work.Wait()
	l.drop()
	return err
}

// drop forgets the containers on the way: nobody knows what became of them,
// but the peer's next hello will tell.
func (l *lane) drop() {
	c := l.link.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(l.flying) > 0 {
		l.landedLocked(l.flying[0])
	}
	l.link.peer.ring()
}

// landedLocked takes a container off the way.
func (l *lane) landedLocked(t *transaction) {
	for s, seqs := range t.sent {
		l.link.onTheWay[s] = l.link.onTheWay[s].Minus(seqs)
	}
	for i := range l.flying {
		if l.flying[i] == t {
			l.flying = append(l.flying[:i:i], l.flying[i+1:]...)
			return
		}
	}
}

// receive reads the replies, which come in the order of the commands. One that
// does not come in time ends the connection.
func (l *lane) receive(ctx context.Context, conn *client, replies <-chan expected) error {
	for {
		var next expected
		select {
		case <-ctx.Done():
			return ctx.Err()
		case next = <-replies:
		}
		_ = conn.conn.SetReadDeadline(time.Now().Add(allowance(next.size)))
		if ctx.Err() != nil { // after the deadline, which interrupt then overrides
			return ctx.Err()
		}
		r, err := readReply(conn.r)
		if err != nil {
			return overdue(err, "the reply to "+next.to)
		}
		if r.code == 421 {
			return r
		}
		if !r.ok() && next.of != nil {
			next.of.refusal.CompareAndSwap(nil, &r)
		}
		if next.last {
			if err := l.settle(next.of, r); err != nil {
				return err
			}
		}
	}
}

// settle takes the answer to a container.
func (l *lane) settle(t *transaction, r reply) error {
	c := l.link.c
	c.mu.Lock()
	defer c.mu.Unlock()
	defer l.link.peer.ring()
	l.landedLocked(t)
	if refusal := t.refusal.Load(); refusal != nil {
		l.refusedLocked(t, *refusal)
		return nil
	}
	d, err := parseDurable(r)
	switch {
	case err != nil:
		return err
	case d.boot != l.link.boot:
		return errNewBoot
	}
	p := l.link.peer
	c.confirmedLocked(p, d.boot, d.generation, d.held)
	for s, seqs := range t.sent {
		taken := seqs.Intersect(d.held[s])
		l.link.given[s] = l.link.given[s].Union(taken)
		l.leftLocked(s, seqs.Minus(taken), t.bare[s])
	}
	l.refused = 0
	p.traffic.sent(t)
	c.metrics.sent(p.name, l.to, t)
	for _, other := range c.peers { // the standbys of others look at what this one holds
		if other != p {
			other.ring()
		}
	}
	return nil
}

// leftLocked decides about receipts that the peer left out of a container: it
// did not hold the body of those that came bare, so they are sent with it; the
// others it is just given by somebody else.
func (l *lane) leftLocked(s record.StoreID, left, bare record.Ranges) {
	l.link.needBody[s] = l.link.needBody[s].Union(left.Intersect(bare))
	l.link.setAsideLocked(s, left.Minus(bare), asideShort)
}

// codeDamaged begins the refusal of a container because of one receipt: "554
// 5.6.0 <position> …". The others can be sent without it.
const codeDamaged = "5.6.0"

// refusedLocked decides what follows from a refusal.
func (l *lane) refusedLocked(t *transaction, r reply) {
	c, p := l.link.c, l.link.peer
	c.metrics.refusals.WithLabelValues(p.name).Inc()
	if at, ok := r.damaged(); ok && t.has(at) {
		c.log.Error("the peer does not take a receipt; the others go on", slog.String("peer", p.name), slog.String("position", at.String()), slog.Any("err", r))
		p.reject(at, r.Error())
		l.link.setAsideLocked(at.Store, record.Of(at.Seq, at.Seq), asideLong)
		return
	}
	l.refused++
	pause := min(firstBackoff<<min(l.refused, 10), lastBackoff)
	l.resume = time.Now().Add(pause)
	time.AfterFunc(pause, func() { ringBell(l.bell) })
	if r.code == 451 && l.refused < 3 { // busy for a moment
		return
	}
	if p.refusal != r.Error() {
		c.log.Warn("the peer takes no receipts", slog.String("peer", p.name), slog.Any("err", r))
	}
	p.refusal = r.Error()
	c.spreadLocked()
}

// pausing reports whether the lane waits after a refusal.
func (l *lane) pausing() bool { return time.Now().Before(l.resume) }
