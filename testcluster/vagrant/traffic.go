package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"chainmail/testcluster/load"
)

// burst is how long a session sends before it opens its next connection, as mail
// servers do.
const burst = 3 * time.Second

// ackList notes every acknowledged mail in a file, and the time between one and
// the next.
type ackList struct {
	mu    sync.Mutex
	w     io.Writer
	count int
	last  time.Time // of the last acknowledged mail, or of watch
	gap   time.Duration
	gapAt time.Time // when the longest gap began
}

// Write takes the SHA-256 of one mail.
func (a *ackList) Write(line []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count++
	a.note(time.Now())
	return a.w.Write(line)
}

func (a *ackList) note(now time.Time) {
	if gap := now.Sub(a.last); gap > a.gap {
		a.gap, a.gapAt = gap, a.last
	}
	a.last = now
}

// watch begins to look for the longest gap.
func (a *ackList) watch() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last, a.gap = time.Now(), 0
}

// longest is the longest time without an acknowledged mail since watch, and when
// it began.
func (a *ackList) longest() (time.Duration, time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.note(time.Now())
	return a.gap, a.gapAt
}

func (a *ackList) total() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count
}

// traffic is mail on its way until stop is called.
type traffic struct {
	stop chan struct{}
	work sync.WaitGroup

	mu     sync.Mutex
	sum    load.Report
	failed string // the last reason why no connection could be had
	rounds int    // bursts without any connection
}

// send begins to send mail in sessions that know nothing of one another: one that
// waits for a dead host does not hold up the rest.
func (d *drill) send(ctx context.Context) *traffic {
	t := &traffic{stop: make(chan struct{})}
	d.acked.watch()
	for range d.sessions {
		t.work.Go(func() {
			for ctx.Err() == nil && !t.over() {
				t.burst(ctx, load.Options{
					Target:   d.target,
					Size:     d.size,
					Duration: burst,
					Rate:     d.rate / float64(d.sessions),
					Acked:    d.acked,
					Attempts: 1000, // 4xx is no loss: a mail server tries again
					Patience: time.Second,
					Timeout:  30 * time.Second,
				})
			}
		})
	}
	return t
}

func (t *traffic) over() bool {
	select {
	case <-t.stop:
		return true
	default:
		return false
	}
}

func (t *traffic) burst(ctx context.Context, o load.Options) {
	report, err := load.Run(ctx, o)
	t.mu.Lock()
	t.sum.Acked += report.Acked
	t.sum.Tempfailed += report.Tempfailed
	t.sum.Refused += report.Refused + report.GivenUp
	t.sum.Unanswered += report.Unanswered
	t.sum.Latency.Max = max(t.sum.Latency.Max, report.Latency.Max)
	if report.Complaint != "" {
		t.sum.Complaint = report.Complaint
	}
	if err != nil {
		t.failed = err.Error()
		t.rounds++
	}
	t.mu.Unlock()
	if err != nil {
		select { // do not spin while there is nobody
		case <-time.After(200 * time.Millisecond):
		case <-t.stop:
		case <-ctx.Done():
		}
	}
}

// end stops the mail and tells what became of it.
func (t *traffic) end() (load.Report, string) {
	close(t.stop)
	t.work.Wait()
	note := ""
	if t.rounds > 0 {
		note = fmt.Sprintf("%d times no connection or a broken one, the last time: %s", t.rounds, t.failed)
	}
	return t.sum, note
}
