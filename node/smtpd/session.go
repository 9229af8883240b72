package smtpd

import (
	"errors"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/emersion/go-smtp"

	"chainmail/archive/record"
)

// session is the mail transaction of a gate, in go-smtp's terms. go-smtp calls
// it, and while it reads lines, the gate does; never both at once.
type session struct {
	gate *gate
	user string // who authenticated

	path     string // of the MAIL or RCPT that go-smtp is told of now
	declared int64  // SIZE of that MAIL

	open  bool // from MAIL to the reply to the body, or RSET
	from  string
	to    []string
	body  bool // the body has begun
	size  int64
	began time.Time // of the body; zero before it
	draft Draft     // nil before the body, and when it was refused
	// journal sees the bytes that draft sees; nil when none is looked for.
	journal JournalParser
	failure *smtp.SMTPError // why the body is refused; the rest of it is dropped
}

// errFlood ends a body that goes on long after it was refused.
var errFlood = errors.New("endless message")

// inChunks reports whether some chunks came, but not the last one.
func (s *session) inChunks() bool { return s.body }

// Mail begins a transaction.
func (s *session) Mail(string, *smtp.MailOptions) error {
	l := s.gate.link
	switch {
	case s.open:
		return reply(503, 5, 5, 1, "nested MAIL command")
	case l.connector.TLS == TLSRequired && s.gate.secure == "":
		return reply(530, 5, 7, 0, "STARTTLS first")
	case l.connector.Auth == AuthRequired && s.user == "":
		return l.refuse(reasonAuth, reply(530, 5, 7, 0, "authentication required"))
	case l.check && !l.connector.clients.allow(l.ctx, l.server.opts.Resolver, l.client): // it was let in to look only
		return l.refuse(reasonClient, reply(554, 5, 7, 1, "your address "+l.client.String()+" may not use this archive"))
	case s.declared > l.limits.MaxMessageSize:
		return l.refuse(reasonSize, s.tooLarge())
	case !l.connector.senders.allows(s.path):
		return l.refuse(reasonSender, reply(550, 5, 7, 1, "this sender may not send to this archive"))
	case !l.server.rates.allow(l.client):
		return l.refuse(reasonRate, reply(450, 4, 7, 1, "too many messages in a short time, try again later"))
	}
	if err := l.server.accepting(); err != nil {
		return s.refuseFor(err)
	}
	s.open, s.from = true, s.path
	return nil
}

// Rcpt adds a recipient. go-smtp counts them.
func (s *session) Rcpt(string, *smtp.RcptOptions) error {
	l := s.gate.link
	if !l.connector.recipients.allows(s.path) {
		return l.refuse(reasonRecipient, reply(550, 5, 7, 1, "this recipient is not archived here"))
	}
	s.to = append(s.to, s.path)
	return nil
}

// Data ends a transaction: it reads the body, unless that came in chunks, and
// commits it. go-smtp's reader is not used; for DATA go-smtp is then shown the
// end of the body that it waits for.
func (s *session) Data(io.Reader) error {
	g := s.gate
	if !g.chunked {
		s.begin()
		if err := g.readDots(s.write); err != nil {
			return s.broken(err)
		}
		g.line = endOfData
	}
	return s.commit()
}

var endOfData = []byte(".\r\n")

// begin opens the draft, at the first byte of the body.
func (s *session) begin() {
	if s.body {
		return
	}
	s.body, s.began = true, time.Now()
	l := s.gate.link
	s.draft = l.server.opts.Begin(l.ctx)
	if l.connector.Journal == JournalExchange {
		s.journal = l.server.opts.NewJournalParser()
	}
}

// write takes a piece of the body. When the body is refused it goes on to its
// end, because only there can the client be told.
func (s *session) write(p []byte) error {
	s.size += int64(len(p))
	l := s.gate.link
	refused := s.refused()
	switch {
	case refused && s.size > l.limits.flood():
		return errFlood
	case refused:
	case s.size > l.limits.MaxMessageSize:
		s.fail(l.refuse(reasonSize, s.tooLarge()))
	default:
		s.keep(p)
	}
	return nil
}

// keep gives a piece of the body to those who want it.
func (s *session) keep(p []byte) {
	if _, err := s.draft.Write(p); err != nil {
		s.fail(s.refuseFor(err))
		return
	}
	if s.journal != nil {
		_, _ = s.journal.Write(p) // Close tells
	}
}

func (s *session) refused() bool { return s.failure != nil }

func (s *session) fail(why *smtp.SMTPError) {
	s.giveUp()
	s.failure = why
}

// broken is the reply to a body that did not reach its end.
func (s *session) broken(err error) error {
	s.giveUp()
	g := s.gate
	g.ended = true
	g.linger = err != io.EOF
	g.link.connector.metrics.outcome(421)
	switch {
	case errors.Is(err, errFlood):
		return s.failure
	case err == io.EOF:
		return reply(421, 4, 4, 2, "connection closed inside a message")
	}
	return reply(421, 4, 4, 2, "the message did not arrive in time")
}

// commit makes the message durable. Its "error" may be the reply of success,
// which go-smtp does not let a session choose otherwise.
func (s *session) commit() error {
	l := s.gate.link
	if s.failure != nil {
		l.connector.metrics.outcome(s.failure.Code)
		return s.failure
	}
	ended := time.Now()
	receipt, err := s.draft.Commit(s.envelope())
	if err != nil {
		failure := s.refuseFor(err)
		l.connector.metrics.outcome(failure.Code)
		return failure
	}
	l.connector.metrics.archived(s.size, time.Since(ended))
	s.gate.errors, s.gate.wasted = 0, 0
	text := make([]byte, 0, 128)
	text = append(text, "archived as "...)
	text = append(text, receipt.Position.String()...)
	text = append(text, " sha256="...)
	text = append(text, receipt.Hash.String()...)
	return reply(250, 2, 0, 0, string(text))
}

func (s *session) envelope() record.Envelope {
	g := s.gate
	e := record.Envelope{
		From:      s.from,
		To:        slices.Clip(s.to),
		Client:    g.link.address,
		Helo:      g.helo,
		TLS:       g.secure,
		User:      s.user,
		Connector: g.link.connector.Name,
	}
	if s.journal != nil {
		e.Journal = s.report()
	}
	return e
}

// report closes the search for a journal report and gives what was found, if
// anything was.
func (s *session) report() *record.Journal {
	l := s.gate.link
	found, err := s.journal.Close()
	s.journal = nil
	result := reportUnderstood
	switch {
	case found == nil && err == nil:
		result = reportNone
	case found == nil:
		result = reportDamaged
		l.log.Warn("a journal report is damaged and is archived like other mail: its recipients are not known", slog.Any("err", err))
	case err != nil:
		result = reportPartly
		l.log.Warn("a journal report is only partly understood", slog.Any("err", err))
	}
	l.connector.metrics.reports[result].Inc()
	return found
}

// giveUp forgets the body and what it holds.
func (s *session) giveUp() {
	if s.draft != nil {
		s.draft.Discard()
		s.draft = nil
	}
	if s.journal != nil {
		_, _ = s.journal.Close()
		s.journal = nil
	}
}

// Reset ends the transaction.
func (s *session) Reset() {
	s.giveUp()
	s.open, s.body, s.began = false, false, time.Time{}
	s.from, s.to = "", nil
	s.size, s.failure = 0, nil
}

// Logout is the end of the connection.
func (s *session) Logout() error {
	s.Reset()
	return nil
}

func (s *session) tooLarge() *smtp.SMTPError {
	return reply(552, 5, 3, 4, "message larger than "+strconv.FormatInt(s.gate.link.limits.MaxMessageSize, 10)+" bytes")
}
