package chain

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	maxSegment = 32 << 20 // bytes of one BDAT
	maxErrors  = 20       // refused commands until the connection is closed
	queueDepth = 64       // replies that wait for their turn

	maxConnections = 16 // of one peer; it needs three
)

// Serve speaks the link protocol on a peer's connection, after STARTTLS has
// shown that it is the peer's. It returns when the connection, ctx or Run has
// ended, and closes it.
//
// Commands are read and carried out one after the other; their replies wait in
// a queue, because some take time: a container's waits for the disk while the
// next one is read (see incoming), a hello may wait for news.
//
//	read ─► EHLO, MAIL, RCPT, BDAT … ─► queue of replies ─► wait for each ─► write
func (c *Chain) Serve(ctx context.Context, conn net.Conn, peer string) {
	defer conn.Close()
	if !c.enter(peer) {
		_ = conn.SetDeadline(time.Now().Add(farewell))
		_, _ = conn.Write(says(421, "4.3.2 the node is stopping, or has %d connections of yours", maxConnections).encode())
		return
	}
	defer c.leave(peer)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	closed := make(chan struct{}) // there is no container before the first one
	close(closed)
	s := &server{
		c: c, conn: conn, peer: peer, ctx: ctx,
		log:   c.log.With(slog.String("peer", peer)),
		r:     bufio.NewReaderSize(patient{conn, ctx}, 64<<10),
		out:   make(chan func() reply, queueDepth),
		spare: newLoads(),
		taken: closed,
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write()
	}()
	// When it is over, reading ends at once, and the replies that are due are
	// still written.
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	err := s.read()
	<-s.taken
	stopping := ctx.Err() != nil
	cancel()
	if stopping {
		s.say(421, "4.3.2 the node is stopping")
	}
	close(s.out)
	<-written
	if err != nil && !stopping && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		s.log.Info("connection of a peer ended", slog.Any("err", err))
	}
}

// enter counts a peer's connection, if it may be served.
func (c *Chain) enter(peer string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || c.serves[peer] >= maxConnections {
		return false
	}
	c.serves[peer]++
	c.serving.Add(1)
	return true
}

func (c *Chain) leave(peer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.serves[peer]--; c.serves[peer] == 0 {
		delete(c.serves, peer)
	}
	c.serving.Done()
}

// patient reads with a deadline for each read.
type patient struct {
	net.Conn
	ctx context.Context
}

func (p patient) Read(b []byte) (int, error) {
	_ = p.SetReadDeadline(time.Now().Add(idleTime))
	if p.ctx.Err() != nil { // after the deadline, which the end of ctx overrides
		return 0, p.ctx.Err()
	}
	return p.Conn.Read(b)
}

// server is the state of one connection.
type server struct {
	c      *Chain
	conn   net.Conn
	peer   string
	ctx    context.Context
	log    *slog.Logger
	r      *bufio.Reader
	out    chan func() reply
	errors int

	greeted bool            // EHLO was said
	known   bool            // so was hello: the peer is of this cluster
	from    bool            // MAIL
	to      string          // RCPT
	failed  bool            // the transaction failed; what is left of it is skipped
	pending string          // a command that was read while a container was expected
	changed <-chan struct{} // since the last hello's reply
	told    time.Time       // when that was

	spare chan *load      // of containers
	taken <-chan struct{} // closed when the last container is with the archive
}

var errQuit = errors.New("QUIT")

// read carries out commands until the connection ends.
func (s *server) read() error {
	for s.errors < maxErrors {
		line, err := s.command()
		if err != nil {
			return err
		}
		verb, args, _ := strings.Cut(line, " ")
		if err := s.carryOut(strings.ToUpper(verb), args); err != nil {
			if err == errQuit {
				return nil
			}
			return err
		}
	}
	s.say(421, "4.7.0 too many errors")
	return errors.New("too many errors")
}

// command reads the next command line.
func (s *server) command() (string, error) {
	if line := s.pending; line != "" {
		s.pending = ""
		return line, nil
	}
	line, err := readLine(s.r, maxLine)
	if errors.Is(err, errLongLine) {
		s.say(500, "5.5.2 a command line may have %d bytes", maxLine)
	}
	return line, err
}

func (s *server) carryOut(verb, args string) error {
	switch verb {
	case "EHLO":
		s.ehlo()
	case "MAIL":
		s.mail(args)
	case "RCPT":
		s.rcpt(args)
	case "BDAT":
		return s.bdat(args)
	case "RSET":
		s.reset()
		s.say(250, "2.0.0 reset")
	case "NOOP":
		s.say(250, "2.0.0 ok")
	case "QUIT":
		s.say(221, "2.0.0 goodbye")
		return errQuit
	default:
		s.refuse(502, "5.5.1 %.20q is not a command of the link", verb)
	}
	return nil
}

// say queues a reply.
func (s *server) say(code int, format string, args ...any) {
	r := says(code, format, args...)
	s.out <- func() reply { return r }
}

// refuse queues a reply that counts as an error of the peer.
func (s *server) refuse(code int, format string, args ...any) {
	s.errors++
	s.say(code, format, args...)
}

// write writes the replies in their order, together where several are ready.
// After an error it only waits for what is under way.
func (s *server) write() {
	w := bufio.NewWriter(s.conn)
	var broken error
	for next := range s.out {
		r := next()
		if broken != nil {
			continue
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(allowance(0) + farewell))
		_, broken = w.Write(r.encode())
		if len(s.out) == 0 && broken == nil {
			broken = w.Flush()
		}
		if broken != nil { // the reader need not go on
			_ = s.conn.Close()
		}
	}
	_ = w.Flush()
}

func (s *server) ehlo() {
	s.greeted = true
	s.reset()
	r := reply{250, []string{
		s.c.opts.Name, "PIPELINING", "CHUNKING", "BINARYMIME", "ENHANCEDSTATUSCODES",
		fmt.Sprintf("%s %d %d", keyword, oldestProtocol, newestProtocol),
	}}
	s.out <- func() reply { return r }
}

func (s *server) reset() { s.from, s.to, s.failed = false, "", false }

func (s *server) mail(args string) {
	from, rest, ok := address(cutPrefixFold(args, "FROM:"))
	switch {
	case !s.greeted:
		s.refuse(503, "5.5.1 EHLO first")
	case s.from:
		s.refuse(503, "5.5.1 a transaction is under way")
	case !ok || !strings.EqualFold(rest, "BODY=BINARYMIME"):
		s.refuse(501, "5.5.4 want MAIL FROM:<node@%s> BODY=BINARYMIME", mailDomain)
	case from != s.peer:
		s.refuse(554, "5.7.1 the certificate is that of %s, the sender is %.40s", s.peer, from)
	default:
		s.reset()
		s.from = true
		s.say(250, "2.1.0 ok")
	}
}

func (s *server) rcpt(args string) {
	to, _, ok := address(cutPrefixFold(args, "TO:"))
	switch {
	case !s.from || s.to != "":
		s.refuse(503, "5.5.1 MAIL first, then one RCPT")
	case !ok || to != toHello && to != toLive && to != toBulk:
		s.refuse(550, "5.1.1 the recipients of the link are %s, %s and %s at %s", toHello, toLive, toBulk, mailDomain)
	case to != toHello && !s.known:
		s.refuse(503, "5.5.1 say %s first", toHello)
	default:
		s.to = to
		s.say(250, "2.1.5 ok")
	}
}

// cutPrefixFold takes a prefix off, in any case; without it, nothing is left.
func cutPrefixFold(s, prefix string) string {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return ""
	}
	return s[len(prefix):]
}

// bdat takes the first part of a body, and with it the whole body. What
// follows a refused part is skipped, so that it is never taken for commands.
func (s *server) bdat(args string) error {
	size, last, err := parseBDAT(args)
	if err != nil {
		s.say(501, "5.5.4 %v", err)
		return err // where the next command begins is not known
	}
	if s.to == "" || s.failed {
		if _, err := io.CopyN(io.Discard, s.r, size); err != nil {
			return err
		}
		if s.failed {
			s.say(503, "5.5.1 the transaction failed")
		} else {
			s.refuse(503, "5.5.1 MAIL and RCPT first")
		}
		if last {
			s.reset()
		}
		return nil
	}
	body := &bodyReader{s: s, left: size, last: last}
	answer := s.take(body)
	if err := body.skip(); err != nil {
		return err
	}
	if body.err != errCutOff { // then all that came is answered
		s.out <- answer
	}
	if body.last && body.err == nil {
		s.reset()
	} else {
		s.failed = true
	}
	return nil
}

// take hands a body to whom it is for. The reply is asked for later, in its
// turn.
func (s *server) take(body *bodyReader) (answer func() reply) {
	if s.to == toHello {
		return s.hello(body)
	}
	return s.receive(body)
}

func parseBDAT(args string) (size int64, last bool, err error) {
	words := strings.Fields(args)
	if len(words) == 0 || len(words) > 2 || len(words) == 2 && !strings.EqualFold(words[1], "LAST") {
		return 0, false, errors.New("want BDAT size [LAST]")
	}
	size, err = strconv.ParseInt(words[0], 10, 64)
	if err != nil || size < 0 || size > maxSegment {
		return 0, false, fmt.Errorf("BDAT %.20q: want a size of at most %d", words[0], maxSegment)
	}
	return size, len(words) == 2, nil
}

// bodyReader reads a body that comes in one or several BDAT commands. io.EOF
// is the end of the last of them and of nothing else.
type bodyReader struct {
	s    *server
	left int64 // of the part at hand
	last bool
	err  error // of the connection
}

// errCutOff: the peer ended the transaction within the body.
var errCutOff = errors.New("the transaction ended before the body did")

// connError is an error of the connection under a body.
type connError struct{ error }

func (e connError) Unwrap() error { return e.error }

func (b *bodyReader) Read(p []byte) (int, error) {
	for b.left == 0 && b.err == nil {
		if b.last {
			return 0, io.EOF
		}
		b.err = b.further()
	}
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.s.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err != nil {
		b.err = connError{err}
	}
	return n, b.err
}

// further acknowledges a part that was read and begins the next one. Any other
// command ends the body; it is carried out after.
func (b *bodyReader) further() error {
	b.s.say(250, "2.0.0 go on")
	line, err := b.s.command()
	if err != nil {
		return connError{err}
	}
	verb, args, _ := strings.Cut(line, " ")
	if !strings.EqualFold(verb, "BDAT") {
		b.s.pending = line
		return errCutOff
	}
	if b.left, b.last, err = parseBDAT(args); err != nil {
		b.s.say(501, "5.5.4 %v", err)
		return connError{err}
	}
	return nil
}

// skip reads what is left of the part at hand. Its error is the connection's.
func (b *bodyReader) skip() error {
	if broken, ok := errors.AsType[connError](b.err); ok {
		return broken.error
	}
	_, err := io.CopyN(io.Discard, b.s.r, b.left)
	return err
}
