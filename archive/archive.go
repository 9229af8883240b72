package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"chainmail/archive/record"
)

// Options say where an archive lives and how much it may take. The zero value
// of a field but Dir means its default.
type Options struct {
	Dir        string
	Origin     string // name of the node; a log that is started keeps it
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are counted but not shown

	MemoryInFlight int64         // bytes that incoming mail may hold in memory: 128 MiB
	MemoryWait     time.Duration // how long mail waits for such memory before ErrBusy: 30 s
	MinFree        int64         // bytes of free disk below which mail is refused: 1 GiB
	ScrubPeriod    time.Duration // in which every body is read once: 7 days; negative: never

	// FreeSpace tells the free bytes of a directory: by default statfs.
	FreeSpace func(dir string) (int64, error)
	// OnFatal is told of a failed write or sync, after which nothing more may
	// be acknowledged. It must end the process and not return; by default it
	// logs and exits with status 70.
	OnFatal func(error)
	// Disk replaces the real file system in tests.
	Disk *Disk

	memTable uint64 // bytes; tests make it small to see flushes and compactions
}

func (o *Options) defaults() error {
	if o.Dir == "" {
		return errors.New("archive: no directory given")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.MemoryInFlight = cmp.Or(o.MemoryInFlight, 128<<20)
	o.MemoryWait = cmp.Or(o.MemoryWait, 30*time.Second)
	o.MinFree = cmp.Or(o.MinFree, 1<<30)
	o.ScrubPeriod = cmp.Or(o.ScrubPeriod, 7*24*time.Hour)
	if o.MemoryInFlight < minMemory {
		return fmt.Errorf("archive: memory for incoming mail is %d bytes: give at least %d", o.MemoryInFlight, minMemory)
	}
	if o.FreeSpace == nil {
		o.FreeSpace = freeSpace
		if o.Disk != nil {
			o.FreeSpace = func(string) (int64, error) { return 1 << 40, nil }
		}
	}
	if o.OnFatal == nil {
		o.OnFatal = func(err error) {
			o.Logger.Error("the archive cannot write and ends the process; nothing unwritten was acknowledged", "dir", o.Dir, "err", err)
			os.Exit(70)
		}
	}
	return nil
}

// Archive is the mail of one data directory. Its methods may be called from
// any goroutine.
type Archive struct {
	opts     Options
	readOnly bool
	log      *slog.Logger
	fs       vfs.FS
	db       *pebble.DB
	space    spaceGuard
	memory   *memory
	metrics  *metrics

	smallBuffers, chunkBuffers, packBuffers *buffers
	compressors                             sync.Pool
	committing                              atomic.Int64
	stripes                                 [256]stripe // by first byte of the hash: one committer of a message at a time

	own      atomic.Pointer[ownLog]
	starting sync.Mutex // one StartLog at a time
	mu       sync.Mutex // orders the logs: held from taking a sequence number to entering the write-ahead log
	states   map[record.StoreID]logState
	knowing  sync.Mutex // held while known is replaced; taken after mu
	known    atomic.Pointer[knownLogs]
	changed  signal
	incoming incoming
	refused  quarantine

	life   sync.RWMutex // read-held while the database is used; taken by Close
	closed bool
	failed atomic.Bool

	tide    tidemark
	scrub   scrubber
	storing sync.Mutex // one writer of the store file at a time
}

// Run does the archive's own work until ctx ends: it notes the progress of the
// log and scrubs.
func (a *Archive) Run(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return a.keepTidemark(ctx) })
	if a.opts.ScrubPeriod > 0 {
		work.Go(func() error { return a.scrub.run(ctx, a) })
	}
	return work.Wait()
}

// Close waits for calls in progress, writes out what is only in the database's
// log, and closes. Run must have returned and drafts must be committed or
// discarded before.
func (a *Archive) Close() error {
	a.life.Lock()
	defer a.life.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	a.metrics.unregister(a.opts.Registerer)
	if !a.readOnly && !a.failed.Load() {
		a.noteTide()
		if err := a.writeStoreFile(); err != nil {
			a.log.Warn("the copy of what is known of the logs could not be written", "err", err)
		}
		if err := a.db.Flush(); err != nil {
			a.log.Warn("what is in the database's log could not be written out; the next start will do it", "err", err)
		}
	}
	return errors.Join(a.tide.close(), a.db.Close())
}

// use keeps the database open until the returned function is called.
func (a *Archive) use() (done func(), err error) {
	a.life.RLock()
	if a.closed || a.failed.Load() {
		a.life.RUnlock()
		return nil, ErrClosed
	}
	return a.life.RUnlock, nil
}

var errReadOnly = errors.New("archive: it is open for reading only")

func (a *Archive) useToWrite() (done func(), err error) {
	if a.readOnly {
		return nil, errReadOnly
	}
	return a.use()
}

// fatal is the end: a write did not reach the disk. It does not return while
// the process lives, so that nobody above can mistake it for an answer.
func (a *Archive) fatal(err error) {
	if !a.failed.Swap(true) { // the first reason is the one to tell
		a.opts.OnFatal(err)
	}
	select {}
}

// Store is the identity under which this archive accepts mail.
func (a *Archive) Store() record.StoreID { return a.own.Load().store }

// Accepting is nil while mail is taken, else an ErrDiskFull or ErrClosed that
// says what to do. Ask before taking a body.
func (a *Archive) Accepting() error {
	done, err := a.use()
	if err != nil {
		return err
	}
	defer done()
	_, err = a.space.check()
	return err
}

// Stats are the archive's figures. Sizes are bytes.
type Stats struct {
	Store       record.StoreID
	Receipts    uint64
	Messages    uint64
	RawBytes    int64 // of all messages as they were received, each once
	StoredBytes int64 // of the files on disk
	Free        int64
	MinFree     int64
	Committing  int64 // messages that are complete and wait for the disk
	InFlight    int64
	MemoryLimit int64
	Quarantined uint64 // receipts whose position has two contents
	Scrub       ScrubState
}

// Stats gives the figures of this moment.
func (a *Archive) Stats() Stats {
	s := Stats{
		Store: a.Store(), MinFree: a.opts.MinFree, Committing: a.committing.Load(),
		InFlight: a.memory.used.Load(), MemoryLimit: a.memory.limit,
		Quarantined: a.refused.count(),
	}
	s.Free, _ = a.space.check()
	for _, state := range a.snapshot() {
		s.Receipts += uint64(state.mark) + state.above.Count()
		s.Messages += state.messages
		s.RawBytes += int64(state.rawBytes)
	}
	if done, err := a.use(); err == nil {
		s.StoredBytes = int64(a.db.Metrics().DiskSpaceUsage())
		s.Scrub = a.scrub.state()
		done()
	}
	return s
}

// snapshot copies the states of all logs.
func (a *Archive) snapshot() map[record.StoreID]logState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.states)
}

// get reads a value. A damaged value is an error: with value separation Get
// itself may give nothing and no error, and only closing tells.
func (a *Archive) get(key []byte) ([]byte, error) {
	v, closer, err := a.db.Get(key)
	if err != nil {
		return nil, err
	}
	v = slices.Clone(v)
	if err := closer.Close(); err != nil {
		return nil, corrupt("reading key %x: %v", key, err)
	}
	return v, nil
}

// errEnough ends a scan early and without an error.
var errEnough = errors.New("enough")

// scan calls f for every key with the prefix, from the key from on when it is
// given, until f fails. The slices are f's only during the call.
func (a *Archive) scan(prefix, from []byte, f func(k, v []byte) error) error {
	if from == nil {
		from = prefix
	}
	it, err := a.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: after(prefix)})
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var v []byte
		if v, err = it.ValueAndErr(); err == nil {
			err = f(it.Key(), v)
		}
	}
	if err == errEnough {
		err = nil
	}
	return cmp.Or(err, it.Error(), it.Close())
}
