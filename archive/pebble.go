package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const tableSize = 64 << 20

// pebbleOptions are chosen for a log that only grows.
func (a *Archive) pebbleOptions() *pebble.Options {
	memTable := cmp.Or(a.opts.memTable, 32<<20)
	o := &pebble.Options{
		FS:                 vfs.Default,
		ReadOnly:           a.readOnly,
		ErrorIfNotExists:   a.readOnly,
		FormatMajorVersion: pebble.FormatValueSeparation,
		Logger:             pebbleLog{a},
		EventListener:      a.events(),

		// A flush writes each body once, and it is not written again; so
		// memtables need not be large, and together they are most of a busy
		// node's memory.
		MemTableSize:                memTable,
		MemTableStopWritesThreshold: 4,
		// The database takes the memtables' memory out of the block cache: one that
		// is no larger than they are caches nothing, and every lookup reads indexes
		// and filters from disk. There are mostly two, and up to four only while
		// writers wait for the disk. More cache than this stays with the process
		// for ever, as 100 MB more of a node that once sent its mail to a peer.
		CacheSize:                  int64(2*memTable + 32<<20),
		L0CompactionThreshold:      4,
		L0StopWritesThreshold:      24,
		LBaseMaxBytes:              256 << 20,
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
	}
	if a.opts.Disk != nil {
		o.FS = a.opts.Disk.fs()
	}
	o.FS = loudFS{o.FS, a.fatal}
	// A flush makes one table and one blob file, not dozens of a few megabytes:
	// each costs syncs that mail waits behind.
	o.FlushSplitBytes = 2 * tableSize
	for i := range o.TargetFileSizes {
		o.TargetFileSizes[i] = tableSize
	}
	for i := range o.Levels {
		// Bodies are compressed already. The filter answers most questions
		// "is this message here?" without reading a table. Get does not ask those
		// of the last level, and must not be made to (UseL6Filters): one is a
		// megabyte, so when they outgrow the cache, at some 20 million messages, a
		// lookup takes 100 µs instead of 5; until then it is 2 µs faster.
		o.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].BlockSize = 16 << 10
	}
	// Values of a kilobyte and more leave the tree when they are flushed: a
	// compaction of the small keys beside them does not rewrite them.
	o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
		return pebble.ValueSeparationPolicy{
			Enabled:               true,
			MinimumSize:           1 << 10,
			MaxBlobReferenceDepth: 10,
			RewriteMinimumAge:     time.Hour,
			TargetGarbageRatio:    0.3,
		}
	}
	return o
}

// events turns what pebble tells into log lines and the end of the process.
func (a *Archive) events() *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			a.log.Error("a background task of the database failed", "dir", a.opts.Dir, "err", err)
		},
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			a.metrics.corruptions.Inc()
			a.log.Error("the database found damaged data", "dir", a.opts.Dir, "path", i.Path, "err", i.Details)
		},
		DiskSlow: func(i pebble.DiskSlowInfo) {
			a.log.Warn("the disk is slow", "path", i.Path, "op", i.OpType.String(), "duration", i.Duration)
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
			a.metrics.stalls.Inc()
			a.log.Debug("mail waits for the database to write out what it holds", "reason", i.Reason)
		},
	}
}

// pebbleLog is pebble's logger: its errors are ours, its chatter is for
// debugging, and its fatal is the end.
type pebbleLog struct{ a *Archive }

func (l pebbleLog) Infof(format string, args ...any) {
	if l.a.log.Enabled(context.Background(), slog.LevelDebug) {
		l.a.log.Debug("database", "text", fmt.Sprintf(format, args...))
	}
}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.a.log.Error("database", "err", fmt.Sprintf(format, args...))
}

func (l pebbleLog) Fatalf(format string, args ...any) {
	l.a.fatal(fmt.Errorf(format, args...))
}

// isLocked reports whether somebody has the database open.
func isLocked(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || strings.Contains(err.Error(), "lock held by current process")
}
