package archive

import (
	"fmt"
	"sync"
	"time"

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

const spaceMaxAge = 500 * time.Millisecond

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

// freeSpace is what the file system of dir leaves to a program without
// privileges, in bytes.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}
