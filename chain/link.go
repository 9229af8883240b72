package chain

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"chainmail/archive/record"
)

// link is one session with a peer, from the first hello to the first failure
// of the control connection or the live lane. All that is remembered of what
// was sent ends with it: the next one begins with what the peer says it holds.
type link struct {
	c    *Chain
	peer *peer
	boot string // of the peer's process; with another one the session is over
	live *lane
	bulk *lane
	end  context.CancelCauseFunc

	// Guarded by Chain.mu.
	horizon  map[record.StoreID]record.Seq    // what is above came during the session: the live lane's
	onTheWay map[record.StoreID]record.Ranges // in containers that are not answered
	large    map[record.StoreID]record.Ranges // above the horizon, but too large for the live lane
	given    map[record.StoreID]record.Ranges // what the peer took in this session
	history  map[record.StoreID]*history      // what the peer lacked, for standbys
	aside    []aside                          // not to be sent for a while
	needBody map[record.StoreID]record.Ranges // to be sent with their bodies in any case
	liveFull bool                             // the live lane has more than it may send: bulk makes room
}

// aside are receipts that were not taken: they must not hold up all others.
type aside struct {
	store record.StoreID
	seqs  record.Ranges
	until time.Time
}

// keepLink keeps a link to a peer until ctx ends: it asks again at once when a
// session ends that had been good for a while, and after growing pauses when
// it had not, unless there is a sign that the peer is back.
func (c *Chain) keepLink(ctx context.Context, p *peer) {
	pause := time.Duration(0)
	for ctx.Err() == nil {
		begin := time.Now()
		err := c.session(ctx, p)
		if ctx.Err() != nil {
			break
		}
		c.linkDown(p, err)
		if time.Since(begin) > lastBackoff {
			pause = 0
		}
		if pause > 0 {
			wait := time.NewTimer(pause)
			select {
			case <-ctx.Done():
			case <-wait.C:
			case <-p.redial:
			}
			wait.Stop()
		}
		pause = min(max(2*pause, firstBackoff), lastBackoff)
	}
	c.linkDown(p, errStopping)
}

var (
	errStopping = errors.New("this node is stopping, or the member left")
	errNewBoot  = errors.New("the peer was started anew")
	errDead     = errors.New("gossip says that the peer is dead: asking it again")
)

// session is one link from the first hello to its end.
func (c *Chain) session(ctx context.Context, p *peer) error {
	if p.address == "" {
		<-ctx.Done()
		return ctx.Err()
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	control, err := c.connect(ctx, p.name, p.address)
	if err != nil {
		return err
	}
	defer control.quit()
	l := newLink(c, p, control.peer.Boot, end)
	work, ctx := errgroup.WithContext(ctx)
	// Mail takes another way from the first failure on, not only when all has
	// been wound up.
	defer context.AfterFunc(ctx, func() {
		control.interrupt()
		c.linkLost(l, context.Cause(ctx))
	})()
	c.learn(p.name, control.peer, true)
	c.linkUp(l, control.peer)
	work.Go(func() error { return l.poll(ctx, control) })
	work.Go(func() error { return l.live.keep(ctx) })
	work.Go(func() error { return l.bulk.keep(ctx) })
	err = work.Wait()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause // what began it
	}
	return err
}

func newLink(c *Chain, p *peer, boot string, end context.CancelCauseFunc) *link {
	l := &link{
		c: c, peer: p, boot: boot, end: end,
		horizon:  map[record.StoreID]record.Seq{},
		onTheWay: map[record.StoreID]record.Ranges{},
		large:    map[record.StoreID]record.Ranges{},
		given:    map[record.StoreID]record.Ranges{},
		history:  map[record.StoreID]*history{},
		needBody: map[record.StoreID]record.Ranges{},
	}
	l.live, l.bulk = newLane(l, toLive), newLane(l, toBulk)
	return l
}

// linkUp makes a session the peer's link.
func (c *Chain) linkUp(l *link, said hello) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s, log := range c.logs {
		l.horizon[s] = log.Held.Last()
	}
	p := l.peer
	p.link, p.suspect, p.refusal = l, false, said.Refuses
	p.setLocked(StateConnected, "")
	l.noteLocked(time.Now())
	c.spreadLocked()
	c.log.Info("chain link is up", slog.String("peer", p.name), slog.String("version", said.Version))
}

// linkDown notes that there is no link to a peer, and why.
func (c *Chain) linkDown(p *peer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.downLocked(p, err)
}

// linkLost does so if the link is still the peer's.
func (c *Chain) linkLost(l *link, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.peer.link == l {
		c.downLocked(l.peer, err)
	}
}

func (c *Chain) downLocked(p *peer, err error) {
	wasUp := p.link != nil
	if !errors.Is(err, errStopping) && !errors.Is(err, context.Canceled) && (wasUp || err.Error() != p.problem) {
		c.log.Warn("no chain link", slog.String("peer", p.name), slog.String("address", p.address), slog.Any("err", err))
	}
	p.link, p.refusal = nil, ""
	if p.state != StateDisabled {
		p.setLocked(stateAfter(err), err.Error())
	}
	if wasUp {
		c.metrics.linkBreaks.WithLabelValues(p.name).Inc()
		c.spreadLocked()
	}
}

// stateAfter is the state of a link that could not be made or has ended. A peer
// that answers and says no is another matter than one that does not answer.
func stateAfter(err error) string {
	if _, isUnfit := errors.AsType[unfitError](err); isUnfit {
		return StateRefused
	}
	if said, isReply := errors.AsType[reply](err); isReply && said.code != 421 {
		return StateRefused
	}
	return StateConnecting
}

func (p *peer) setLocked(state, problem string) {
	if p.state != state {
		p.state, p.since = state, time.Now()
	}
	p.problem = problem
}

// poll asks the peer for its holdings for ever. A peer that does not answer in
// time is gone.
func (l *link) poll(ctx context.Context, control *client) error {
	for {
		ask := l.c.introduce(control.protocol)
		ask.Wait, ask.Eager = pollEvery.Milliseconds(), l.c.eager()
		_ = control.conn.SetDeadline(time.Now().Add(pollEvery + patience))
		if ctx.Err() != nil { // after the deadline, which interrupt then overrides
			return ctx.Err()
		}
		said, err := control.hello(ask)
		if err != nil {
			return err
		}
		l.c.learn(l.peer.name, said, true)
		l.answered(said)
		// The peer does the waiting; one that does not must not keep both busy.
		gap := pollGap
		if ask.Eager {
			gap = eagerPause
		}
		if early := gap - time.Since(ask.Time); early > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(early):
			}
		}
	}
}

// answered notes that the peer is there, and whether it takes mail.
func (l *link) answered(said hello) {
	c, p := l.c, l.peer
	c.mu.Lock()
	defer c.mu.Unlock()
	was := p.live()
	p.suspect = false
	if said.Refuses != "" || p.refusal != "" && !l.live.pausing() && !l.bulk.pausing() {
		p.refusal = said.Refuses
	}
	if was != p.live() {
		c.spreadLocked()
	}
}

// noteLocked remembers for the standbys what the peer lacks now.
func (l *link) noteLocked(now time.Time) {
	for s, log := range l.c.logs {
		h := l.history[s]
		if h == nil {
			h = new(history)
			l.history[s] = h
		}
		lacks := log.Held.Intersect(kept(log.duties, l.peer.name)).Minus(l.peer.belief.held(s))
		h.note(now, lacks, lumps+2*standby*time.Duration(len(l.c.view.Members)))
	}
}

// setAsideLocked keeps receipts from being sent for a while.
func (l *link) setAsideLocked(s record.StoreID, seqs record.Ranges, d time.Duration) {
	if len(seqs) == 0 {
		return
	}
	l.aside = append(l.aside, aside{s, seqs, time.Now().Add(d)})
	time.AfterFunc(d, func() { // the lanes then look again
		l.c.mu.Lock()
		defer l.c.mu.Unlock()
		l.peer.ring()
	})
}
