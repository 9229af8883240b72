package smtpd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/emersion/go-smtp"

	"chainmail/archive"
)

// What Options.Accepting and Draft.Commit may say beside the errors of the
// archive.
var (
	// ErrStarting: the node has not found out yet in which log to go on.
	ErrStarting = errors.New("starting: no mail is taken yet")
	// ErrLeaving: the node is being drained; others of its cluster take mail.
	ErrLeaving = errors.New("this node leaves its cluster: no mail is taken any more")
	// ErrShort: the policy refuses mail that has too few copies, and this one
	// had not enough in time. It is archived; the client sends it again.
	ErrShort = errors.New("fewer copies than required could be made in time")
)

// reply makes go-smtp answer with this code. It must reach go-smtp as it is:
// an error that wraps it would become a permanent 554.
func reply(code, class, subject, detail int, text string) *smtp.SMTPError {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{class, subject, detail}, Message: text}
}

func replyLine(e *smtp.SMTPError) string {
	return fmt.Sprintf("%d %d.%d.%d %s", e.Code, e.EnhancedCode[0], e.EnhancedCode[1], e.EnhancedCode[2], e.Message)
}

// translate is the one place where an error of the archive becomes a reply.
// Every one is temporary: the mail is good, so the client shall keep it.
func translate(err error) (*smtp.SMTPError, reason) {
	switch {
	case errors.Is(err, archive.ErrBusy):
		return reply(452, 4, 3, 1, "out of memory for incoming mail, try again later"), reasonMemory
	case errors.Is(err, archive.ErrDiskFull):
		return reply(452, 4, 3, 1, "disk nearly full, try again later"), reasonDisk
	case errors.Is(err, ErrStarting):
		return reply(451, 4, 3, 2, "starting, try again in a moment"), reasonStarting
	case errors.Is(err, ErrLeaving):
		return reply(421, 4, 3, 2, "this node leaves its cluster, try another one"), reasonClosed
	case errors.Is(err, ErrShort):
		return reply(451, 4, 4, 2, "fewer copies than required could be made in time, try again"), reasonShort
	case errors.Is(err, archive.ErrClosed), errors.Is(err, context.Canceled):
		return reply(421, 4, 3, 2, "shutting down, try again later"), reasonClosed
	}
	return reply(451, 4, 3, 0, "the message could not be archived, try again later"), reasonFault
}

// refuseFor translates, and tells the operator what the client is not told.
func (s *session) refuseFor(err error) *smtp.SMTPError {
	answer, why := translate(err)
	if why == reasonFault {
		s.gate.link.log.Error("mail not archived", slog.Any("err", err))
	}
	return s.gate.link.refuse(why, answer)
}
