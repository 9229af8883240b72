package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"chainmail/testcluster/load"
	"chainmail/testcluster/machine"
)

// contenders are the clusters that are compared, the first with the others.
var contenders = []struct {
	name  string
	nodes int
}{
	{"one node", 1},
	{"two nodes, copies=2", 2},
	{"three nodes, copies=2", 3},
}

// loads are what they are given.
var loads = []struct {
	name string
	size int
	bdat bool
}{
	{"4 KiB by DATA", 4 << 10, false},
	{"50 KiB by DATA", 50 << 10, false},
	{"50 KiB by BDAT", 50 << 10, true},
	{"1 MiB by DATA", 1 << 20, false},
}

// sideBySide starts all contenders for a measurement of one after the other.
func (b *bench) sideBySide(ctx context.Context, measure func([]*cluster) error) (err error) {
	var all []*cluster
	defer func() {
		for _, c := range all {
			err = errors.Join(err, c.end())
		}
	}()
	for _, contender := range contenders {
		c, err := b.start(ctx, contender.nodes)
		if err != nil {
			return fmt.Errorf("%s: %w", contender.name, err)
		}
		all = append(all, c)
	}
	return measure(all)
}

// inTurn calls measure for every contender in every round, beginning with
// another one each time, and compare at the end of each round.
func (b *bench) inTurn(measure func(i int) error, compare func()) error {
	for round := range b.rounds {
		for i := range contenders {
			if err := measure((i + round) % len(contenders)); err != nil {
				return err
			}
		}
		compare()
	}
	return nil
}

// rate is one measurement of one contender under load.
type rate struct {
	mails    int64
	rate     float64       // mails per second that got their 250
	whole    float64       // the same, counted until every node has every mail
	cpu      time.Duration // of all nodes for one mail, with what they do afterwards
	first    time.Duration // of them, that of node a, which took the mail
	short    float64       // mails that got their 250 with too few copies
	others   float64       // share of the machine that was taken by anybody else
	p50, p99 float64       // ms
}

// rates measures mails per second of all contenders.
func (b *bench) rates(ctx context.Context) error {
	const sessions = 32
	return b.sideBySide(ctx, func(all []*cluster) error {
		for _, l := range loads {
			t := b.results.table(fmt.Sprintf("Mails per second: %s, %d sessions", l.name, sessions),
				"All mail goes to one node. A mail is complete when every node holds it; processor time is that of the nodes, with what they do after the answer.")
			last := make([]rate, len(all))
			err := b.inTurn(func(i int) (err error) {
				last[i], err = all[i].measure(ctx, load.Options{Sessions: sessions, Size: l.size, BDAT: l.bdat, Duration: b.time})
				progress("%s, %-21s: %5.0f mails/s, %5.0f µs a mail, others %2.0f %%", l.name, contenders[i].name, last[i].rate, micros(last[i].cpu), 100*last[i].others)
				return err
			}, func() {
				for i, c := range contenders {
					addRate(t, c.name, c.nodes, last[i], last[0])
				}
			})
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
		}
		return nil
	})
}

// addRate enters a measurement beside the one of a single node in its round.
func addRate(t *table, name string, nodes int, r, one rate) {
	t.add(name, "mails/s", r.rate)
	t.add(name, "times one node", r.rate/one.rate)
	t.add(name, "complete mails/s", r.whole)
	t.add(name, "µs of processor a mail", micros(r.cpu))
	t.add(name, "and copy", micros(r.cpu)/float64(nodes))
	t.add(name, "of that, the node that takes it", micros(r.first))
	t.add(name, "p50 ms", r.p50)
	t.add(name, "p99 ms", r.p99)
	t.add(name, "% short of copies", 100*r.short/float64(r.mails))
	t.add(name, "% of machine had by others", 100*r.others)
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// measure puts a load on the cluster and waits until every node has every mail
// and is idle.
func (c *cluster) measure(ctx context.Context, o load.Options) (r rate, err error) {
	syscall.Sync() // what the one before left to write is not for this one to wait for
	before, err := c.cpu()
	if err != nil {
		return r, err
	}
	short, err := c.metric(ctx, "a", "chainmail_chain_short_total")
	if err != nil {
		return r, err
	}
	from, err := machine.ReadMeter(c.pids(c.names...)...)
	if err != nil {
		return r, err
	}
	begun := time.Now()
	report, err := c.send(ctx, o)
	if err != nil {
		return r, err
	}
	if _, err := c.holdAll(ctx, c.names...); err != nil {
		return r, err
	}
	r.mails, r.rate, r.whole = report.Acked, report.MailsPerSecond, float64(report.Acked)/time.Since(begun).Seconds()
	r.p50, r.p99 = report.Latency.P50, report.Latency.P99
	to, err := machine.ReadMeter(c.pids(c.names...)...)
	if err != nil {
		return r, err
	}
	r.others = machine.Others(from, to)
	after, err := c.healed(ctx)
	if err != nil {
		return r, err
	}
	for name, used := range after {
		r.cpu += (used - before[name]) / time.Duration(r.mails)
	}
	r.first = (after["a"] - before["a"]) / time.Duration(r.mails)
	now, err := c.metric(ctx, "a", "chainmail_chain_short_total")
	r.short = now - short
	return r, err
}

// latency measures what the copies add to the time of a 250.
func (b *bench) latency(ctx context.Context) error {
	const size = 4 << 10
	return b.sideBySide(ctx, func(all []*cluster) error {
		for _, sessions := range []int{1, 8} {
			t := b.results.table(fmt.Sprintf("Time to the 250: 4 KiB by DATA, sessions: %d", sessions),
				"In ms, from the first byte of the text to the answer; added is the difference to one node in the same round.")
			last := make([]rate, len(all))
			err := b.inTurn(func(i int) (err error) {
				last[i], err = all[i].measure(ctx, load.Options{Sessions: sessions, Size: size, Duration: b.time})
				progress("sessions: %d, %-21s: p50 %.2f ms, p99 %.2f ms", sessions, contenders[i].name, last[i].p50, last[i].p99)
				return err
			}, func() {
				for i, c := range contenders {
					t.add(c.name, "p50", last[i].p50)
					t.add(c.name, "p99", last[i].p99)
					t.add(c.name, "added to p50", last[i].p50-last[0].p50)
					t.add(c.name, "added to p99", last[i].p99-last[0].p99)
					t.add(c.name, "mails/s", last[i].rate)
					t.add(c.name, "% short of copies", 100*last[i].short/float64(last[i].mails))
				}
			})
			if err != nil {
				return fmt.Errorf("sessions: %d: %w", sessions, err)
			}
		}
		return nil
	})
}
