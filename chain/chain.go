package chain

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"chainmail/archive/record"
	"chainmail/membership/ring"
)

// Chain is one node's part in the replication of mail. Its methods may be
// called from any goroutine.
type Chain struct {
	opts    Options
	log     *slog.Logger
	boot    string // names this life of the process
	metrics *metrics
	wake    chan struct{}

	// A look at the holdings and the number it gets are one step: see belief.
	looking    sync.Mutex
	generation uint64

	// What is known; the methods that need mu held are in knowledge.go and say
	// so by their names.
	mu        sync.Mutex
	view      ring.View
	own       record.StoreID // the log that is written
	logs      map[record.StoreID]*ownLog
	peers     map[string]*peer
	heard     map[record.StoreID]record.Seq // the highest number of a log that anybody has spoken of
	before    map[record.StoreID]record.Seq // the same, by peers' first words in this life of theirs
	waiters   map[record.StoreID][]*waiter  // in the order of their positions
	weighed   map[peerLog]weighed
	shortEver uint64
	news      chan struct{} // closed at the next news of a peer

	life    context.Context // ends when Run is told to end
	endLife context.CancelFunc
	ended   bool
	serves  map[string]int // connections of each peer
	serving sync.WaitGroup
}

// ownLog is what this node knows of a log, with what follows from the view.
type ownLog struct {
	record.Log
	duties []duty
	marks  []record.Seq // its end at each of the last seconds, the oldest first
}

// settling is how long a receipt may be on its way without being called late.
const settling = 3 // seconds

// endSettledLocked is the end of a log some seconds ago, or where it is later,
// the end of which peers told when they first spoke: what was there then is no
// news, however short this node has been running.
func (c *Chain) endSettledLocked(s record.StoreID) record.Seq {
	end := c.before[s]
	if l := c.logs[s]; l != nil && len(l.marks) > 0 {
		end = max(end, l.marks[0])
	}
	return end
}

// New checks the options and starts nothing.
func New(o Options) (*Chain, error) {
	if err := o.settle(); err != nil {
		return nil, err
	}
	var boot [8]byte
	_, _ = rand.Read(boot[:]) // never fails
	c := &Chain{
		opts:    o,
		log:     o.Logger,
		boot:    hex.EncodeToString(boot[:]),
		wake:    make(chan struct{}, 1),
		weighed: map[peerLog]weighed{},
		serves:  map[string]int{},
		logs:    map[record.StoreID]*ownLog{},
		peers:   map[string]*peer{},
		heard:   map[record.StoreID]record.Seq{},
		before:  map[record.StoreID]record.Seq{},
		waiters: map[record.StoreID][]*waiter{},
		news:    make(chan struct{}),
	}
	c.life, c.endLife = context.WithCancel(context.Background())
	c.metrics = newMetrics(c)
	if err := c.metrics.register(o.Registerer); err != nil {
		return nil, err
	}
	c.readView()
	c.readLogs()
	return c, nil
}

// Run keeps links to all other members until ctx ends; then it says goodbye to
// them, within a second, and ends the connections of Serve. A Chain runs once.
func (c *Chain) Run(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, c.endLife)()
	work.Go(func() error { return c.followArchive(ctx) })
	work.Go(func() error { return c.followView(ctx) })
	work.Go(func() error { return c.tick(ctx) })
	work.Go(func() error { return c.weighBacklogs(ctx) })
	err := work.Wait()

	c.endLife() // also where an error ended the others

	c.mu.Lock()
	c.ended = true
	c.resolveAllLocked()
	c.mu.Unlock()
	c.serving.Wait()
	c.metrics.unregister(c.opts.Registerer)
	return err
}

// Wake says that the view or what Options.Alive tells may have changed.
func (c *Chain) Wake() { ringBell(c.wake) }

// ringBell rings a bell: a channel with room for one, so that who rings never
// waits and who is busy misses nothing.
func ringBell(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// followArchive reads what this node holds as often as it changes.
func (c *Chain) followArchive(ctx context.Context) error {
	for {
		changed := c.opts.Archive.Changed() // before the look, so that none is missed
		c.readLogs()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// followView reads the view when woken, and starts and ends the links to
// members as they come and go.
func (c *Chain) followView(ctx context.Context) error {
	var links sync.WaitGroup
	defer links.Wait()
	cancels := map[*peer]context.CancelFunc{}
	defer func() {
		for _, cancel := range cancels {
			cancel()
		}
	}()
	for {
		c.readView()
		c.place()
		now := c.others()
		for p, cancel := range cancels {
			if !now[p] {
				cancel()
				delete(cancels, p)
			}
		}
		for p := range now {
			if cancels[p] == nil {
				var linkCtx context.Context
				linkCtx, cancels[p] = context.WithCancel(ctx)
				links.Go(func() { c.keepLink(linkCtx, p) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
	}
}

// place tells the archive who keeps new receipts. It is tried again a little
// later when it fails, because a log placed on too few is one not replicated.
func (c *Chain) place() {
	c.mu.Lock()
	keepers := c.view.Keepers(c.opts.Name, nil)
	c.mu.Unlock()
	if len(keepers) == 0 {
		return
	}
	if err := c.opts.Archive.Place(keepers); err != nil {
		c.log.Error("cannot note who keeps new mail", slog.Any("nodes", keepers), slog.Any("err", err))
		time.AfterFunc(standby, c.Wake)
	}
}

// tick does every second what depends on the time.
func (c *Chain) tick(ctx context.Context) error {
	for t := time.NewTicker(time.Second); ; {
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case now := <-t.C:
			c.mu.Lock()
			c.passLocked(now)
			c.mu.Unlock()
		}
	}
}

// look reads something of the holdings and gives the look its number.
func (c *Chain) look(read func()) (generation uint64) {
	c.looking.Lock()
	defer c.looking.Unlock()
	c.generation++
	read()
	return c.generation
}
