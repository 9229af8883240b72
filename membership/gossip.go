package membership

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"chainmail/membership/ring"
)

// The failure detector, for clusters of a few nodes on a good network: a node
// that stops answering is suspected when a probe failed, after 0.5 to 1 s, and
// taken for dead 2.5 s later, unless it, or somebody who reaches it, objects.
const (
	probeInterval = 500 * time.Millisecond
	probeTimeout  = 300 * time.Millisecond
	suspicionMult = 5
)

// Pauses between attempts to find members that are in the view but not alive.
// They go on for ever: memberlist itself forgets the dead.
const (
	rejoinFirst = time.Second
	rejoinMost  = 15 * time.Second
)

const leaveTimeout = time.Second

// gossip says who seems alive.
type gossip struct {
	m         *Membership
	transport *gossipTransport
	keyring   *memberlist.Keyring
	started   time.Time
	poke      chan struct{} // what this node says of itself changed

	mu    sync.Mutex
	list  *memberlist.Memberlist // nil: not running
	peers map[string]peer        // by member ID
}

// peer is what a member said of itself, and whether it is alive.
type peer struct {
	name  string
	alive bool
	since time.Time
	meta  gossipMeta
}

func newGossip(m *Membership) (*gossip, error) {
	g := &gossip{m: m, started: time.Now(), peers: map[string]peer{}, poke: make(chan struct{}, 1)}
	keys := m.current.Load().Gossip.Keys
	var err error
	if g.keyring, err = memberlist.NewKeyring(keys, keys[0]); err != nil {
		return nil, err
	}
	g.transport, err = newGossipTransport(m.network, m.o.Bind.Gossip, func(name string) (string, bool) {
		addr := m.AddressOf(name).Gossip
		return addr, addr != ""
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

func (g *gossip) addr() net.Addr { return g.transport.listener.Addr() }

func (g *gossip) close() error { return g.transport.Shutdown() }

// run gossips until ctx ends, and then takes its leave.
func (g *gossip) run(ctx context.Context) error {
	g.transport.start(ctx)
	list, err := memberlist.Create(g.config())
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	g.mu.Lock()
	g.list = list
	g.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { g.tell(ctx, list) })
	g.rejoin(ctx, list)
	wg.Wait()
	if err := list.Leave(leaveTimeout); err != nil {
		g.m.log.Debug("nobody heard this node leave", "err", err)
	}
	return list.Shutdown()
}

func (g *gossip) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.m.name
	c.Transport = g.transport
	c.AdvertiseAddr, c.AdvertisePort = gossipIP(g.m.name).String(), gossipPort
	c.BindPort = gossipPort
	c.Keyring = g.keyring
	c.ProbeInterval, c.ProbeTimeout = probeInterval, probeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = suspicionMult, 1
	c.AwarenessMaxMultiplier = 2
	c.TCPTimeout = 2 * time.Second
	c.PushPullInterval = 10 * time.Second
	c.RequireNodeNames = true
	c.Delegate, c.Events, c.Alive, c.Merge = g, g, g, g
	c.Logger = log.New(gossipWriter{newLibraryLog(g.m.log, "memberlist")}, "", 0)
	return c
}

// tell spreads what this node says of itself when it changes.
func (g *gossip) tell(ctx context.Context, list *memberlist.Memberlist) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.poke:
			_ = list.UpdateNode(probeInterval) // it is spread all the same when nobody took it in time
		}
	}
}

// rejoin looks for the members that are not alive, for ever.
func (g *gossip) rejoin(ctx context.Context, list *memberlist.Memberlist) {
	pause := rejoinFirst
	var last ring.Epoch
	for {
		changed := g.m.Changed()
		view := g.m.View()
		if view.Epoch != last {
			last, pause = view.Epoch, rejoinFirst
		}
		var wg sync.WaitGroup
		for _, member := range view.Members {
			if member.ID != g.m.id && !g.liveness(member.Name, member.ID).Alive {
				at := net.JoinHostPort(gossipIP(member.Name).String(), strconv.Itoa(gossipPort))
				wg.Go(func() { _, _ = list.Join([]string{member.Name + "/" + at}) }) // its failure is what liveness says
			}
		}
		wg.Wait()
		timer := time.NewTimer(pause)
		pause = min(2*pause, rejoinMost)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				waiting = false
			case <-changed: // a new view may have new members
				changed = g.m.Changed()
				waiting = g.m.View().Epoch == last
			}
		}
		timer.Stop()
	}
}

// liveness is what is known of a member by name and ID.
func (g *gossip) liveness(name, id string) Liveness {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, ok := g.peers[id]
	if !ok || p.name != name {
		return Liveness{}
	}
	return Liveness{Alive: p.alive, Since: p.since, Version: p.meta.Version, Epoch: p.meta.Epoch}
}

// setKeys follows a rotation. Every key that was there keeps its place until
// the new first one is in use.
func (g *gossip) setKeys(k gossipKeys) {
	if g == nil {
		return // the view is read before gossip exists
	}
	for _, key := range k.Keys {
		_ = g.keyring.AddKey(key) // fails for wrong lengths only, which a state never has
	}
	_ = g.keyring.UseKey(k.Keys[0])
	for _, key := range g.keyring.GetKeys() {
		if !slices.ContainsFunc(k.Keys, func(keep []byte) bool { return string(keep) == string(key) }) {
			_ = g.keyring.RemoveKey(key)
		}
	}
	g.tellAgain() // the epoch changed
}

// tellAgain has what this node says of itself spread anew.
func (g *gossip) tellAgain() {
	select {
	case g.poke <- struct{}{}:
	default:
	}
}

// heard keeps what memberlist says of a node.
func (g *gossip) heard(n *memberlist.Node, alive bool) {
	meta, err := decodeMetaOf(n)
	if err != nil || meta.ID == g.m.id {
		return
	}
	g.mu.Lock()
	old := g.peers[meta.ID]
	p := peer{name: n.Name, alive: alive, since: old.since, meta: meta}
	if old.alive != alive || old.since.IsZero() {
		p.since = time.Now()
	}
	g.peers[meta.ID] = p
	for id, other := range g.peers { // the name was replaced: its former holder is gone
		if other.name == n.Name && id != meta.ID && alive {
			delete(g.peers, id)
		}
	}
	g.mu.Unlock()
	if old.alive != alive {
		g.m.log.Info("liveness of a member changed", "peer", n.Name, "alive", alive)
	}
	g.m.changed.fire()
}

var errStranger = errors.New("not a member in the view of this node")

// stranger refuses a node that is not the member of its name in the view. What
// is said of this node itself always comes through, because it objects to what
// is not true of it, such as what was true of the one whose place it took.
func (g *gossip) stranger(n *memberlist.Node) error {
	if n.Name == g.m.name {
		return nil
	}
	meta, err := decodeMetaOf(n)
	if err != nil {
		return err
	}
	if member, ok := g.m.View().Member(n.Name); !ok || member.ID != meta.ID {
		return errStranger
	}
	return nil
}

// NotifyAlive keeps strangers out (memberlist.AliveDelegate). No method of
// these delegates may block or call memberlist.
func (g *gossip) NotifyAlive(n *memberlist.Node) error { return g.stranger(n) }

// NotifyMerge keeps out who knows no member but himself
// (memberlist.MergeDelegate). A peer whose view is older or newer may well know
// others; those NotifyAlive sorts out.
func (g *gossip) NotifyMerge(nodes []*memberlist.Node) error {
	for _, n := range nodes {
		if g.stranger(n) == nil {
			return nil
		}
	}
	return errStranger
}

// NotifyJoin and the two after it are memberlist.EventDelegate.
func (g *gossip) NotifyJoin(n *memberlist.Node) { g.heard(n, true) }

func (g *gossip) NotifyLeave(n *memberlist.Node) { g.heard(n, false) }

func (g *gossip) NotifyUpdate(n *memberlist.Node) { g.heard(n, true) }

// NodeMeta and the methods after it are memberlist.Delegate.
func (g *gossip) NodeMeta(limit int) []byte {
	return encodeMeta(gossipMeta{ID: g.m.id, Role: g.m.role, Version: g.m.version(), Epoch: g.m.View().Epoch, Addresses: *g.m.advertised.Load()}, limit)
}

func (g *gossip) NotifyMsg([]byte)                {}
func (g *gossip) GetBroadcasts(int, int) [][]byte { return nil }
func (g *gossip) LocalState(bool) []byte          { return nil }
func (g *gossip) MergeRemoteState([]byte, bool)   {}
