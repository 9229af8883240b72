package smtpd_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/node/smtpd"
)

// cluster is a certificate authority of nodes and a connector for them.
type cluster struct {
	t         testing.TB
	authority *x509.Certificate
	key       *ecdsa.PrivateKey
	server    *tls.Config
	client    *tls.Config // of a client without certificate
	peers     chan string // who was handed over
	serve     func(ctx context.Context, conn net.Conn)
	asked     atomic.Int64 // calls of Peer
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	x := &cluster{t: t, peers: make(chan string, 100)}
	x.server, x.client = certificate(t)
	x.server.ClientAuth = tls.RequestClientCert
	var err error
	if x.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cluster"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true,
	}
	x.authority = x.sign(template, template, x.key, x.key)
	x.serve = func(_ context.Context, conn net.Conn) { _, _ = io.Copy(conn, conn) }
	return x
}

func (x *cluster) sign(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	x.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		x.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		x.t.Fatal(err)
	}
	return cert
}

// node is the TLS configuration of a node; of somebody else's, when foreign.
func (x *cluster) node(name string, foreign bool) *tls.Config {
	x.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		x.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	parent, parentKey := x.authority, x.key
	if foreign {
		parent, parentKey = template, key
	}
	config := x.client.Clone()
	config.Certificates = []tls.Certificate{{Certificate: [][]byte{x.sign(template, parent, key, parentKey).Raw}, PrivateKey: key}}
	return config
}

func (x *cluster) peer(state tls.ConnectionState) (string, error) {
	x.asked.Add(1)
	if err := state.PeerCertificates[0].CheckSignatureFrom(x.authority); err != nil {
		return "", errors.New("not signed by the cluster's CA\r\n250 fine")
	}
	return state.PeerCertificates[0].Subject.CommonName, nil
}

// connect gives a connector to a server's options.
func (x *cluster) connect(o *smtpd.Options) {
	o.Connectors[0].Kind, o.Connectors[0].TLSConfig = smtpd.KindChain, x.server
	o.Connectors[0].Peer = x.peer
	o.Connectors[0].Serve = func(ctx context.Context, conn net.Conn, peer string) {
		x.peers <- peer
		x.serve(ctx, conn)
	}
}

func (x *cluster) start(change func(*smtpd.Options)) *testServer {
	x.t.Helper()
	return start(x.t, func(o *smtpd.Options) {
		x.connect(o)
		if change != nil {
			change(o)
		}
	})
}

// wantNobody checks that no connection was handed over.
func (x *cluster) wantNobody() {
	x.t.Helper()
	select {
	case name := <-x.peers:
		x.t.Errorf("the connection of %q was handed over", name)
	default:
	}
}

func TestNodeIsHandedOver(t *testing.T) {
	x := newCluster(t)
	s := x.start(nil)
	c := s.hello().startTLS(x.node("b", false))
	// From here on the connection is Serve's, from the first byte: here, an echo.
	for _, line := range []string{"EHLO b", "not SMTP at all", "MAIL FROM:<a@b.c>"} {
		c.cmd(line, line)
	}
	if name := <-x.peers; name != "b" {
		t.Errorf("handed over as %q", name)
	}
	if n := s.Listeners()[0].Connections; n != 1 {
		t.Errorf("%d connections are counted, want 1", n)
	}
}

// What Serve leaves is closed.
func TestConnectionEndsWithServe(t *testing.T) {
	x := newCluster(t)
	x.serve = func(_ context.Context, conn net.Conn) { fmt.Fprint(conn, "bye\r\n") }
	s := x.start(nil)
	c := s.hello().startTLS(x.node("b", false))
	c.want("bye")
	if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end of the connection", err)
	}
}

func TestCertificateOfOthersIsRefused(t *testing.T) {
	x := newCluster(t)
	s := x.start(nil)
	c := s.hello().startTLS(x.node("b", true))
	c.cmd("EHLO b", "554 5.7.1 your certificate is refused: not signed by the cluster's CA??250 fine")
	c.wantClosed()
	x.wantNobody()
}

func TestNoCertificate(t *testing.T) {
	x := newCluster(t)
	s := x.start(nil)
	c := s.hello().startTLS(x.client)
	c.cmd("EHLO x", "250")
	c.cmd("NOOP", "250")
	c.cmd("MAIL FROM:<a@b.c>", "550 5.7.1 this port is for the nodes of the cluster")
	c.cmd("STARTTLS", "502")
	c.cmd("QUIT", "221")
	x.wantNobody()
	if x.asked.Load() != 0 {
		t.Error("Peer was asked about nothing")
	}
}

// A mail server on the list may have a certificate of its own.
func TestForeignMailServerUnderTLS(t *testing.T) {
	for _, config := range []func(*cluster) *tls.Config{
		func(x *cluster) *tls.Config { return x.client },
		func(x *cluster) *tls.Config { return x.node("mx.example.com", true) },
	} {
		x := newCluster(t)
		s := x.start(func(o *smtpd.Options) {
			o.Connectors[0].Clients = []string{"mail.example.com"}
			o.Connectors[0].TLS = smtpd.TLSRequired
			o.Resolver = dns{"mail.example.com."}
		})
		c := s.hello()
		c.cmd("MAIL FROM:<a@b.c>", "530 5.7.0")
		c = c.startTLS(config(x))
		c.cmd("EHLO x", "250")
		c.mail("x\r\n.\r\n")
		if e := s.received()[0].envelope; e.Connector != "smtp" || !strings.HasPrefix(e.TLS, "TLS1.3") {
			t.Errorf("envelope %+v", e)
		}
		x.wantNobody()
	}
}

// dns says that every address has this name, and back.
type dns struct{ name string }

func (d dns) LookupAddr(context.Context, string) ([]string, error) { return []string{d.name}, nil }
func (d dns) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// noDNS fails a test that asks it.
type noDNS struct{ t testing.TB }

func (d noDNS) LookupAddr(context.Context, string) ([]string, error) {
	d.t.Error("a node waited for DNS")
	return nil, errors.New("asked")
}

func (d noDNS) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return nil, errors.New("asked")
}

func TestNodesDoNotWaitForDNS(t *testing.T) {
	x := newCluster(t)
	s := x.start(func(o *smtpd.Options) {
		o.Connectors[0].Clients = []string{"mail.example.com"}
		o.Resolver = noDNS{t}
	})
	s.hello().startTLS(x.node("b", false)).cmd("echo", "echo")
}

func TestPlainTextBehindStartTLSOfANode(t *testing.T) {
	x := newCluster(t)
	s := x.start(nil)
	c := s.hello()
	c.send("STARTTLS\r\nEHLO evil\r\n")
	c.want("421 4.7.0")
	c.wantClosed()
	c = s.hello()
	c.cmd("STARTTLS", "220")
	c.send("EHLO evil\r\n")
	if err := tls.Client(c.Conn, x.node("b", false)).Handshake(); err == nil {
		t.Error("the handshake succeeded behind plain text")
	}
	x.wantNobody()
}

// Clients that fill the node keep no node away, and nodes take no room of
// clients. What is true of the whole is true of one address.
func TestNodesAndClientsDoNotCountTogether(t *testing.T) {
	for _, limit := range []func(*smtpd.Limits){
		func(l *smtpd.Limits) { l.MaxConnections = 1 },
		func(l *smtpd.Limits) { l.MaxConnectionsPerClient = 1 },
	} {
		x := newCluster(t)
		s := x.start(func(o *smtpd.Options) {
			limit(&o.Limits)
			o.Limits.MessagesPerMinute = 1
			o.Connectors[0].Clients = []string{"127.0.0.1"}
		})
		for i := range 3 {
			s.hello().startTLS(x.node(fmt.Sprint("n", i), false)).cmd("echo", "echo")
		}
		undecided := s.hello()
		foreign := s.hello()
		foreign.envelope()
		second := s.hello()
		second.cmd("MAIL FROM:<a@b.c>", "421 4.7.0 too many connections")
		second.wantClosed()
		s.hello().startTLS(x.node("late", false)).cmd("echo", "echo")
		foreign.cmd("QUIT", "221")
		foreign.wantClosed()
		undecided.cmd("STARTTLS", "220")
	}
}

// A peer may be silent for longer than any client; whoever does not say what
// it is may not.
func TestUndecidedAndPeersInTime(t *testing.T) {
	x := newCluster(t)
	inVirtualTime(t, x.connect, func(t *testing.T, _ *smtpd.Server, _ *archive, p *pipes) {
		silent := p.dial(t)
		silent.want("220")
		node := p.dial(t)
		node.want("220")
		node.cmd("EHLO b", "250")
		node.cmd("STARTTLS", "220")
		secured := newSecured(t, node, x.node("b", false))
		began := time.Now()
		silent.want("421 4.4.2")
		silent.wantClosed()
		within(t, "undecided client closed", began, time.Minute)
		time.Sleep(time.Hour)
		secured.cmd("still here", "still here")
	})
}

// newSecured is startTLS for virtual time: without deadline.
func newSecured(t *testing.T, c *client, config *tls.Config) *client {
	t.Helper()
	conn := tls.Client(c.Conn, config)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	return &client{t, conn, bufio.NewReader(conn)}
}

func TestDrainTellsPeers(t *testing.T) {
	x := newCluster(t)
	x.serve = func(ctx context.Context, conn net.Conn) {
		<-ctx.Done()
		time.Sleep(10 * time.Second) // the rest of what is under way
		fmt.Fprint(conn, "421 bye\r\n")
	}
	inVirtualTime(t, x.connect, func(t *testing.T, s *smtpd.Server, _ *archive, p *pipes) {
		c := p.dial(t)
		c.want("220")
		c.cmd("STARTTLS", "220")
		c = newSecured(t, c, x.node("b", false))
		synctest.Wait()
		began := time.Now()
		s.Drain()
		c.want("421 bye")
		within(t, "peer finished", began, 10*time.Second)
	})
}

func TestDrainCutsPeersOff(t *testing.T) {
	x := newCluster(t)
	ended := make(chan error, 1)
	x.serve = func(_ context.Context, conn net.Conn) {
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	}
	inVirtualTime(t, x.connect, func(t *testing.T, s *smtpd.Server, _ *archive, p *pipes) {
		c := p.dial(t)
		c.want("220")
		c.cmd("STARTTLS", "220")
		_ = newSecured(t, c, x.node("b", false))
		synctest.Wait()
		s.Drain()
		time.Sleep(29 * time.Second)
		select {
		case err := <-ended:
			t.Errorf("cut off too early: %v", err)
		default:
		}
		time.Sleep(2 * time.Second)
		if err := <-ended; err == nil {
			t.Error("Serve read a byte")
		}
	})
}

// A drain at any moment of the way in ends every connection.
func TestDrainWhileNodesComeIn(t *testing.T) {
	x := newCluster(t)
	x.serve = func(ctx context.Context, _ net.Conn) { <-ctx.Done() }
	config := x.node("b", false)
	for step := range 20 {
		s := x.start(nil)
		drainAt := func(now int) {
			if step%4 == now {
				go s.Drain()
			}
		}
		c := s.dial()
		drainAt(0)
		_, _ = c.reply()
		drainAt(1)
		fmt.Fprint(c, "STARTTLS\r\n")
		if line, _ := c.reply(); strings.HasPrefix(line, "220 2.0.0") {
			secured := tls.Client(c.Conn, config)
			drainAt(2)
			if secured.Handshake() == nil {
				drainAt(3)
				_, _ = secured.Read(make([]byte, 1))
			}
		}
		c.Close()
	}
}

func TestFrontDoorMetrics(t *testing.T) {
	x := newCluster(t)
	registry := prometheus.NewRegistry()
	s := x.start(func(o *smtpd.Options) { o.Registerer = registry })
	c := s.hello()
	c.cmd("MAIL FROM:<a@b.c>", "550")
	c = s.hello().startTLS(x.node("b", true))
	c.cmd("EHLO b", "554")
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "chainmail_smtp_refusals_total" {
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() == "reason" {
						got[l.GetValue()] += m.GetCounter().GetValue()
					}
				}
			}
		}
	}
	if got["not_a_node"] != 1 || got["certificate"] != 1 {
		t.Errorf("refusals %v", got)
	}
}

func TestStartingAndShort(t *testing.T) {
	var starting atomic.Bool
	starting.Store(true)
	a := &archive{commit: func() error { return fmt.Errorf("mail 7: %w", smtpd.ErrShort) }}
	s := startWith(t, a, func(o *smtpd.Options) {
		o.Accepting = func() error {
			if starting.Load() {
				return fmt.Errorf("asking b: %w", smtpd.ErrStarting)
			}
			return nil
		}
	})
	c := s.hello()
	c.cmd("MAIL FROM:<a@b.c>", "451 4.3.2 starting, try again in a moment")
	starting.Store(false)
	c.envelope()
	c.cmd("DATA", "354")
	c.send("x\r\n.\r\n")
	c.want("451 4.4.2 fewer copies than required could be made in time, try again")
	c.cmd("QUIT", "221")
}
