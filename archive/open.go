package archive

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"chainmail/archive/record"
)

// formatVersion is the version of the key space in keys.go.
const formatVersion = 2

// Open opens the archive in o.Dir, which it creates when there is none. It
// removes what a crash left of mail that was never acknowledged. Errors name
// the directory and say what to do.
func Open(o Options) (*Archive, error) {
	return open(o, false)
}

// OpenReadOnly opens the archive of a node that is not running, to read and
// verify it. Nothing is changed.
func OpenReadOnly(dir string, log *slog.Logger) (*Archive, error) {
	return open(Options{Dir: dir, Logger: log}, true)
}

func open(o Options, readOnly bool) (*Archive, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	a := &Archive{
		opts:         o,
		readOnly:     readOnly,
		log:          o.Logger,
		memory:       newMemory(o.MemoryInFlight, o.MemoryWait),
		space:        spaceGuard{dir: o.Dir, minFree: o.MinFree, ask: o.FreeSpace},
		smallBuffers: newBuffers(smallBuffer),
		chunkBuffers: newBuffers(chunkSize),
		packBuffers:  newBuffers(chunkSize + chunkSize/64 + maxChunkHeader),
	}
	a.compressors.New = func() any { return newCompressor() }
	a.metrics = newMetrics(a)
	po := a.pebbleOptions()
	a.fs = po.FS
	if readOnly {
		if found, err := pebble.Peek(o.Dir, po.FS); err != nil || !found.Exists {
			return nil, fmt.Errorf("archive %s: there is no archive: name the data directory of a node", o.Dir)
		}
	} else {
		if err := roomToStart(&o, po.FS); err != nil {
			return nil, err
		}
		if o.MinFree < safeMinFree && o.Disk == nil {
			a.log.Warn("the limit of free space is low: the disk may fill before mail is refused, and that ends the node", "min_free", o.MinFree, "safe", safeMinFree)
		}
	}
	db, err := pebble.Open(o.Dir, po)
	if err != nil {
		return nil, openError(o.Dir, err)
	}
	a.db = db
	if err := a.load(); err != nil {
		return nil, errors.Join(openError(o.Dir, err), a.tide.close(), db.Close())
	}
	if o.Registerer != nil {
		if err := a.metrics.register(o.Registerer); err != nil {
			return nil, errors.Join(err, a.tide.close(), db.Close())
		}
	}
	return a, nil
}

func openError(dir string, err error) error {
	switch {
	case isLocked(err):
		return fmt.Errorf("archive %s: another process is using it: stop that node first, or give this one its own data directory (%w)", dir, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("archive %s: no permission: make the directory belong to the user that runs the node (%w)", dir, err)
	case pebble.IsCorruptionError(err):
		detail, _, _ := strings.Cut(err.Error(), "\n")
		return fmt.Errorf("archive %s: a file of the database is damaged (%s): check the disk, then restore the directory from a backup or rebuild the node; do not delete files", dir, detail)
	}
	return fmt.Errorf("archive %s: cannot open: %w", dir, err)
}

// load reads what must be known before mail comes in.
func (a *Archive) load() error {
	err := a.loadMeta()
	recovered := isDamage(err)
	if recovered {
		err = a.recoverMeta(err)
	}
	if err != nil {
		return err
	}
	if err := a.scrub.load(a); err != nil {
		return err
	}
	if err := a.refused.load(a); err != nil {
		return err
	}
	noted, err := a.tide.open(a.fs, a.opts.Dir, a.readOnly)
	if err != nil {
		return fmt.Errorf("%s: %w", tidemarkName, err)
	}
	if recovered {
		a.recoverMark(noted)
	}
	own := a.own.Load()
	own.durable.Store(uint64(a.states[own.store].mark))
	lost := a.compareTidemark(noted)
	if a.readOnly {
		return nil
	}
	if err := a.removePending(); err != nil {
		return err
	}
	last, err := a.lastBody()
	if err != nil && !isDamage(err) {
		return err
	}
	own.nextBody.Store(last)
	if recovered || lost || err != nil || a.renamed() {
		_, err := a.StartLog()
		return err
	}
	return a.writeStoreFile()
}

// loadMeta reads the identity of the archive and the states of its logs.
func (a *Archive) loadMeta() error {
	format, err := a.get(metaFormat)
	switch {
	case errors.Is(err, pebble.ErrNotFound) && !a.readOnly:
		if err := a.create(); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("format version: %w", err)
	case len(format) != 1 || format[0] != formatVersion:
		return fmt.Errorf("it has format version %x, this program knows %d: use the chainmail that wrote it, or a newer one", format, formatVersion)
	}
	store, err := a.get(metaStore)
	if err != nil || len(store) != 8 {
		return fmt.Errorf("store identity %x is unreadable: %w", store, cmp.Or(err, ErrCorrupt))
	}
	a.own.Store(&ownLog{store: storeAt(store)})
	return a.loadLogs()
}

// renamed reports whether the own log was started by a node of another name.
// It stays that node's, and this one begins its own.
func (a *Archive) renamed() bool {
	l := (*a.known.Load())[a.Store()]
	return a.opts.Origin != "" && l.Origin != a.opts.Origin
}

// create makes a new database the log of a new store.
func (a *Archive) create() error {
	b := a.db.NewBatch()
	defer b.Close()
	id := newStoreID()
	set(b, metaStore, u64(0, uint64(id))[1:])
	set(b, metaFormat, []byte{formatVersion})
	set(b, logKey(id), logState{}.encode())
	set(b, infoKey(id), encodeJSON(logInfo{Origin: a.opts.Origin}))
	return b.Commit(pebble.Sync)
}

func newStoreID() record.StoreID {
	for {
		var id [8]byte
		rand.Read(id[:]) // never fails
		if s := record.StoreID(binary.BigEndian.Uint64(id[:])); s != 0 {
			return s
		}
	}
}

// lastBody finds the largest body number in the own log.
func (a *Archive) lastBody() (uint64, error) {
	prefix := u64(kindBody, uint64(a.Store()))
	it, err := a.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return 0, err
	}
	var last uint64
	if it.Last() {
		last = binary.BigEndian.Uint64(it.Key()[9:])
	}
	return last, it.Close()
}

// removePending removes bodies whose receipt was never committed: the node
// stopped while large mail was coming in.
func (a *Archive) removePending() error {
	b := a.db.NewBatch()
	defer b.Close()
	err := a.scan([]byte{kindPending}, nil, func(k, _ []byte) error {
		store, body := binary.BigEndian.Uint64(k[1:]), binary.BigEndian.Uint64(k[9:])
		start, end := bodyRange(record.StoreID(store), record.BodyNo(body))
		return errors.Join(b.DeleteRange(start, end, nil), b.Delete(k, nil))
	})
	if isDamage(err) {
		a.log.Error("what was coming in when the node stopped cannot be found: it takes space until the database is rebuilt", "dir", a.opts.Dir, "err", err)
		err = nil
	}
	if err != nil || b.Empty() {
		return err
	}
	a.log.Info("removing mail that was coming in when the node stopped; its senders were never told it was taken", "bodies", b.Count()/2)
	return b.Commit(pebble.Sync)
}
