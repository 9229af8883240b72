package route

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// How long a server may take, by RFC 5321 4.5.3.2.
const (
	dialTimeout  = 30 * time.Second
	replyTimeout = 5 * time.Minute  // to the connection, EHLO, MAIL, RCPT
	dataTimeout  = 2 * time.Minute  // to DATA
	blockTimeout = 3 * time.Minute  // to take a block of a mail
	endTimeout   = 10 * time.Minute // to the end of a mail
	quitTimeout  = 2 * time.Second  // to QUIT; nothing depends on it
	wordsTimeout = time.Second      // for what a server said before it closed
)

// client is one connection to the server.
type client struct {
	conn     net.Conn
	r        *bufio.Reader
	w        *bufio.Writer
	opts     *Options
	ext      extensions
	tls      bool
	mails    int  // transactions so far
	answered bool // the server has begun to answer the last one
	broken   bool // no more mail can go here
	unhook   func() bool
}

// extensions are what the server announced (RFC 5321 4.1.1.1).
type extensions struct {
	pipelining, eightBit, chunking, binary, utf8, startTLS bool
	auth                                                   []string
	size                                                   int64 // 0: no limit is known
	hasSize                                                bool
}

// refusal is an answer that a command was not meant to have.
type refusal struct {
	to    string // the command
	reply reply
}

func (r *refusal) Error() string { return "the answer to " + r.to + " was: " + r.reply.String() }

// connect opens a connection that is ready for mail. It is cut when ctx ends.
func connect(ctx context.Context, o *Options) (*client, error) {
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := o.Dial(dialing, "tcp", o.Target)
	if err != nil {
		return nil, err
	}
	c := &client{opts: o}
	c.unhook = context.AfterFunc(ctx, func() { conn.Close() })
	c.use(conn)
	if err := c.greet(ctx); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *client) use(conn net.Conn) {
	c.conn = conn
	c.r = bufio.NewReaderSize(conn, maxReplyLine)
	c.w = bufio.NewWriterSize(blockWriter{conn}, blockSize)
}

// blockWriter gives every block its own time.
type blockWriter struct{ net.Conn }

func (w blockWriter) Write(p []byte) (int, error) {
	if err := w.SetWriteDeadline(time.Now().Add(blockTimeout)); err != nil {
		return 0, err
	}
	return w.Conn.Write(p)
}

// greet goes through all that comes before the first mail.
func (c *client) greet(ctx context.Context) error {
	if c.opts.TLS == TLSImplicit {
		if err := c.secure(ctx); err != nil {
			return err
		}
	}
	greeting, err := c.read(replyTimeout)
	if err != nil {
		return fmt.Errorf("no greeting: %w", err)
	}
	if !greeting.ok() {
		return &refusal{"the connection", greeting}
	}
	if err := c.hello(); err != nil {
		return err
	}
	if err := c.startTLS(ctx); err != nil {
		return err
	}
	return c.login()
}

// hello learns what the server can do; one that knows no EHLO can do nothing.
func (c *client) hello() error {
	c.ext = extensions{}
	answer, err := c.command(replyTimeout, "EHLO "+c.opts.Hostname)
	if err != nil {
		return err
	}
	if answer.ok() {
		c.ext = parseExtensions(answer.lines)
		return nil
	}
	if answer.closing() || !answer.forGood() {
		return &refusal{"EHLO", answer}
	}
	if answer, err = c.command(replyTimeout, "HELO "+c.opts.Hostname); err != nil {
		return err
	}
	if !answer.ok() {
		return &refusal{"HELO", answer}
	}
	return nil
}

func parseExtensions(lines []string) (e extensions) {
	for _, line := range lines[1:] { // the first is the server's name
		words := strings.Fields(strings.ToUpper(line))
		if len(words) == 0 {
			continue
		}
		switch keyword, rest := words[0], words[1:]; keyword {
		case "PIPELINING":
			e.pipelining = true
		case "8BITMIME":
			e.eightBit = true
		case "CHUNKING":
			e.chunking = true
		case "BINARYMIME":
			e.binary = true
		case "SMTPUTF8":
			e.utf8 = true
		case "STARTTLS":
			e.startTLS = true
		case "AUTH":
			e.auth = append(e.auth, rest...)
		case "SIZE":
			e.hasSize = true
			if len(rest) > 0 {
				if size, err := strconv.ParseInt(rest[0], 10, 64); err == nil && size > 0 {
					e.size = size
				}
			}
		default:
			// Servers announce LOGIN for old clients as "AUTH=LOGIN".
			if mechanism, ok := strings.CutPrefix(keyword, "AUTH="); ok {
				e.auth = append(append(e.auth, mechanism), rest...)
			}
		}
	}
	return e
}

func (c *client) startTLS(ctx context.Context) error {
	wanted := c.opts.TLS == TLSRequired || c.opts.User != ""
	switch {
	case c.tls, c.opts.TLS == TLSNone, !wanted && !c.ext.startTLS:
		return nil
	case !c.ext.startTLS:
		return errors.New("the server offers no STARTTLS, which this route requires")
	}
	answer, err := c.command(replyTimeout, "STARTTLS")
	if err != nil {
		return err
	}
	if !answer.ok() {
		return &refusal{"STARTTLS", answer}
	}
	if c.r.Buffered() > 0 {
		// Whoever put them there wants them to be taken for the server's.
		return errors.New("plain text came behind the answer to STARTTLS: somebody may be on the line")
	}
	if err := c.secure(ctx); err != nil {
		return err
	}
	return c.hello() // RFC 3207 4.2: what was said in plain text does not count
}

func (c *client) secure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	conn := tls.Client(c.conn, c.opts.TLSConfig)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.use(conn)
	c.tls = true
	return nil
}

// login is AUTH (RFC 4954) with PLAIN, or with LOGIN where there is no other.
func (c *client) login() error {
	user, password := c.opts.User, c.opts.Password
	encode := base64.StdEncoding.EncodeToString
	var steps []string
	switch {
	case user == "":
		return nil
	case !c.tls:
		return errors.New("the connection is not encrypted: no password is sent")
	case slices.Contains(c.ext.auth, "PLAIN"):
		steps = []string{"AUTH PLAIN " + encode([]byte("\x00"+user+"\x00"+password))}
	case slices.Contains(c.ext.auth, "LOGIN"):
		steps = []string{"AUTH LOGIN", encode([]byte(user)), encode([]byte(password))}
	default:
		return errors.New("the server offers neither AUTH PLAIN nor AUTH LOGIN")
	}
	for i, step := range steps {
		answer, err := c.command(replyTimeout, step)
		if err != nil {
			return err
		}
		if last := i == len(steps)-1; last && !answer.ok() || !last && !answer.question() {
			return &refusal{"AUTH", answer}
		}
	}
	return nil
}

// command sends one line and reads the reply.
func (c *client) command(timeout time.Duration, line string) (reply, error) {
	if err := c.say(line); err != nil {
		return reply{}, err
	}
	return c.listen(timeout)
}

func (c *client) say(line string) error {
	if _, err := c.w.WriteString(line); err != nil {
		return err
	}
	_, err := c.w.WriteString("\r\n")
	return err
}

// listen sends what was said and reads a reply.
func (c *client) listen(timeout time.Duration) (reply, error) {
	if err := c.w.Flush(); err != nil {
		if last, ok := c.lastWords(); ok {
			return last, nil
		}
		return reply{}, err
	}
	return c.read(timeout)
}

func (c *client) read(timeout time.Duration) (reply, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return reply{}, err
	}
	answer, err := readReply(c.r)
	if errors.Is(err, io.EOF) {
		err = errors.New("the server closed the connection")
	}
	return answer, err
}

// lastWords reads the reply that a server may have sent before it closed.
func (c *client) lastWords() (reply, bool) {
	c.broken = true
	answer, err := c.read(wordsTimeout)
	return answer, err == nil && (answer.forNow() || answer.forGood())
}

// quit takes leave, unless the connection is beyond that.
func (c *client) quit() {
	if !c.broken && c.conn.SetDeadline(time.Now().Add(quitTimeout)) == nil && c.say("QUIT") == nil {
		_, _ = c.listen(quitTimeout) // whatever it says, the connection ends
	}
	c.close()
}

func (c *client) close() {
	c.unhook()
	c.broken = true
	c.conn.Close()
}
