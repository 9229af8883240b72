package node

import (
	"context"
	"encoding/hex"
	"log/slog"
	"strings"
	"time"

	"chainmail/archive"
	"chainmail/archive/record"
	"chainmail/membership/ring"
	"chainmail/node/api"
	"chainmail/node/client"
)

// digests gives HTTP, and the node's own comparisons, the digests of an archive.
type digests struct{ *archive.Archive }

// Held is what the archive holds.
func (d digests) Held(context.Context) ([]record.Log, error) { return d.Logs(), nil }

// Segment sums up receipts n*1024+1 … (n+1)*1024 of a log.
func (d digests) Segment(_ context.Context, log record.StoreID, n uint64) (api.Segment, error) {
	s, err := d.Archive.Segment(log, n)
	return api.Segment{
		Segment: n, Digest: hex.EncodeToString(s.Digest[:]), Receipts: s.Receipts, Bytes: s.Bytes, Held: s.Held.String(),
	}, err
}

// Digests lists the digests of the receipts in a range.
func (d digests) Digests(_ context.Context, log record.StoreID, r record.Range) ([]api.ReceiptDigest, error) {
	found, err := d.Archive.Digests(log, r)
	all := make([]api.ReceiptDigest, len(found))
	for i, f := range found {
		all[i] = api.ReceiptDigest{Seq: uint64(f.Position.Seq), Digest: f.Digest.String()}
	}
	return all, err
}

// peerDigests are those of another member.
type peerDigests struct{ *client.Client }

// Held is what the member says that it holds.
func (p peerDigests) Held(ctx context.Context) ([]record.Log, error) {
	said, err := p.Self(ctx)
	if err != nil {
		return nil, err
	}
	var logs []record.Log
	for _, l := range said.Logs {
		store, err := record.ParseStoreID(l.Store)
		if err != nil {
			return nil, err
		}
		held, err := record.ParseRanges(l.Held)
		if err != nil {
			return nil, err
		}
		logs = append(logs, record.Log{Store: store, Origin: l.Origin, Held: held})
	}
	return logs, nil
}

// compare compares this node and all members that can be reached, for what
// view says that they must hold.
func (n *Node) compare(ctx context.Context, view ring.View, report func(api.ClusterVerifyEvent)) error {
	held := map[string][]record.Log{n.config.Name: n.archive.Logs()}
	asked := map[string]digester{n.config.Name: digests{n.archive}}
	for name, logs := range n.known() {
		if m, ok := view.Member(name); ok && n.members.Alive(name) {
			c := n.peer(m)
			defer c.Close()
			held[name], asked[name] = logs, peerDigests{c}
		}
	}
	if own := n.chain.Status().Backlog; own != nil && own.Lost > 0 {
		report(api.ClusterVerifyEvent{Node: n.config.Name, Problem: "held by no member that can be reached", At: own.LostAt})
	}
	c := comparison{view: view, held: held, ask: func(name string) digester { return asked[name] }, report: report}
	return c.run(ctx)
}

// Verify compares every log between its replicas.
func (d clusterDoor) Verify(ctx context.Context, report func(api.ClusterVerifyEvent)) error {
	if d.witness() {
		return errWitness
	}
	return d.compareAndNote(ctx, d.members.View(), report)
}

// comparePeriod is how often a node compares itself with its peers by itself;
// what it finds missing is on its way already, so this looks for what differs.
const comparePeriod = 24 * time.Hour

// compareForEver is the node's anti-entropy.
func (n *Node) compareForEver(ctx context.Context) error {
	tick := time.NewTicker(comparePeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := n.compareAndNote(ctx, n.members.View(), n.logDifference); err != nil && ctx.Err() == nil {
			n.log.Warn("the comparison with the other nodes ended early; it begins anew in a day", slog.Any("err", err))
		}
	}
}

// compareAndNote compares, and remembers how many stretches have other contents
// here and there: what is only missing is on its way.
func (n *Node) compareAndNote(ctx context.Context, view ring.View, report func(api.ClusterVerifyEvent)) error {
	var differ uint64
	err := n.compare(ctx, view, func(e api.ClusterVerifyEvent) {
		if strings.HasPrefix(e.Problem, problemDiffers) {
			differ += uint64(len(e.At))
		}
		report(e)
	})
	if err == nil {
		n.differ.Store(differ)
	}
	return err
}

// logDifference tells the operator what a comparison found.
func (n *Node) logDifference(e api.ClusterVerifyEvent) {
	if e.Problem != "" && len(e.At) > 0 {
		n.log.Error("replicas differ", slog.String("store", e.Log), slog.String("peer", e.Node), slog.String("problem", e.Problem), slog.Any("at", e.At))
	}
}
