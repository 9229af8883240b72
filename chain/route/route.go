package route

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"chainmail/archive/record"
)

// Route sends mail to one server.
type Route struct {
	opts   Options
	source Source
	log    *slog.Logger
	file   string // of the cursor

	jobs  chan *mail    // from the feed to the senders
	poke  chan struct{} // makes the feed look again
	dirty chan struct{} // something is settled that is not noted
	many  chan struct{} // it is enough to note it at once

	saving sync.Mutex // one at a time writes the file

	mu       sync.Mutex
	since    time.Time
	logs     map[record.StoreID]*track
	parked   map[record.Position]*Parked
	waiting  int // of them: those that are not tried again
	deferred deferral
	inFlight map[*mail]bool // given out by the feed
	unnoted  int            // positions settled since the cursor was noted
	trouble  trouble
	counts   counts
	running  bool
}

// track is how far a route is with one log. Only the feed changes held and
// head.
type track struct {
	store   record.StoreID
	settled record.Ranges // sent, parked or older than the route
	claimed record.Ranges // on their way: in flight or deferred
	held    record.Ranges // by the node, as the source said last
	head    *record.Receipt
}

// first is the next receipt to begin with; 0 when there is none.
func (t *track) first() record.Seq {
	return t.held.Minus(t.settled).Minus(t.claimed).First()
}

func (t *track) claim(s record.Seq) { t.claimed = t.claimed.Add(s) }

func (t *track) settle(s record.Seq) {
	t.settled = t.settled.Add(s)
	t.claimed = t.claimed.Minus(record.Of(s, s))
}

// New checks the options and reads the route's cursor. A route that has none
// gets one, which says from which mail on it sends; nothing else is begun.
func New(o Options) (*Route, error) {
	if err := o.settle(); err != nil {
		return nil, fmt.Errorf("route %q: %w", o.Name, err)
	}
	r := &Route{
		opts: o, source: o.Source, file: filepath.Join(o.Dir, o.Name+".json"),
		log:  o.Logger.With(slog.String("route", o.Name), slog.String("target", o.Target)),
		jobs: make(chan *mail), poke: make(chan struct{}, 1), dirty: make(chan struct{}, 1), many: make(chan struct{}, 1),
		logs: map[record.StoreID]*track{}, parked: map[record.Position]*Parked{}, inFlight: map[*mail]bool{},
	}
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("route %q: its cursor: %w", o.Name, err)
	}
	if o.Registerer != nil {
		if err := o.Registerer.Register(newCollector(r)); err != nil {
			return nil, fmt.Errorf("route %q: register metrics: %w", o.Name, err)
		}
	}
	return r, nil
}

// open reads the cursor, or makes one.
func (r *Route) open() error {
	if err := os.MkdirAll(r.opts.Dir, 0o700); err != nil {
		return err
	}
	c, found, err := loadCursor(r.file)
	if err != nil {
		return err
	}
	if !found {
		c = newCursor(r.opts.From, r.source.Logs(), time.Now())
		if err := c.save(r.file); err != nil {
			return err
		}
	}
	r.since = c.Since
	for _, l := range c.Logs {
		r.track(l.Store).settled = l.Settled
	}
	for _, entry := range c.Parked {
		r.parked[entry.Position] = &entry
		r.track(entry.Position.Store).settle(entry.Position.Seq)
		if entry.Retrying {
			r.resume(&entry)
		} else {
			r.waiting++
		}
	}
	return nil
}

func (r *Route) track(s record.StoreID) *track {
	t := r.logs[s]
	if t == nil {
		t = &track{store: s}
		r.logs[s] = t
	}
	return t
}

// Run sends until ctx ends; it can be called once. Mail on its way then has
// some seconds to get its reply; what gets none is sent again another time. The
// error is one of noting the cursor at the end.
func (r *Route) Run(ctx context.Context) error {
	r.setRunning(true)
	defer r.setRunning(false)
	lasting := context.WithoutCancel(ctx)
	sending, cut := context.WithCancel(lasting)
	keeping, stop := context.WithCancel(lasting)
	over := make(chan struct{})
	var senders, others sync.WaitGroup
	others.Go(func() { r.keepCursor(keeping) })
	others.Go(func() {
		defer cut()
		<-ctx.Done()
		select {
		case <-time.After(graceTime):
		case <-over:
		}
	})
	for range r.opts.Concurrency {
		senders.Go(func() { r.sender(ctx, sending) })
	}
	r.feed(ctx)
	senders.Wait()
	close(over)
	stop()
	others.Wait()
	if err := r.note(); err != nil {
		return fmt.Errorf("route %q: its cursor: %w: some mail will be sent twice", r.opts.Name, err)
	}
	return nil
}

const (
	graceTime    = 5 * time.Second // for mail on its way when the route stops
	noteInterval = time.Second
	noteMails    = 100
)

func (r *Route) setRunning(running bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = running
}

// wake makes the feed look again.
func (r *Route) wake() { signal(r.poke) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it has not been seen yet
	}
}

// keepCursor notes what is settled, soon after.
func (r *Route) keepCursor(ctx context.Context) {
	failing := false
	for {
		select {
		case <-r.dirty:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(noteInterval):
		case <-r.many:
		case <-ctx.Done():
			return
		}
		if failing { // not after every mail
			select {
			case <-time.After(noteInterval):
			case <-ctx.Done():
				return
			}
		}
		err := r.note()
		if err != nil && !failing {
			r.log.Error("cannot note what was sent: after a crash it would be sent again", slog.Any("err", err))
		}
		if failing = err != nil; failing {
			signal(r.dirty)
		}
	}
}

// note writes the cursor.
func (r *Route) note() error {
	r.saving.Lock()
	defer r.saving.Unlock()
	c, n := r.snapshot()
	if n == 0 {
		return nil
	}
	err := c.save(r.file)
	if err != nil {
		r.mu.Lock()
		r.unnoted += n
		r.mu.Unlock()
	}
	return err
}

// snapshot is the cursor of now, and how many changes it has to note.
func (r *Route) snapshot() (c cursor, changes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c = cursor{Version: cursorVersion, Since: r.since}
	for _, t := range r.logs {
		if len(t.settled) > 0 {
			c.Logs = append(c.Logs, logCursor{t.store, t.settled})
		}
	}
	slices.SortFunc(c.Logs, func(a, b logCursor) int { return cmp.Compare(a.Store, b.Store) })
	for _, entry := range r.parked {
		c.Parked = append(c.Parked, *entry)
	}
	changes, r.unnoted = r.unnoted, 0
	return c, changes
}

// changed tells that there is something to note. The caller holds the mutex.
func (r *Route) changed() {
	r.unnoted++
	signal(r.dirty)
}
