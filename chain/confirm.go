package chain

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"chainmail/archive/record"
)

// confirmTime is how long the other keepers may take to say what they know of
// this node's log.
const confirmTime = 2 * time.Second

// Confirm tells whether the node may go on with its log, Archive.Store: only
// when every other member that keeps any of it says that it knows no more of
// it than this node does. Else a disk may have been set back, and to go on
// would use positions a second time: the node must begin a new log. It waits
// up to 2 s for answers. Run must be running, and no mail be taken before.
func (c *Chain) Confirm(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, confirmTime)
	defer cancel()
	for {
		c.mu.Lock()
		silent, ahead := c.opinionsLocked(c.opts.Archive.Store())
		news := c.news
		c.mu.Unlock()
		switch {
		case ahead != "":
			c.log.Warn("a peer knows more of this node's log than the node itself: its disk was set back, or lost its last receipts; a new log begins, and the peers give back what they hold",
				slog.String("peer", ahead))
			return false
		case len(silent) == 0:
			return true
		}
		select {
		case <-ctx.Done():
			c.log.Warn("not all keepers of this node's log say what they know of it, so a new log begins; nothing is lost by that",
				slog.Any("silent", silent))
			return false
		case <-news:
		}
	}
}

// opinionsLocked says which other keepers of a log have not spoken yet, and
// names one that knows more of it than this node.
func (c *Chain) opinionsLocked(s record.StoreID) (silent []string, ahead string) {
	l := c.logs[s]
	if l == nil {
		return nil, ""
	}
	mine := l.Held.Last()
	for _, name := range c.allKeepersLocked(l) {
		p := c.peers[name]
		switch {
		case p == nil:
		case !p.belief.known():
			silent = append(silent, name)
		case max(p.belief.held(s).Last(), p.known[s]) > mine:
			ahead = name
		}
	}
	return silent, ahead
}

// allKeepersLocked are the members that keep, or were to keep, any part of a
// log.
func (c *Chain) allKeepersLocked(l *ownLog) (names []string) {
	add := func(more []string) {
		for _, name := range more {
			if name != c.opts.Name && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	for _, d := range l.duties {
		add(d.keepers)
	}
	for _, placed := range l.Placements {
		add(placed.Nodes)
	}
	return names
}
