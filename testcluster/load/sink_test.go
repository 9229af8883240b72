package load

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// sink is a strict SMTP and LMTP server that keeps what it takes. It fails its
// test when a client breaks the protocol.
type sink struct {
	t    *testing.T
	ln   net.Listener
	lmtp bool
	hide string // a keyword that EHLO is not to announce
	// tls makes the sink demand STARTTLS, or with implicit TLS at once.
	tls      *tls.Config
	implicit bool
	// answer chooses the reply to a mail's final answer or, for verb MAIL, RCPT
	// or DATA, to that command; 0 means success. nil: always success.
	answer func(verb string) int
	// cutAfter gives, for each connection, how many bytes are read and
	// answers written before it is cut; nil: never.
	cutAfter func() (reads int, answers int)

	wg sync.WaitGroup
	mu sync.Mutex
	// taken counts the messages that were read whole and well, by SHA-256;
	// answered those for which a 250 was written or at least tried.
	taken, answered map[string]int
	mails           [][]byte // kept while they are few
	connections     int
}

func newSink(t *testing.T, change func(*sink)) *sink {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{t: t, ln: ln, taken: map[string]int{}, answered: map[string]int{}}
	if change != nil {
		change(s)
	}
	s.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() { ln.Close(); s.wg.Wait() })
	return s
}

func (s *sink) addr() string { return s.ln.Addr().String() }

type dialogue struct {
	*sink
	r     *bufio.Reader
	conn  net.Conn
	rcpts int
	mail  bool
	plain bool   // STARTTLS is still to come
	chunk []byte // text of BDAT so far
}

func (s *sink) serve(conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	s.connections++
	if s.cutAfter != nil {
		reads, answers := s.cutAfter()
		conn = &fragile{conn, reads, answers}
	}
	s.mu.Unlock()
	d := &dialogue{sink: s, conn: conn, r: bufio.NewReader(conn), plain: s.tls != nil && !s.implicit}
	if s.implicit {
		d.secure()
	}
	err := d.say("220 sink.example")
	for err == nil {
		err = d.next()
	}
	var broken protocolError
	if errors.As(err, &broken) {
		s.t.Errorf("the client broke the protocol: %v", err)
	}
}

type protocolError string

func (e protocolError) Error() string { return string(e) }

func (d *dialogue) say(lines ...string) error {
	_, err := io.WriteString(d.conn, strings.Join(lines, "\r\n")+"\r\n")
	return err
}

// last fails when the client sent more before it had the answer to a command
// that must end its group (RFC 2920 section 3.1).
func (d *dialogue) last(verb string) error {
	if n := d.r.Buffered(); n > 0 {
		return protocolError(fmt.Sprintf("%d bytes follow %s in its group", n, verb))
	}
	return nil
}

func (d *dialogue) next() error {
	line, err := d.line()
	if err != nil {
		return err
	}
	verb, rest, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), " ")
	if d.answer != nil && (verb == "MAIL" || verb == "RCPT" || verb == "DATA") {
		if code := d.answer(verb); code != 0 {
			return d.say(fmt.Sprintf("%d no to %s", code, verb))
		}
	}
	if d.plain && verb != "EHLO" && verb != "STARTTLS" {
		return protocolError(verb + " before STARTTLS")
	}
	switch verb {
	case "STARTTLS":
		err := errors.Join(d.last(verb), d.say("220 go on"))
		d.plain = false
		d.secure()
		return err
	case "EHLO", "LHLO":
		if (verb == "LHLO") != d.lmtp {
			return protocolError(verb + " in the wrong protocol")
		}
		words := []string{"sink.example", "PIPELINING", "CHUNKING", "8BITMIME", "SIZE 0"}
		for i, w := range words {
			words[i] = "250-" + w
			if w == d.hide {
				words[i] = "250-X-HIDDEN"
			}
		}
		return errors.Join(d.last(verb), d.say(append(words, "250 HELP")...))
	case "MAIL":
		if d.mail {
			return protocolError("MAIL within a transaction")
		}
		d.mail = true
		return d.say("250 2.1.0 ok")
	case "RCPT":
		if !d.mail {
			return d.say("503 5.5.1 MAIL first")
		}
		d.rcpts++
		return d.say("250 2.1.5 ok")
	case "DATA":
		return d.data()
	case "BDAT":
		return d.bdat(rest)
	case "RSET":
		d.reset()
		return d.say("250 ok")
	case "QUIT":
		return errors.Join(d.last(verb), d.say("221 bye"), io.EOF)
	}
	return protocolError("unknown command " + strconv.Quote(line))
}

func (d *dialogue) line() (string, error) {
	line, err := d.r.ReadString('\n')
	if err == nil && !strings.HasSuffix(line, "\r\n") {
		err = protocolError("bare LF after " + strconv.Quote(line))
	}
	return line, err
}

func (d *dialogue) secure() {
	d.conn = tls.Server(d.conn, d.tls)
	d.r = bufio.NewReader(d.conn)
}

func (d *dialogue) reset() { d.mail, d.rcpts, d.chunk = false, 0, nil }

func (d *dialogue) data() error {
	if err := d.last("DATA"); err != nil {
		return err
	}
	if !d.mail {
		return d.say("503 5.5.1 MAIL first")
	}
	if err := d.say("354 go on"); err != nil { // also without recipients, as a server may
		return err
	}
	var text []byte
	for {
		line, err := d.line()
		switch {
		case err != nil:
			return err
		case line == ".\r\n":
			return d.finish(text)
		case strings.HasPrefix(line, "."):
			if !strings.HasPrefix(line, "..") {
				return protocolError("unstuffed line " + strconv.Quote(line))
			}
			line = line[1:]
		}
		text = append(text, line...)
	}
}

func (d *dialogue) bdat(args string) error {
	length, last, _ := strings.Cut(args, " ")
	n, err := strconv.Atoi(length)
	if err != nil || (last != "" && last != "LAST") {
		return protocolError("BDAT " + args)
	}
	chunk := make([]byte, n)
	if _, err := io.ReadFull(d.r, chunk); err != nil {
		return err
	}
	if d.rcpts == 0 {
		return d.say("503 5.5.1 no recipients")
	}
	if d.chunk = append(d.chunk, chunk...); last == "" {
		return d.say("250 ok")
	}
	return d.finish(d.chunk)
}

// finish gives the final answer, or with LMTP one for each recipient.
func (d *dialogue) finish(text []byte) error {
	sum := sha256.Sum256(text)
	id := hex.EncodeToString(sum[:])
	rcpts := d.rcpts
	d.reset()
	if rcpts == 0 {
		if len(text) > 0 {
			return protocolError("text without a recipient")
		}
		return d.say("554 5.5.1 no recipients")
	}
	code := 0
	if d.answer != nil {
		code = d.answer("text")
	}
	if code != 0 {
		return d.say(fmt.Sprintf("%d 4.3.0 not now", code))
	}
	d.mu.Lock()
	d.taken[id]++
	if len(d.mails) < 1000 {
		d.mails = append(d.mails, text)
	}
	d.mu.Unlock()
	if f, ok := d.conn.(*fragile); ok && f.answers <= 0 {
		return io.ErrClosedPipe // cut between taking and answering
	}
	d.mu.Lock()
	d.answered[id]++
	d.mu.Unlock()
	if !d.lmtp {
		rcpts = 1
	}
	for range rcpts {
		if err := d.say("250 2.0.0 kept"); err != nil {
			return err
		}
	}
	return nil
}

// fragile is a connection that breaks after some bytes read or answers written.
type fragile struct {
	net.Conn
	reads, answers int
}

func (f *fragile) Read(p []byte) (int, error) {
	if f.reads <= 0 {
		return 0, io.ErrClosedPipe
	}
	n, err := f.Conn.Read(p[:min(len(p), f.reads)])
	f.reads -= n
	return n, err
}

func (f *fragile) Write(p []byte) (int, error) {
	if f.answers--; f.answers < 0 {
		return 0, io.ErrClosedPipe
	}
	return f.Conn.Write(p)
}

// cuts breaks most connections somewhere within their first mails.
func cuts(seed uint64, bytesPerMail int) func() (int, int) {
	r := rand.New(rand.NewPCG(seed, 0))
	return func() (int, int) {
		if r.IntN(2) == 0 {
			return 30 + r.IntN(6*bytesPerMail), 1 << 30
		}
		return 1 << 30, 1 + r.IntN(20)
	}
}

// same fails the test unless the lines of acked are well formed and each names a
// message that the sink answered once.
func (s *sink) same(acked *bytes.Buffer) int {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := 0
	for line := range strings.Lines(acked.String()) {
		lines++
		id := strings.TrimSuffix(line, "\n")
		if s.answered[id] != 1 || s.taken[id] != 1 {
			s.t.Errorf("line %d, %s: taken %d times, answered %d times", lines, id, s.taken[id], s.answered[id])
		}
	}
	return lines
}

func testTimeout(t *testing.T) time.Duration {
	if d, ok := t.Deadline(); ok {
		return time.Until(d) / 2
	}
	return time.Minute
}
