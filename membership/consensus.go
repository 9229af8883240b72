package membership

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
)

// Raft's timing: transportTimeout bounds one exchange with a peer.
const transportTimeout = 2 * time.Second

// reopenAfter is the pause before Raft is tried again when its directory or
// disk failed.
const reopenAfter = 15 * time.Second

// consensus is a running Raft.
type consensus struct {
	raft      *raft.Raft
	fsm       *fsm
	store     *raftStore
	transport *raft.NetworkTransport
	observer  *raft.Observer
	events    chan raft.Observation
}

// openConsensus starts Raft. The library panics on some damage; that is an
// error like any other here.
func (m *Membership) openConsensus() (c *consensus, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			c, err = nil, errors.Join(fmt.Errorf("%v", p), c.close())
		}
	}()
	log := raftLog{libraryLog: newLibraryLog(m.log, "raft"), alive: func(id string) bool { return m.Alive(m.nameOf(id)) }}
	c = &consensus{fsm: &fsm{publish: m.publish, unknown: func(err error) { m.note("log", err.Error()) }}}
	if err := settle(filepath.Join(m.dir, raftDir)); err != nil {
		return nil, err
	}
	if c.store, err = openStore(filepath.Join(m.dir, raftDir), log); err != nil {
		return nil, err
	}
	c.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: m.port.newStream(), MaxPool: 2, Timeout: transportTimeout, Logger: log,
	})
	if c.raft, err = raft.NewRaft(raftConfig(m.id, log), c.fsm, c.store, c.store, c.store.files, c.transport); err != nil {
		return nil, errors.Join(err, c.close())
	}
	c.store.guarded.Store(true)
	c.events = make(chan raft.Observation, 16)
	c.observer = raft.NewObserver(c.events, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	c.raft.RegisterObserver(c.observer)
	return c, nil
}

// close stops whatever was started, and waits for it.
func (c *consensus) close() error {
	if c == nil {
		return nil
	}
	var err error
	if c.raft != nil {
		if c.observer != nil {
			c.raft.DeregisterObserver(c.observer)
		}
		future := c.raft.Shutdown()
		if c.transport != nil { // first: the streams that Raft's goroutines wait for end
			c.transport.CloseStreams()
			err = c.transport.Close()
		}
		err = errors.Join(err, future.Error())
	} else if c.transport != nil {
		err = c.transport.Close()
	}
	if c.store != nil {
		err = errors.Join(err, c.store.close())
	}
	return err
}

// leader is the ID of who leads; empty when nobody is known to.
func (c *consensus) leader() string {
	_, id := c.raft.LeaderWithID()
	return string(id)
}

// leading reports whether this node leads.
func (c *consensus) leading() bool { return c.raft.State() == raft.Leader }

// servers is Raft's configuration.
func (c *consensus) servers() []raft.Server {
	f := c.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

// votersOf names the voters, the leader first.
func (m *Membership) votersOf(c *consensus) []string {
	var names []string
	leader := c.leader()
	for _, s := range c.servers() {
		name := m.nameOf(string(s.ID))
		switch {
		case s.Suffrage != raft.Voter || name == "":
		case string(s.ID) == leader:
			names = append([]string{name}, names...)
		default:
			names = append(names, name)
		}
	}
	return names
}

// runConsensus keeps Raft running until ctx ends. When its directory is damaged
// or its disk is full, that is a problem that people see, and it is tried again:
// mail does not need Raft.
func (m *Membership) runConsensus(ctx context.Context) {
	for {
		err := m.consensusOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		m.note("raft", fmt.Sprintf("the cluster's log in %s cannot be used: %v: mail flows, but this node does not learn of changes. "+
			"Free space if the disk is full. If the log is damaged: with other members left, stop this node, remove %s and come back with 'chainmail join-node --replace', which keeps the mail; "+
			"if it is the only member, stop it and run 'chainmail recover --i-lost-the-quorum'", filepath.Join(m.dir, raftDir), err, m.dir))
		select {
		case <-ctx.Done():
			return
		case <-time.After(reopenAfter):
		}
	}
}

// consensusOnce runs Raft until ctx ends or it fails.
func (m *Membership) consensusOnce(ctx context.Context) error {
	c, err := m.openConsensus()
	if err != nil {
		return err
	}
	m.setConsensus(c)
	m.note("raft", "")
	for {
		select {
		case <-c.events: // the leader changed
			m.changed.fire()
			continue
		case err = <-c.store.failed:
		case <-ctx.Done():
			m.handOver(c)
		}
		break
	}
	m.setConsensus(nil)
	return errors.Join(err, c.close())
}

func (m *Membership) setConsensus(c *consensus) {
	m.mu.Lock()
	m.consensus = c
	m.mu.Unlock()
	m.changed.fire()
}

// handOver gives the lead to another voter before this node stops, so that the
// others need not notice its absence first.
func (m *Membership) handOver(c *consensus) {
	if !c.leading() {
		return
	}
	for _, name := range m.votersOf(c) {
		if name != m.name && m.Alive(name) {
			if err := c.raft.LeadershipTransfer().Error(); err != nil {
				m.log.Debug("nobody took over the lead", "err", err)
			}
			return
		}
	}
}
