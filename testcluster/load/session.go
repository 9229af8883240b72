package load

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"net"
	"time"
)

// Waits after a 4xx answer and between attempts to connect double from the
// first to the last of these.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// session sends mail over one connection after the other.
type session struct {
	run   *run
	conn  *connection // nil: not connected
	mails [3]mail     // at most: one being sent, one whose envelope is sent, one to be offered again
	ready *mail       // claimed; its envelope may have left already
	again *mail       // refused for now
	pause time.Duration
	stuck time.Time // since when connections break before a mail is answered; zero: they do not

	counts
	latency   histogram
	lastReply time.Time

	hash  hash.Hash
	sum   [32]byte
	line  []byte
	parts net.Buffers
}

// counts are what one session saw.
type counts struct {
	tempfailed, givenUp, refused, unanswered, reconnects int64
	complaint                                            string // the first reply of 4xx or 5xx
}

// loop sends until there is no more mail. Mail that cannot be sent because the
// run fails is not counted anywhere.
func (s *session) loop(ctx context.Context) error {
	if s.run.opt.Acked != nil {
		s.hash = sha256.New()
	}
	defer func() {
		if s.conn != nil {
			s.conn.quit()
		}
	}()
	for {
		m := s.next()
		if m == nil {
			return nil
		}
		if err := s.prepare(ctx, m); err != nil {
			return err
		}
		early, last := s.ready, s.last()
		if last {
			early = nil
		}
		result, took, err := s.conn.send(m, early)
		if err := s.settle(m, result, took); err != nil {
			return err
		}
		if !s.stuck.IsZero() && time.Since(s.stuck) > s.run.opt.Patience {
			return fmt.Errorf("%s takes connections and breaks them before a mail is answered, for %v: %w", s.run.opt.Target, s.run.opt.Patience, err)
		}
		switch {
		case err != nil || s.conn.closing:
			s.conn.close()
			s.conn = nil
			s.reconnects++
		case last:
			s.conn.quit()
			s.conn = nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// last reports whether the next mail is the last one of its connection.
func (s *session) last() bool {
	limit := s.run.opt.PerSession
	return limit > 0 && s.conn.sent+1 >= limit
}

// next takes the mail to send now, and claims the one after it where its
// envelope may leave early.
func (s *session) next() *mail {
	m := s.take()
	if m != nil && !s.run.opt.BDAT && s.run.opt.Rate == 0 {
		s.ready = s.take()
	}
	return m
}

func (s *session) take() *mail {
	if m := s.ready; m != nil {
		s.ready = nil
		return m
	}
	if m := s.again; m != nil {
		s.again = nil
		return m
	}
	m := s.free()
	if !s.run.claim(m) {
		m.n = unused
		return nil
	}
	return m
}

const unused = -1

// free returns one of s.mails that carries no mail.
func (s *session) free() *mail {
	for i := range s.mails {
		if m := &s.mails[i]; m.n == unused || m.header == nil {
			return m
		}
	}
	panic("load: a session holds more than three mails")
}

// prepare waits until m may be sent and there is a connection to send it on.
func (s *session) prepare(ctx context.Context, m *mail) error {
	if s.run.opt.Rate > 0 {
		if err := sleep(ctx, time.Until(s.run.due(m.n))); err != nil {
			return err
		}
	}
	if s.pause > 0 {
		if err := sleep(ctx, s.pause); err != nil {
			return err
		}
	}
	if s.conn != nil {
		return nil
	}
	return s.connect(ctx)
}

func (s *session) connect(ctx context.Context) error {
	giveUp := time.Now().Add(s.run.opt.Patience)
	for wait := firstPause; ; wait = min(2*wait, lastPause) {
		conn, err := dial(ctx, s.run.opt)
		if err == nil {
			s.conn = conn
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(giveUp) {
			return fmt.Errorf("no session with %s for %v: %w", s.run.opt.Target, s.run.opt.Patience, err)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// settle enters what became of m.
func (s *session) settle(m *mail, result outcome, took time.Duration) error {
	if s.complaint == "" {
		s.complaint = s.conn.complaint
	}
	if result == unsent {
		if s.stuck.IsZero() {
			s.stuck = time.Now()
		}
		s.slowDown()
		s.again = m
		return nil
	}
	s.stuck, s.lastReply = time.Time{}, time.Now()
	switch result {
	case accepted:
		s.pause = 0
		s.latency.add(took)
		err := s.run.acknowledge(m, s)
		m.n = unused
		return err
	case tempfailed:
		s.tempfailed++
		s.slowDown()
		if m.tries++; m.tries >= s.run.opt.Attempts || s.run.over() {
			s.givenUp++
			break
		}
		s.again = m
		return nil
	case refused:
		s.refused++
	case unanswered:
		s.unanswered++
	}
	m.n = unused
	return nil
}

func (s *session) slowDown() { s.pause = min(max(2*s.pause, firstPause), lastPause) }

// sleep returns early with an error when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
