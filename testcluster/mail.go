package testcluster

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/textproto"
	"regexp"
	"sync"
	"time"

	"chainmail/archive/record"
	"chainmail/testcluster/load"
)

// mail is one message that was sent once.
type mail struct {
	n    int64
	size int
	node string
	hash record.Hash
	// position is where the node said that it keeps it; empty: it was not
	// acknowledged.
	position string
}

// text is the message, byte for byte.
func (m *mail) text(seed uint64) []byte { return load.Message(seed, m.n, m.size) }

// ledger is what was sent and what was acknowledged. Its methods may be called
// by any goroutine.
type ledger struct {
	seed  uint64
	mu    sync.Mutex
	mails []*mail
	sent  map[record.Hash]*mail
}

func newLedger(seed uint64) *ledger {
	return &ledger{seed: seed, sent: map[record.Hash]*mail{}}
}

// sizeOf is the size of a message by its number: most are small, some take
// several chunks of a body.
func sizeOf(n int64) int {
	switch {
	case n%40 == 9:
		return 300_000
	case n%10 == 4:
		return 50_000
	}
	return 1000 + int(n*977%7000)
}

// next enters a message that no other is equal to.
func (l *ledger) next(node string) *mail {
	l.mu.Lock()
	n := int64(len(l.mails))
	m := &mail{n: n, size: sizeOf(n), node: node}
	l.mails = append(l.mails, m)
	l.mu.Unlock()
	m.hash = sha256.Sum256(m.text(l.seed))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent[m.hash] = m
	return m
}

func (l *ledger) acknowledge(m *mail, position string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.position = position
}

// acknowledged are the mails that must not be missing.
func (l *ledger) acknowledged() (all []mail) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.mails {
		if m.position != "" {
			all = append(all, *m)
		}
	}
	return all
}

// knows reports whether a message was ever sent.
func (l *ledger) knows(h record.Hash) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent[h] != nil
}

// giveUp takes back what is known to be lost.
func (l *ledger) giveUp(position string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.mails {
		if m.position == position {
			m.position = ""
			return true
		}
	}
	return false
}

// session is one SMTP connection to a node.
type session struct {
	conn net.Conn
	text *textproto.Conn
}

// mailTimeout is how long a client waits for one mail.
const mailTimeout = time.Minute

func (c *Cluster) connect(ctx context.Context, node string) (*session, error) {
	conn, err := c.backend.dial(ctx, node)
	if err != nil {
		return nil, err
	}
	s := &session{conn, textproto.NewConn(conn)}
	if err := conn.SetDeadline(time.Now().Add(mailTimeout)); err != nil {
		s.close()
		return nil, err
	}
	if _, _, err = s.text.ReadResponse(220); err == nil {
		_, err = s.say(250, "EHLO test.example")
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *session) close() { s.text.Close() }

func (s *session) say(code int, format string, args ...any) (string, error) {
	if err := s.text.PrintfLine(format, args...); err != nil {
		return "", err
	}
	_, reply, err := s.text.ReadResponse(code)
	return reply, err
}

var archivedAs = regexp.MustCompile(`archived as ([0-9a-f]{16}:[0-9]+) sha256=([0-9a-f]{64})`)

// send sends one mail and returns the position that the node answered.
func (s *session) send(m *mail, seed uint64) (position string, err error) {
	if err := s.conn.SetDeadline(time.Now().Add(mailTimeout)); err != nil {
		return "", err
	}
	for _, line := range []struct {
		code int
		text string
	}{
		{250, "MAIL FROM:<sender@" + m.node + ".example>"},
		{250, fmt.Sprintf("RCPT TO:<mail%d@archive.example>", m.n)},
		{354, "DATA"},
	} {
		if _, err := s.say(line.code, "%s", line.text); err != nil {
			return "", err
		}
	}
	w := s.text.DotWriter()
	if _, err := w.Write(m.text(seed)); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	_, reply, err := s.text.ReadResponse(250)
	if err != nil {
		return "", err
	}
	said := archivedAs.FindStringSubmatch(reply)
	if said == nil || said[2] != m.hash.String() {
		return "", fmt.Errorf("mail %v was answered %q", m.hash, reply)
	}
	return said[1], nil
}

// Send sends mails to a node, one after the other, each of which must be
// acknowledged.
func (c *Cluster) Send(node string, count int) {
	c.t.Helper()
	if err := c.Offer(node, count); err != nil {
		c.t.Fatalf("mail to %s: %v", node, err)
	}
}

// Offer sends mails to a node until one is not acknowledged, and says why.
func (c *Cluster) Offer(node string, count int) error {
	ctx, cancel := c.context()
	defer cancel()
	s, err := c.connect(ctx, node)
	if err != nil {
		return err
	}
	defer s.close()
	for range count {
		if err := c.sendOne(s, node); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) sendOne(s *session, node string) error {
	m := c.ledger.next(node)
	position, err := s.send(m, c.ledger.seed)
	if err == nil {
		c.ledger.acknowledge(m, position)
	}
	return err
}

const (
	loadSessions = 2
	loadPause    = 200 * time.Millisecond // between mails of a session
	loadAgain    = 250 * time.Millisecond // after a failure
)

// Load sends mail to nodes, from several sessions each, whatever becomes of
// them. The function it returns ends that, and tells how many mails were
// acknowledged.
func (c *Cluster) Load(nodes ...string) (stop func() int) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	var wg sync.WaitGroup
	var mu sync.Mutex
	acked := 0
	for _, node := range nodes {
		for range loadSessions {
			wg.Go(func() {
				for ctx.Err() == nil {
					k := c.loadSession(ctx, node)
					mu.Lock()
					acked += k
					mu.Unlock()
					pause(ctx, loadAgain)
				}
			})
		}
	}
	stop = sync.OnceValue(func() int { cancel(); wg.Wait(); return acked })
	c.t.Cleanup(func() { stop() })
	return stop
}

// loadSession sends mail over one connection until that fails or ctx ends.
func (c *Cluster) loadSession(ctx context.Context, node string) (acked int) {
	s, err := c.connect(ctx, node)
	if err != nil {
		return 0
	}
	defer s.close()
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	for c.sendOne(s, node) == nil {
		acked++
		pause(ctx, loadPause)
	}
	return acked
}

// pause waits, not longer than ctx lives.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Acknowledged counts the mails that were acknowledged so far.
func (c *Cluster) Acknowledged() int { return len(c.ledger.acknowledged()) }

// GiveUp takes mail off the list of what must not be missing: by its position,
// such as those that a node reports as lost.
func (c *Cluster) GiveUp(positions ...string) {
	c.t.Helper()
	for _, p := range positions {
		if !c.ledger.giveUp(p) {
			c.t.Errorf("no mail was acknowledged at %s", p)
		}
	}
}
