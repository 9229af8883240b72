package route_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// taken is a mail that the receiver said 250 to.
type taken struct {
	from, params string
	to           []string
	body         string
	conn         int // number of the connection
}

// receiver is a foreign mail server in memory. It behaves, except where say
// has it otherwise.
type receiver struct {
	extensions []string
	tls        *tls.Config // for STARTTLS
	implicit   bool
	// say gives the reply to a step instead of the usual one: CONNECT, EHLO,
	// HELO, STARTTLS, AUTH, MAIL, RCPT, DATA, BDAT (before its bytes), BODY (after
	// the first half of the bytes), END (behind the bytes), RSET, QUIT. Empty
	// is the usual one, drop closes the connection, silence never says
	// anything.
	say func(s *session, step, line string) string
	// dial fails connections.
	dial func() error

	mu    sync.Mutex
	conns int
	mails []taken
	quits int
	log   []string // all commands
}

const (
	drop    = "drop"
	silence = "silence"
)

type session struct {
	*receiver
	net.Conn
	r      *bufio.Reader
	number int // of the connection, from 1
	secure bool
	from   string
	params string
	to     []string
}

var errDown = errors.New("connection refused")

// Dial is a route's Options.Dial.
func (x *receiver) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if x.dial != nil {
		if err := x.dial(); err != nil {
			return nil, err
		}
	}
	ours, theirs := wire()
	x.mu.Lock()
	x.conns++
	s := &session{receiver: x, Conn: theirs, number: x.conns}
	x.mu.Unlock()
	go s.serve()
	return ours, nil
}

func (x *receiver) received() []taken {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]taken(nil), x.mails...)
}

func (x *receiver) count() (conns, quits int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.conns, x.quits
}

func (x *receiver) commands() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]string(nil), x.log...)
}

// bodies counts how often each body was taken.
func (x *receiver) bodies() map[string]int {
	all := map[string]int{}
	for _, m := range x.received() {
		all[m.body]++
	}
	return all
}

var errEnd = errors.New("end of the session")

func (s *session) serve() {
	defer s.Close()
	if s.implicit {
		s.Conn, s.secure = tls.Server(s.Conn, s.tls), true
	}
	s.r = bufio.NewReader(s.Conn)
	if s.step("CONNECT", "", "220 receiver.test ESMTP") != nil {
		return
	}
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		s.mu.Lock()
		s.log = append(s.log, line)
		s.mu.Unlock()
		if s.command(line) != nil {
			return
		}
	}
}

// step answers; usual is the reply of a server that behaves.
func (s *session) step(step, line, usual string) error {
	_, err := s.answer(step, line, usual)
	return err
}

func (s *session) answer(step, line, usual string) (said string, err error) {
	said = usual
	if s.say != nil {
		if other := s.say(s, step, line); other != "" {
			said = other
		}
	}
	switch said {
	case "":
		return "", nil
	case drop:
		return "", errEnd
	case silence:
		_, _ = io.Copy(io.Discard, s.r) // until the client gives up
		return "", errEnd
	}
	_, err = io.WriteString(s.Conn, said+"\r\n")
	if strings.HasPrefix(said, "421") {
		return said, errEnd
	}
	return said, err
}

var pathPattern = regexp.MustCompile(`^[^:]*:<(.*?)>(.*)$`)

func (s *session) command(line string) error {
	verb, _, _ := strings.Cut(line, " ")
	switch verb = strings.ToUpper(verb); verb {
	case "EHLO":
		usual := "250-receiver.test\r\n250-" + strings.Join(append(s.offered(), "HELP"), "\r\n250-")
		i := strings.LastIndex(usual, "250-")
		return s.step(verb, line, usual[:i]+"250 "+usual[i+4:])
	case "HELO":
		return s.step(verb, line, "250 receiver.test")
	case "STARTTLS":
		return s.startTLS(line)
	case "MAIL":
		if s.to != nil {
			return s.step(verb, line, "503 5.5.1 nested MAIL")
		}
		said, err := s.answer(verb, line, "250 2.1.0 sender taken")
		if path := pathPattern.FindStringSubmatch(line); said[:min(1, len(said))] == "2" {
			s.from, s.params, s.to = path[1], strings.TrimSpace(path[2]), []string{}
		}
		return err
	case "RCPT":
		if s.to == nil {
			return s.step(verb, line, "503 5.5.1 MAIL first")
		}
		said, err := s.answer(verb, line, "250 2.1.5 recipient taken")
		if path := pathPattern.FindStringSubmatch(line); said[:min(1, len(said))] == "2" {
			s.to = append(s.to, path[1])
		}
		return err
	case "DATA":
		return s.data(line)
	case "BDAT":
		return s.bdat(line)
	case "RSET":
		s.to = nil
		return s.step(verb, line, "250 2.0.0 forgotten")
	case "QUIT":
		s.mu.Lock()
		s.quits++
		s.mu.Unlock()
		_ = s.step(verb, line, "221 2.0.0 bye")
		return errEnd
	}
	return s.step(verb, line, "500 5.5.1 unknown")
}

func (s *session) offered() []string {
	var offered []string
	for _, e := range s.extensions {
		if e != "STARTTLS" || !s.secure {
			offered = append(offered, e)
		}
	}
	return offered
}

func (s *session) startTLS(line string) error {
	said, err := s.answer("STARTTLS", line, "220 2.0.0 go ahead")
	if err != nil || !strings.HasPrefix(said, "220") {
		return err
	}
	s.Conn, s.secure = tls.Server(s.Conn, s.tls), true
	s.r = bufio.NewReader(s.Conn)
	return nil
}

func (s *session) data(line string) error {
	if len(s.to) == 0 {
		return s.step("DATA", line, "554 5.5.1 no valid recipients")
	}
	said, err := s.answer("DATA", line, "354 go on")
	if err != nil || !strings.HasPrefix(said, "354") {
		s.to = nil
		return err
	}
	wire, err := s.untilDot()
	if err != nil {
		return err
	}
	return s.take(unstuff(wire))
}

// untilDot reads up to CRLF.CRLF and nothing else.
func (s *session) untilDot() ([]byte, error) {
	wire := []byte("\r\n") // as if it stood before the first line
	for half := false; ; {
		c, err := s.r.ReadByte()
		if err != nil {
			return nil, err
		}
		wire = append(wire, c)
		if !half && len(wire) > 20 {
			half = true
			if err := s.step("BODY", "", ""); err != nil {
				return nil, err
			}
		}
		if bytes.HasSuffix(wire, []byte("\r\n.\r\n")) {
			return wire[2 : len(wire)-3], nil
		}
	}
}

func unstuff(wire []byte) string {
	text := strings.ReplaceAll("\r\n"+string(wire), "\r\n.", "\r\n")
	return text[2:]
}

func (s *session) bdat(line string) error {
	words := strings.Fields(line)
	if len(words) != 3 || words[2] != "LAST" {
		return s.step("BDAT", line, "501 5.5.4 one chunk, please")
	}
	n, err := strconv.Atoi(words[1])
	if err != nil {
		return s.step("BDAT", line, "501 5.5.4 how much?")
	}
	if err := s.step("BDAT", line, ""); err != nil {
		return err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(s.r, body[:n/2]); err != nil {
		return err
	}
	if err := s.step("BODY", "", ""); err != nil {
		return err
	}
	if _, err := io.ReadFull(s.r, body[n/2:]); err != nil {
		return err
	}
	if len(s.to) == 0 {
		return s.step("END", "", "503 5.5.1 MAIL and RCPT first")
	}
	return s.take(string(body))
}

// take ends a mail: it is taken when the reply is 250, or there is none but
// could have been.
func (s *session) take(body string) error {
	m := taken{s.from, s.params, s.to, body, s.number}
	said := ""
	if s.say != nil {
		said = s.say(s, "END", body)
	}
	s.to = nil
	if said == "" || said == drop || said == silence || strings.HasPrefix(said, "250") {
		s.mu.Lock()
		s.mails = append(s.mails, m)
		s.mu.Unlock()
	}
	switch said {
	case "":
		said = "250 2.0.0 taken"
	case drop:
		return errEnd
	case silence:
		_, _ = io.Copy(io.Discard, s.r)
		return errEnd
	}
	_, err := io.WriteString(s.Conn, said+"\r\n")
	if strings.HasPrefix(said, "421") {
		return errEnd
	}
	return err
}
