package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chainmail/testcluster/load"
)

// The load during a fail-over is light: the time is that of noticing, not of a
// queue.
const (
	lightRate     = 100 // mails/s
	lightSessions = 8
	lead          = time.Second // of load before the failure
)

// failure is a way in which the successor of a node goes away.
type failure struct {
	name  string
	watch time.Duration // how long the load goes on after it
	begin func(c *cluster, name string) error
	mend  func(ctx context.Context, c *cluster, name string) error
}

var failures = []failure{
	{
		"killed, connections are refused (aim: 1 s)", 2 * time.Second, (*cluster).kill,
		func(ctx context.Context, c *cluster, name string) error { return c.Start(ctx, name) },
	},
	{
		"frozen, it is silent (aim: 5 s)", 6 * time.Second, (*cluster).pause,
		func(_ context.Context, c *cluster, name string) error { return c.Resume(name) },
	},
}

func (c *cluster) kill(name string) error  { return c.Kill(name) }
func (c *cluster) pause(name string) error { return c.Pause(name) }

// failOver measures how soon a node sends to the next one when its successor is
// gone, and how long clients wait meanwhile.
func (b *bench) failOver(ctx context.Context) error {
	t := b.results.table("Fail-over: the successor is gone",
		fmt.Sprintf("Three nodes, copies=2, %d mails/s of 4 KiB to the first one. Seconds from the failure of the second until the third has confirmed a receipt that the first one sent it; and the longest time to a 250 in that load, which ack_timeout (5 s) bounds.", lightRate))
	return b.with(ctx, 3, func(c *cluster) error {
		for range b.rounds {
			for _, f := range failures {
				if err := c.fail(ctx, t, f); err != nil {
					return fmt.Errorf("%s: %w", f.name, err)
				}
			}
		}
		return nil
	})
}

// fail is one round of one failure.
func (c *cluster) fail(ctx context.Context, t *table, f failure) error {
	const successor, next = "b", "c"
	short, err := c.metric(ctx, "a", "chainmail_chain_short_total")
	if err != nil {
		return err
	}
	type result struct {
		report load.Report
		err    error
	}
	loaded := make(chan result, 1)
	go func() {
		r, err := c.send(ctx, load.Options{Sessions: lightSessions, Size: 4 << 10, Rate: lightRate, Duration: lead + f.watch})
		loaded <- result{r, err}
	}()
	took, err := c.strike(ctx, f, successor, next)
	r := <-loaded
	if err := errors.Join(err, r.err); err != nil {
		return err
	}
	now, err := c.metric(ctx, "a", "chainmail_chain_short_total")
	if err != nil {
		return err
	}
	if err := f.mend(ctx, c, successor); err != nil {
		return err
	}
	if _, err := c.healed(ctx); err != nil {
		return err
	}
	progress("fail-over, %s: %.3f s, longest 250 %.0f ms", f.name, took.Seconds(), r.report.Latency.Max)
	t.add(f.name, "s until the next one has mail", took.Seconds())
	t.add(f.name, "longest 250, s", r.report.Latency.Max/1000)
	t.add(f.name, "p50 of the 250, ms", r.report.Latency.P50)
	t.add(f.name, "250s short of copies", now-short)
	return nil
}

// strike lets the successor fail under load, and returns how long it took until
// the node after it had confirmed a receipt of node a's.
func (c *cluster) strike(ctx context.Context, f failure, successor, next string) (time.Duration, error) {
	select {
	case <-time.After(lead):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	sent := func(ctx context.Context) (float64, error) {
		return c.metric(ctx, "a", "chainmail_chain_sent_receipts_total", `peer="`+next+`"`)
	}
	before, err := sent(ctx)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := f.begin(c, successor); err != nil {
		return 0, err
	}
	err = await(ctx, "node a sends to "+next, func(ctx context.Context) (bool, error) {
		now, err := sent(ctx)
		return now > before, err
	})
	return time.Since(begun), err
}
