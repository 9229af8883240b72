package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"
)

// The front door of the chain's port. Who connects is one of three, and plain
// SMTP tells them apart:
//
//	EHLO, STARTTLS with a node's certificate ──► Connector.Serve: a peer
//	an address of Connector.Clients          ──► as on an SMTP connector
//	anything else                            ──► EHLO, NOOP, QUIT; nothing more
//
// Until that is known a connection counts in a pool of its own: neither may
// clients that fill port 25 keep the nodes apart, nor may strangers here take
// the room of mail. A list of names is looked up only when a client wants what
// it is needed for, so that nodes do not wait for DNS.

func (c *connector) settleChain(network string) error {
	switch {
	case network != "tcp":
		return fmt.Errorf("address %q: nodes come by TCP: write host:port", c.Address)
	case !c.offersStartTLS():
		return fmt.Errorf("tls is %q: nodes come by STARTTLS: use %q or %q", c.TLS, TLSStartTLS, TLSRequired)
	case c.Auth != AuthOff:
		return fmt.Errorf("auth is %q: nodes show certificates, and others are known by their address: set auth to %q", c.Auth, AuthOff)
	case c.Peer == nil || c.Serve == nil:
		return errors.New("smtpd: Connector.Peer or Connector.Serve is missing")
	}
	return nil
}

// commandDeadline is the time until which the next command must have come.
func (l *link) commandDeadline() time.Time {
	next := time.Now().Add(l.limits.IdleTimeout)
	if last := l.since.Add(undecidedTimeout); l.pool == poolFront && last.Before(next) {
		return last
	}
	return next
}

// mayEnter decides about a command of a client that has not shown yet what it
// is, and answers it when it may not be carried out.
func (g *gate) mayEnter(verb string) bool {
	switch {
	case g.barred != "":
		g.linger = true
		g.end(g.barred)
		return false
	case verb == "EHLO", verb == "HELO", verb == "STARTTLS", verb == "NOOP", verb == "QUIT":
		return true
	}
	l := g.link
	switch why, allowed := l.foreign(); {
	case allowed:
		return true
	case why == reasonNoNode:
		g.refuse(replyLine(l.refuse(why, reply(550, 5, 7, 1,
			"this port is for the nodes of the cluster; your address "+l.client.String()+" is not on the list of foreign mail servers"))))
		if verb == "BDAT" { // what follows is no command
			g.linger = true
			g.ended = true
		}
	default:
		l.refused(why)
		g.linger = true
		g.end("421 4.7.0 too many connections, try again later")
	}
	return false
}

// foreign finds out whether the client is a mail server that may hand over
// mail, and if so counts it as one from now on.
func (l *link) foreign() (reason, bool) {
	if !l.listed() {
		return reasonNoNode, false
	}
	s := l.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.moveLocked(l, poolMail) {
		return reasonConnections, false
	}
	return 0, true
}

// listed reports whether the client is on the list of foreign mail servers.
func (l *link) listed() bool {
	rules := l.connector.clients
	if l.stranger || rules.empty() || !l.client.IsValid() {
		return false
	}
	l.stranger = !rules.allow(l.ctx, l.server.opts.Resolver, l.client)
	return !l.stranger
}

// peer looks at the certificate that came with STARTTLS. It reports whether
// the connection is in other hands now; if not, the gate serves it.
func (g *gate) peer(conn *tls.Conn) bool {
	l, state := g.link, conn.ConnectionState()
	if len(state.PeerCertificates) == 0 {
		return false
	}
	c := l.connector
	name, err := c.Peer(state)
	switch {
	case err == nil:
		l.handOver(conn, name)
		return true
	case l.pool != poolFront || l.listed():
		// A mail server with a certificate of its own, for other purposes.
		l.log.Info("certificate of a foreign mail server is not one of the cluster", slog.Any("err", err))
	default:
		l.refused(reasonCertificate)
		l.log.Warn("certificate refused", slog.Any("err", err))
		g.barred = "554 5.7.1 your certificate is refused: " + oneLine(err.Error())
	}
	return false
}

// handOver gives the connection to the chain.
func (l *link) handOver(conn net.Conn, peer string) {
	ctx, dismiss := context.WithCancel(l.ctx)
	if !l.becomePeer(dismiss) {
		dismiss()
		_ = conn.Close()
		l.release()
		return
	}
	go func() {
		defer l.release()
		defer conn.Close()
		defer dismiss()
		l.connector.Serve(ctx, conn, peer)
	}()
}

// becomePeer takes the connection out of what a drain tells by deadlines, and
// reports whether it came in time. A drain sets its flag first and visits the
// connections then, under the mutex.
func (l *link) becomePeer(dismiss context.CancelFunc) bool {
	s := l.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	s.moveLocked(l, poolPeer)
	l.dismiss = dismiss
	return l.socket.SetDeadline(time.Time{}) == nil
}

// oneLine makes a text fit for a reply.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if isControl(r) || r > '~' {
			return '?'
		}
		return r
	}, text)
	return text[:min(len(text), 300)]
}
