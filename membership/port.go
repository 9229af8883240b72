package membership

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// What the first byte of a connection to the raft port says.
const (
	speaksRaft    = 'R'
	speaksControl = 'C'
)

// speaksStanding stands for a connection that its TLS protocol says all about,
// and that may be anybody's who was once certified. No first byte makes one.
const speaksStanding = 'S'

// answersControl is the other end of speaksControl. It outlives its peer's
// membership by one answer, so that a member that asked to be removed is told.
const answersControl = 'c'

// handshakeTimeout bounds what a stranger can make the raft port wait.
const handshakeTimeout = 5 * time.Second

// raftPort is the listener that only members may connect to. It hands streams
// over to Raft and answers control requests.
type raftPort struct {
	m        *Membership
	listener net.Listener

	mu       sync.Mutex
	conns    map[*tls.Conn]byte // what for; after the handshake, both directions
	greeting int                // handshakes under way
	crowd    map[string]int     // of them, by the address of the client
	stream   *raftStream        // nil: Raft is not running
	closed   bool
	wg       sync.WaitGroup
}

const (
	maxHandshakes      = 512
	maxHandshakesOfOne = 32
)

func newRaftPort(m *Membership, l net.Listener) *raftPort {
	return &raftPort{m: m, listener: l, conns: map[*tls.Conn]byte{}, crowd: map[string]int{}}
}

// serve accepts until the port is closed.
func (p *raftPort) serve(ctx context.Context) {
	for {
		conn, err := p.listener.Accept()
		if closed(err) || ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil { // out of file descriptors, for example: they come back
			p.m.log.Warn("raft port does not accept", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		leave, ok := p.enter(conn.RemoteAddr())
		if !ok { // strangers crowd the port; members try again
			conn.Close()
			continue
		}
		go func() {
			defer p.wg.Done()
			tlsConn, kind, err := p.greet(ctx, conn)
			leave()
			if err != nil {
				conn.Close()
				p.m.log.Debug("connection to the raft port refused", "client", conn.RemoteAddr().String(), "err", err)
				return
			}
			p.hand(ctx, tlsConn, kind)
		}()
	}
}

// enter counts a handshake, and a goroutine of wg, unless the port is closed (whose
// close waits for no more of them then) or there are too many handshakes: of all,
// or of one address, so that one stranger cannot keep the members out.
func (p *raftPort) enter(client net.Addr) (leave func(), ok bool) {
	host := client.String()
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.crowd[host] >= maxHandshakesOfOne || p.greeting >= maxHandshakes {
		return nil, false
	}
	p.wg.Add(1)
	p.crowd[host]++
	p.greeting++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.greeting--
		if p.crowd[host]--; p.crowd[host] == 0 {
			delete(p.crowd, host)
		}
	}, true
}

// greet does the handshake and reads what the connection is for.
func (p *raftPort) greet(ctx context.Context, conn net.Conn) (*tls.Conn, byte, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	c := tls.Server(conn, p.m.memberTLS())
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, 0, err
	}
	if c.ConnectionState().NegotiatedProtocol == standingALPN {
		return c, speaksStanding, nil
	}
	var kind [1]byte
	if _, err := c.Read(kind[:]); err != nil {
		return nil, 0, err
	}
	if kind[0] != speaksRaft && kind[0] != speaksControl {
		return nil, 0, fmt.Errorf("the first byte is %q: the other node may run a newer version", kind[0])
	}
	return c, kind[0], conn.SetDeadline(time.Time{})
}

// hand gives a connection to whom it is for.
func (p *raftPort) hand(ctx context.Context, c *tls.Conn, kind byte) {
	as := kind
	if kind == speaksControl {
		as = answersControl
	}
	conn, ok := p.track(c, as)
	if !ok {
		c.Close()
		return
	}
	switch kind {
	case speaksRaft:
		p.mu.Lock()
		s := p.stream
		p.mu.Unlock()
		if s == nil || !s.offer(conn) {
			conn.Close()
		}
	case speaksControl:
		defer conn.Close()
		peer, err := p.m.peerOf(c.ConnectionState())
		if err != nil {
			return
		}
		p.m.serveControl(ctx, conn, peer, c.ConnectionState().PeerCertificates[0])
	case speaksStanding:
		defer conn.Close()
		p.m.serveStanding(conn, c.ConnectionState())
	}
}

// track remembers an open connection, so that it can be closed when its peer
// is no member any more.
func (p *raftPort) track(c *tls.Conn, kind byte) (net.Conn, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, false
	}
	p.conns[c] = kind
	return &memberConn{Conn: c, port: p}, true
}

// memberConn is a connection that the port knows of.
type memberConn struct {
	*tls.Conn
	port *raftPort
}

func (c *memberConn) Close() error {
	c.port.mu.Lock()
	delete(c.port.conns, c.Conn)
	c.port.mu.Unlock()
	return c.Conn.Close()
}

func (c *memberConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.port.m.noteRefusal(err)
	return n, err
}

// dropStrangers closes the connections of peers that are no members any more.
func (p *raftPort) dropStrangers() {
	if p == nil {
		return // the view is read before the port is bound
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, kind := range p.conns {
		if _, err := p.m.PeerOf(c.ConnectionState()); err != nil && kind != answersControl && kind != speaksStanding {
			_ = c.NetConn().Close()
		}
	}
}

// dial opens a connection to a member for raft or control.
func (p *raftPort) dial(ctx context.Context, id string, kind byte) (net.Conn, error) {
	view := p.m.View()
	for _, member := range view.Members {
		if member.ID != id {
			continue
		}
		raw, err := p.m.network.Dial(ctx, "tcp", p.m.AddressOf(member.Name).Raft)
		if err != nil {
			return nil, err
		}
		c := tls.Client(raw, p.m.ClientTLS(member.Name))
		if err := c.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		conn, ok := p.track(c, kind)
		if !ok {
			raw.Close()
			return nil, net.ErrClosed
		}
		deadline, _ := ctx.Deadline()
		_ = c.SetWriteDeadline(deadline)
		if _, err := conn.Write([]byte{kind}); err != nil {
			conn.Close()
			return nil, err
		}
		_ = c.SetWriteDeadline(time.Time{})
		return conn, nil
	}
	return nil, fmt.Errorf("no member has the ID %s at epoch %d", id, view.Epoch)
}

// close ends the listener and all connections, and waits for their goroutines.
func (p *raftPort) close() error {
	err := p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		_ = c.NetConn().Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

// raftStream is what one run of Raft sees of the port (raft.StreamLayer).
type raftStream struct {
	port     *raftPort
	incoming chan net.Conn
	done     chan struct{}
	once     sync.Once
}

func (p *raftPort) newStream() *raftStream {
	s := &raftStream{port: p, incoming: make(chan net.Conn), done: make(chan struct{})}
	p.mu.Lock()
	p.stream = s
	p.mu.Unlock()
	return s
}

func (s *raftStream) offer(c net.Conn) bool {
	select {
	case s.incoming <- c:
		return true
	case <-s.done:
		return false
	}
}

// Accept and the methods after it are those of raft.StreamLayer.
func (s *raftStream) Accept() (net.Conn, error) {
	select {
	case c := <-s.incoming:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Close ends all of Raft's connections, because Raft itself leaves those that
// it accepted open.
func (s *raftStream) Close() error {
	s.once.Do(func() {
		close(s.done)
		s.port.mu.Lock()
		defer s.port.mu.Unlock()
		if s.port.stream == s {
			s.port.stream = nil
		}
		for c, kind := range s.port.conns {
			if kind == speaksRaft {
				_ = c.NetConn().Close()
			}
		}
	})
	return nil
}

func (s *raftStream) Addr() net.Addr { return streamAddr(s.port.m.id) }

func (s *raftStream) Dial(id raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.port.dial(ctx, string(id), speaksRaft)
}

// streamAddr is the address of a member as Raft sees it: its ID.
type streamAddr string

func (a streamAddr) Network() string { return "tcp" }
func (a streamAddr) String() string  { return string(a) }
