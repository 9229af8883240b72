package route

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// letter is one mail as the server shall get it.
type letter struct {
	from string // without angle brackets; empty for the null sender
	to   []string
	*content
}

// result is what became of a letter. Every recipient is in one of the three.
type result struct {
	delivered int
	refused   []refused // for good
	later     []string
	why       string // of later: what the server said
}

// refused is a recipient that the server will not have.
type refused struct {
	to, why string
}

// pipelined is how many commands go at once. More could fill the buffers of
// both ends, each waiting for the other to read (RFC 2920 3.1).
const pipelined = 100

// send makes one mail transaction. An error is one of the connection, which
// cannot be used any more, or an *unreadable; then nothing was delivered for
// certain, but it may have been.
func (c *client) send(l letter) (result, error) {
	var res result
	l.to = c.sendable(l, &res)
	if len(l.to) == 0 {
		return res, nil
	}
	c.mails++
	c.answered = false
	accepted, err := c.envelope(l, &res)
	if err == nil && len(accepted) > 0 {
		err = c.body(l, accepted, &res)
	}
	if err != nil {
		c.broken = true
		return result{}, err
	}
	if res.delivered == 0 && !c.broken {
		c.reset()
	}
	return res, nil
}

// sendable gives the recipients that can be named to this server, and refuses
// in its place what it could only refuse.
func (c *client) sendable(l letter, res *result) (to []string) {
	refuse := func(recipient, why string) { res.refused = append(res.refused, refused{recipient, why}) }
	for _, recipient := range l.to {
		switch {
		case c.ext.size > 0 && l.size > c.ext.size:
			refuse(recipient, fmt.Sprintf("not sent: its %d bytes are more than the %d that the server takes (SIZE)", l.size, c.ext.size))
		case !sendable(l.from):
			refuse(recipient, fmt.Sprintf("not sent: a control character in the sender %q: set a sender for the route", l.from))
		case !sendable(recipient):
			refuse(recipient, fmt.Sprintf("not sent: a control character in the recipient %q: set a recipient for the route", recipient))
		case !c.ext.utf8 && !isASCII(l.from+recipient):
			refuse(recipient, "not sent: an address needs SMTPUTF8, which the server lacks: set sender and recipient for the route")
		default:
			to = append(to, recipient)
		}
	}
	return to
}

// sendable reports whether an address can be in a command without being taken
// for more than one.
func sendable(address string) bool {
	return !strings.ContainsFunc(address, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 })
}

// envelope says MAIL and RCPT, and gives the recipients that were accepted.
func (c *client) envelope(l letter, res *result) (accepted []string, err error) {
	commands := make([]string, 1, 1+len(l.to))
	commands[0] = "MAIL FROM:<" + l.from + ">" + c.parameters(l)
	for _, to := range l.to {
		commands = append(commands, "RCPT TO:<"+to+">")
	}
	var mail reply
	err = c.converse(commands, func(i int, answer reply) error {
		c.answered = c.answered || !answer.closing()
		switch {
		case answer.closing(), answer.noLogin():
			return &refusal{commands[i], answer}
		case i == 0:
			if mail = answer; !mail.ok() && !mail.forNow() && !mail.forGood() {
				return &refusal{commands[i], answer}
			}
		case !mail.ok(): // then this can only say that MAIL is missing
		case answer.ok():
			accepted = append(accepted, l.to[i-1])
		case answer.tooMany():
			res.delay(l.to[i-1], answer)
		case !res.answer(l.to[i-1], answer):
			return &refusal{commands[i], answer}
		}
		return nil
	}, func() bool { return mail.ok() })
	if err == nil && !mail.ok() {
		for _, to := range l.to {
			res.answer(to, mail)
		}
	}
	return accepted, err
}

// converse says commands and gives each reply to hear, while there is reason to
// go on.
func (c *client) converse(commands []string, hear func(i int, answer reply) error, goOn func() bool) error {
	window := 1
	if c.ext.pipelining {
		window = pipelined
	}
	for first := 0; first < len(commands) && (first == 0 || goOn()); first += window {
		last := min(first+window, len(commands))
		for _, command := range commands[first:last] {
			if err := c.say(command); err != nil {
				return err
			}
		}
		for i := first; i < last; i++ {
			answer, err := c.listen(replyTimeout)
			if err != nil {
				return err
			}
			if err := hear(i, answer); err != nil {
				return err
			}
		}
	}
	return nil
}

// answer notes a refusal of one recipient, and reports whether it is one.
func (res *result) answer(to string, r reply) bool {
	switch {
	case r.forNow():
		res.delay(to, r)
	case r.forGood():
		res.refused = append(res.refused, refused{to, r.String()})
	default:
		return false
	}
	return true
}

func (res *result) delay(to string, r reply) {
	res.later = append(res.later, to)
	res.why = r.String()
}

// parameters are those of MAIL that this server knows and this mail needs.
func (c *client) parameters(l letter) string {
	var p strings.Builder
	if c.ext.hasSize {
		p.WriteString(" SIZE=" + strconv.FormatInt(l.size, 10)) // RFC 1870
	}
	switch {
	case l.traits.binary && c.ext.binary && c.ext.chunking:
		p.WriteString(" BODY=BINARYMIME") // RFC 3030
	case l.traits.eightBit && c.ext.eightBit:
		p.WriteString(" BODY=8BITMIME") // RFC 6152
	}
	if c.ext.utf8 && (!isASCII(l.from) || !isASCII(strings.Join(l.to, ""))) {
		p.WriteString(" SMTPUTF8") // RFC 6531
	}
	return p.String()
}

// body sends the mail's bytes and hears what becomes of them.
func (c *client) body(l letter, accepted []string, res *result) error {
	send := c.data
	if c.ext.chunking {
		send = c.chunk
	}
	answer, err := send(l)
	switch {
	case err != nil:
		return err
	case answer.closing(), answer.noLogin():
		return &refusal{"the mail", answer}
	case answer.ok():
		res.delivered = len(accepted)
		return nil
	}
	for _, to := range accepted {
		if !res.answer(to, answer) {
			return &refusal{"the mail", answer}
		}
	}
	return nil
}

// data sends a body by DATA.
func (c *client) data(l letter) (reply, error) {
	answer, err := c.command(dataTimeout, "DATA")
	switch {
	case err != nil:
		return answer, err
	case answer.ok(): // it has nothing yet that it could have taken
		return answer, &refusal{"DATA", answer}
	case !answer.goAhead():
		return answer, nil
	}
	s := newStuffer(c.w)
	if err := l.copyTo(s); err != nil {
		return c.interrupted(err)
	}
	if err := s.Close(); err != nil {
		return c.interrupted(err)
	}
	return c.listen(endTimeout)
}

// chunk sends a body as one chunk (RFC 3030).
func (c *client) chunk(l letter) (reply, error) {
	if err := c.say("BDAT " + strconv.FormatInt(l.size, 10) + " LAST"); err != nil {
		return c.interrupted(err)
	}
	if err := l.copyTo(c.w); err != nil {
		return c.interrupted(err)
	}
	return c.listen(endTimeout)
}

// interrupted is the end of a body that could not be sent. When the server
// closed, it may have said why.
func (c *client) interrupted(err error) (reply, error) {
	c.broken = true
	if own := (*unreadable)(nil); errors.As(err, &own) {
		return reply{}, err
	}
	if answer, ok := c.lastWords(); ok {
		return answer, nil
	}
	return reply{}, err
}

// reset makes the server forget a transaction that was not completed.
func (c *client) reset() {
	if answer, err := c.command(replyTimeout, "RSET"); err != nil || !answer.ok() {
		c.broken = true // the result of the mail stands
	}
}

var _ io.WriteCloser = (*stuffer)(nil)
