package archive

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// spaceGuard refuses mail before the disk is so full that the database would
// die of it. It asks the file system at most once in maxAge.
type spaceGuard struct {
	dir     string
	minFree int64
	ask     func(dir string) (int64, error)

	mu    sync.Mutex
	asked time.Time
	free  int64
	err   error
	full  bool
}

const (
	// At 1 GB/s a disk takes 10 MB meanwhile, and statfs a microsecond.
	spaceMaxAge = 10 * time.Millisecond
	// safeMinFree is what the database may take after mail is refused: logs
	// and memtables that are on their way to the disk, and a compaction.
	safeMinFree = 512 << 20
	// startMargin is what a start takes beside the logs it writes out.
	startMargin = 64 << 20
)

// check gives the free bytes, and an ErrDiskFull that tells what to do when
// they are below the limit. Once full, it wants a twentieth more than the limit
// before mail is taken again, so that the answer does not flutter.
func (g *spaceGuard) check() (int64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); g.asked.IsZero() || now.Sub(g.asked) >= spaceMaxAge || now.Before(g.asked) {
		g.asked = now
		g.free, g.err = g.ask(g.dir)
		limit := g.minFree
		if g.full {
			limit += g.minFree / 20
		}
		g.full = g.err == nil && g.free < limit
	}
	switch {
	case g.err != nil:
		return 0, fmt.Errorf("%w: free space of %s is unknown: %w", ErrDiskFull, g.dir, g.err)
	case g.full:
		return g.free, fmt.Errorf("%w: %s has %d MiB free, the limit is %d MiB: free some space or move the data directory to a larger disk",
			ErrDiskFull, g.dir, g.free>>20, g.minFree>>20)
	}
	return g.free, nil
}

// roomToStart refuses a start that would fail for lack of space: it would leave
// files behind, and a supervisor that starts again and again would eat up
// whatever the operator frees.
func roomToStart(o *Options, fs vfs.FS) error {
	need := int64(startMargin)
	names, _ := fs.List(o.Dir) // there may be no directory yet
	for _, name := range names {
		if info, err := fs.Stat(fs.PathJoin(o.Dir, name)); err == nil && strings.HasSuffix(name, ".log") {
			need += info.Size()
		}
	}
	if len(names) == 0 {
		return nil
	}
	free, err := o.FreeSpace(o.Dir)
	if err != nil {
		return fmt.Errorf("archive %s: free space is unknown: %w", o.Dir, err)
	}
	if free < need {
		return fmt.Errorf("archive %s: %w: a start writes out what came in last and needs %d MiB, it has %d MiB: free some space, then start the node again; nothing was changed",
			o.Dir, ErrDiskFull, need>>20+1, free>>20)
	}
	return nil
}

// freeSpace is what the file system of dir leaves to a program without
// privileges, in bytes.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}
