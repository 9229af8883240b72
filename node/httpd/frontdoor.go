package httpd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"chainmail/node/api"
)

// Protocol is what nodes offer by ALPN when they speak to one another (RFC
// 7301). It tells them from people on the one HTTP port.
const Protocol = "chainmail/1"

// tlsRecordHandshake is the first byte of every TLS connection (RFC 8446 5.1);
// no HTTP request begins with it.
const tlsRecordHandshake = 0x16

// serverTLS is the configuration of all TLS connections on the port, or nil
// when there are none. Who offers the nodes' protocol meets nodes, with which
// members prove themselves. Everybody else meets the operator's certificate, or
// where there is none, and for who asks for api.NodeName, the cluster's: so a
// balancer can verify a node by the cluster's CA, whatever else it shows.
func serverTLS(operator, public, nodes *tls.Config) *tls.Config {
	if operator == nil && public == nil && nodes == nil {
		return nil
	}
	public = withProtocols(public, "h2", "http/1.1")
	people := withProtocols(operator, "h2", "http/1.1")
	if people == nil {
		people = public
	}
	nodes = withProtocols(nodes, Protocol)
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			switch {
			case nodes != nil && slices.Contains(hello.SupportedProtos, Protocol):
				return chosen(nodes, hello)
			case public != nil && strings.EqualFold(hello.ServerName, api.NodeName):
				return chosen(public, hello)
			case people != nil:
				return chosen(people, hello)
			}
			return nil, errors.New("this port speaks TLS to nodes of the cluster only: use http://, or set http_tls in the configuration")
		},
	}
}

// withProtocols is c with these protocols for ALPN, in place of any other.
func withProtocols(c *tls.Config, protocols ...string) *tls.Config {
	if c == nil {
		return nil
	}
	c = c.Clone()
	c.NextProtos = protocols
	return c
}

// chosen lets a configuration choose another in its turn, as crypto/tls does
// only for the outermost one.
func chosen(c *tls.Config, hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if c.GetConfigForClient == nil {
		return c, nil
	}
	other, err := c.GetConfigForClient(hello)
	if err != nil || other == nil {
		return c, err
	}
	return withProtocols(other, c.NextProtos...), nil
}

// frontDoor is a listener for people and nodes on one port. It looks at each
// connection, beside the others: at its first byte for TLS, and at the protocol
// that the handshake agreed on for nodes.
type frontDoor struct {
	net.Listener
	tls     *tls.Config
	plain   bool // plain text is possible
	opened  chan net.Conn
	ended   chan struct{} // closed when Accept has failed for good, with err
	err     error
	closing context.Context
	close   context.CancelFunc
	looking sync.WaitGroup
}

func newFrontDoor(l net.Listener, c *tls.Config, plain bool) *frontDoor {
	d := &frontDoor{Listener: l, tls: c, plain: plain, opened: make(chan net.Conn), ended: make(chan struct{})}
	d.closing, d.close = context.WithCancel(context.Background())
	d.looking.Go(d.run)
	return d
}

func (d *frontDoor) run() {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool } // such as too many open files
			if errors.As(err, &temporary) && temporary.Temporary() && d.pause() {
				continue
			}
			d.err = err
			close(d.ended)
			return
		}
		d.looking.Go(func() { d.look(conn) })
	}
}

// acceptPause is how long a listener rests that can accept nothing just now.
const acceptPause = 100 * time.Millisecond

// pause reports whether it is worth going on.
func (d *frontDoor) pause() bool {
	select {
	case <-time.After(acceptPause):
		return true
	case <-d.closing.Done():
		return false
	}
}

// look hands a connection on when it is known what it speaks. It gives the
// client as long as for a request's header.
func (d *frontDoor) look(conn net.Conn) {
	stop := context.AfterFunc(d.closing, func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(headerTimeout))
	known, err := d.recognise(conn)
	if err != nil || !stop() {
		stop()
		_ = conn.Close()
		return
	}
	_ = conn.SetDeadline(time.Time{})
	select {
	case d.opened <- known:
	case <-d.closing.Done():
		_ = conn.Close()
	}
}

func (d *frontDoor) recognise(conn net.Conn) (net.Conn, error) {
	if d.plain {
		first := make([]byte, 1)
		if _, err := conn.Read(first); err != nil {
			return nil, err
		}
		conn = &seenConn{Conn: conn, seen: first}
		if first[0] != tlsRecordHandshake {
			return conn, nil
		}
	}
	secure := tls.Server(conn, d.tls)
	// A handshake that failed is net/http's to tell about: it meets the same
	// error again, and has an answer for plain text.
	if secure.HandshakeContext(d.closing) == nil && secure.ConnectionState().NegotiatedProtocol == Protocol {
		return nodeConn{secure}, nil
	}
	return secure, nil
}

// nodeConn keeps net/http from seeing a *tls.Conn, on which it serves no
// protocols but those that it knows. Nodes speak HTTP/1.1 inside theirs.
type nodeConn struct{ *tls.Conn }

// Accept gives the next connection whose first byte is known.
func (d *frontDoor) Accept() (net.Conn, error) {
	select {
	case conn := <-d.opened:
		return conn, nil
	case <-d.ended:
		return nil, d.err
	}
}

// Close closes the listener, and the connections that were not handed on yet.
func (d *frontDoor) Close() error {
	err := d.Listener.Close()
	d.close()
	d.looking.Wait()
	return err
}

// seenConn is a connection of which some bytes were read already.
type seenConn struct {
	net.Conn
	seen []byte
}

func (c *seenConn) Read(p []byte) (int, error) {
	if len(c.seen) > 0 && len(p) > 0 {
		n := copy(p, c.seen)
		c.seen = c.seen[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}
