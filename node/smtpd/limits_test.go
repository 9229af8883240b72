package smtpd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	chain "chainmail/archive"
	"chainmail/archive/record"
	"chainmail/node/smtpd"
)

func TestMaxConnections(t *testing.T) {
	s := start(t, func(o *smtpd.Options) { o.Limits.MaxConnections = 1 })
	first := s.dial()
	first.want("220")
	second := s.dial()
	second.want("421 4.7.0")
	second.wantClosed()
	first.cmd("QUIT", "221")
	first.wantClosed()
	for {
		c := s.dial()
		if line, _ := c.reply(); strings.HasPrefix(line, "220") {
			return
		}
	}
}

func TestFiveThousandRecipients(t *testing.T) {
	for _, kind := range []smtpd.Kind{smtpd.KindSMTP, smtpd.KindLMTP} {
		s := start(t, func(o *smtpd.Options) { o.Connectors[0].Kind = kind })
		c := s.dial()
		c.want("220")
		c.cmd(map[smtpd.Kind]string{smtpd.KindSMTP: "EHLO x", smtpd.KindLMTP: "LHLO x"}[kind], "250")
		var commands strings.Builder
		commands.WriteString("MAIL FROM:<a@example.com>\r\n")
		for i := range 5000 {
			fmt.Fprintf(&commands, "RCPT TO:<user%d@example.com>\r\n", i)
		}
		commands.WriteString("DATA\r\n")
		go c.Write([]byte(commands.String()))
		for range 5001 {
			c.want("250")
		}
		c.want("354")
		c.send("x\r\n.\r\n")
		if kind == smtpd.KindLMTP {
			for i := range 5000 {
				c.want(fmt.Sprintf("250 2.0.0 <user%d@example.com> archived", i))
			}
		} else {
			c.want("250 2.0.0 archived")
		}
		if to := s.received()[0].envelope.To; len(to) != 5000 || to[4999] != "user4999@example.com" {
			t.Errorf("%d recipients kept", len(to))
		}
	}
}

func TestLongCommandLines(t *testing.T) {
	s := start(t, nil)
	c := s.hello()
	c.cmd("NOOP "+strings.Repeat("x", 60_000), "250")
	c.cmd("NOOP "+strings.Repeat("x", 100_000), "500 5.5.2")
	c.mail("x\r\n.\r\n")
	c.cmd("RCPT TO:<"+strings.Repeat("x", 2000)+"@example.com>", "503")
	c.cmd("MAIL FROM:<"+strings.Repeat("x", 2000)+"@example.com>", "501 5.1.7")
	c.cmd("EHLO "+strings.Repeat("x", 2000), "501 5.5.4")
	// One without end is not read for ever.
	go c.Write([]byte("NOOP " + strings.Repeat("x", 8<<20)))
	c.want("421 4.7.0")
}

// A body that goes on long after it was refused is not read for ever.
func TestEndlessBody(t *testing.T) {
	s := start(t, func(o *smtpd.Options) { o.Limits.MaxMessageSize = 1000 })
	c := s.hello()
	c.envelope()
	c.cmd("DATA", "354")
	go c.Write([]byte(strings.Repeat("MAIL FROM:<evil@x>\r\n", 1<<20)))
	c.want("552 5.3.4")
	c.wantClosedOrReset()
}

// The last reply arrives although the client is still sending: the connection
// is closed in order, and not reset, which could overtake the reply.
func TestLastReplyIsNotLost(t *testing.T) {
	s := start(t, nil)
	for range 10 {
		c := s.hello()
		c.send("POST / HTTP/1.1\r\n" + strings.Repeat("x", 512<<10))
		c.want("421 4.7.0")
		if _, err := c.reply(); err != io.EOF {
			t.Fatalf("the connection ended with %v", err)
		}
	}
}

// wantClosedOrReset is wantClosed where the client goes on sending.
func (c *client) wantClosedOrReset() {
	c.t.Helper()
	if line, err := c.reply(); err == nil || line != "" {
		c.t.Fatalf("got %q, want the end of the connection", line)
	}
}

// Trap 4 of go-smtp: an error that is wrapped becomes a permanent failure.
func TestErrorsOfTheArchive(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{chain.ErrBusy, "452 4.3.1"},
		{chain.ErrDiskFull, "452 4.3.1"},
		{chain.ErrClosed, "421 4.3.2"},
		{context.Canceled, "421 4.3.2"},
		{errors.New("I/O error on /dev/secret"), "451 4.3.0"},
	} {
		err := fmt.Errorf("wrapped: %w", tt.err)
		check := func(where string, prepare func(*archive, *smtpd.Options), talk func(*client)) {
			t.Run(fmt.Sprint(tt.err, " at ", where), func(t *testing.T) {
				a := &archive{}
				s := startWith(t, a, func(o *smtpd.Options) { prepare(a, o) })
				c := s.hello()
				talk(c)
				line := c.want(tt.want)
				if strings.Contains(line, "secret") {
					t.Errorf("the client is told %q", line)
				}
				if tt.want[:3] == "421" {
					c.wantClosed()
				} else {
					c.cmd("NOOP", "250")
				}
				if got := s.received(); got != nil {
					t.Errorf("archived %v", got)
				}
			})
		}
		data := func(c *client) {
			c.envelope()
			c.cmd("DATA", "354")
			c.send(strings.Repeat("0123456789\r\n", 20_000) + "MAIL FROM:<evil@x>\r\n.\r\n")
		}
		check("MAIL", func(_ *archive, o *smtpd.Options) { o.Accepting = func() error { return err } },
			func(c *client) { c.send("MAIL FROM:<a@b.c>\r\n") })
		check("DATA", func(a *archive, _ *smtpd.Options) {
			a.writeErr = func(n int) error {
				if n > 100_000 {
					return err
				}
				return nil
			}
		}, data)
		check("commit", func(a *archive, _ *smtpd.Options) { a.commit = func() error { return err } }, data)
		check("chunk", func(a *archive, _ *smtpd.Options) { a.writeErr = func(int) error { return err } }, func(c *client) {
			c.envelope()
			c.send("BDAT 6\r\nQUIT\r\n")
		})
		check("last chunk", func(a *archive, _ *smtpd.Options) { a.writeErr = func(int) error { return err } }, func(c *client) {
			c.envelope()
			c.send("BDAT 6 LAST\r\nQUIT\r\n")
		})
	}
}

// A bug in a draft costs the client a temporary failure, not its mail.
func TestPanicIsTemporary(t *testing.T) {
	for _, body := range []string{"DATA\r\nx\r\n.\r\n", "BDAT 1 LAST\r\nx"} {
		a := &archive{commit: func() error { panic("bug") }}
		s := startWith(t, a, nil)
		c := s.hello()
		c.envelope()
		c.send(body)
		if body[0] == 'D' {
			c.want("354")
		}
		c.want("421")
		c.wantClosedOrReset()
	}
}

type names map[string][]string

func (n names) LookupAddr(_ context.Context, addr string) ([]string, error) { return n.find(addr) }

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	found, err := n.find(host)
	addrs := make([]netip.Addr, len(found))
	for i, s := range found {
		addrs[i] = netip.MustParseAddr(s)
	}
	return addrs, err
}

func (n names) find(key string) ([]string, error) {
	if found, ok := n[key]; ok {
		return found, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: key, IsNotFound: true}
}

func TestAllowedClients(t *testing.T) {
	for _, tt := range []struct {
		name     string
		clients  []string
		resolver names
		allowed  bool
	}{
		{"everybody", nil, nil, true},
		{"address", []string{"127.0.0.1"}, nil, true},
		{"network", []string{"10.0.0.0/8", "127.0.0.0/8"}, nil, true},
		{"mapped address", []string{"::ffff:127.0.0.1"}, nil, true},
		{"other network", []string{"10.0.0.0/8"}, nil, false},
		{"name", []string{"mail.example.com"}, names{"127.0.0.1": {"mail.example.com."}, "mail.example.com.": {"127.0.0.1"}}, true},
		{"domain", []string{"example.com"}, names{"127.0.0.1": {"other.test.", "MX1.Example.com."}, "MX1.Example.com.": {"192.0.2.1", "127.0.0.1"}}, true},
		{"claimed name", []string{"example.com"}, names{"127.0.0.1": {"mail.example.com."}, "mail.example.com.": {"192.0.2.1"}}, false},
		{"name without address", []string{"example.com"}, names{"127.0.0.1": {"mail.example.com."}}, false},
		{"similar name", []string{"example.com"}, names{"127.0.0.1": {"badexample.com."}, "badexample.com.": {"127.0.0.1"}}, false},
		{"no name", []string{"example.com"}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, func(o *smtpd.Options) {
				o.Connectors[0].Clients = tt.clients
				o.Resolver = tt.resolver
			})
			c := s.dial()
			if tt.allowed {
				c.want("220")
				return
			}
			c.want("554 5.7.1 your address 127.0.0.1 may not use this archive")
			c.wantClosed()
		})
	}
}

func TestLMTPOverUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lmtp.sock")
	// One that a killed process left behind is in nobody's way.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	s := start(t, func(o *smtpd.Options) {
		o.Connectors[0] = smtpd.Connector{Name: "local", Kind: smtpd.KindLMTP, Address: "unix:" + path, Clients: []string{"192.0.2.1"}, SocketMode: 0o600}
	})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", info, err)
	}
	c := s.dial()
	c.want("220")
	c.cmd("LHLO x", "250")
	c.mail("x\r\n.\r\n")
	if e := s.received()[0].envelope; e.Connector != "local" {
		t.Errorf("envelope %+v", e)
	}
	// A socket that is in use is not taken away from its owner.
	second, err := smtpd.New(smtpd.Options{Begin: s.begin, Connectors: []smtpd.Connector{{Name: "x", Address: "unix:" + path}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Open(); err == nil {
		t.Error("a socket in use was opened again")
	}
}

// report is a JournalParser that understands bodies which begin with "report".
type report struct {
	body   strings.Builder
	closed *int
}

func (r *report) Write(p []byte) (int, error) { return r.body.Write(p) }

func (r *report) Close() (*record.Journal, error) {
	*r.closed++
	kind, _, _ := strings.Cut(r.body.String(), "\r\n")
	switch kind {
	case "report":
		return &record.Journal{Subject: r.body.String()}, nil
	case "protected":
		return &record.Journal{Subject: r.body.String()}, errors.New("its message is protected")
	case "damaged":
		return nil, errors.New("it ends too early")
	}
	return nil, nil
}

func TestJournal(t *testing.T) {
	registry := prometheus.NewRegistry()
	opened, closed := 0, 0
	s := start(t, func(o *smtpd.Options) {
		o.Connectors[0].Journal = smtpd.JournalExchange
		o.NewJournalParser = func() smtpd.JournalParser { opened++; return &report{closed: &closed} }
		o.Registerer = registry
	})
	c := s.hello()
	c.mail("report\r\n..x\r\n.\r\n")
	c.mail("something else\r\n.\r\n")
	c.mail("protected\r\n.\r\n")
	c.mail("damaged\r\n.\r\n")
	c.envelope()
	c.send("BDAT 6\r\nreportRSET\r\n")
	c.want("250")
	c.want("250")
	c.cmd("QUIT", "221")
	c.wantClosed()
	mails := s.received()
	if len(mails) != 4 {
		t.Fatalf("archived %v", mails)
	}
	if j := mails[0].envelope.Journal; j == nil || j.Subject != "report\r\n.x\r\n" {
		t.Errorf("journal %+v", j)
	}
	if j := mails[2].envelope.Journal; j == nil {
		t.Error("what is known of protected mail is lost")
	}
	for _, i := range []int{1, 3} {
		if j := mails[i].envelope.Journal; j != nil {
			t.Errorf("journal %+v", j)
		}
	}
	if opened != 5 || closed != 5 {
		t.Errorf("%d parsers opened, %d closed", opened, closed)
	}
	want := `
# HELP chainmail_smtp_journal_reports_total Messages on connectors for journal reports: understood reports; partly understood ones, for example of protected mail; damaged ones, archived as they are; and mail that is no report.
# TYPE chainmail_smtp_journal_reports_total counter
chainmail_smtp_journal_reports_total{connector="smtp",result="damaged"} 1
chainmail_smtp_journal_reports_total{connector="smtp",result="none"} 1
chainmail_smtp_journal_reports_total{connector="smtp",result="partly"} 1
chainmail_smtp_journal_reports_total{connector="smtp",result="understood"} 1
# HELP chainmail_smtp_messages_total Messages whose body was read to its end or broke off, by the SMTP code answered: 250 is archived, 4xx may come again.
# TYPE chainmail_smtp_messages_total counter
chainmail_smtp_messages_total{code="250",connector="smtp"} 4
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "chainmail_smtp_journal_reports_total", "chainmail_smtp_messages_total"); err != nil {
		t.Error(err)
	}
}
