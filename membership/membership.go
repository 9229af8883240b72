package membership

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/membership/ring"
)

// Bind are the addresses that a node listens on for its members, "host:port".
type Bind struct {
	Gossip string // TCP and UDP
	Raft   string
}

// Options are the parameters of Open.
type Options struct {
	Dir  string // the cluster directory, see Create and Join
	Bind Bind
	// Advertise is where the others reach this node, see SetAdvertised. The
	// zero value keeps the view's until then.
	Advertise  ring.Addresses
	Version    string // of the program; told like Advertise; empty keeps the view's
	Network    Network
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: no metrics
}

// Membership is one node's part in the cluster. Its methods may be called from
// any goroutine; those that change something need Run.
type Membership struct {
	o       Options
	network Network
	log     *slog.Logger
	dir     string
	lock    *os.File

	name, id string
	role     ring.Role
	ca       *x509.Certificate

	current    atomic.Pointer[state]    // the last committed one
	identity   atomic.Pointer[identity] // in use
	advertised atomic.Pointer[ring.Addresses]
	removed    atomic.Bool   // never false again: a member ID does not come back
	doubt      chan struct{} // a member refused this node: see runStanding
	changed    broadcast

	gossip *gossip
	port   *raftPort

	mu        sync.Mutex
	consensus *consensus        // nil: Raft is not running
	voters    []string          // last known, in the order of Raft's configuration
	problems  map[string]string // what is wrong, by subject

	publishing sync.Mutex // one state takes the place of another at a time
	saving     sync.Mutex // one writes view.json at a time
	closeOnce  sync.Once
	registered bool // the metrics
	running    atomic.Bool
}

// Open reads the committed state of a cluster directory and binds the gossip
// and raft listeners. It starts nothing: see Run. A directory without a
// cluster is an ErrNoCluster, one in use by another process an ErrInUse.
func Open(o Options) (_ *Membership, err error) {
	if err := settleCluster(o.Dir); err != nil {
		return nil, err
	}
	s, err := readState(o.Dir)
	if err != nil {
		return nil, err
	}
	id, err := readIdentity(o.Dir)
	if err != nil {
		return nil, err
	}
	m := &Membership{
		o: o, network: o.Network.complete(), log: orSilent(o.Logger), dir: o.Dir,
		problems: map[string]string{}, doubt: make(chan struct{}, 1),
	}
	if m.ca, err = s.CA.certificate(); err != nil {
		return nil, err
	}
	m.current.Store(&s)
	m.identity.Store(&id)
	m.advertised.Store(&o.Advertise)
	if err := m.findSelf(s.View, id); err != nil {
		return nil, err
	}
	if m.lock, err = lockDir(o.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if m.gossip, err = newGossip(m); err != nil {
		return nil, fmt.Errorf("gossip: %w: choose another address with --gossip", err)
	}
	l, err := m.network.Listen("tcp", o.Bind.Raft)
	if err != nil {
		return nil, fmt.Errorf("raft: %w: choose another address with --raft", err)
	}
	m.port = newRaftPort(m, l)
	if o.Registerer != nil {
		if err := o.Registerer.Register(collector{m}); err != nil {
			return nil, err
		}
		m.registered = true
	}
	return m, nil
}

// findSelf sets who this node is. A node whose certificate belongs to nobody in
// the view was removed; it still starts, because mail that only it holds must
// reach the others, and says so.
func (m *Membership) findSelf(v ring.View, id identity) error {
	m.id, m.name, m.role = id.id, id.tls.Leaf.Subject.CommonName, ring.Data
	if err := ring.CheckName(m.name); err != nil {
		return fmt.Errorf("the node's certificate: %w", err)
	}
	for _, member := range v.Members {
		if member.ID == m.id {
			m.role = member.Role
			return nil
		}
	}
	m.setRemoved()
	return nil
}

// Close gives back what Open took, for a Membership that was never run. Run
// does it by itself.
func (m *Membership) Close() error {
	var err error
	m.closeOnce.Do(func() {
		if m.port != nil {
			err = errors.Join(err, m.port.close())
		}
		if m.gossip != nil {
			err = errors.Join(err, m.gossip.close())
		}
		if m.registered { // else it would be another's
			m.o.Registerer.Unregister(collector{m})
		}
		if m.lock != nil {
			err = errors.Join(err, m.lock.Close())
		}
	})
	return err
}

// Name is this node's name.
func (m *Membership) Name() string { return m.name }

// Role is what this node does.
func (m *Membership) Role() ring.Role { return m.role }

// Cluster is the cluster's identity.
func (m *Membership) Cluster() string { return m.View().Cluster }

// View is the last committed view that this node knows. It never blocks, and
// its epoch never goes back.
func (m *Membership) View() ring.View { return m.current.Load().View }

// Changed returns a channel that is closed when the view, somebody's liveness,
// the leader or the problems change. Ask for it before you look at them.
func (m *Membership) Changed() <-chan struct{} { return m.changed.wait() }

// Addrs are the addresses that the listeners are bound to.
func (m *Membership) Addrs() (gossip, raft string) {
	return m.gossip.addr().String(), m.port.listener.Addr().String()
}

// Alive reports whether a member seems alive. The node itself always is, and
// who is not in the view never is. It never blocks.
func (m *Membership) Alive(name string) bool { return m.Liveness(name).Alive }

// Liveness is what gossip knows of a member.
type Liveness struct {
	Alive   bool
	Since   time.Time  // when that changed last; zero: never heard of
	Version string     // of its program, as it says itself
	Epoch   ring.Epoch // of its view, as it says itself
}

// Liveness is what gossip knows of a member. It never blocks.
func (m *Membership) Liveness(name string) Liveness {
	v := m.View()
	member, ok := v.Member(name)
	if !ok {
		return Liveness{}
	}
	if member.ID == m.id {
		return Liveness{Alive: true, Since: m.gossip.started, Version: m.version(), Epoch: v.Epoch}
	}
	return m.gossip.liveness(name, member.ID)
}

func (m *Membership) version() string {
	if m.o.Version != "" {
		return m.o.Version
	}
	member, _ := m.View().Member(m.name)
	return member.Version
}

// Leader is the name of the member that leads now; empty when none is known.
func (m *Membership) Leader() string {
	c := m.raft()
	if c == nil {
		return ""
	}
	return m.nameOf(c.leader())
}

// Voters are the names of the members that vote, as far as this node knows.
func (m *Membership) Voters() []string {
	if c := m.raft(); c != nil {
		voters := m.votersOf(c)
		m.mu.Lock()
		m.voters = voters
		m.mu.Unlock()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.voters)
}

// Quorum reports whether the cluster can be changed now: a leader is known.
func (m *Membership) Quorum() bool { return m.Leader() != "" }

// Problems are what is wrong with this node's part in the cluster, for people.
func (m *Membership) Problems() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var texts []string
	for _, subject := range slices.Sorted(maps.Keys(m.problems)) {
		texts = append(texts, m.problems[subject])
	}
	return texts
}

// Subjects of problems.
const (
	aboutMembership = "membership" // this node is no member
	aboutView       = "view"       // the view cannot be written
)

// note keeps or, with an empty text, clears the problem of a subject, and logs
// it once.
func (m *Membership) note(subject, text string) {
	m.mu.Lock()
	old := m.problems[subject]
	if text == "" {
		delete(m.problems, subject)
	} else {
		m.problems[subject] = text
	}
	m.mu.Unlock()
	if old == text {
		return
	}
	if text != "" {
		m.log.Error("cluster problem", "subject", subject, "problem", text)
	} else {
		m.log.Info("cluster problem is over", "subject", subject)
	}
	m.changed.fire()
}

func (m *Membership) nameOf(id string) string {
	for _, member := range m.View().Members {
		if member.ID == id {
			return member.Name
		}
	}
	return ""
}

func (m *Membership) raft() *consensus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.consensus
}

// publish makes a committed state the current one, unless it is older, as in
// the replay of a log after a restart. It is on the disk before anybody sees
// it; a full disk must not keep the node from following its cluster, so then
// it is seen all the same, and written later.
func (m *Membership) publish(s state) {
	m.publishing.Lock()
	defer m.publishing.Unlock()
	old := m.current.Load()
	if s.View.Epoch < old.View.Epoch {
		return
	}
	if s.View.Cluster != old.View.Cluster {
		m.note("cluster", fmt.Sprintf("a log of another cluster (%s) was offered: this node belongs to %s; the data directories were mixed up", s.View.Cluster, old.View.Cluster))
		return
	}
	m.current.Store(&s)
	_ = m.save() // its failure is a problem that people see
	m.gossip.setKeys(s.Gossip)
	m.port.dropStrangers()
	if !hasID(s.View, m.id) {
		m.setRemoved()
	}
	if s.View.Epoch > old.View.Epoch {
		m.log.Info("cluster changed", "epoch", uint64(s.View.Epoch), "members", len(s.View.Members))
	}
	m.changed.fire()
}

// save keeps the current state on the disk.
func (m *Membership) save() error {
	m.saving.Lock()
	defer m.saving.Unlock()
	if err := writeState(m.dir, *m.current.Load()); err != nil {
		m.note(aboutView, fmt.Sprintf("the cluster's view cannot be written: %v: free space on the disk of %s; until then a restart forgets the latest changes", err, m.dir))
		return err
	}
	m.note(aboutView, "")
	return nil
}

// broadcast wakes all who wait, once.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) fire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// closed reports whether an error only says that somebody closed the socket.
func closed(err error) bool { return errors.Is(err, net.ErrClosed) }
