package load

import (
	"context"
	"encoding/hex"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Run sends mail until Count mails were begun, Duration is over or ctx ends,
// and reports what became of them. It fails at once when the target cannot be
// reached, and later when it cannot be reached again within Patience or when
// Acked cannot be written; the report is right in any case. When ctx ends,
// connections are cut and the error is that of ctx.
func Run(ctx context.Context, opt Options) (Report, error) {
	opt, err := opt.withDefaults()
	if err != nil {
		return Report{}, err
	}
	text() // made before the clock starts
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	first, err := dial(ctx, &opt)
	if err != nil {
		return Report{Seed: opt.Seed}, fmt.Errorf("no session with %s: %w; is a server running, and is this its address?", opt.Target, err)
	}
	r := &run{opt: &opt, begun: time.Now()}
	sessions := make([]*session, opt.Sessions)
	var work sync.WaitGroup
	for i := range sessions {
		s := &session{run: r}
		sessions[i] = s
		if i == 0 {
			s.conn = first
		}
		work.Go(func() {
			if err := s.loop(ctx); err != nil {
				cancel(err)
			}
		})
	}
	stopProgress := r.startProgress()
	work.Wait()
	r.noteGap()
	stopProgress()

	report := r.report(sessions)
	if ctx.Err() != nil {
		return report, context.Cause(ctx)
	}
	return report, nil
}

// run is what the sessions of one Run share.
type run struct {
	opt   *Options
	begun time.Time

	claimed atomic.Int64 // mails given to sessions
	acked   atomic.Int64
	bytes   atomic.Int64
	last    atomic.Int64 // when a mail was acknowledged last, in nanoseconds after begun
	longest atomic.Int64 // nanoseconds between one acknowledged mail and the next

	mu sync.Mutex // over writes to opt.Acked
}

// claim makes m the next mail of the run; false means that there is none.
func (r *run) claim(m *mail) bool {
	if r.over() {
		return false
	}
	n := r.claimed.Add(1) - 1
	if r.opt.Count > 0 && n >= r.opt.Count {
		r.claimed.Add(-1)
		return false
	}
	m.compose(r.opt.Seed, n, r.opt.Size)
	return true
}

func (r *run) over() bool {
	return r.opt.Duration > 0 && time.Since(r.begun) >= r.opt.Duration
}

// due is when mail n may leave at the rate that was asked for.
func (r *run) due(n int64) time.Time {
	return r.begun.Add(time.Duration(float64(n) / r.opt.Rate * float64(time.Second)))
}

// end is when mail was due last: after Duration, what a session still waits for
// is its own affair.
func (r *run) end() time.Duration {
	end := time.Since(r.begun)
	if r.opt.Duration > 0 {
		end = min(end, r.opt.Duration)
	}
	return end
}

// noteGap ends a time without an acknowledged mail.
func (r *run) noteGap() {
	now := r.end().Nanoseconds()
	gap := now - r.last.Swap(now)
	for longest := r.longest.Load(); gap > longest && !r.longest.CompareAndSwap(longest, gap); longest = r.longest.Load() {
	}
}

// acknowledge records that m was taken.
func (r *run) acknowledge(m *mail, s *session) error {
	r.noteGap()
	r.acked.Add(1)
	r.bytes.Add(int64(m.Size()))
	if r.opt.Acked == nil {
		return nil
	}
	s.hash.Reset()
	s.parts = m.appendText(s.parts[:0], plain)
	for _, part := range s.parts {
		s.hash.Write(part)
	}
	s.line = hex.AppendEncode(s.line[:0], s.hash.Sum(s.sum[:0]))
	s.line = append(s.line, '\n')

	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.opt.Acked.Write(s.line); err != nil {
		return fmt.Errorf("cannot record an acknowledged mail: %w", err)
	}
	return nil
}

// startProgress calls opt.Progress now and then until the function that it
// returns is called.
func (r *run) startProgress() (stop func()) {
	if r.opt.Progress == nil {
		return func() {}
	}
	tell := func() { r.opt.Progress(Progress{r.acked.Load(), r.bytes.Load(), time.Since(r.begun)}) }
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				tell()
			case <-done:
				tell()
				return
			}
		}
	})
	return func() { close(done); wg.Wait() }
}
