package smtpd

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Server takes mail on all its connectors.
type Server struct {
	opts       Options
	log        *slog.Logger
	connectors []*connector
	rates      *rates

	draining  atomic.Bool
	stopping  chan struct{}
	stop      sync.Once
	life      context.Context // of every connection; ends when they are killed
	end       context.CancelFunc
	preparing sync.WaitGroup // goroutines of connections that go-smtp has not got yet
	conns     sync.WaitGroup // connections

	mu        sync.Mutex
	links     map[*link]struct{}
	inPool    [poolCount]int
	perClient map[seat]int
	opened    bool
}

// Listener is the state of one connector.
type Listener struct {
	Name        string
	Kind        Kind
	Address     string // the real one, once the socket is open
	Connections int
}

// Open opens the sockets, so that their addresses are known and clients may
// connect; they are served when Run is called. Run opens what is not open.
func (s *Server) Open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened {
		return nil
	}
	for i, c := range s.connectors {
		if err := c.listen(); err != nil {
			for _, open := range s.connectors[:i] {
				open.listener.Close()
				open.listener = nil
			}
			return err
		}
	}
	s.opened = true
	return nil
}

// Close closes the sockets of a server that was opened and shall not run.
func (s *Server) Close() error {
	s.Drain()
	s.end()
	s.closeListeners()
	return nil
}

func (s *Server) closeListeners() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.connectors {
		if c.listener != nil {
			_ = c.listener.Close()
		}
	}
}

// Listeners tells the state of every connector, in the order of Options.
func (s *Server) Listeners() []Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Listener, len(s.connectors))
	for i, c := range s.connectors {
		all[i] = Listener{c.Name, c.Kind, c.Address, int(c.open.Load())}
		if network, _ := c.network(); c.listener != nil && network == "tcp" {
			all[i].Address = c.listener.Addr().String()
		}
	}
	return all
}

// Drain asks Run to end; it returns at once.
func (s *Server) Drain() {
	s.stop.Do(func() {
		s.draining.Store(true)
		close(s.stopping)
	})
}

// Run serves until ctx ends or Drain is called; it can be called once. Then the listeners close,
// clients without a mail under way are told 421, the others once they have the
// reply to theirs. Run returns when all are gone; what is left after
// Limits.DrainTimeout is cut off, and not acknowledged.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Open(); err != nil {
		return err
	}
	var frames, accepting sync.WaitGroup
	for _, c := range s.connectors {
		frames.Go(func() { _ = c.plain.smtp.Serve(c.plain) })
		frames.Go(func() { _ = c.secure.smtp.Serve(c.secure) })
		accepting.Go(c.accept)
	}
	select {
	case <-ctx.Done():
		s.Drain()
	case <-s.stopping:
	}
	s.closeListeners()
	accepting.Wait()
	s.emptyOut()
	s.end()
	for _, c := range s.connectors {
		c.plain.shutdown()
		c.secure.shutdown()
	}
	frames.Wait()
	return nil
}

// emptyOut waits for the connections to end, and ends those that do not.
func (s *Server) emptyOut() {
	gone := make(chan struct{})
	go func() {
		s.conns.Wait()
		s.preparing.Wait()
		close(gone)
	}()
	s.each((*link).wake)
	timeout := time.NewTimer(s.opts.Limits.DrainTimeout)
	defer timeout.Stop()
	select {
	case <-gone:
		return
	case <-timeout.C:
	}
	cut := s.each((*link).kill)
	s.log.Warn("connections cut off: mail was still under way when the drain timed out", slog.Int("connections", cut))
	<-gone
}

func (s *Server) each(do func(*link)) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.links {
		do(l)
	}
	return len(s.links)
}

func (s *Server) accepting() error {
	if s.opts.Accepting == nil {
		return nil
	}
	return s.opts.Accepting()
}
