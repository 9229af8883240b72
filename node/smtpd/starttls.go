package smtpd

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"time"
)

// startTLS does the handshake here and hands the encrypted connection to the
// connector's other go-smtp server, as a new connection with a new gate and a
// new session. go-smtp's own way would keep its buffers and half of its state;
// this way nothing the client said in plain text is left (RFC 3207 4.2).
func (g *gate) startTLS(arg []byte) {
	c := g.link.connector
	switch {
	case len(arg) > 0:
		g.refuse("501 5.5.4 STARTTLS takes no parameters")
		return
	case g.secure != "" || !c.offersStartTLS():
		g.refuse("502 5.5.1 STARTTLS is not offered")
		return
	case g.r < g.w:
		// Whoever put these bytes behind the command wants them to be read as
		// if they had come through TLS. RFC 3207 6: a known attack.
		g.linger = true
		g.link.refused(reasonInjection)
		g.end("421 4.7.0 plain text behind STARTTLS")
		return
	}
	g.reply("220 2.0.0 ready for TLS")
	g.ended = true
	if g.flush() != nil {
		return
	}
	conn, err := g.link.handshake(g.conn)
	if err != nil {
		return
	}
	g.detached = true
	next := newGate(conn, g.link)
	next.secure = tlsName(conn.ConnectionState())
	next.mute = true // of the greeting, which the client has had
	if c.Kind == KindChain && next.peer(conn) {
		return
	}
	c.secure.serve(next)
}

// handshake makes the server's side of TLS on conn.
func (l *link) handshake(conn net.Conn) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(l.ctx, handshakeTimeout)
	defer cancel()
	// In this order, so that a drain is not missed; see fill.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	if l.server.draining.Load() {
		return nil, errDraining
	}
	secured := tls.Server(conn, l.connector.TLSConfig)
	if err := secured.HandshakeContext(ctx); err != nil {
		if !l.check { // which may well speak no TLS
			l.connector.metrics.handshakeFailures.Inc()
			l.log.Info("TLS handshake failed", slog.Any("err", err))
		}
		return nil, err
	}
	return secured, nil
}

// tlsName is how receipts name a connection's encryption, for example
// "TLS1.3 TLS_AES_128_GCM_SHA256".
func tlsName(state tls.ConnectionState) string {
	return strings.ReplaceAll(tls.VersionName(state.Version), " ", "") + " " + tls.CipherSuiteName(state.CipherSuite)
}
