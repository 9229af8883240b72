package route

import (
	"container/heap"
	"math/rand/v2"
	"time"

	"chainmail/archive/record"
)

// mail is a receipt on its way. It belongs to whoever has it: the feed, a
// sender, or the deferred ones.
type mail struct {
	at      record.Position
	receipt *record.Receipt // nil until it was read
	to      []string        // who still lacks it; nil: all, none has got it yet
	refused []refused       // who will not get it

	again      bool // it was parked
	earlier    int  // attempts before it was parked
	attempts   int
	delay      int  // attempts that count for the next delay
	partly     bool // some recipients have got it
	due        time.Time
	reason     string
	unreadable bool // the reason is this node's
}

// deferral is the mails that wait for another attempt, the earliest due first.
type deferral struct {
	mails      mailHeap
	unreadable int // of them
}

func (d *deferral) push(m *mail) {
	if m.unreadable {
		d.unreadable++
	}
	heap.Push(&d.mails, m)
}

// pop gives the first mail when its time has come, else nil.
func (d *deferral) pop(now time.Time) *mail {
	if len(d.mails) == 0 || d.mails[0].due.After(now) {
		return nil
	}
	m := heap.Pop(&d.mails).(*mail)
	if m.unreadable {
		d.unreadable--
		m.unreadable = false
	}
	return m
}

// full reports whether no further mail should be begun.
func (d *deferral) full() bool {
	return len(d.mails)-d.unreadable >= maxDeferred || d.unreadable >= maxUnreadable
}

type mailHeap []*mail

func (h mailHeap) Len() int { return len(h) }
func (h mailHeap) Less(i, j int) bool {
	if !h[i].due.Equal(h[j].due) {
		return h[i].due.Before(h[j].due)
	}
	return h[i].at.Compare(h[j].at) < 0
}
func (h mailHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *mailHeap) Push(x any)   { *h = append(*h, x.(*mail)) }
func (h *mailHeap) Pop() any {
	old := *h
	m := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return m
}

const (
	minDelay = time.Second
	maxDelay = 5 * time.Minute
)

// backoff is how long to wait after the n-th failure in a row, n from 1: twice
// as long each time, and up to a quarter less, so that what failed together
// does not come back together.
func backoff(n int) time.Duration {
	delay := maxDelay
	if n < 10 {
		delay = min(maxDelay, minDelay<<(n-1))
	}
	return delay - time.Duration(rand.Int64N(int64(delay)/4))
}
