package smtpd_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/node/smtpd"
)

// pipes is a listener whose connections are pipes, for virtual time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

func (p *pipes) dial(t *testing.T) *client {
	here, there := net.Pipe()
	p.conns <- there
	c := newClient(t, here)
	_ = c.SetDeadline(time.Time{})
	return c
}

// inVirtualTime runs a server on pipes with a virtual clock.
func inVirtualTime(t *testing.T, change func(*smtpd.Options), test func(t *testing.T, s *smtpd.Server, a *archive, p *pipes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := &archive{}
		p := &pipes{make(chan net.Conn), make(chan struct{})}
		o := smtpd.Options{
			Hostname:   "archive.test",
			Connectors: []smtpd.Connector{{Name: "smtp", Address: "host:25"}},
			Begin:      a.begin,
			Listen:     func(string, string) (net.Listener, error) { return p, nil },
		}
		if change != nil {
			change(&o)
		}
		s, err := smtpd.New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		test(t, s, a, p)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := a.openDrafts(); n != 0 {
			t.Errorf("%d drafts were neither committed nor discarded", n)
		}
	})
}

func within(t *testing.T, what string, since time.Time, want time.Duration) {
	t.Helper()
	if got := time.Since(since); got < want || got > want+time.Second {
		t.Errorf("%s after %v, want %v", what, got, want)
	}
}

func TestIdleClientIsToldAndClosed(t *testing.T) {
	inVirtualTime(t, nil, func(t *testing.T, _ *smtpd.Server, _ *archive, p *pipes) {
		c := p.dial(t)
		c.want("220")
		began := time.Now()
		c.want("421 4.4.2")
		c.wantClosed()
		within(t, "closed", began, 5*time.Minute)
	})
}

// A line must arrive whole in time: a client cannot hold a connection for ever
// with a byte a minute.
func TestSlowCommandLine(t *testing.T) {
	inVirtualTime(t, nil, func(t *testing.T, _ *smtpd.Server, _ *archive, p *pipes) {
		c := p.dial(t)
		c.want("220")
		began := time.Now()
		go func() {
			for range 10 {
				if _, err := c.Write([]byte("N")); err != nil {
					return
				}
				time.Sleep(time.Minute)
			}
		}()
		c.want("421 4.4.2")
		c.wantClosed()
		within(t, "closed", began, 5*time.Minute)
		c.Close()
		time.Sleep(time.Minute)
	})
}

// A body may come slowly, but not a byte now and then for ever.
func TestDrippingBody(t *testing.T) {
	for _, tt := range []struct {
		pieces int
		size   int
		ends   bool
	}{
		{pieces: 60, size: 1, ends: true},
		{pieces: 60, size: 60 * 300},
	} {
		inVirtualTime(t, nil, func(t *testing.T, _ *smtpd.Server, a *archive, p *pipes) {
			c := p.dial(t)
			c.want("220")
			c.cmd("EHLO x", "250")
			c.envelope()
			c.cmd("DATA", "354")
			began := time.Now()
			go func() {
				for range tt.pieces {
					if _, err := c.Write(bytes.Repeat([]byte("x"), tt.size)); err != nil {
						return
					}
					time.Sleep(time.Minute)
				}
				_, _ = c.Write([]byte("\r\n.\r\n"))
			}()
			if tt.ends {
				c.want("421 4.4.2")
				c.wantClosed()
				within(t, "closed", began, 5*time.Minute)
			} else {
				c.want("250 2.0.0")
			}
			c.Close()
			time.Sleep(2 * time.Minute)
		})
	}
}

// Trap 1 of go-smtp: after its time-out it reads the rest of the body as
// commands, and a forged mail comes in.
func TestBodyTimeoutNeverMakesCommands(t *testing.T) {
	for _, begin := range []string{"DATA\r\nhalf a mail\r\n", "BDAT 1000000\r\nhalf a mail\r\n", "BDAT 1000000 LAST\r\nhalf a mail\r\n"} {
		inVirtualTime(t, nil, func(t *testing.T, _ *smtpd.Server, a *archive, p *pipes) {
			c := p.dial(t)
			c.want("220")
			c.cmd("EHLO x", "250")
			c.envelope()
			c.send(begin)
			if strings.HasPrefix(begin, "DATA") {
				c.want("354")
			}
			began := time.Now()
			go func() {
				// Twice in time, then too late.
				for _, wait := range []time.Duration{4, 4, 6} {
					time.Sleep(wait * time.Minute)
					if _, err := c.Write(bytes.Repeat([]byte("more\r\n"), 20_000)); err != nil {
						return
					}
				}
				_, _ = c.Write([]byte("\r\n.\r\nMAIL FROM:<evil@x>\r\nRCPT TO:<y@z>\r\nBDAT 4 LAST\r\nevil"))
			}()
			c.want("421 4.4.2")
			c.wantClosed()
			within(t, "closed", began, 13*time.Minute)
			c.Close()
			time.Sleep(2 * time.Minute)
			if got := a.bodies(); got != nil {
				t.Errorf("archived %q", got)
			}
		})
	}
}

// A client that does not read its replies is let go.
func TestClientThatDoesNotRead(t *testing.T) {
	inVirtualTime(t, nil, func(t *testing.T, s *smtpd.Server, _ *archive, p *pipes) {
		c := p.dial(t) // and does not read the greeting
		began := time.Now()
		for s.Listeners()[0].Connections == 0 {
			time.Sleep(time.Millisecond)
		}
		for s.Listeners()[0].Connections > 0 {
			time.Sleep(time.Second)
		}
		within(t, "closed", began, 5*time.Minute)
		c.Close()
	})
}

func TestSlowProxyHeaderAndHandshake(t *testing.T) {
	server, _ := certificate(t)
	change := func(o *smtpd.Options) {
		o.Connectors[0].TLS, o.Connectors[0].TLSConfig = smtpd.TLSImplicit, server
	}
	inVirtualTime(t, change, func(t *testing.T, _ *smtpd.Server, _ *archive, p *pipes) {
		c := p.dial(t)
		began := time.Now()
		c.wantClosed()
		within(t, "closed", began, 30*time.Second)
	})
}
