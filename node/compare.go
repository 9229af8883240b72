package node

import (
	"context"
	"fmt"
	"time"

	"chainmail/archive/record"
	"chainmail/membership/ring"
	"chainmail/node/api"
)

// digester gives the digests of what one node holds.
type digester interface {
	Held(ctx context.Context) ([]record.Log, error)
	Segment(ctx context.Context, log record.StoreID, n uint64) (api.Segment, error)
	Digests(ctx context.Context, log record.StoreID, r record.Range) ([]api.ReceiptDigest, error)
}

// What is said of receipts that a keeper does not hold, and of those of which
// it holds another content than the node named.
const (
	problemMissing = "missing"
	problemDiffers = "other content than on "
)

// segmentSize is how many receipts one segment digest covers.
const segmentSize = 1024

// comparison compares what the keepers of logs hold, segment by segment, and
// receipt by receipt where two segments differ. It looks only at what should
// be everywhere: what the keepers say they hold when it begins.
type comparison struct {
	view   ring.View
	held   map[string][]record.Log // by node, this one included
	ask    func(node string) digester
	report func(api.ClusterVerifyEvent)
	done   api.ClusterVerifyEvent  // the counts so far
	again  map[string][]record.Log // what nodes that seemed to lack something said when asked again
}

// stretch is a span of a log to compare, and the keepers that can be asked.
type stretch struct {
	log     record.Log
	shared  record.Ranges // what at least two of the keepers hold
	keepers []string
}

// run compares every log. Its error means that it could not go on.
func (c *comparison) run(ctx context.Context) error {
	var all []stretch
	for _, l := range union(c.held) {
		for _, span := range l.Spans() {
			s := c.stretch(ctx, l, span)
			c.done.Total += s.shared.Count() * uint64(len(s.keepers))
			all = append(all, s)
		}
	}
	for _, s := range all {
		if err := c.compare(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// stretch finds who keeps a span, and reports who lacks some of it.
func (c *comparison) stretch(ctx context.Context, l record.Log, span record.Span) stretch {
	s := stretch{log: l}
	known := l.Held.Intersect(record.Ranges{span.Range})
	var once record.Ranges
	for _, name := range c.view.Keepers(l.Origin, span.Nodes) {
		logs, reached := c.held[name]
		if !reached {
			c.found(l, name, "not compared: the node is unreachable", nil)
			continue
		}
		s.keepers = append(s.keepers, name)
		mine := known.Intersect(heldBy(logs, l.Store))
		s.shared, once = s.shared.Union(once.Intersect(mine)), once.Union(mine)
		if lacks := c.stillLacks(ctx, name, l.Store, known.Minus(mine)); len(lacks) > 0 {
			c.found(l, name, problemMissing, positions(l.Store, lacks))
		}
	}
	return s
}

// onTheWay is how long mail that is just coming in may take to reach all who
// keep it.
const onTheWay = 3 * time.Second

// stillLacks is what a node lacks a little later, too.
func (c *comparison) stillLacks(ctx context.Context, name string, log record.StoreID, lacks record.Ranges) record.Ranges {
	if len(lacks) == 0 {
		return nil
	}
	if _, asked := c.again[name]; !asked {
		if len(c.again) == 0 {
			select {
			case <-ctx.Done():
			case <-time.After(onTheWay):
			}
		}
		held, err := c.ask(name).Held(ctx)
		if err != nil {
			return lacks
		}
		if c.again == nil {
			c.again = map[string][]record.Log{}
		}
		c.again[name] = held
	}
	return lacks.Minus(heldBy(c.again[name], log))
}

// compare looks whether those who have a receipt have the same.
func (c *comparison) compare(ctx context.Context, s stretch) error {
	next := uint64(0)
	for _, r := range s.shared { // not from the first to the last segment: a gap may be astronomic
		for n := max(next, segmentOf(r.First)); n <= segmentOf(r.Last); n++ {
			segment := record.Range{First: record.Seq(n*segmentSize + 1), Last: record.Seq((n + 1) * segmentSize)}
			part := s.shared.Intersect(record.Ranges{segment})
			if err := c.segment(ctx, s.log, n, part, s.keepers); err != nil {
				return err
			}
			c.done.Checked += part.Count() * uint64(len(s.keepers))
			c.report(c.done)
			next = n + 1
		}
	}
	return nil
}

func segmentOf(s record.Seq) uint64 { return uint64(max(s, 1)-1) / segmentSize }

// segment compares one segment between the keepers that hold the same of it by
// its digest, and all others receipt by receipt.
func (c *comparison) segment(ctx context.Context, l record.Log, n uint64, part record.Ranges, keepers []string) error {
	var first api.Segment
	same := true
	for i, name := range keepers {
		s, err := c.ask(name).Segment(ctx, l.Store, n)
		if err != nil {
			return fmt.Errorf("segment %d of log %v on %s: %w", n, l.Store, name, err)
		}
		if i == 0 {
			first = s
		}
		same = same && s.Digest == first.Digest && s.Held == first.Held
	}
	if same {
		return nil
	}
	return c.receipts(ctx, l, part, keepers)
}

// receipts finds the positions at which keepers hold different receipts. Who
// holds nothing there was named before.
func (c *comparison) receipts(ctx context.Context, l record.Log, part record.Ranges, keepers []string) error {
	seen := map[uint64]string{} // digest of the first keeper that has the receipt
	by := map[uint64]string{}
	for _, name := range keepers {
		digests, err := c.ask(name).Digests(ctx, l.Store, record.Range{First: part.First(), Last: part.Last()})
		if err != nil {
			return fmt.Errorf("receipts %v of log %v on %s: %w", part, l.Store, name, err)
		}
		var differ record.Ranges
		other := ""
		for _, d := range digests {
			if !part.Has(record.Seq(d.Seq)) {
				continue
			}
			if _, known := seen[d.Seq]; !known {
				seen[d.Seq], by[d.Seq] = d.Digest, name
			} else if seen[d.Seq] != d.Digest {
				differ, other = differ.Add(record.Seq(d.Seq)), by[d.Seq]
			}
		}
		if len(differ) > 0 {
			c.found(l, name, problemDiffers+other, positions(l.Store, differ))
		}
	}
	return nil
}

func (c *comparison) found(l record.Log, node, problem string, at []string) {
	event := c.done
	event.Log, event.Node, event.Problem, event.At = l.Store.String(), node, problem, at
	c.report(event)
}

// maxPositions bounds how many ranges one report names.
const maxPositions = 100

// positions prints ranges of a log as "store:first-last".
func positions(s record.StoreID, r record.Ranges) []string {
	var at []string
	for _, x := range r[:min(len(r), maxPositions)] {
		at = append(at, s.String()+":"+x.String())
	}
	return at
}
