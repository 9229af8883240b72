package netsim

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// wire is a connection with its two ends; it is forgotten when both are
// closed.
type wire struct {
	ends [2]*conn
}

// uses reports whether one direction of the connection is the way w.
func (x *wire) uses(w *way) bool { return x.ends[0].out.way == w || x.ends[1].out.way == w }

// healed goes on with a connection when the way w is open again, which was cut
// since then.
func (x *wire) healed(w *way, since time.Time) {
	now := time.Now()
	for _, c := range x.ends {
		if c.out.way == w {
			c.out.resend(since, now)
		}
		if c.out.back == w {
			c.out.acknowledge()
		}
		if c.heard() {
			c.deadAt = time.Time{}
			if c.peer.closed { // it may not have heard of it
				c.disown()
			}
		}
	}
}

// conn is one end of a connection.
type conn struct {
	host          *Host
	network       string
	local, remote net.Addr
	wire          *wire
	peer          *conn
	in, out       *stream

	reading, writing    *waiter
	readLimit, writeEnd time.Time // deadlines
	closed              bool      // by this side
	ended               bool      // its own direction was
	gone                bool      // its machine lost its memory
	resetAt             time.Time // from then on the other side is known to have ended it
	deadAt              time.Time // from then on keep-alive has given up
}

func newConn(h *Host, network string, local, remote net.Addr) *conn {
	return &conn{
		host: h, network: network, local: local, remote: remote,
		reading: newWaiter(&h.n.mu), writing: newWaiter(&h.n.mu),
	}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: c.network, Source: c.local, Addr: c.remote, Err: err}
}

// broken is why the connection is no more, nil while it is.
func (c *conn) broken(call string, now time.Time) error {
	switch {
	case due(c.resetAt, now):
		return os.NewSyscallError(call, syscall.ECONNRESET)
	case due(c.deadAt, now):
		return os.NewSyscallError(call, syscall.ETIMEDOUT)
	}
	return nil
}

func (c *conn) Read(b []byte) (int, error) {
	c.host.n.mu.Lock()
	defer c.host.n.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case c.closed:
			return 0, c.fail("read", net.ErrClosed)
		case due(c.readLimit, now):
			return 0, c.fail("read", os.ErrDeadlineExceeded)
		case len(b) == 0:
			return 0, nil
		}
		ok, when := c.in.arrived(now)
		if ok && c.in.queue[0].fin {
			return 0, io.EOF
		}
		if ok {
			return c.in.receive(b, now), nil
		}
		if err := c.broken("read", now); err != nil {
			return 0, c.fail("read", err)
		}
		c.reading.until(sooner(sooner(when, c.readLimit), sooner(c.resetAt, c.deadAt)))
	}
}

func (c *conn) Write(b []byte) (n int, err error) {
	c.host.n.mu.Lock()
	defer c.host.n.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case c.closed:
			return n, c.fail("write", net.ErrClosed)
		case due(c.writeEnd, now):
			return n, c.fail("write", os.ErrDeadlineExceeded)
		case c.ended:
			return n, c.fail("write", os.NewSyscallError("write", syscall.EPIPE))
		}
		if err := c.broken("write", now); err != nil {
			return n, c.fail("write", err)
		}
		if n == len(b) {
			return n, nil
		}
		if c.peer.closed && c.heard() {
			c.reset(now.Add(c.out.way.quality().Latency)) // its answer to data for nobody
			return len(b), nil
		}
		if room := window - c.out.unacked; room > 0 {
			k := min(room, len(b)-n)
			c.out.send(append([]byte(nil), b[n:n+k]...), false, now)
			n += k
			continue
		}
		c.writing.until(sooner(c.writeEnd, sooner(c.resetAt, c.deadAt)))
	}
}

// heard reports whether the other machine answers.
func (c *conn) heard() bool {
	return !c.out.way.cut() && !c.out.back.cut() && !c.peer.host.machine.off
}

// CloseWrite ends the own direction: the other side reads to the end.
func (c *conn) CloseWrite() error {
	c.host.n.mu.Lock()
	defer c.host.n.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.finish()
	return nil
}

func (c *conn) finish() {
	if !c.ended {
		c.ended = true
		c.out.send(nil, true, time.Now())
		c.writing.wake()
	}
}

// Close ends the connection. What was written is still delivered, unless
// there was something to read: that resets the connection.
func (c *conn) Close() error {
	c.host.n.mu.Lock()
	defer c.host.n.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	unread := c.in.unread > 0
	c.finish()
	c.vanish()
	if unread {
		c.peer.resetAfterData()
	}
	return nil
}

// vanish closes this end without a word to the other.
func (c *conn) vanish() {
	c.closed = true
	c.in.drop()
	c.reading.stop()
	c.writing.stop()
	if c.peer.closed {
		delete(c.host.n.wires, c.wire)
	}
}

// resetAfterData resets this end by word of the other, which comes after all
// that the other wrote. If it does not come through, it is said again when the
// way is healed.
func (c *conn) resetAfterData() {
	if c.heard() {
		c.reset(c.in.last(time.Now()))
	}
}

// reset ends the connection for this end at a time.
func (c *conn) reset(at time.Time) {
	c.resetAt = sooner(c.resetAt, at)
	c.reading.wake()
	c.writing.wake()
}

// giveUpLater lets keep-alive end the connection unless it is healed before.
func (c *conn) giveUpLater() {
	if c.deadAt.IsZero() {
		c.deadAt = time.Now().Add(keepAliveLimit)
	}
	c.reading.wake()
	c.writing.wake()
}

// disown tells this end that the other machine knows nothing of the
// connection: when what it sent is sent again, or with the next probe.
func (c *conn) disown() {
	switch {
	case c.closed || !c.heard():
	case c.out.unacked > 0 || c.ended:
		c.reset(time.Now().Add(retransmission))
	default:
		c.reset(time.Now().Add(keepAliveIdle))
	}
}

func (c *conn) SetDeadline(t time.Time) error { return c.limit(&c.readLimit, &c.writeEnd, t) }

func (c *conn) SetReadDeadline(t time.Time) error { return c.limit(&c.readLimit, nil, t) }

func (c *conn) SetWriteDeadline(t time.Time) error { return c.limit(nil, &c.writeEnd, t) }

func (c *conn) limit(read, write *time.Time, t time.Time) error {
	c.host.n.mu.Lock()
	defer c.host.n.mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	if read != nil {
		*read = t
		c.reading.wake()
	}
	if write != nil {
		*write = t
		c.writing.wake()
	}
	return nil
}
