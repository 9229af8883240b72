package smtpd_test

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"chainmail/node/smtpd"
)

func behindBalancer(t *testing.T, trusted ...string) *testServer {
	return start(t, func(o *smtpd.Options) { o.Connectors[0].ProxyFrom = trusted })
}

// TestBalancersOfTheCluster: which balancers there are is asked for each
// connection, and holds beside those of the connector.
func TestBalancersOfTheCluster(t *testing.T) {
	var trusted atomic.Bool
	s := start(t, func(o *smtpd.Options) {
		o.Connectors[0].ProxyFrom = []string{"192.0.2.1"}
		o.Balancer = func(a netip.Addr) bool { return trusted.Load() && a == netip.MustParseAddr("127.0.0.1") }
	})
	s.dial().want("220")
	trusted.Store(true)
	c := s.dial()
	c.send("PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n")
	c.want("220")
	c.cmd("EHLO x", "250")
	c.mail("x\r\n.\r\n")
	if got := s.received()[0].envelope.Client; got != "192.0.2.7:4711" {
		t.Errorf("client %q", got)
	}
	plain := s.dial()
	plain.send("EHLO x\r\n")
	plain.wantClosed()
}

func TestProxyProtocol(t *testing.T) {
	source, destination := &net.TCPAddr{IP: net.ParseIP("2001:db8::7"), Port: 4711}, &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 25}
	v2, err := proxyproto.HeaderProxyFromAddrs(2, source, destination).Format()
	if err != nil {
		t.Fatal(err)
	}
	local, err := (&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}).Format()
	if err != nil {
		t.Fatal(err)
	}
	s := behindBalancer(t, "127.0.0.1")
	for _, tt := range []struct{ name, header, client string }{
		{"version 1", "PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n", "192.0.2.7:4711"},
		{"version 2", string(v2), "[2001:db8::7]:4711"},
		{"health check", string(local), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := s.dial()
			c.send(tt.header)
			c.want("220")
			c.cmd("EHLO x", "250")
			c.mail("x\r\n.\r\n")
			if tt.client == "" {
				tt.client = c.LocalAddr().String()
			}
			mails := s.received()
			if got := mails[len(mails)-1].envelope.Client; got != tt.client {
				t.Errorf("client %q, want %q", got, tt.client)
			}
		})
	}
	t.Run("header and commands in one packet", func(t *testing.T) {
		c := s.dial()
		c.send("PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\nEHLO x\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nBDAT 1 LAST\r\nxQUIT\r\n")
		for _, want := range []string{"220", "250", "250", "250", "250", "221"} {
			c.want(want)
		}
	})
	t.Run("missing", func(t *testing.T) {
		c := s.dial()
		c.send("EHLO x\r\n")
		c.wantClosed()
	})
}

// TestProxyHeaderFromOthersEndsTheSession: its client waits for one reply less
// than there would be, and could take the 250 of a recipient for that of a mail.
func TestProxyHeaderFromOthersEndsTheSession(t *testing.T) {
	s := behindBalancer(t, "192.0.2.0/24")
	c := s.dial()
	c.send("PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\nEHLO x\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nBDAT 1 LAST\r\nx")
	c.want("220")
	c.want("421 4.7.0 no PROXY header")
	c.wantClosed()
	if got := s.received(); len(got) > 0 {
		t.Errorf("mail was taken: %+v", got)
	}
}

// A balancer that is slow with one header holds up no other connection.
func TestSilentBalancerHoldsUpNobody(t *testing.T) {
	s := behindBalancer(t, "127.0.0.1")
	silent := s.dial()
	c := s.dial()
	c.send("PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n")
	c.want("220")
	silent.Close()
	c.cmd("QUIT", "221")
}

func TestProxiedClientsAreLimitedEach(t *testing.T) {
	s := start(t, func(o *smtpd.Options) {
		o.Connectors[0].ProxyFrom = []string{"127.0.0.1"}
		o.Connectors[0].Clients = []string{"192.0.2.0/24", "2001:db8::/32"}
		o.Limits.MaxConnectionsPerClient = 1
		o.Limits.MessagesPerMinute = 1
	})
	connect := func(header, want string) *client {
		c := s.dial()
		c.send(header)
		c.want(want)
		return c
	}
	first := connect("PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n", "220")
	connect("PROXY TCP4 192.0.2.7 192.0.2.1 4712 25\r\n", "421 4.7.0").wantClosed()
	other := connect("PROXY TCP4 192.0.2.8 192.0.2.1 4711 25\r\n", "220")
	connect("PROXY TCP4 198.51.100.1 192.0.2.1 4711 25\r\n", "554 5.7.1").wantClosed()
	// One IPv6 host has a whole /64.
	connect("PROXY TCP6 2001:db8::1 2001:db8:1::1 4711 25\r\n", "220")
	connect("PROXY TCP6 2001:db8::2 2001:db8:1::1 4711 25\r\n", "421 4.7.0").wantClosed()

	for _, c := range []*client{first, other} {
		c.cmd("EHLO x", "250")
		c.mail("x\r\n.\r\n")
		c.cmd("MAIL FROM:<a@b.c>", "450 4.7.1")
	}
	first.cmd("QUIT", "221")
	first.wantClosed()
	for deadline := time.Now().Add(10 * time.Second); ; {
		c := s.dial()
		c.send("PROXY TCP4 192.0.2.7 192.0.2.1 4713 25\r\n")
		if line, _ := c.reply(); line[:3] == "220" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the connection that ended still counts")
		}
	}
}

// TestHealthChecksAreNoClients: a balancer asks each second whether the node is
// there. Lists and limits are for clients, and logs for what is worth reading.
func TestHealthChecksAreNoClients(t *testing.T) {
	check, err := (&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}).Format()
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	s := start(t, func(o *smtpd.Options) {
		o.Connectors[0].ProxyFrom = []string{"127.0.0.1"}
		o.Connectors[0].Clients = []string{"192.0.2.0/24"}
		o.Limits.MaxConnectionsPerClient = 1
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	for range 3 { // at once
		c := s.dial()
		c.send(string(check))
		c.want("220")
		defer c.cmd("QUIT", "221")
	}
	client := s.dial()
	client.send("PROXY TCP4 198.51.100.1 192.0.2.1 4711 25\r\n")
	client.want("554 5.7.1")
	if got := log.String(); strings.Count(got, "refused") != 1 {
		t.Errorf("want the client's refusal alone to be logged:\n%s", got)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
