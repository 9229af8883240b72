package netsim

import (
	"sync"
	"time"
)

// waiter is where goroutines wait for a change or for a moment, whichever
// comes first.
type waiter struct {
	cond  *sync.Cond
	timer *time.Timer
	at    time.Time // of the timer
}

func newWaiter(mu *sync.Mutex) *waiter { return &waiter{cond: sync.NewCond(mu)} }

// until waits for wake or for a time, zero for none. The caller holds the lock
// and looks again at what it waits for. All who wait at the same waiter wait
// for the same time.
func (w *waiter) until(t time.Time) {
	if !t.IsZero() && !t.Equal(w.at) {
		w.at = t
		if w.timer == nil {
			w.timer = time.AfterFunc(time.Until(t), w.ring)
		} else {
			w.timer.Reset(time.Until(t))
		}
	}
	w.cond.Wait()
}

func (w *waiter) ring() {
	w.cond.L.Lock()
	defer w.cond.L.Unlock()
	w.cond.Broadcast()
}

// wake lets all who wait look again. The caller holds the lock.
func (w *waiter) wake() { w.cond.Broadcast() }

// stop ends the timer: nobody will wait for it any more.
func (w *waiter) stop() {
	w.cond.Broadcast()
	if w.timer != nil {
		w.timer.Stop()
	}
}
