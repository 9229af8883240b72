package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// outcome is what the server said of one mail.
type outcome int

const (
	accepted   outcome = iota
	tempfailed         // 4xx: may be offered again
	refused            // 5xx
	unanswered         // its text was sent, at least in part, and no answer came
	unsent             // nothing of its text was sent
)

// connectTimeout is how long a server may take to accept a connection.
const connectTimeout = 5 * time.Second

// connection is one connection to an SMTP or LMTP server.
type connection struct {
	conn      net.Conn
	r         *bufio.Reader
	opt       *Options
	release   func() bool
	out       net.Buffers // buffers of the write being put together
	writing   net.Buffers // what of them is still to be written
	envelope  []byte      // MAIL and RCPT commands, the same for every mail
	data      []byte      // the same and DATA
	bdat      []byte      // scratch for a BDAT command
	opened    *mail       // whose MAIL, RCPT and DATA were sent and not answered yet
	sent      int         // mails
	closing   bool        // the server said 421
	complaint string      // its first reply of 4xx or 5xx to the present mail
}

// dial connects, greets, and changes to TLS if so asked. The connection closes
// when ctx ends.
func dial(ctx context.Context, opt *Options) (*connection, error) {
	network := "tcp"
	if strings.HasPrefix(opt.Target, "/") {
		network = "unix"
	}
	d := net.Dialer{Timeout: connectTimeout}
	conn, err := d.DialContext(ctx, network, opt.Target)
	if err != nil {
		return nil, err
	}
	c := &connection{opt: opt, envelope: opt.envelope()}
	c.data = append(slices.Clip(c.envelope), "DATA\r\n"...)
	c.use(conn)
	c.release = context.AfterFunc(ctx, func() { conn.Close() })
	if err := c.greet(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *connection) use(conn net.Conn) {
	c.conn, c.r = conn, bufio.NewReader(conn)
}

func (c *connection) close() {
	c.release()
	c.conn.Close()
}

// quit ends an idle session in the polite way; its answer does not matter.
func (c *connection) quit() {
	if c.command("QUIT\r\n") == nil {
		_, _ = c.reply()
	}
	c.close()
}

func (c *connection) greet() error {
	if err := c.conn.SetDeadline(time.Now().Add(c.opt.Timeout)); err != nil {
		return err
	}
	if c.opt.TLS != nil && c.opt.ImplicitTLS {
		c.use(tls.Client(c.conn, c.opt.TLS))
	}
	if _, err := c.expect(220, "greeting"); err != nil {
		return err
	}
	words, err := c.hello()
	if err != nil {
		return err
	}
	if c.opt.TLS != nil && !c.opt.ImplicitTLS {
		if err := c.command("STARTTLS\r\n"); err != nil {
			return err
		}
		if _, err := c.expect(220, "STARTTLS"); err != nil {
			return err
		}
		c.use(tls.Client(c.conn, c.opt.TLS))
		if words, err = c.hello(); err != nil {
			return err
		}
	}
	// Commands may only be sent in groups to a server that says it copes
	// (RFC 2920 section 3.1).
	if !words["PIPELINING"] {
		return errors.New("the server does not announce PIPELINING, which the load generator needs")
	}
	if c.opt.BDAT && !words["CHUNKING"] {
		return errors.New("the server does not announce CHUNKING, which BDAT needs")
	}
	return nil
}

// hello returns the keywords of the server's answer in upper case.
func (c *connection) hello() (map[string]bool, error) {
	verb := "EHLO"
	if c.opt.LMTP {
		verb = "LHLO"
	}
	if err := c.command(verb + " load.example\r\n"); err != nil {
		return nil, err
	}
	lines, err := c.expect(250, verb)
	if err != nil {
		return nil, err
	}
	words := map[string]bool{}
	for _, line := range lines {
		word, _, _ := strings.Cut(line, " ")
		words[strings.ToUpper(word)] = true
	}
	return words, nil
}

func (c *connection) command(line string) error {
	_, err := c.conn.Write([]byte(line))
	return err
}

// expect reads a reply and keeps the text of its lines.
func (c *connection) expect(code int, what string) ([]string, error) {
	var lines []string
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		got, last, err := parseReply([]byte(line))
		if err != nil {
			return nil, err
		}
		if got != code {
			return nil, fmt.Errorf("%s: the server answered %q", what, strings.TrimSpace(line))
		}
		if lines = append(lines, strings.TrimSpace(line[4:])); last {
			return lines, nil
		}
	}
}

// reply reads one reply of any number of lines and returns its code.
func (c *connection) reply() (int, error) {
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		code, last, err := parseReply(line)
		if err != nil {
			return 0, err
		}
		if !last {
			continue
		}
		if code >= 400 && c.complaint == "" {
			c.complaint = strings.TrimSpace(string(line))
		}
		c.closing = c.closing || code == 421
		return code, nil
	}
}

// parseReply reads "250-text" or "250 text" (RFC 5321 section 4.2).
func parseReply(line []byte) (code int, last bool, err error) {
	if len(line) < 5 {
		return 0, false, fmt.Errorf("the server answered %q, which is no SMTP reply", line)
	}
	code, err = strconv.Atoi(string(line[:3]))
	if err != nil || code < 200 || code > 599 || (line[3] != ' ' && line[3] != '-' && line[3] != '\r') {
		return 0, false, fmt.Errorf("the server answered %q, which is no SMTP reply", line)
	}
	return code, line[3] != '-', nil
}

// send offers m and returns what became of it. With DATA, the envelope of next,
// unless that is nil, leaves together with the text of m; it must then be the
// argument of the following call. After an error the connection is of no use.
func (c *connection) send(m, next *mail) (outcome, time.Duration, error) {
	c.complaint = ""
	c.sent++
	if err := c.conn.SetDeadline(time.Now().Add(c.opt.Timeout)); err != nil {
		return unsent, 0, err
	}
	if c.opt.BDAT {
		return c.sendBDAT(m)
	}
	return c.sendDATA(m, next)
}

func (c *connection) sendDATA(m, next *mail) (outcome, time.Duration, error) {
	if c.opened != m {
		c.out = append(c.out[:0], c.data)
		if err := c.flush(); err != nil {
			return unsent, 0, err
		}
	}
	c.opened = nil
	rcpts, code, err := c.envelopeReplies()
	if err != nil {
		return c.broken(code, unsent), 0, err
	}
	answer, err := c.reply()
	switch {
	case err != nil:
		return c.broken(code, unsent), 0, err
	case answer != 354:
		return c.reset(firstFailure(code, answer))
	case rcpts == 0:
		// A server may say 354 with no recipient at all; it gets an empty
		// mail then (RFC 2920 section 3.1).
		if err := c.command(".\r\n"); err != nil {
			return classify(code), 0, err
		}
		_, err := c.reply()
		return classify(code), 0, err
	}
	start := time.Now()
	c.out = append(m.appendText(c.out[:0], stuffed), finalDot)
	if next != nil {
		c.out = append(c.out, c.data)
		c.opened = next
	}
	werr := c.flush()
	code, err = c.finalReplies(rcpts)
	if err != nil {
		return c.broken(code, unanswered), 0, errors.Join(werr, err)
	}
	return classify(code), time.Since(start), werr
}

var finalDot = []byte(".\r\n")

func (c *connection) sendBDAT(m *mail) (outcome, time.Duration, error) {
	start := time.Now()
	c.bdat = append(c.bdat[:0], "BDAT "...)
	c.bdat = strconv.AppendInt(c.bdat, int64(m.Size()), 10)
	c.bdat = append(c.bdat, " LAST\r\n"...)
	c.out = m.appendText(append(c.out[:0], c.envelope, c.bdat), plain)
	werr := c.flush()
	rcpts, code, err := c.envelopeReplies()
	if err != nil {
		return c.broken(code, unanswered), 0, errors.Join(werr, err)
	}
	answer, err := c.finalReplies(max(rcpts, 1))
	switch {
	case err != nil:
		return c.broken(firstFailure(code, answer), unanswered), 0, errors.Join(werr, err)
	case rcpts == 0:
		return c.reset(code)
	case answer >= 400:
		return c.reset(answer)
	}
	return accepted, time.Since(start), werr
}

// flush writes c.out in one system call where the connection allows it. After a
// failed write the server may still have said why, so that the next read is
// worth a moment.
func (c *connection) flush() error {
	c.writing = c.out
	if _, err := c.writing.WriteTo(c.conn); err != nil {
		_ = c.conn.SetDeadline(time.Now().Add(time.Second))
		return err
	}
	return nil
}

// envelopeReplies reads the answers to MAIL and all RCPT. It returns how many
// recipients were taken and the first failure among the answers, or 0.
func (c *connection) envelopeReplies() (rcpts, failure int, err error) {
	for i := range 1 + c.opt.Recipients {
		code, err := c.reply()
		if err != nil {
			return 0, failure, err
		}
		if i > 0 && code < 300 {
			rcpts++
		}
		failure = firstFailure(failure, code)
	}
	return rcpts, failure, nil
}

// finalReplies reads what follows the text: one answer, or with LMTP one for
// each recipient that was taken (RFC 2033 section 4.2). A mail that was taken
// for one recipient was taken.
func (c *connection) finalReplies(rcpts int) (int, error) {
	if !c.opt.LMTP {
		return c.reply()
	}
	best := 0
	for range rcpts {
		code, err := c.reply()
		if err != nil {
			return 0, err
		}
		if best == 0 || code < best {
			best = code
		}
	}
	return best, nil
}

// reset clears the transaction that the server may still hold.
func (c *connection) reset(code int) (outcome, time.Duration, error) {
	if err := c.command("RSET\r\n"); err != nil {
		return classify(code), 0, err
	}
	if _, err := c.reply(); err != nil {
		return classify(code), 0, err
	}
	return classify(code), 0, nil
}

// broken is the outcome of a mail whose connection was lost: known if the server
// refused it before, unless text was sent and its answer is outstanding.
func (c *connection) broken(code int, otherwise outcome) outcome {
	if code >= 400 && (otherwise == unsent || c.closing) {
		return classify(code)
	}
	return otherwise
}

// firstFailure is the first of two codes that is one, or 0.
func firstFailure(a, b int) int {
	if a >= 400 || b < 400 {
		return a
	}
	return b
}

func classify(code int) outcome {
	switch {
	case code >= 500:
		return refused
	case code >= 400:
		return tempfailed
	default:
		return accepted
	}
}
