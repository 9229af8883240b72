package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chainmail/testcluster/load"
	"chainmail/testcluster/local"
)

// ways are how clients reach the nodes.
var ways = []struct{ name, target string }{
	{"straight to one node", "a"},
	{"through the balancer", local.Balancer},
}

// front measures what the balancer costs, and how long clients are without
// service when a node behind it goes away.
func (b *bench) front(ctx context.Context) error {
	if err := local.NeedNginx(); err != nil {
		return err
	}
	for _, nodes := range []int{1, 3} {
		err := b.with(ctx, nodes, func(c *cluster) error {
			if err := c.StartBalancer(ctx, c.names...); err != nil {
				return err
			}
			if err := b.compareWays(ctx, c); err != nil || nodes == 1 {
				return err
			}
			return b.loseNode(ctx, c)
		})
		if err != nil {
			return fmt.Errorf("%d nodes: %w", nodes, err)
		}
	}
	return nil
}

// compareWays measures the ways to the same nodes in turn.
func (b *bench) compareWays(ctx context.Context, c *cluster) error {
	const sessions = 32
	for _, l := range loads {
		t := b.results.table(fmt.Sprintf("Balancer: %s, %d sessions, nodes: %d", l.name, sessions, len(c.names)),
			"The same nodes with and without nginx in front, which adds the PROXY protocol and spreads the sessions.")
		for round := range b.rounds {
			var reports [2]load.Report
			for i := range ways {
				i = (i + round) % len(ways)
				var err error
				if reports[i], err = c.sendTo(ctx, ways[i].target, load.Options{Sessions: sessions, Size: l.size, BDAT: l.bdat, Duration: b.time}); err != nil {
					return err
				}
				progress("nodes: %d, %s %s: %.0f mails/s", len(c.names), l.name, ways[i].name, reports[i].MailsPerSecond)
				if _, err := c.healed(ctx); err != nil {
					return err
				}
			}
			for i, way := range ways {
				t.add(way.name, "mails/s", reports[i].MailsPerSecond)
				t.add(way.name, "times straight", reports[i].MailsPerSecond/reports[0].MailsPerSecond)
				t.add(way.name, "p50 ms", reports[i].Latency.P50)
				t.add(way.name, "p99 ms", reports[i].Latency.P99)
			}
		}
	}
	return nil
}

// awaitUse sends mail through the balancer until it gives some to a node: one
// that was away is taken in again a few seconds later.
func (c *cluster) awaitUse(ctx context.Context, name string) error {
	const connections = "chainmail_smtp_connections_total"
	before, err := c.metric(ctx, name, connections, `connector="smtp"`)
	if err != nil {
		return err
	}
	return await(ctx, "the balancer uses "+name, func(ctx context.Context) (bool, error) {
		for range 3 {
			if _, err := c.sendTo(ctx, local.Balancer, load.Options{Count: 8, Sessions: 8, PerSession: 1}); err != nil {
				return false, err
			}
		}
		// Its probes, one a second, are not enough to pass for that.
		now, err := c.metric(ctx, name, connections, `connector="smtp"`)
		return now >= before+20, err
	})
}

// loseNode measures the longest time without an acknowledged mail in a light
// load through the balancer while a node fails, and how many sessions broke.
func (b *bench) loseNode(ctx context.Context, c *cluster) error {
	t := b.results.table("Balancer: a node behind it is gone",
		fmt.Sprintf("Three nodes, %d mails/s of 4 KiB over %d sessions of 5 mails each. Seconds in which no mail at all was acknowledged, and sessions that broke.", lightRate, lightSessions))
	for range b.rounds {
		for _, f := range failures {
			if err := c.awaitUse(ctx, "b"); err != nil {
				return err
			}
			loaded := make(chan error, 1)
			var r load.Report
			go func() {
				var err error
				r, err = load.Run(ctx, load.Options{
					Target: c.Addr(local.Balancer, "smtp"), Sessions: lightSessions, PerSession: 5, Size: 4 << 10,
					Rate: lightRate, Duration: lead + f.watch, Timeout: 20 * time.Second,
				})
				loaded <- err
			}()
			select {
			case <-time.After(lead):
			case <-ctx.Done():
				return ctx.Err()
			}
			failed := f.begin(c, "b")
			err := errors.Join(<-loaded, failed)
			if err == nil {
				err = f.mend(ctx, c, "b")
			}
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			if _, err := c.healed(ctx); err != nil {
				return err
			}
			progress("balancer, %s: %.0f ms without a mail, %d sessions broke", f.name, r.LongestGap, r.Reconnects)
			t.add(f.name, "longest s without a mail", r.LongestGap/1000)
			t.add(f.name, "sessions that broke", float64(r.Reconnects))
			t.add(f.name, "mails refused", float64(r.Refused+r.GivenUp))
			t.add(f.name, "longest 250, s", r.Latency.Max/1000)
		}
	}
	return nil
}
