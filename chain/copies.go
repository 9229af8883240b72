package chain

import (
	"context"
	"slices"
	"time"

	"chainmail/archive/record"
)

// waiter is a mail that waits for its copies.
type waiter struct {
	position record.Position
	since    time.Time
	done     chan struct{} // closed when copies and short are set

	copies int
	short  bool
}

// Wait returns when as many nodes hold the receipt at p, this one included, as
// the policy asks for; this node must hold it already. Short tells that they
// cannot be had: at once when too few of its keepers are reachable, else when
// Policies.AckTimeout has passed or ctx ends. Copies is how many there are.
func (c *Chain) Wait(ctx context.Context, p record.Position) (copies int, short bool) {
	w := &waiter{position: p, since: time.Now(), done: make(chan struct{})}
	c.mu.Lock()
	settled := c.settledLocked(w)
	if !settled {
		c.queueLocked(w)
	}
	timeout := c.view.Policies.AckTimeout
	c.mu.Unlock()
	if !settled {
		c.await(ctx, w, timeout)
	}
	c.metrics.copiesWait.Observe(time.Since(w.since).Seconds())
	return w.copies, w.short
}

// await waits until a waiter is decided.
func (c *Chain) await(ctx context.Context, w *waiter, timeout time.Duration) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-w.done:
		return
	case <-timer.C:
	case <-ctx.Done():
	}
	c.giveUp(w)
}

// settledLocked decides a waiter if it can be decided now.
func (c *Chain) settledLocked(w *waiter) bool {
	want := c.view.Copies(c.opts.Name)
	have, possible := c.tallyLocked(w.position)
	if have < want && have+possible >= want && !c.ended {
		return false
	}
	c.decideLocked(w, have, have < want)
	return true
}

func (c *Chain) decideLocked(w *waiter, copies int, short bool) {
	w.copies, w.short = copies, short
	if short {
		c.shortEver++
	}
	close(w.done)
}

// tallyLocked counts the copies of an own receipt that are known to exist, and
// those that its other keepers could still confirm.
func (c *Chain) tallyLocked(at record.Position) (have, possible int) {
	keepers := c.keepersLocked(at)
	have = 1
	for _, name := range keepers {
		p := c.peers[name]
		switch {
		case p == nil: // this node, or one that has no link
		case p.belief.held(at.Store).Has(at.Seq):
			have++
		case p.live():
			possible++
		}
	}
	return have, possible
}

// keepersLocked are the nodes that must keep a receipt.
func (c *Chain) keepersLocked(at record.Position) []string {
	if l := c.logs[at.Store]; l != nil {
		return keepersAt(l.duties, at.Seq)
	}
	return c.view.Keepers(c.opts.Name, nil)
}

// queueLocked adds a waiter in the order of the positions; it is nearly always
// the last one.
func (c *Chain) queueLocked(w *waiter) {
	queue := c.waiters[w.position.Store]
	i := len(queue)
	for i > 0 && queue[i-1].position.Seq > w.position.Seq {
		i--
	}
	c.waiters[w.position.Store] = slices.Insert(queue, i, w)
}

// giveUp ends the waiting of a mail that may have been decided meanwhile.
func (c *Chain) giveUp(w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-w.done:
		return
	default:
	}
	queue := c.waiters[w.position.Store]
	if i := slices.Index(queue, w); i >= 0 {
		c.waiters[w.position.Store] = slices.Delete(queue, i, i+1)
	}
	have, _ := c.tallyLocked(w.position)
	c.decideLocked(w, have, have < c.view.Copies(c.opts.Name))
}

// resolveLocked decides what can be decided after news of what peers hold of a
// log. It looks at those waiters only that the news can be about, so that a
// thousand of them cost nothing.
func (c *Chain) resolveLocked(s record.StoreID) {
	queue := c.waiters[s]
	if len(queue) == 0 {
		return
	}
	var last record.Seq
	for _, p := range c.peers {
		last = max(last, p.belief.held(s).Last())
	}
	n := 0
	for n < len(queue) && queue[n].position.Seq <= last {
		n++
	}
	stay := slices.DeleteFunc(slices.Clone(queue[:n]), c.settledLocked)
	c.waiters[s] = append(stay, queue[n:]...)
}

// resolveAllLocked does so after links or the view changed.
func (c *Chain) resolveAllLocked() {
	for s, queue := range c.waiters {
		c.waiters[s] = slices.DeleteFunc(queue, c.settledLocked)
	}
}

// eager reports whether peers should tell at once what they hold: because a
// 250 needs more than the node that this one feeds, or one waits for longer
// than it should.
func (c *Chain) eager() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view.Copies(c.opts.Name) > 2 {
		return true
	}
	for _, queue := range c.waiters {
		if len(queue) > 0 && time.Since(queue[0].since) > 100*time.Millisecond {
			return true
		}
	}
	return false
}
