package smtpd_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"chainmail/archive/record"
	"chainmail/node/smtpd"
)

// mail is what the test archive was given.
type mail struct {
	body     string
	envelope record.Envelope
}

// archive is a smtpd.Options.Begin that keeps everything in memory.
type archive struct {
	mu       sync.Mutex
	mails    []mail
	open     int             // drafts neither committed nor discarded
	writeErr func(int) error // may fail a Write, given the bytes so far
	commit   func() error    // may fail or delay a Commit
	contexts []context.Context
}

type draft struct {
	a    *archive
	body []byte
	done bool
}

func (a *archive) begin(ctx context.Context) smtpd.Draft {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open++
	a.contexts = append(a.contexts, ctx)
	return &draft{a: a}
}

func (d *draft) Write(p []byte) (int, error) {
	if d.a.writeErr != nil {
		if err := d.a.writeErr(len(d.body)); err != nil {
			return 0, err
		}
	}
	d.body = append(d.body, p...)
	return len(p), nil
}

func (d *draft) Commit(e record.Envelope) (record.Receipt, error) {
	if d.a.commit != nil {
		if err := d.a.commit(); err != nil {
			return record.Receipt{}, err
		}
	}
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	if d.done {
		panic("commit of a draft that is done")
	}
	d.done = true
	d.a.open--
	d.a.mails = append(d.a.mails, mail{string(d.body), e})
	return record.Receipt{
		Position: record.Position{Store: 0x4f2a9c1be0d37786, Seq: record.Seq(len(d.a.mails))},
		Hash:     sha256.Sum256(d.body), Size: int64(len(d.body)), Envelope: e,
	}, nil
}

func (d *draft) Discard() {
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	if !d.done {
		d.done = true
		d.a.open--
	}
}

func (a *archive) received() []mail {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]mail(nil), a.mails...)
}

func (a *archive) bodies() []string {
	var all []string
	for _, m := range a.received() {
		all = append(all, m.body)
	}
	return all
}

func (a *archive) openDrafts() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open
}

// testServer is a running server and what it archived.
type testServer struct {
	*smtpd.Server
	*archive
	t testing.TB
}

// start runs a server with the given changes to a plain SMTP connector on the
// loopback interface, until the test ends.
func start(t testing.TB, change func(*smtpd.Options)) *testServer {
	t.Helper()
	a := &archive{}
	return startWith(t, a, change)
}

func startWith(t testing.TB, a *archive, change func(*smtpd.Options)) *testServer {
	t.Helper()
	o := smtpd.Options{
		Hostname:   "archive.test",
		Connectors: []smtpd.Connector{{Name: "smtp", Address: "127.0.0.1:0"}},
		Begin:      a.begin,
	}
	if change != nil {
		change(&o)
	}
	s, err := smtpd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if n := a.openDrafts(); n != 0 {
			t.Errorf("%d drafts were neither committed nor discarded", n)
		}
	})
	return &testServer{s, a, t}
}

func (s *testServer) address() string { return s.Listeners()[0].Address }

// client is one end of an SMTP dialogue.
type client struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

// dial connects and reads nothing.
func (s *testServer) dial() *client {
	s.t.Helper()
	addr := s.address()
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	conn, err := net.Dial(network, addr)
	if err != nil {
		s.t.Fatal(err)
	}
	return newClient(s.t, conn)
}

func newClient(t testing.TB, conn net.Conn) *client {
	t.Cleanup(func() { conn.Close() })
	// A test that waits for ever shall fail with the line it waits in.
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{t, conn, bufio.NewReader(conn)}
}

// hello connects, reads the greeting and says EHLO.
func (s *testServer) hello() *client {
	s.t.Helper()
	c := s.dial()
	c.want("220")
	c.cmd("EHLO client.test", "250")
	return c
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		c.t.Fatalf("send %.60q: %v", s, err)
	}
}

// reply reads one reply, all lines of it.
func (c *client) reply() (string, error) {
	var all strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		all.WriteString(line)
		if err != nil || len(line) < 4 || line[3] != '-' {
			return strings.TrimRight(all.String(), "\r\n"), err
		}
	}
}

// want reads a reply that must begin with prefix, and returns it.
func (c *client) want(prefix string) string {
	c.t.Helper()
	line, err := c.reply()
	if err != nil {
		c.t.Fatalf("got %q and %v, want %q", line, err, prefix)
	}
	if !strings.HasPrefix(line, prefix) {
		c.t.Fatalf("got %q, want %q", line, prefix)
	}
	return line
}

func (c *client) cmd(line, prefix string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	return c.want(prefix)
}

// wantClosed checks that the server says nothing more and closes.
func (c *client) wantClosed() {
	c.t.Helper()
	if line, err := c.reply(); err == nil || line != "" {
		c.t.Fatalf("got %q, want the end of the connection", line)
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatal("the connection stays open")
	}
}

// envelope gives a sender and a recipient.
func (c *client) envelope() {
	c.t.Helper()
	c.cmd("MAIL FROM:<a@example.com>", "250")
	c.cmd("RCPT TO:<b@example.com>", "250")
}

// mail sends one mail by DATA, its body as it is on the wire.
func (c *client) mail(wire string) string {
	c.t.Helper()
	c.envelope()
	c.cmd("DATA", "354")
	c.send(wire)
	return c.want("250")
}

// certificate makes a self-signed certificate for archive.test.
func certificate(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"archive.test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{RootCAs: pool, ServerName: "archive.test"}
}
