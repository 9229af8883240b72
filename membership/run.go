package membership

import (
	"context"
	"errors"
	"sync"
)

// Run takes part in the cluster until ctx ends, and then takes its leave: the
// lead goes to another voter, gossip tells that this node left. A Membership
// runs once.
//
// What goes wrong meanwhile is a problem (see Problems), not an end: without
// gossip or Raft, View and the TLS configurations still serve, and mail flows.
func (m *Membership) Run(ctx context.Context) error {
	if m.running.Swap(true) {
		return errors.New("a Membership runs once")
	}
	// Raft's connections go through the port, so the port outlives it; and
	// gossip is the last to go, so that the others hear it.
	portCtx, stopPort := context.WithCancel(context.WithoutCancel(ctx))
	gossipCtx, stopGossip := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPort()
	defer stopGossip()

	var gossip, port, rest sync.WaitGroup
	gossip.Go(func() {
		if err := m.gossip.run(gossipCtx); err != nil {
			m.note("gossip", "this node does not hear who is alive: "+err.Error()+": restart it")
		}
	})
	port.Go(func() { m.port.serve(portCtx) })
	for _, part := range []func(context.Context){m.runConsensus, m.runDuties, m.runUpkeep, m.runStanding} {
		rest.Go(func() { part(ctx) })
	}
	<-ctx.Done()
	rest.Wait()
	stopGossip()
	gossip.Wait()
	stopPort()
	err := m.Close()
	port.Wait()
	return err
}
