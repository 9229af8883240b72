package smtpd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// gate stands between the socket and go-smtp, which takes it for the
// connection. See the package comment.
type gate struct {
	conn    net.Conn // the socket, perhaps behind PROXY protocol and TLS
	link    *link
	session *session
	secure  string // TLS version and cipher; empty for plain text

	buf   []byte // bytes read and not used yet are buf[r:w]
	r, w  int
	small []byte // buf while commands are read; kept while it is larger
	out   []byte // replies that were not sent yet

	line    []byte // what go-smtp shall read next
	scratch []byte // where line is put together
	helo    string
	barred  string // what every command is answered; empty for nothing
	chunked bool   // the line is a BDAT whose bytes the session has

	mute     bool  // go-smtp's replies are not for the client, until it reads on
	sasl     bool  // the last reply was 334: the next line is no command
	errors   int   // protocol errors since the last mail
	wasted   int64 // bytes of chunks since the last mail that belonged to none
	ended    bool  // no more commands are taken
	linger   bool  // unread bytes are likely: wait before closing, or the last reply is lost
	detached bool  // the socket was handed on, and is not ours to close
	closed   bool
	dead     error // of a failed write
}

// The ways in which reading a command ends other than with a line.
var (
	errDraining = errors.New("server is draining")
	errTooLong  = errors.New("line too long")
)

var bodyBuffers = sync.Pool{New: func() any { return new([bodyBuffer]byte) }}

func newGate(conn net.Conn, l *link) *gate {
	small := make([]byte, commandBuffer)
	g := &gate{conn: conn, link: l, buf: small, small: small}
	g.session = &session{gate: g}
	return g
}

// Read hands go-smtp at most one line. go-smtp calls it only when it has
// nothing left to work on, so whatever the client sends behind that line stays
// here, where a body can be read without going through go-smtp.
func (g *gate) Read(p []byte) (int, error) {
	if len(g.line) == 0 {
		g.mute = false
		if err := g.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, g.line)
	g.line = g.line[n:]
	return n, nil
}

// next works through the client's lines until there is one for go-smtp. A line
// that is cut off by the end of the connection is not carried out.
func (g *gate) next() error {
	for len(g.line) == 0 {
		if g.errors > g.link.limits.MaxErrors {
			g.link.refused(reasonErrors)
			g.end("421 4.7.0 too many errors")
		}
		if g.ended || g.dead != nil {
			return io.EOF
		}
		line, err := g.readLine()
		switch {
		case err == nil && g.sasl:
			g.sasl = false
			g.hand(line)
		case err == nil:
			g.command(line)
		case errors.Is(err, errDraining):
			g.end("421 4.3.2 shutting down, try again later")
		case errors.Is(err, errTooLong):
			g.skipLine()
		case errors.Is(err, os.ErrDeadlineExceeded):
			g.end("421 4.4.2 idle for too long")
		default:
			g.ended = true
		}
	}
	return nil
}

// readLine returns the next line without its line end. It stays valid until
// the next read. A bare LF ends a command line too: only in bodies would that
// let one client's bytes become another's commands.
func (g *gate) readLine() ([]byte, error) {
	deadline := g.link.commandDeadline()
	scanned := 0
	for {
		if g.link.server.draining.Load() && !g.session.open {
			return nil, errDraining
		}
		if i := bytes.IndexByte(g.buf[g.r+scanned:g.w], '\n'); i >= 0 {
			line := g.buf[g.r : g.r+scanned+i]
			g.r += scanned + i + 1
			return bytes.TrimSuffix(line, []byte("\r")), nil
		}
		scanned = g.w - g.r
		if scanned >= len(g.buf) {
			if len(g.buf) == bodyBuffer {
				return nil, errTooLong
			}
			g.grow()
		}
		g.shrink()
		if err := g.fill(deadline, !g.session.open); err != nil {
			return nil, err
		}
	}
}

// skipLine answers a line that is too long and drops it, or the connection
// when it never ends.
func (g *gate) skipLine() {
	deadline := g.link.commandDeadline()
	for skipped := 0; skipped < maxSkippedLine; {
		if i := bytes.IndexByte(g.buf[g.r:g.w], '\n'); i >= 0 {
			g.r += i + 1
			g.refuse("500 5.5.2 line too long")
			if g.sasl { // go-smtp waits for an answer: cancel (RFC 4954 4)
				g.sasl = false
				g.hand([]byte("*"))
				g.mute = true
			}
			return
		}
		skipped += g.w - g.r
		g.r, g.w = 0, 0
		if g.fill(deadline, false) != nil {
			g.ended = true
			return
		}
	}
	g.linger = true
	g.end("421 4.7.0 line too long")
}

// fill reads once from the socket, behind the bytes that wait in the buffer.
// Replies are sent before it waits. When it may, it ends with errDraining as
// soon as the server drains; otherwise a drain only wakes it.
func (g *gate) fill(deadline time.Time, mayDrain bool) error {
	if err := g.flush(); err != nil {
		return err
	}
	if g.r > 0 {
		g.w = copy(g.buf, g.buf[g.r:g.w])
		g.r = 0
	}
	for {
		if err := g.conn.SetReadDeadline(deadline); err != nil {
			return err
		}
		// The drain sets its flag first and the deadline of the socket then:
		// either is seen here, whichever way the two goroutines interleave.
		if mayDrain && g.link.server.draining.Load() {
			return errDraining
		}
		n, err := g.conn.Read(g.buf[g.w:])
		g.w += n
		switch {
		case n > 0:
			return nil // an error that came with it comes again
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(deadline):
			// Woken by a drain.
		default:
			return err
		}
	}
}

// grow gives the gate the large buffer that bodies are read into.
func (g *gate) grow() {
	if len(g.buf) == bodyBuffer {
		return
	}
	large := bodyBuffers.Get().(*[bodyBuffer]byte)[:]
	g.w = copy(large, g.buf[g.r:g.w])
	g.r = 0
	g.buf = large
}

// shrink gives it back before the gate waits for a command, which may take
// long.
func (g *gate) shrink() {
	if len(g.buf) != bodyBuffer || g.w-g.r >= commandBuffer {
		return
	}
	large := g.buf
	g.buf = g.small
	g.w = copy(g.buf, large[g.r:g.w])
	g.r = 0
	bodyBuffers.Put((*[bodyBuffer]byte)(large))
}

// Write gathers go-smtp's replies. go-smtp writes one line of a reply a call.
func (g *gate) Write(p []byte) (int, error) {
	if g.mute {
		return len(p), nil
	}
	g.out = append(g.out, p...)
	g.noteReply(p)
	if isProtocolError(p) {
		g.errors++
	}
	if len(g.out) >= maxGatheredReplies {
		return len(p), g.flush()
	}
	return len(p), nil
}

// reply answers a command in go-smtp's place. go-smtp has answered all that
// came before, so the order holds.
func (g *gate) reply(line string) {
	start := len(g.out)
	g.out = append(append(g.out, line...), '\r', '\n')
	g.noteReply(g.out[start:])
}

// refuse answers a command that the client should not have sent.
func (g *gate) refuse(line string) {
	g.errors++
	g.reply(line)
}

// end sends a last reply.
func (g *gate) end(line string) {
	g.reply(line)
	g.ended = true
}

// noteReply keeps in mind what a reply means for the connection.
func (g *gate) noteReply(line []byte) {
	if len(line) < 4 || line[3] != ' ' {
		return
	}
	switch string(line[:3]) {
	case "334":
		g.sasl = true
	case "421":
		g.ended = true // RFC 5321 3.8: whoever says 421 closes
	}
}

// isProtocolError tells the replies to a client that does not know the
// protocol or guesses passwords from those to an honest one, whose mail or
// recipients are refused.
func isProtocolError(reply []byte) bool {
	if len(reply) < 4 || reply[3] != ' ' {
		return false
	}
	switch string(reply[:3]) {
	case "500", "501", "502", "503", "504", "530", "535", "538":
		return true
	}
	return false
}

func (g *gate) flush() error {
	if len(g.out) == 0 || g.dead != nil {
		return g.dead
	}
	if err := g.conn.SetWriteDeadline(time.Now().Add(g.link.limits.IdleTimeout)); err != nil {
		g.dead = err
	} else if _, err := g.conn.Write(g.out); err != nil {
		g.dead = err
	}
	g.out = g.out[:0]
	if cap(g.out) > 2*commandBuffer {
		g.out = nil
	}
	return g.dead
}

// Close is called by go-smtp, perhaps more than once.
func (g *gate) Close() error {
	if g.closed {
		return nil
	}
	g.closed, g.ended, g.line = true, true, nil
	if g.detached {
		return nil
	}
	_ = g.flush() // the client may be gone; there is nobody to tell
	if g.linger || g.w > g.r {
		g.waitForReader()
	}
	err := g.conn.Close()
	g.link.release()
	if len(g.buf) == bodyBuffer {
		bodyBuffers.Put((*[bodyBuffer]byte)(g.buf))
		g.buf, g.r, g.w = g.small, 0, 0
	}
	return err
}

// waitForReader lets the last reply arrive: a socket that is closed while
// bytes of the client are unread is reset, and the client loses the reply.
func (g *gate) waitForReader() {
	type halfCloser interface{ CloseWrite() error }
	half, ok := g.conn.(halfCloser)
	if !ok { // behind PROXY protocol
		half, ok = g.link.socket.(halfCloser)
	}
	if !ok || g.dead != nil || half.CloseWrite() != nil {
		return
	}
	g.r, g.w = 0, 0
	deadline := time.Now().Add(lingerTimeout)
	for read := 0; read < maxSkippedLine; read += g.w {
		g.w = 0
		if g.fill(deadline, false) != nil {
			return
		}
	}
}

func (g *gate) LocalAddr() net.Addr  { return g.conn.LocalAddr() }
func (g *gate) RemoteAddr() net.Addr { return g.conn.RemoteAddr() }

// go-smtp sets no deadlines, for its time-outs are off; the gate sets its own.
func (g *gate) SetDeadline(time.Time) error      { return nil }
func (g *gate) SetReadDeadline(time.Time) error  { return nil }
func (g *gate) SetWriteDeadline(time.Time) error { return nil }
