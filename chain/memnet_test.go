package chain_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// network is a network in memory: connections with buffers and deadlines, and
// hosts that can be down (refuse), cut off (silent) or gone (reset).
type network struct {
	mu        sync.Mutex
	listeners map[string]func(net.Conn) // by host
	silent    map[[2]string]bool        // nothing passes from the first to the second
	conns     map[*conn]bool
	dials     map[[2]string]int
}

func newNetwork() *network {
	return &network{
		listeners: map[string]func(net.Conn){}, silent: map[[2]string]bool{},
		conns: map[*conn]bool{}, dials: map[[2]string]int{},
	}
}

// dial connects two hosts.
func (n *network) dial(ctx context.Context, from, to string) (net.Conn, error) {
	n.mu.Lock()
	serve := n.listeners[to]
	cut := n.silent[[2]string{from, to}] || n.silent[[2]string{to, from}]
	n.dials[[2]string{from, to}]++
	n.mu.Unlock()
	switch {
	case cut:
		<-ctx.Done()
		return nil, ctx.Err()
	case serve == nil:
		return nil, &net.OpError{Op: "dial", Net: "mem", Err: syscall.ECONNREFUSED}
	}
	there, back := newPipe(n, from, to), newPipe(n, to, from)
	a, b := &conn{net: n, in: back, out: there, host: from}, &conn{net: n, in: there, out: back, host: to}
	n.mu.Lock()
	n.conns[a], n.conns[b] = true, true
	n.mu.Unlock()
	go serve(b)
	return a, nil
}

// silence stops or starts what passes between two hosts; connections stay.
func (n *network) silence(a, b string, silent bool) {
	n.mu.Lock()
	n.silent[[2]string{a, b}], n.silent[[2]string{b, a}] = silent, silent
	conns := make([]*conn, 0, len(n.conns))
	for c := range n.conns {
		conns = append(conns, c)
	}
	n.mu.Unlock()
	for _, c := range conns {
		c.in.wake()
	}
}

// kill ends all connections of a host, as the end of its process does.
func (n *network) kill(host string) {
	n.mu.Lock()
	delete(n.listeners, host)
	var ended []*conn
	for c := range n.conns {
		if c.host == host {
			ended = append(ended, c)
		}
	}
	n.mu.Unlock()
	for _, c := range ended {
		c.Close()
	}
}

// pipe is one direction of a connection.
type pipe struct {
	net      *network
	from, to string
	mu       sync.Mutex
	cond     *sync.Cond
	buf      []byte
	closed   bool // by either end
	ended    bool // by the writer, who still reads
	read     deadline
	write    deadline
}

const pipeBuffer = 256 << 10

func newPipe(n *network, from, to string) *pipe {
	p := &pipe{net: n, from: from, to: to}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *pipe) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cond.Broadcast()
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) set(p *pipe, t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), p.wake)
	}
	p.cond.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

type conn struct {
	net     *network
	in, out *pipe
	host    string
}

func (c *conn) Read(b []byte) (int, error) {
	p := c.in
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		p.net.mu.Lock()
		silent := p.net.silent[[2]string{p.from, p.to}]
		p.net.mu.Unlock()
		switch {
		case p.read.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p.buf) > 0 && !silent:
			n := copy(b, p.buf)
			p.buf = p.buf[n:]
			p.cond.Broadcast()
			return n, nil
		case (p.closed || p.ended) && !silent:
			return 0, io.EOF
		}
		p.cond.Wait()
	}
}

func (c *conn) Write(b []byte) (n int, err error) {
	p := c.out
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 {
		switch room := pipeBuffer - len(p.buf); {
		case p.closed:
			return n, errors.New("connection reset")
		case p.write.passed():
			return n, os.ErrDeadlineExceeded
		case room > 0:
			k := min(room, len(b))
			p.buf = append(p.buf, b[:k]...)
			b = b[k:]
			n += k
			p.cond.Broadcast()
		default:
			p.cond.Wait()
		}
	}
	return n, nil
}

func (c *conn) Close() error {
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	for _, p := range []*pipe{c.in, c.out} {
		p.mu.Lock()
		p.closed = true
		for _, d := range []*deadline{&p.read, &p.write} {
			if d.timer != nil {
				d.timer.Stop()
			}
		}
		p.cond.Broadcast()
		p.mu.Unlock()
	}
	return nil
}

// CloseWrite tells the other end that no more comes.
func (c *conn) CloseWrite() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.ended = true
	c.out.cond.Broadcast()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return &net.UnixAddr{Name: c.host, Net: "mem"} }
func (c *conn) RemoteAddr() net.Addr { return &net.UnixAddr{Name: c.in.from, Net: "mem"} }

func (c *conn) SetDeadline(t time.Time) error {
	c.in.read.set(c.in, t)
	c.out.write.set(c.out, t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.read.set(c.in, t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.write.set(c.out, t)
	return nil
}
