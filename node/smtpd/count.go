package smtpd

import "net/netip"

// pool is what a connection counts for, and so what bounds it.
type pool int

const (
	poolMail  pool = iota // it may send mail: Limits
	poolFront             // it came to the chain's port and has not shown yet what it is
	poolPeer              // it is a node's: nothing may hold up the chain
	poolCount
)

// seat is what is counted for one client.
type seat struct {
	pool   pool
	client netip.Addr // by clientKey
}

// most says how many connections a pool has room for, altogether and for one
// client; 0 means any number.
func (s *Server) most(p pool) (all, client int) {
	switch p {
	case poolMail:
		return s.opts.Limits.MaxConnections, s.opts.Limits.MaxConnectionsPerClient
	case poolFront:
		return maxUndecided, maxUndecidedPerClient
	}
	return 0, 0
}

// enter registers a connection, and reports whether there is room for it.
func (s *Server) enter(l *link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns.Add(1)
	s.links[l] = struct{}{}
	s.inPool[l.pool]++
	all, _ := s.most(l.pool)
	return all == 0 || s.inPool[l.pool] <= all
}

// countClient counts a connection for its client, and reports whether there is
// room for it.
func (s *Server) countClient(l *link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.countClientLocked(l)
}

func (s *Server) countClientLocked(l *link) bool {
	_, client := s.most(l.pool)
	if client == 0 || !l.client.IsValid() {
		return true
	}
	key := seat{l.pool, clientKey(l.client)}
	if s.perClient[key] >= client {
		return false
	}
	s.perClient[key]++
	l.counted = true
	return true
}

// moveLocked counts a connection in another pool, and reports whether there is
// room for it.
func (s *Server) moveLocked(l *link, to pool) bool {
	s.uncountLocked(l)
	l.pool = to
	s.inPool[to]++
	all, _ := s.most(to)
	return (all == 0 || s.inPool[to] <= all) && s.countClientLocked(l)
}

func (s *Server) uncountLocked(l *link) {
	s.inPool[l.pool]--
	if l.counted {
		key := seat{l.pool, clientKey(l.client)}
		if s.perClient[key]--; s.perClient[key] == 0 {
			delete(s.perClient, key)
		}
		l.counted = false
	}
}

func (s *Server) leave(l *link) {
	s.mu.Lock()
	delete(s.links, l)
	s.uncountLocked(l)
	s.mu.Unlock()
	s.conns.Done()
}
