package membership_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"chainmail/membership"
)

// memNet is a network in memory. Each host has an IP address and a Network of
// its own, so that the way between two hosts can be cut: then packets are lost
// and connections stall, as when somebody pulls a cable.
type memNet struct {
	mu        sync.Mutex
	changed   chan struct{} // closed at every change of what follows
	listeners map[string]*memListener
	packets   map[string]*memPackets
	cut       map[[2]string]bool
	conns     map[*memConn]struct{}
	nextPort  int
	names     map[string]string // host name → IP
}

func newMemNet() *memNet {
	return &memNet{
		changed: make(chan struct{}), listeners: map[string]*memListener{}, packets: map[string]*memPackets{},
		cut: map[[2]string]bool{}, conns: map[*memConn]struct{}{}, nextPort: 40000, names: map[string]string{},
	}
}

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

func (n *memNet) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// Cut and Heal end and restore the way between two hosts.
func (n *memNet) Cut(a, b string)  { n.change(func() { n.cut[pair(a, b)] = true }) }
func (n *memNet) Heal(a, b string) { n.change(func() { delete(n.cut, pair(a, b)) }) }

// Kill ends a host as kill -9 ends a process: its sockets are gone, and nothing
// it still tries to send arrives.
func (n *memNet) Kill(host string) {
	n.change(func() {
		for addr, l := range n.listeners {
			if l.host == host {
				l.shut()
				delete(n.listeners, addr)
			}
		}
		for addr, p := range n.packets {
			if p.host == host {
				p.shut()
				delete(n.packets, addr)
			}
		}
		for c := range n.conns {
			if c.local.host() == host || c.remote.host() == host {
				c.reset()
			}
		}
	})
}

func (n *memNet) reachable(a, b string) bool { return !n.cut[pair(a, b)] }

// Host is the Network of one host.
func (n *memNet) Host(ip string) membership.Network {
	return membership.Network{
		Listen:       func(_, addr string) (net.Listener, error) { return n.listen(ip, addr) },
		ListenPacket: func(_, addr string) (net.PacketConn, error) { return n.listenPacket(ip, addr) },
		Dial:         func(ctx context.Context, _, addr string) (net.Conn, error) { return n.dial(ctx, ip, addr) },
		Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if ip, ok := n.names[host]; ok {
				return []netip.Addr{netip.MustParseAddr(ip)}, nil
			}
			return nil, fmt.Errorf("no such host: %s", host)
		},
	}
}

type memAddr string

func (a memAddr) Network() string { return "tcp" }
func (a memAddr) String() string  { return string(a) }
func (a memAddr) host() string {
	h, _, _ := net.SplitHostPort(string(a))
	return h
}

func (n *memNet) bind(ip, addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if host != ip {
		return "", fmt.Errorf("%s: cannot assign requested address", addr)
	}
	if port == "0" {
		n.nextPort++
		port = strconv.Itoa(n.nextPort)
	}
	return net.JoinHostPort(host, port), nil
}

func (n *memNet) listen(ip, addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	addr, err := n.bind(ip, addr)
	if err != nil {
		return nil, err
	}
	if n.listeners[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: syscall.EADDRINUSE}
	}
	l := &memListener{net: n, host: ip, addr: memAddr(addr), backlog: make(chan net.Conn, 128), done: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

type memListener struct {
	net     *memNet
	host    string
	addr    memAddr
	backlog chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func (l *memListener) shut() { l.once.Do(func() { close(l.done) }) }

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	case c := <-l.backlog:
		return c, nil
	}
}

func (l *memListener) Close() error {
	l.shut()
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if l.net.listeners[string(l.addr)] == l {
		delete(l.net.listeners, string(l.addr))
	}
	return nil
}

func (l *memListener) Addr() net.Addr { return l.addr }

func (n *memNet) dial(ctx context.Context, ip, addr string) (net.Conn, error) {
	for {
		n.mu.Lock()
		host, port, err := net.SplitHostPort(addr)
		if real, ok := n.names[host]; ok {
			host = real
		}
		changed := n.changed
		if err != nil {
			n.mu.Unlock()
			return nil, err
		}
		if n.reachable(ip, host) {
			defer n.mu.Unlock()
			l := n.listeners[net.JoinHostPort(host, port)]
			if l == nil {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
			}
			n.nextPort++
			local := memAddr(net.JoinHostPort(ip, strconv.Itoa(n.nextPort)))
			a, b := newMemConns(n, local, l.addr)
			select {
			case l.backlog <- b:
				return a, nil
			default:
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
			}
		}
		n.mu.Unlock()
		select { // nothing answers: wait for the way to heal
		case <-changed:
		case <-ctx.Done():
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
		}
	}
}

// memConn is one end of a connection. Its mutable state belongs to net.mu.
type memConn struct {
	net           *memNet
	local, remote memAddr
	peer          *memConn

	in           []byte // sent by the peer, not yet read
	closed, dead bool   // closed here; reset
	eof          bool   // the peer closed
	rd, wd       time.Time
}

const memBuffer = 256 << 10

func newMemConns(n *memNet, a, b memAddr) (*memConn, *memConn) {
	x, y := &memConn{net: n, local: a, remote: b}, &memConn{net: n, local: b, remote: a}
	x.peer, y.peer = y, x
	n.conns[x], n.conns[y] = struct{}{}, struct{}{}
	return x, y
}

func (c *memConn) reset() { c.dead, c.peer.dead = true, true }

// await blocks until f, called under the lock, is done, or the deadline passes.
func (c *memConn) await(deadline func() time.Time, f func() (bool, error)) error {
	for {
		c.net.mu.Lock()
		if c.closed {
			c.net.mu.Unlock()
			return net.ErrClosed
		}
		d := deadline()
		if !d.IsZero() && !time.Now().Before(d) {
			c.net.mu.Unlock()
			return os.ErrDeadlineExceeded
		}
		done, err := f()
		changed := c.net.changed
		c.net.mu.Unlock()
		if done || err != nil {
			return err
		}
		var timer <-chan time.Time
		stop := func() bool { return true }
		if !d.IsZero() {
			t := time.NewTimer(time.Until(d))
			timer, stop = t.C, t.Stop
		}
		select {
		case <-changed:
		case <-timer:
		}
		stop()
	}
}

func (c *memConn) wake() {
	close(c.net.changed)
	c.net.changed = make(chan struct{})
}

func (c *memConn) open() bool { return c.net.reachable(c.local.host(), c.remote.host()) }

func (c *memConn) Read(b []byte) (n int, err error) {
	err = c.await(func() time.Time { return c.rd }, func() (bool, error) {
		switch {
		case c.dead:
			return true, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
		case !c.open():
			return false, nil
		case len(c.in) > 0:
			n = copy(b, c.in)
			c.in = c.in[n:]
			c.wake()
			return true, nil
		case c.eof:
			return true, io.EOF
		}
		return len(b) == 0, nil
	})
	return n, err
}

func (c *memConn) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		err = c.await(func() time.Time { return c.wd }, func() (bool, error) {
			if c.dead || c.peer.closed {
				return true, &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}
			}
			k := min(len(b), memBuffer-len(c.peer.in))
			c.peer.in = append(c.peer.in, b[:k]...)
			n, b = n+k, b[k:]
			if k > 0 {
				c.wake()
			}
			return k > 0, nil
		})
	}
	return n, err
}

func (c *memConn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if !c.closed {
		c.closed, c.peer.eof = true, true
		delete(c.net.conns, c)
		c.wake()
	}
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return c.local }
func (c *memConn) RemoteAddr() net.Addr { return c.remote }

func (c *memConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.net.change(func() { c.rd = t })
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.net.change(func() { c.wd = t })
	return nil
}

func (n *memNet) listenPacket(ip, addr string) (net.PacketConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	addr, err := n.bind(ip, addr)
	if err != nil {
		return nil, err
	}
	if n.packets[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Err: syscall.EADDRINUSE}
	}
	p := &memPackets{net: n, host: ip, addr: addr, queue: make(chan memPacket, 256), done: make(chan struct{})}
	n.packets[addr] = p
	return p, nil
}

type memPacket struct {
	from string
	data []byte
}

// memPackets is a UDP socket: what does not fit its buffer is lost.
type memPackets struct {
	net   *memNet
	host  string
	addr  string
	queue chan memPacket
	done  chan struct{}
	once  sync.Once
}

func (p *memPackets) shut() { p.once.Do(func() { close(p.done) }) }

func (p *memPackets) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-p.done:
		return 0, nil, net.ErrClosed
	case m := <-p.queue:
		return copy(b, m.data), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(m.from)), nil
	}
}

func (p *memPackets) WriteTo(b []byte, to net.Addr) (int, error) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	select {
	case <-p.done:
		return 0, net.ErrClosed
	default:
	}
	q := p.net.packets[to.String()]
	if q != nil && p.net.reachable(p.host, q.host) {
		select {
		case q.queue <- memPacket{p.addr, append([]byte{}, b...)}:
		default:
		}
	}
	return len(b), nil
}

func (p *memPackets) Close() error {
	p.shut()
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	if p.net.packets[p.addr] == p {
		delete(p.net.packets, p.addr)
	}
	return nil
}

func (p *memPackets) LocalAddr() net.Addr              { return memAddr(p.addr) }
func (p *memPackets) SetDeadline(time.Time) error      { return nil }
func (p *memPackets) SetReadDeadline(time.Time) error  { return nil }
func (p *memPackets) SetWriteDeadline(time.Time) error { return nil }
