package archive

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// What one draft may hold: a small message its bytes, their compressed form
// and the batch; a large one a chunk, its compressed form and a batch that is
// written out when it reaches spillSize.
const (
	smallBuffer = 64 << 10
	smallCost   = 2 * smallBuffer
	largeCost   = 2*chunkSize + spillSize
	spillSize   = 256 << 10
)

// memory bounds what all drafts together hold. A draft begins small and turns
// large when its message outgrows smallBuffer. The two kinds draw on separate
// shares: a draft that waits to become large holds nothing that a large one
// needs, so large ones always finish and those who wait always move on.
type memory struct {
	small, large *semaphore.Weighted
	limit        int64
	wait         time.Duration
	used         atomic.Int64
}

// minMemory lets one message of each kind through at a time.
const minMemory = 4 * largeCost

func newMemory(limit int64, wait time.Duration) *memory {
	return &memory{
		small: semaphore.NewWeighted(limit / 4),
		large: semaphore.NewWeighted(limit - limit/4),
		limit: limit,
		wait:  wait,
	}
}

// take waits for n bytes of share; ErrBusy when there are none in time.
func (m *memory) take(ctx context.Context, share *semaphore.Weighted, n int64) error {
	if !share.TryAcquire(n) {
		waiting, cancel := context.WithTimeout(ctx, m.wait)
		defer cancel()
		if share.Acquire(waiting, n) != nil {
			if err := ctx.Err(); err != nil {
				return err
			}
			return ErrBusy
		}
	}
	m.used.Add(n)
	return nil
}

func (m *memory) give(share *semaphore.Weighted, n int64) {
	m.used.Add(-n)
	share.Release(n)
}

// buffers lends byte slices of one capacity.
type buffers struct{ pool sync.Pool }

func newBuffers(size int) *buffers {
	return &buffers{sync.Pool{New: func() any { b := make([]byte, 0, size); return &b }}}
}

func (b *buffers) get() *[]byte { return b.pool.Get().(*[]byte) }

func (b *buffers) put(p *[]byte) {
	*p = (*p)[:0]
	b.pool.Put(p)
}
