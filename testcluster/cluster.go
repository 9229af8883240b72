package testcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster/netsim"
)

// Options say what a cluster is made of. Zero values mean the defaults given.
type Options struct {
	Nodes   int    // data members, named a, b, c …; 3
	Witness bool   // and one witness, named w
	Seed    uint64 // of all that is drawn at random; 1

	Copies    int    // policy; 0: a new cluster's
	Replicas  int    // policy; 0: a new cluster's; All: all
	WhenShort string // policy; empty: a new cluster's

	// Config changes the configuration of a node before its first start. A
	// cluster of processes does without it.
	Config func(*node.Config)
}

// All as Replicas keeps each log on every node.
const All = -1

// Witness is the name of the witness.
const Witness = "w"

// Cluster is a cluster under test. What goes wrong with the means of the test
// ends it. Its methods are for the goroutine of the test, unless they say
// otherwise.
type Cluster struct {
	// Net is the network of a virtual cluster, nil for one of processes. Its
	// hosts have the names of the nodes; mail comes from the host Clients.
	Net *netsim.Network

	t       testing.TB
	options Options
	backend backend
	ledger  *ledger

	mu      sync.Mutex
	members map[string]*member
	epochs  map[string]uint64 // the largest that each node ever told
}

// Clients is the host from which a virtual cluster is sent mail.
const Clients = "clients"

// member is one node, running or not.
type member struct {
	name    string
	role    node.Role
	running bool
}

// backend is where nodes live. Each is given a place by add, joins or not, and
// is started.
type backend interface {
	add(name string, role node.Role) error
	// start runs a node and returns when it is ready.
	start(ctx context.Context, name string) error
	// stop asks a node to end, and waits for it.
	stop(name string) error
	// kill ends a node abruptly.
	kill(name string, how harm) error
	// ended waits until a node has ended by itself, and says with what error.
	ended(ctx context.Context, name string) error
	// wipe empties the disk of a node that does not run.
	wipe(name string) error
	// join makes an empty node a member by way of the member peer; it does not
	// run then.
	join(ctx context.Context, name, peer, token string, replace bool) error
	// recover makes a node that does not run the only member of its cluster.
	recover(ctx context.Context, name string) error
	// dial connects to the SMTP port of a node. It is called by any goroutine.
	dial(ctx context.Context, name string) (net.Conn, error)
	// client asks the admin socket of a node. It is called by any goroutine.
	client(name string) *client.Client
	// close waits for what is left of nodes that were killed.
	close() error
}

// harm is a way to end a node.
type harm int

const (
	powerCut    harm = iota // what was not synced may be lost, and nobody is told
	processKill             // the system keeps what was written, and resets connections
)

// Virtual runs a test with a cluster in virtual time, within a bubble of its
// own. The cluster is formed and settled when the test begins.
func Virtual(t *testing.T, o Options, test func(t *testing.T, c *Cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, New(t, o)) })
}

// New makes a virtual cluster for a test that runs in a bubble.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	o = o.withDefaults()
	n := netsim.New(o.Seed)
	return form(t, o, n, newVirtual(t, o, n))
}

func (o Options) withDefaults() Options {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	return o
}

// form starts the nodes of a new cluster.
func form(t testing.TB, o Options, n *netsim.Network, b backend) *Cluster {
	t.Helper()
	c := &Cluster{
		Net: n, t: t, options: o, backend: b, ledger: newLedger(o.Seed),
		members: map[string]*member{}, epochs: map[string]uint64{},
	}
	t.Cleanup(c.end)
	first := Name(0)
	c.add(first, node.RoleData)
	c.Start(first)
	c.Set(o.policies())
	for i := 1; i < o.Nodes; i++ {
		c.Join(Name(i))
	}
	if o.Witness {
		c.JoinWitness(Witness)
	}
	c.Eventually(patience, "all votes are given", c.voteless)
	c.Settle()
	return c
}

// voteless says which votes are missing: while there is one voter alone, the
// death of another node is no loss of a quorum.
func (c *Cluster) voteless() error {
	v, err := c.View(Name(0))
	if err != nil {
		return err
	}
	want := len(v.Members)
	switch {
	case want > 4:
		want = 5
	case want > 2:
		want = 3
	}
	if len(v.Voters) != want {
		return fmt.Errorf("the voters are %v, want %d", v.Voters, want)
	}
	return nil
}

// policies are those that differ from a new cluster's.
func (o Options) policies() (p api.PolicyChange) {
	if o.Copies > 0 {
		p.Copies = &o.Copies
	}
	switch {
	case o.Replicas > 0:
		p.Replicas = &o.Replicas
	case o.Replicas == All:
		p.Replicas = new(int)
	}
	if o.WhenShort != "" {
		p.WhenShort = &o.WhenShort
	}
	return p
}

// Name is the name of the data member with this number, from 0.
func Name(i int) string { return string(rune('a' + i)) }

func (c *Cluster) add(name string, role node.Role) {
	c.t.Helper()
	c.must(c.backend.add(name, role), "make a place for %s", name)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[name] = &member{name: name, role: role}
}

// must ends the test on an error of its means.
func (c *Cluster) must(err error, format string, args ...any) {
	c.t.Helper()
	if err != nil {
		c.t.Fatalf("cannot %s: %v", fmt.Sprintf(format, args...), err)
	}
}

// patience is how long a step of the test may take.
const patience = 2 * time.Minute

// context bounds one step.
func (c *Cluster) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(c.t.Context()), patience)
}

// Running names the nodes that run, in order; of one role, when any is given.
func (c *Cluster) Running(roles ...node.Role) (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		if m.running && (len(roles) == 0 || slices.Contains(roles, m.role)) {
			names = append(names, m.name)
		}
	}
	slices.Sort(names)
	return names
}

func (c *Cluster) setRunning(name string, running bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[name].running = running
}

// Start starts nodes one after the other, and waits until each is ready.
func (c *Cluster) Start(names ...string) {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	for _, name := range names {
		c.must(c.backend.start(ctx, name), "start %s", name)
		c.setRunning(name, true)
	}
}

// StartAll starts nodes at the same time.
func (c *Cluster) StartAll(names ...string) {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { errs[i] = c.backend.start(ctx, name) })
	}
	wg.Wait()
	for i, name := range names {
		c.must(errs[i], "start %s", name)
		c.setRunning(name, true)
	}
}

// Stop asks nodes to end in an orderly way, one after the other.
func (c *Cluster) Stop(names ...string) {
	c.t.Helper()
	for _, name := range names {
		c.setRunning(name, false)
		c.must(c.backend.stop(name), "stop %s", name)
	}
}

// Restart stops a node and starts it again.
func (c *Cluster) Restart(name string) {
	c.t.Helper()
	c.Stop(name)
	c.Start(name)
}

// Kill cuts the power of nodes: what was not synced may be lost, and nobody is
// told. Of processes it is kill -9.
func (c *Cluster) Kill(names ...string) { c.t.Helper(); c.kill(powerCut, names) }

// Crash kills the processes of nodes, as kill -9 does: what they had written
// stays, and the system resets their connections.
func (c *Cluster) Crash(names ...string) { c.t.Helper(); c.kill(processKill, names) }

func (c *Cluster) kill(how harm, names []string) {
	c.t.Helper()
	for _, name := range names {
		c.setRunning(name, false)
		c.must(c.backend.kill(name, how), "kill %s", name)
	}
}

// KillAtSync cuts the power of a node just before the n-th sync of its archive
// from now on, or after a minute when there are not so many. In a cluster of
// processes it is Kill.
func (c *Cluster) KillAtSync(name string, n int) {
	c.t.Helper()
	if v, ok := c.backend.(*virtual); ok {
		v.cutAtSync(name, n, time.Minute)
	}
	c.Kill(name)
}

// Leave waits until a node that was drained or removed has ended by itself. It
// returns the reason that the node gave.
func (c *Cluster) Leave(name string) error {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	err := c.backend.ended(ctx, name)
	if ctx.Err() != nil {
		c.dump()
		c.t.Fatalf("%s does not leave: %v", name, err)
	}
	c.setRunning(name, false)
	return err
}

// Wipe empties the disk of a node that does not run.
func (c *Cluster) Wipe(name string) {
	c.t.Helper()
	c.must(c.backend.wipe(name), "wipe %s", name)
}

// Join makes a new node a member and starts it. It does not wait for its
// history.
func (c *Cluster) Join(name string) { c.t.Helper(); c.joinAs(name, node.RoleData) }

// JoinWitness does it for a witness.
func (c *Cluster) JoinWitness(name string) { c.t.Helper(); c.joinAs(name, node.RoleWitness) }

func (c *Cluster) joinAs(name string, role node.Role) {
	c.t.Helper()
	c.add(name, role)
	c.enter(name, false)
}

// Replace gives a node that does not run an empty disk, lets it take the place
// of the node that it was, once the others see that it is gone, and starts it.
func (c *Cluster) Replace(name string) {
	c.t.Helper()
	c.Wipe(name)
	c.enter(name, true)
}

// enter lets a node join by way of the first member that runs.
func (c *Cluster) enter(name string, replace bool) {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	peer := c.Running()[0]
	token, err := c.Client(peer).JoinToken(ctx, time.Hour)
	c.must(err, "get a join token of %s", peer)
	// Gossip takes longer to give up a node than the links to it.
	c.Eventually(patience, fmt.Sprintf("%s joins by way of %s", name, peer), func() error {
		return c.backend.join(ctx, name, peer, token.Token, replace)
	})
	c.Start(name)
}

// Recover makes a node that does not run the only member of its cluster, and
// starts it: the last resort when the quorum is lost.
func (c *Cluster) Recover(name string) {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	c.must(c.backend.recover(ctx, name), "recover %s", name)
	c.Start(name)
}

// Rejoin lets a node that does not run, and is no member any more, join again
// with the mail on its disk.
func (c *Cluster) Rejoin(name string) { c.t.Helper(); c.enter(name, false) }

// Client asks the admin socket of a node.
func (c *Cluster) Client(name string) *client.Client { return c.backend.client(name) }

// Set changes policies, by way of the first member that runs, and waits until
// all know them.
func (c *Cluster) Set(change api.PolicyChange) {
	c.t.Helper()
	if change == (api.PolicyChange{}) {
		return
	}
	c.Change("set policies", func(ctx context.Context, a *client.Client) (api.Changed, error) {
		return a.SetPolicies(ctx, change)
	})
	c.Settle()
}

// Change asks the first member that runs for a change of the cluster, again
// and again until it is made.
func (c *Cluster) Change(what string, change func(context.Context, *client.Client) (api.Changed, error)) {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	c.Eventually(patience, what, func() error {
		_, err := change(ctx, c.Client(c.Running()[0]))
		return err
	})
}

// View is the cluster as one node sees it.
func (c *Cluster) View(name string) (api.Cluster, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), 10*time.Second)
	defer cancel()
	return c.Client(name).Cluster(ctx)
}

// Left as a state means that somebody is no member.
const Left = "left"

// Await waits until one node sees another in a state, or Left.
func (c *Cluster) Await(seer, name, state string) {
	c.t.Helper()
	c.Eventually(5*time.Minute, fmt.Sprintf("%s sees %s %s", seer, name, state), func() error {
		v, err := c.View(seer)
		if err != nil {
			return err
		}
		now := Left
		if i := slices.IndexFunc(v.Members, func(m api.Member) bool { return m.Name == name }); i >= 0 {
			now = v.Members[i].State
		}
		if now != state {
			return fmt.Errorf("%s is %s", name, now)
		}
		return nil
	})
}

// Cut lets everything between two nodes vanish. Only virtual clusters can.
func (c *Cluster) Cut(a, b string) { c.Net.Cut(a, b) }

// Isolate cuts a node off from all others.
func (c *Cluster) Isolate(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other := range c.members {
		if other != name {
			c.Net.Cut(name, other)
		}
	}
}

// Heal ends all that was done to the network.
func (c *Cluster) Heal() {
	if c.Net != nil {
		c.Net.HealAll()
	}
}

// Eventually asks again and again until there is no error any more, and ends
// the test when that takes longer than the limit.
func (c *Cluster) Eventually(limit time.Duration, what string, problem func() error) {
	c.t.Helper()
	const firstPause, lastPause = 50 * time.Millisecond, time.Second
	rest := firstPause
	for deadline := time.Now().Add(limit); ; time.Sleep(rest) {
		rest = min(lastPause, rest*5/4)
		err := problem()
		switch {
		case err == nil:
			return
		case time.Now().After(deadline):
			c.dump()
			c.t.Fatalf("not within %v: %s: %v", limit, what, err)
		}
	}
}

// dump logs how every node sees the cluster.
func (c *Cluster) dump() {
	for _, name := range c.Running() {
		v, err := c.View(name)
		if err != nil {
			c.t.Logf("%s says nothing of the cluster: %v", name, err)
			continue
		}
		c.t.Logf("%s sees epoch %d, leader %q, %s: %q", name, v.Epoch, v.Leader, v.Verdict, v.Reasons)
	}
}

// end stops what runs.
func (c *Cluster) end() {
	var wg sync.WaitGroup
	errs := make(chan error, len(c.members)+1)
	for _, name := range c.Running() {
		wg.Go(func() {
			if err := c.backend.stop(name); err != nil {
				errs <- fmt.Errorf("stop %s: %w", name, err)
			}
		})
	}
	wg.Wait()
	if err := c.backend.close(); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs <- err
	}
	close(errs)
	for err := range errs {
		c.t.Error(err)
	}
}
