package smtpd_test

import (
	"crypto/tls"
	"runtime"
	"strings"
	"testing"

	"chainmail/node/smtpd"
)

func withTLS(t *testing.T, mode smtpd.TLSMode) (*testServer, *tls.Config) {
	server, config := certificate(t)
	return start(t, func(o *smtpd.Options) {
		o.Connectors[0].TLS, o.Connectors[0].TLSConfig = mode, server
	}), config
}

// startTLS continues the dialogue under TLS.
func (c *client) startTLS(config *tls.Config) *client {
	c.t.Helper()
	c.cmd("STARTTLS", "220 2.0.0")
	secured := tls.Client(c.Conn, config)
	if err := secured.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	return newClient(c.t, secured)
}

func TestStartTLS(t *testing.T) {
	s, config := withTLS(t, smtpd.TLSStartTLS)
	plain := s.dial()
	plain.want("220")
	if caps := plain.cmd("EHLO plain.test", "250"); !strings.Contains(caps, "STARTTLS") {
		t.Errorf("STARTTLS is not announced: %s", caps)
	}
	plain.envelope() // to be forgotten
	c := plain.startTLS(config)
	c.cmd("RCPT TO:<c@example.com>", "503")
	c.cmd("MAIL FROM:<c@example.com>", "503")
	if caps := c.cmd("EHLO secure.test", "250"); strings.Contains(caps, "STARTTLS") {
		t.Errorf("STARTTLS is announced under TLS: %s", caps)
	}
	c.cmd("STARTTLS", "502")
	c.cmd("RCPT TO:<c@example.com>", "503")
	c.mail("x\r\n.\r\n")
	c.send("MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nBDAT 3 LAST\r\nabcQUIT\r\n")
	for _, want := range []string{"250", "250", "250", "221"} {
		c.want(want)
	}
	c.wantClosed()
	mails := s.received()
	if len(mails) != 2 {
		t.Fatalf("archived %d mails", len(mails))
	}
	e := mails[0].envelope
	if e.TLS != "TLS1.3 TLS_AES_128_GCM_SHA256" || e.Helo != "secure.test" || !strings.HasPrefix(e.Client, "127.0.0.1:") {
		t.Errorf("envelope %+v", e)
	}
	for s.Listeners()[0].Connections != 0 {
		runtime.Gosched() // the server counts it until just after the close
	}
}

// Commands sent in plain text behind STARTTLS must not be carried out as if
// they had come under TLS.
func TestStartTLSInjection(t *testing.T) {
	s, config := withTLS(t, smtpd.TLSStartTLS)
	t.Run("in one packet", func(t *testing.T) {
		c := s.hello()
		c.send("STARTTLS\r\nMAIL FROM:<evil@x>\r\n")
		c.want("421 4.7.0")
		c.wantClosed()
	})
	t.Run("in the next packet", func(t *testing.T) {
		c := s.hello()
		c.cmd("STARTTLS", "220")
		c.send("MAIL FROM:<evil@x>\r\n")
		if err := tls.Client(c.Conn, config).Handshake(); err == nil {
			t.Error("the handshake succeeded behind plain text")
		}
	})
	if got := s.received(); got != nil {
		t.Errorf("archived %v", got)
	}
}

func TestImplicitTLS(t *testing.T) {
	s, config := withTLS(t, smtpd.TLSImplicit)
	conn, err := tls.Dial("tcp", s.address(), config)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, conn)
	c.want("220")
	if caps := c.cmd("EHLO x", "250"); strings.Contains(caps, "STARTTLS") {
		t.Errorf("STARTTLS is announced under TLS: %s", caps)
	}
	c.mail("x\r\n.\r\n")
	if e := s.received()[0].envelope; !strings.HasPrefix(e.TLS, "TLS1.3 ") {
		t.Errorf("envelope %+v", e)
	}
	c.cmd("QUIT", "221")
}

func TestRequiredTLS(t *testing.T) {
	s, config := withTLS(t, smtpd.TLSRequired)
	c := s.hello()
	c.cmd("MAIL FROM:<a@b.c>", "530 5.7.0")
	c = c.startTLS(config)
	c.cmd("EHLO x", "250")
	c.mail("x\r\n.\r\n")
}

func TestFailedHandshakeCloses(t *testing.T) {
	s, _ := withTLS(t, smtpd.TLSStartTLS)
	c := s.hello()
	c.cmd("STARTTLS", "220")
	c.send("this is no TLS\r\n")
	for {
		if _, err := c.r.ReadByte(); err != nil { // an alert may come first
			break
		}
	}
	s.hello().cmd("QUIT", "221")
}

func TestDrainUnderTLS(t *testing.T) {
	s, config := withTLS(t, smtpd.TLSStartTLS)
	idle := s.hello().startTLS(config)
	idle.cmd("EHLO x", "250")
	busy := s.hello().startTLS(config)
	busy.cmd("EHLO x", "250")
	busy.envelope()
	busy.cmd("DATA", "354")
	busy.send("first\r\n")
	s.Drain()
	idle.want("421 4.3.2")
	idle.wantClosed()
	busy.send("second\r\n.\r\n")
	busy.want("250")
	busy.want("421 4.3.2")
	busy.wantClosed()
	if got := s.bodies(); len(got) != 1 || got[0] != "first\r\nsecond\r\n" {
		t.Errorf("archived %q", got)
	}
}
