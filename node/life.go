package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"chainmail/membership/ring"
)

// lifePeriod is how often a node looks at its place in the cluster.
const lifePeriod = time.Second

// errLeft ends a node that was drained and is no member any more.
var errLeft = errors.New("left the cluster")

// live follows the node's place in the cluster until ctx ends: it tells the
// cluster where it is reached, becomes active when it has what it should, and
// leaves when it is drained.
func (n *Node) live(ctx context.Context) error {
	tick := time.NewTicker(lifePeriod)
	defer tick.Stop()
	for {
		changed := n.members.Changed()
		if n.chain != nil {
			n.chain.Wake()
		}
		if err := n.step(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// step does what the node's state in the view asks for. What fails for want of
// a quorum is tried again at the next step.
func (n *Node) step(ctx context.Context) error {
	view := n.members.View()
	me, ok := view.Member(n.config.Name)
	if !ok || n.members.Removed() {
		err := n.rememberRemoval()
		if n.handed && err == nil { // the answer to its own request was lost
			return n.leave()
		}
		return errors.Join(n.strangerError(), err)
	}
	err := n.tellAddresses()
	n.noteLeaving(me.State == ring.Draining)
	switch me.State {
	case ring.Joining:
		err = n.finishJoining(ctx, view)
	case ring.Draining:
		if err = n.finishDraining(ctx, view); errors.Is(err, errLeft) {
			return err
		}
	}
	if err != nil && ctx.Err() == nil {
		n.log.Debug("the node's state could not be changed yet", slog.String("state", string(me.State)), slog.Any("err", err))
	}
	return nil
}

// removedMark is the file of a cluster directory that says that its node was
// removed: the view on disk may be from before. Joining makes a new directory.
const removedMark = "removed"

// ErrNotMember ends a node that was removed from its cluster. Starting it again
// is of no use.
var ErrNotMember = errors.New("no longer a member")

func (n *Node) strangerError() error {
	return fmt.Errorf("%s is %w of cluster %s: its mail is still in %s; to bring it back, get a token with 'chainmail token join' on a member and use 'chainmail join-node' with this data directory", n.config.Name, ErrNotMember, n.members.Cluster(), n.config.DataDir)
}

// rememberRemoval makes later starts end at once: mail must not be taken onto a
// disk that no cluster knows.
func (n *Node) rememberRemoval() error {
	return os.WriteFile(filepath.Join(ClusterDir(n.config.DataDir), removedMark), []byte(n.strangerError().Error()+"\n"), 0o600)
}

// isStranger reports whether the node is known to be no member any more.
func (n *Node) isStranger() bool {
	_, member := n.members.View().Member(n.config.Name)
	_, err := os.Stat(filepath.Join(ClusterDir(n.config.DataDir), removedMark))
	return !member || err == nil
}

// tellAddresses tells the others where this node is reached: by gossip at once,
// and in the view as soon as there is a leader.
func (n *Node) tellAddresses() error {
	now, err := n.config.advertised(n.Addrs())
	if err == nil {
		n.members.SetAdvertised(now)
	}
	return err
}

// finishJoining makes a joining node active once it holds all that the others
// held when it first knew what they hold (its cut), and what it holds is the
// same as theirs. What comes in later is live mail, of which it gets its part
// like everybody.
func (n *Node) finishJoining(ctx context.Context, view ring.View) error {
	peers := n.known()
	for _, m := range view.Members {
		if !n.members.Alive(m.Name) {
			delete(peers, m.Name)
		} else if _, known := peers[m.Name]; !known && m.Role == ring.Data && m.Name != n.config.Name {
			return fmt.Errorf("%s has not said yet what it holds", m.Name)
		}
	}
	if n.cut == nil {
		n.cut = owed(view, n.config.Name, peers)
	}
	there := owed(view, n.config.Name, peers) // less than the cut when somebody died meanwhile
	var left uint64
	for _, l := range n.cut {
		mine, _ := n.archive.Log(l.Store)
		left += l.Held.Intersect(heldBy(there, l.Store)).Minus(mine.Held).Count()
	}
	if left > 0 {
		return fmt.Errorf("%s still to come", receipts(left))
	}
	// A difference is logged and shown, and is no reason to stay out: it is as
	// old as the mail.
	if err := n.compareAndNote(ctx, view, n.logDifference); err != nil {
		return err
	}
	epoch, err := n.members.SetState(ctx, n.config.Name, ring.Active)
	if err == nil {
		n.log.Info("joined: this node holds all that it should, compared with its peers", slog.Uint64("epoch", uint64(epoch)))
	}
	return err
}

// noteLeaving keeps since when the node is drained. A cancelled drain that begins
// again gives the clients their time again.
func (n *Node) noteLeaving(drained bool) {
	now := time.Now()
	switch {
	case !drained:
		n.leaving.Store(nil)
		n.sluice.open()
		n.handed = false
	case n.leaving.CompareAndSwap(nil, &now):
		n.log.Info("draining: new mail is taken for a while longer, so that balancers can lead clients elsewhere", slog.Duration("leave_grace", n.graceLeft()))
	}
}

// resumeLeaving is for a node that starts while it is drained: its clients are
// elsewhere by now, and it may have been taken out before it died, without having
// heard of it. So it takes no mail.
func (n *Node) resumeLeaving() {
	if me, ok := n.members.View().Member(n.config.Name); ok && me.State == ring.Draining {
		over := time.Now().Add(-time.Duration(n.config.Limits.LeaveGrace))
		n.leaving.Store(&over)
	}
}

// graceLeft is how long a node that is drained still takes mail; below 0 for how
// long it has taken none.
func (n *Node) graceLeft() time.Duration {
	grace := time.Duration(n.config.Limits.LeaveGrace)
	if began := n.leaving.Load(); began != nil {
		grace -= time.Since(*began)
	}
	return grace
}

// finishDraining takes the node out once its clients had time to go elsewhere
// and the others hold all that it holds. Mail that is still coming in then has as
// long as when a node stops; what comes to its end later is not acknowledged, or
// a client that is slow on purpose could hold the node for days.
func (n *Node) finishDraining(ctx context.Context, view ring.View) error {
	if left := n.graceLeft(); left > 0 {
		return fmt.Errorf("clients have %v more to go elsewhere", left)
	}
	if err := n.handedOver(view); err != nil {
		return err
	}
	if n.archive.Stats().InFlight > 0 && n.graceLeft() > -time.Duration(n.config.Limits.DrainTimeout) {
		return errors.New("mail is still coming in")
	}
	// From here on nothing is acknowledged that the others might not have: what
	// was is looked at once more.
	if waiting := n.sluice.close(); waiting > 0 {
		return fmt.Errorf("mails that wait for their copies: %d", waiting)
	}
	if err := n.handedOver(view); err != nil {
		return err
	}
	n.handed = true
	if _, err := n.members.RemoveDrained(ctx); err != nil { // refused when the drain was called off meanwhile
		return err
	}
	return n.leave()
}

func (n *Node) leave() error {
	n.log.Info("drained: this node has left the cluster; every mail it held is on the others", slog.String("data_dir", n.config.DataDir))
	return errLeft
}

// handedOver says what this node holds and others that must keep it do not.
func (n *Node) handedOver(view ring.View) error {
	if left := notHanded(view, n.config.Name, n.archive.Logs(), n.known()); left > 0 {
		return fmt.Errorf("%s not yet on all the nodes that must keep them", receipts(left))
	}
	return nil
}

// settle decides before the first mail in which log the node goes on: its
// positions must never be used twice, so unless all others agree that they know
// no more of it than this node does, a new one begins.
func (n *Node) settle(ctx context.Context) error {
	if n.chain.Confirm(ctx) {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	old := n.archive.Store()
	store, err := n.archive.StartLog()
	if err != nil {
		return fmt.Errorf("beginning a new log: %w", err)
	}
	n.log.Info("a new log begins: not every node that keeps the old one could confirm that it knows no more of it than this node",
		slog.String("old", old.String()), slog.String("store", store.String()))
	return nil
}
