package client

import (
	"context"
	"crypto/tls"
	"net"
	"time"
)

// Protocol is what nodes offer by ALPN when they speak to one another.
const Protocol = "chainmail/1"

// Dial opens a connection, as net.Dialer does.
type Dial = func(ctx context.Context, network, address string) (net.Conn, error)

const (
	peerDialTimeout      = 5 * time.Second
	peerHandshakeTimeout = 10 * time.Second
)

// NewPeer makes a client for another node's HTTP port, "host:port", as nodes
// speak to one another: by the cluster's TLS, with or without a certificate in
// secure. A nil dial is the machine's own. It does not connect.
func NewPeer(addr string, secure *tls.Config, dial Dial) *Client {
	t := transport()
	t.TLSClientConfig = secure.Clone()
	t.TLSClientConfig.NextProtos = []string{Protocol}
	t.TLSHandshakeTimeout = peerHandshakeTimeout
	if dial == nil {
		dial = (&net.Dialer{Timeout: peerDialTimeout}).DialContext
	}
	t.DialContext = dial
	return &Client{base: "https://" + addr, peer: addr, http: straight(t), most: maxAnswer}
}

// NewSocket is New on a network of a test's own.
func NewSocket(socket string, dial Dial) *Client {
	t := transport()
	t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, "unix", socket) }
	return &Client{base: "http://admin.sock", http: straight(t), socket: socket, most: maxAnswer}
}
