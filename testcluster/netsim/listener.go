package netsim

import (
	"net"
	"time"
)

// listener is a listening socket.
type listener struct {
	host    *Host
	network string
	addr    net.Addr
	backlog []*conn // connected and not accepted yet
	pending *waiter
	closed  bool
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	l.host.n.mu.Lock()
	defer l.host.n.mu.Unlock()
	for {
		if l.closed {
			return nil, &net.OpError{Op: "accept", Net: l.network, Addr: l.addr, Err: net.ErrClosed}
		}
		if len(l.backlog) > 0 {
			c := l.backlog[0]
			l.backlog = l.backlog[1:]
			return c, nil
		}
		l.pending.until(time.Time{})
	}
}

func (l *listener) Close() error {
	l.host.n.mu.Lock()
	defer l.host.n.mu.Unlock()
	if l.closed {
		return &net.OpError{Op: "close", Net: l.network, Addr: l.addr, Err: net.ErrClosed}
	}
	for _, c := range l.backlog {
		c.vanish()
		c.peer.resetAfterData()
	}
	l.shut()
	return nil
}

// shut ends the listener; the caller deals with the connections that wait.
func (l *listener) shut() {
	l.closed, l.backlog = true, nil
	delete(l.host.listeners, l)
	switch a := l.addr.(type) {
	case *net.TCPAddr:
		delete(l.host.tcp, a.Port)
	case *net.UnixAddr:
		delete(l.host.unix, a.Name)
	}
	l.pending.wake()
}

// connect makes a connection from a host to the listener and returns the
// host's end.
func (l *listener) connect(from *Host, there, back *way) *conn {
	var local net.Addr
	switch l.addr.(type) {
	case *net.TCPAddr:
		local = &net.TCPAddr{IP: from.machine.ip, Port: free(&from.machine.nextTCP, from.tcp)}
	default:
		local = &net.UnixAddr{Net: "unix"} // a client has no name
	}
	n := from.n
	client := newConn(from, l.network, local, l.addr)
	server := newConn(l.host, l.network, l.addr, local)
	client.peer, server.peer = server, client
	client.out = &stream{way: there, back: back, from: client, to: server}
	server.out = &stream{way: back, back: there, from: server, to: client}
	client.in, server.in = server.out, client.out
	w := &wire{ends: [2]*conn{client, server}}
	client.wire, server.wire = w, w
	n.wires[w] = struct{}{}
	l.backlog = append(l.backlog, server)
	l.pending.wake()
	return client
}
