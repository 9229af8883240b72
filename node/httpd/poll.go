package httpd

import (
	"context"
	"sync"
	"time"

	"chainmail/node/api"
)

// Balancers ask for the cluster every second, several of them, and each answer
// costs a question to every member; one that is frozen takes its whole time-out.
const (
	// pollStale is the oldest answer that is given without waiting for a new one.
	pollStale = 3 * time.Second
	// pollFresh is how old an answer may be before a new one is made beside it.
	pollFresh = 250 * time.Millisecond
	// pollTimeout bounds the making of one.
	pollTimeout = 10 * time.Second
)

// clusterPoll answers those who ask often with what others were answered a
// moment ago.
type clusterPoll struct {
	ctx  context.Context
	stop context.CancelFunc

	mu      sync.Mutex
	last    api.Cluster
	at      time.Time     // when last was asked for; zero: there is none
	err     error         // of the last attempt
	running chan struct{} // closed at the end of the attempt under way; nil: none is
	making  sync.WaitGroup
}

func newClusterPoll() *clusterPoll {
	p := &clusterPoll{}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// get returns an answer that is at most pollStale old.
func (p *clusterPoll) get(ctx context.Context, ask func(context.Context) (api.Cluster, error)) (api.Cluster, error) {
	p.mu.Lock()
	age := time.Since(p.at)
	if age > pollFresh && p.running == nil && p.ctx.Err() == nil {
		p.running = make(chan struct{})
		p.making.Go(func() { p.make(ask) })
	}
	last, running := p.last, p.running
	p.mu.Unlock() // and with no answer there is an attempt under way, or the end
	if age <= pollStale {
		return last, nil
	}
	select {
	case <-running:
	case <-p.ctx.Done():
		return api.Cluster{}, p.ctx.Err()
	case <-ctx.Done():
		return api.Cluster{}, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last, p.err
}

func (p *clusterPoll) make(ask func(context.Context) (api.Cluster, error)) {
	ctx, cancel := context.WithTimeout(p.ctx, pollTimeout)
	defer cancel()
	began := time.Now()
	c, err := ask(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err = err; err == nil {
		p.last, p.at = c, began
	}
	close(p.running)
	p.running = nil
}

// end waits for what is under way.
func (p *clusterPoll) end() {
	p.mu.Lock()
	p.stop() // under the lock: nothing begins after it
	p.mu.Unlock()
	p.making.Wait()
}
