package testcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"chainmail/archive/record"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
)

// The invariants that Check holds the cluster to are those of docs/design.md:
//
//	every acknowledged mail is on all nodes that are to keep it, with its bytes
//	and the same receipt on each; no position has two contents
//	what was not acknowledged is there whole, or not at all
//	what a node says it holds is what it can list and read
//	an epoch never goes back, and all nodes come to the same one

// Settle waits until every node that runs sees every other, has the same
// epoch, and lacks nothing that another one has.
func (c *Cluster) Settle() { c.t.Helper(); c.SettleWithin(5 * time.Minute) }

// SettleWithin is Settle with a limit of one's own.
func (c *Cluster) SettleWithin(limit time.Duration) {
	c.t.Helper()
	c.Eventually(limit, "the cluster settles", c.unsettled)
	// What is on its way to a node is not told as lacking: it has arrived by then.
	time.Sleep(arrival)
	c.Eventually(limit, "the cluster stays settled", c.unsettled)
}

const arrival = 300 * time.Millisecond

// unsettled says what keeps the cluster from being settled.
func (c *Cluster) unsettled() error {
	running, data := c.Running(), c.Running(node.RoleData)
	var epoch uint64
	for i, name := range running {
		v, err := c.View(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := c.noteEpoch(name, v.Epoch); err != nil {
			c.t.Error(err)
		}
		if i == 0 {
			epoch = v.Epoch
		}
		if v.Epoch != epoch {
			return fmt.Errorf("%s is at epoch %d, %s at %d", name, v.Epoch, running[0], epoch)
		}
		if !slices.Contains(data, name) {
			continue // a witness does not know what mail there is
		}
		if err := unsettledIn(v, running); err != nil {
			return fmt.Errorf("%s says: %w", name, err)
		}
	}
	return nil
}

// unsettledIn looks at the members that run, as one of them sees them.
func unsettledIn(v api.Cluster, running []string) error {
	for _, name := range running {
		i := slices.IndexFunc(v.Members, func(m api.Member) bool { return m.Name == name })
		if i < 0 {
			return fmt.Errorf("%s is no member", name)
		}
		m := v.Members[i]
		switch {
		case m.State == api.StateJoining || m.State == api.StateUnreachable || m.State == api.StateStarting:
			return fmt.Errorf("%s is %s: %s", name, m.State, m.Reason)
		case m.Role != string(node.RoleData):
		case m.Backlog == nil:
			return fmt.Errorf("what %s lacks is not known", name)
		case m.Backlog.Receipts > m.Backlog.Lost:
			return fmt.Errorf("%s lacks %d receipts", name, m.Backlog.Receipts-m.Backlog.Lost)
		}
	}
	return nil
}

func (c *Cluster) noteEpoch(name string, epoch uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if before := c.epochs[name]; epoch < before {
		return fmt.Errorf("the epoch of %s went back from %d to %d", name, before, epoch)
	}
	c.epochs[name] = epoch
	return nil
}

// Check heals the network, waits until the cluster is settled, and compares
// what every node that runs holds with what was acknowledged.
func (c *Cluster) Check() {
	c.t.Helper()
	c.Heal()
	c.Settle()
	names := c.Running(node.RoleData)
	all := map[string]inventory{}
	for _, name := range names {
		held, err := c.inventory(name)
		c.must(err, "list what %s holds", name)
		all[name] = held
	}
	want, err := c.keepers()
	c.must(err, "see how many nodes keep each mail")
	acked := c.ledger.acknowledged()
	for _, err := range []error{
		checkEqual(all), checkAcknowledged(all, acked, want), checkUnknown(all, c.ledger.knows), c.checkHeld(all), c.checkBodies(all, acked),
	} {
		if err != nil {
			c.t.Error(err)
		}
	}
}

// entry is one receipt as a node tells it.
type entry struct {
	hash    record.Hash
	size    int64
	receipt api.Receipt
}

// inventory is every receipt that a node holds, by its position.
type inventory map[string]entry

// checkContext is without a time limit of its own: checks read everything.
func (c *Cluster) checkContext() context.Context { return context.WithoutCancel(c.t.Context()) }

func (c *Cluster) inventory(name string) (inventory, error) {
	held := inventory{}
	for m, err := range c.Client(name).Messages(c.checkContext(), client.Query{}) {
		if err != nil {
			return nil, err
		}
		hash, err := record.ParseHash(m.SHA256)
		if err != nil {
			return nil, err
		}
		for _, r := range m.Receipts {
			held[r.Position] = entry{hash, m.Size, r}
		}
	}
	return held, nil
}

// few joins problems of one kind, of which the first tell enough.
func few(problems []error) error {
	const enough = 5
	if more := len(problems) - enough; more > 0 {
		problems = append(problems[:enough:enough], fmt.Errorf("and %d more", more))
	}
	return errors.Join(problems...)
}

// checkEqual: a position has the same receipt wherever it is held.
func checkEqual(all map[string]inventory) error {
	type seen struct {
		node string
		entry
	}
	first := map[string]seen{}
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for position, e := range all[name] {
			switch before, ok := first[position]; {
			case !ok:
				first[position] = seen{name, e}
			case !reflect.DeepEqual(before.entry, e):
				problems = append(problems, fmt.Errorf("position %s has two contents: on %s %+v, on %s %+v", position, before.node, before.entry, name, e))
			}
		}
	}
	return few(problems)
}

// checkAcknowledged: each acknowledged mail is at its position on as many
// nodes as are wanted.
func checkAcknowledged(all map[string]inventory, acked []mail, want int) error {
	var problems []error
	for _, m := range acked {
		var holders []string
		for name, held := range all {
			e, ok := held[m.position]
			if ok && e.hash != m.hash {
				problems = append(problems, fmt.Errorf("mail %d acknowledged by %s as %s has SHA-256 %v, on %s %v", m.n, m.node, m.position, m.hash, name, e.hash))
			}
			if ok {
				holders = append(holders, name)
			}
		}
		if len(holders) < want {
			slices.Sort(holders)
			problems = append(problems, fmt.Errorf("mail %d acknowledged by %s as %s is on [%s], want %d nodes", m.n, m.node, m.position, strings.Join(holders, " "), want))
		}
	}
	return few(problems)
}

// Held says which acknowledged mail is not on all of these nodes.
func (c *Cluster) Held(names ...string) error {
	var problems []error
	for _, name := range names {
		held, err := c.inventory(name)
		if err != nil {
			return err
		}
		for _, m := range c.ledger.acknowledged() {
			if held[m.position].hash != m.hash {
				problems = append(problems, fmt.Errorf("mail %d acknowledged by %s as %s is not on %s", m.n, m.node, m.position, name))
			}
		}
	}
	return few(problems)
}

// keepers is how many of the running nodes must hold each receipt. Which ones
// they are depends on the ring at the time; when nodes are down, it may be
// them.
func (c *Cluster) keepers() (int, error) {
	running := c.Running(node.RoleData)
	v, err := c.View(running[0])
	if err != nil {
		return 0, err
	}
	members, down := 0, 0
	for _, m := range v.Members {
		if m.Role != string(node.RoleData) || m.State == api.StateDraining {
			continue
		}
		members++
		if !slices.Contains(running, m.Name) {
			down++
		}
	}
	want := members
	if v.Policies.Replicas > 0 {
		want = min(want, v.Policies.Replicas)
	}
	return max(1, want-down), nil
}

// checkUnknown: nobody holds what was never sent.
func checkUnknown(all map[string]inventory, sent func(record.Hash) bool) error {
	var problems []error
	for name, held := range all {
		for position, e := range held {
			if !sent(e.hash) {
				problems = append(problems, fmt.Errorf("%s holds at %s a message that was never sent, SHA-256 %v", name, position, e.hash))
			}
		}
	}
	return few(problems)
}

// checkHeld: what a node says it holds of each log is what it lists.
func (c *Cluster) checkHeld(all map[string]inventory) error {
	var problems []error
	for name, held := range all {
		v, err := c.View(name)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(v.Members, func(m api.Member) bool { return m.Name == name })
		if i < 0 || v.Members[i].Self == nil {
			problems = append(problems, fmt.Errorf("%s says nothing of itself", name))
			continue
		}
		if err := compareHeld(held, v.Members[i].Self.Logs); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
	}
	return few(problems)
}

func compareHeld(held inventory, told []api.LogHeld) error {
	listed := map[string]record.Ranges{}
	for position := range held {
		p, err := record.ParsePosition(position)
		if err != nil {
			return err
		}
		listed[p.Store.String()] = listed[p.Store.String()].Add(p.Seq)
	}
	var problems []error
	for _, l := range told {
		if got := listed[l.Store].String(); got != l.Held {
			problems = append(problems, fmt.Errorf("it says that it holds %q of log %s, and lists %q", l.Held, l.Store, got))
		}
		delete(listed, l.Store)
	}
	for log, r := range listed {
		problems = append(problems, fmt.Errorf("it lists %v of log %s, and does not say that it holds it", r, log))
	}
	return few(problems)
}

// checkBodies: every node verifies all that it has, and each acknowledged mail
// comes back from one of its nodes as it was sent.
func (c *Cluster) checkBodies(all map[string]inventory, acked []mail) error {
	var problems []error
	names := slices.Sorted(maps.Keys(all))
	for _, name := range names {
		last, err := c.Client(name).Verify(c.checkContext(), func(ev api.VerifyEvent) {
			if f := ev.Finding; f != nil {
				problems = append(problems, fmt.Errorf("%s found %s damaged: %s", name, f.Position, f.Problem))
			}
		})
		if err != nil || last.Bad > 0 {
			problems = append(problems, fmt.Errorf("%s verified %d receipts: %d bad, %w", name, last.Checked, last.Bad, err))
		}
	}
	for i, m := range acked {
		for k := range names { // from a different node each time
			name := names[(i+k)%len(names)]
			if _, ok := all[name][m.position]; !ok {
				continue
			}
			if err := c.readBack(name, m); err != nil {
				problems = append(problems, err)
			}
			break
		}
	}
	return few(problems)
}

// readBack reads a message from a node; the client compares its SHA-256.
func (c *Cluster) readBack(name string, m mail) error {
	raw, err := c.Client(name).Raw(c.checkContext(), m.hash.String())
	if err == nil {
		_, err = io.Copy(io.Discard, raw)
		raw.Close()
	}
	if err != nil {
		return fmt.Errorf("mail %d cannot be read from %s: %w", m.n, name, err)
	}
	return nil
}
