package netsim

import (
	"net"
	"os"
	"slices"
	"syscall"
	"time"
)

const (
	maxDatagram  = 65507     // the most that UDP over IPv4 carries
	packetBuffer = 208 << 10 // bytes that wait to be read; Linux drops what is more
)

// packetConn is a UDP socket; one that was dialed has a remote address.
type packetConn struct {
	host    *Host
	local   *net.UDPAddr
	remote  *net.UDPAddr
	queue   []datagram // by arrival
	unread  int        // bytes in the queue
	reading *waiter
	limit   time.Time
	closed  bool
}

type datagram struct {
	data []byte
	from *net.UDPAddr
	at   time.Time
}

func (p *packetConn) LocalAddr() net.Addr { return p.local }

func (p *packetConn) RemoteAddr() net.Addr {
	if p.remote == nil {
		return nil
	}
	return p.remote
}

func (p *packetConn) fail(op string, err error) error {
	e := &net.OpError{Op: op, Net: "udp", Source: p.local, Err: err}
	if p.remote != nil {
		e.Addr = p.remote
	}
	return e
}

func (p *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	p.host.n.mu.Lock()
	defer p.host.n.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case p.closed:
			return 0, nil, p.fail("read", net.ErrClosed)
		case due(p.limit, now):
			return 0, nil, p.fail("read", os.ErrDeadlineExceeded)
		}
		var next time.Time
		if len(p.queue) > 0 {
			d := p.queue[0]
			if due(d.at, now) {
				p.queue[0] = datagram{}
				p.queue = p.queue[1:]
				p.unread -= len(d.data)
				return copy(b, d.data), d.from, nil
			}
			next = d.at
		}
		p.reading.until(sooner(next, p.limit))
	}
}

func (p *packetConn) Read(b []byte) (int, error) {
	n, _, err := p.ReadFrom(b)
	return n, err
}

func (p *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	address, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, p.fail("write", &net.AddrError{Err: "not an address of UDP", Addr: to.String()})
	}
	return p.send(b, address)
}

func (p *packetConn) Write(b []byte) (int, error) {
	if p.remote == nil {
		return 0, p.fail("write", os.NewSyscallError("write", syscall.EDESTADDRREQ))
	}
	return p.send(b, p.remote)
}

func (p *packetConn) send(b []byte, address *net.UDPAddr) (int, error) {
	n := p.host.n
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.byIP[address.IP.String()]
	if address.IP.IsLoopback() || address.IP.IsUnspecified() {
		m = p.host.machine
	}
	switch {
	case p.closed:
		return 0, p.fail("write", net.ErrClosed)
	case len(b) > maxDatagram:
		return 0, p.fail("write", os.NewSyscallError("sendto", syscall.EMSGSIZE))
	case m == nil:
		return 0, p.fail("write", os.NewSyscallError("sendto", syscall.EHOSTUNREACH))
	}
	w := n.way(p.host.machine, m)
	at, ok := w.arrival(len(b), time.Now())
	to := m.host.udp[address.Port]
	if !ok || w.cut() || w.refused || m.off || to == nil || to.unread+len(b) > packetBuffer {
		return len(b), nil // lost, and nobody is told
	}
	if to.remote == nil || to.remote.Port == p.local.Port && to.remote.IP.Equal(p.local.IP) {
		to.take(datagram{append([]byte(nil), b...), p.local, at})
	}
	return len(b), nil
}

// take puts a packet in its place in the queue: with jitter, packets overtake
// one another.
func (p *packetConn) take(d datagram) {
	i := len(p.queue)
	for i > 0 && p.queue[i-1].at.After(d.at) {
		i--
	}
	p.queue = slices.Insert(p.queue, i, d)
	p.unread += len(d.data)
	p.reading.wake()
}

func (p *packetConn) Close() error {
	p.host.n.mu.Lock()
	defer p.host.n.mu.Unlock()
	if p.closed {
		return p.fail("close", net.ErrClosed)
	}
	p.shut()
	return nil
}

func (p *packetConn) shut() {
	p.closed, p.queue = true, nil
	delete(p.host.packets, p)
	delete(p.host.udp, p.local.Port)
	p.reading.stop()
}

func (p *packetConn) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

func (p *packetConn) SetReadDeadline(t time.Time) error {
	p.host.n.mu.Lock()
	defer p.host.n.mu.Unlock()
	if p.closed {
		return p.fail("set", net.ErrClosed)
	}
	p.limit = t
	p.reading.wake()
	return nil
}

// SetWriteDeadline does nothing: writing does not wait.
func (p *packetConn) SetWriteDeadline(time.Time) error { return nil }
