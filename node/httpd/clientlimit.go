package httpd

import (
	"net"
	"net/netip"
	"sync"
)

// maxPerClient is how many connections one address may hold, of the
// maxConnections of the listener: so one that holds all it can get leaves room
// for the other nodes and for people.
const maxPerClient = 256

// clientLimit is a listener that closes what one address opens beyond its limit.
type clientLimit struct {
	net.Listener
	limit func(client netip.Addr) int

	mu   sync.Mutex
	open map[netip.Addr]int
}

func newClientLimit(l net.Listener, limit func(netip.Addr) int) *clientLimit {
	return &clientLimit{Listener: l, limit: limit, open: map[netip.Addr]int{}}
}

// Accept gives the next connection of an address that may have one more.
func (l *clientLimit) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
		if !ok {
			return conn, nil
		}
		client := tcp.AddrPort().Addr().Unmap()
		if l.take(client) {
			return &limitedConn{Conn: conn, done: sync.OnceFunc(func() { l.give(client) })}, nil
		}
		_ = conn.Close()
	}
}

func (l *clientLimit) take(client netip.Addr) bool {
	limit := l.limit(client)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[client] >= limit {
		return false
	}
	l.open[client]++
	return true
}

func (l *clientLimit) give(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[client]--; l.open[client] == 0 {
		delete(l.open, client)
	}
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	done func()
}

func (c *limitedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}
