package smtpd

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

// link is one connection as the server counts it, from accept to close. It
// outlives the gate that reads plain text when TLS begins.
type link struct {
	server    *Server
	connector *connector
	limits    *Limits
	log       *slog.Logger
	socket    net.Conn // as accepted; other goroutines may wake or close it

	ctx    context.Context // ends when the connection is closed by force
	cancel context.CancelFunc

	client  netip.Addr // invalid for clients without an IP address
	address string     // of the client, with its port
	check   bool       // the balancer's own connection and no client's: a health check
	since   time.Time
	once    sync.Once

	// What it counts for. Its goroutine changes them under the server's mutex.
	pool     pool
	counted  bool               // in the server's connections per client
	dismiss  context.CancelFunc // of a peer's connection: ends Serve
	stranger bool               // it is known to be no foreign mail server either
}

// local reports whether the client is on this machine, so that nobody listens
// on the way.
func (l *link) local() bool { return !l.client.IsValid() || l.client.IsLoopback() }

// wake ends a read that waits, so that its reader sees that the server drains.
func (l *link) wake() {
	if l.pool == poolPeer {
		l.dismiss()
		return
	}
	_ = l.socket.SetReadDeadline(time.Unix(1, 0))
}

// kill closes the connection under its owner.
func (l *link) kill() {
	l.cancel()
	_ = l.socket.Close()
}

// release gives back what the connection counted for.
func (l *link) release() {
	l.once.Do(func() {
		l.cancel()
		l.connector.open.Add(-1)
		l.connector.metrics.open.Dec()
		l.server.leave(l)
	})
}

// refused counts a refusal.
func (l *link) refused(why reason) { l.connector.metrics.refusals[why].Inc() }

// refuse counts a refusal and logs it.
func (l *link) refuse(why reason, answer *smtp.SMTPError) *smtp.SMTPError {
	l.refused(why)
	l.log.Info("refused", slog.Int("code", answer.Code), slog.String("reason", why.String()))
	return answer
}

// turnAway greets a client that gets no further, and closes. The reply is
// short enough for the empty buffer of a new socket.
func (l *link) turnAway(conn net.Conn, why reason, greeting string) {
	l.refused(why)
	l.log.Info("connection refused", slog.String("reason", why.String()))
	_ = conn.SetWriteDeadline(time.Now().Add(lingerTimeout))
	_, _ = conn.Write([]byte(greeting + "\r\n"))
	_ = conn.Close()
	l.release()
}
