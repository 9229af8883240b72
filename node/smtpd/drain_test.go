package smtpd_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/node/smtpd"
)

func TestDrain(t *testing.T) {
	inVirtualTime(t, nil, func(t *testing.T, s *smtpd.Server, a *archive, p *pipes) {
		fresh, idle, envelope, inData, inChunks := p.dial(t), p.dial(t), p.dial(t), p.dial(t), p.dial(t)
		for _, c := range []*client{fresh, idle, envelope, inData, inChunks} {
			c.want("220")
		}
		for _, c := range []*client{idle, envelope, inData, inChunks} {
			c.cmd("EHLO x", "250")
		}
		for _, c := range []*client{envelope, inData, inChunks} {
			c.envelope()
		}
		inData.cmd("DATA", "354")
		inData.send("first\r\n")
		inChunks.send("BDAT 2\r\n12")
		inChunks.want("250")
		synctest.Wait()

		began := time.Now()
		s.Drain()
		for _, c := range []*client{fresh, idle} {
			c.want("421 4.3.2")
			c.wantClosed()
		}
		within(t, "idle clients closed", began, 0)

		time.Sleep(time.Second)
		inData.send("second\r\n.\r\nNOOP\r\nMAIL FROM:<late@example.com>\r\n")
		inData.want("250")
		inData.want("421 4.3.2")
		inData.wantClosed()

		time.Sleep(time.Second)
		inChunks.send("BDAT 2 LAST\r\n34")
		inChunks.want("250")
		inChunks.want("421 4.3.2")
		inChunks.wantClosed()

		envelope.cmd("RCPT TO:<c@example.com>", "250")
		envelope.cmd("RSET", "250")
		envelope.want("421 4.3.2")
		envelope.wantClosed()

		if got := a.bodies(); len(got) != 2 || got[0] != "first\r\nsecond\r\n" || got[1] != "1234" {
			t.Errorf("archived %q", got)
		}
	})
}

// What does not finish in time is cut off, and not acknowledged.
func TestDrainTimeout(t *testing.T) {
	inVirtualTime(t, nil, func(t *testing.T, s *smtpd.Server, a *archive, p *pipes) {
		c := p.dial(t)
		c.want("220")
		c.cmd("EHLO x", "250")
		c.envelope()
		c.cmd("DATA", "354")
		c.send("half")
		began := time.Now()
		s.Drain()
		if line, err := c.reply(); err == nil {
			t.Errorf("got %q, want the connection cut", line)
		}
		within(t, "cut off", began, 30*time.Second)
		if got := a.bodies(); got != nil {
			t.Errorf("archived %q", got)
		}
	})
}

// A commit that is under way when the drain times out still decides.
func TestDrainWaitsForCommit(t *testing.T) {
	inVirtualTime(t, nil, func(t *testing.T, s *smtpd.Server, a *archive, p *pipes) {
		a.commit = func() error { time.Sleep(10 * time.Second); return nil }
		c := p.dial(t)
		c.want("220")
		c.cmd("EHLO x", "250")
		c.envelope()
		c.cmd("DATA", "354")
		c.send("x\r\n.\r\n")
		synctest.Wait()
		s.Drain()
		c.want("250")
		c.want("421")
		c.wantClosed()
	})
}

func TestDrainOnTCP(t *testing.T) {
	s := start(t, nil)
	c := s.hello()
	s.Drain()
	c.want("421 4.3.2")
	c.wantClosed()
	if conn, err := net.Dial("tcp", s.address()); err == nil {
		// Accepted by the system before the listener closed: never served.
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); n > 0 || errors.Is(err, context.DeadlineExceeded) {
			t.Error("a connection was taken during the drain")
		}
		conn.Close()
	}
}

// A server that is stopped while it starts stops all the same.
func TestDrainAtOnce(t *testing.T) {
	for range 200 {
		s, err := smtpd.New(smtpd.Options{
			Begin:      func(context.Context) smtpd.Draft { return nil },
			Connectors: []smtpd.Connector{{Name: "smtp", Address: "127.0.0.1:0"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Drain()
		if err := s.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
