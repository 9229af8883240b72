package smtpd_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"chainmail/node/smtpd"
)

// halves is a connection in memory whose two directions close separately.
type halves struct {
	*io.PipeReader
	*io.PipeWriter
}

func (h halves) Close() error {
	h.PipeReader.Close()
	return h.PipeWriter.Close()
}

func (h halves) CloseWrite() error                { return h.PipeWriter.Close() }
func (h halves) LocalAddr() net.Addr              { return &net.UnixAddr{Net: "unix"} }
func (h halves) RemoteAddr() net.Addr             { return &net.UnixAddr{Net: "unix"} }
func (h halves) SetDeadline(time.Time) error      { return nil }
func (h halves) SetReadDeadline(time.Time) error  { return nil }
func (h halves) SetWriteDeadline(time.Time) error { return nil }

// fuzzed is a server that is sent one byte stream after the other.
type fuzzed struct {
	a *archive
	p *pipes
}

func newFuzzed(f *testing.F) *fuzzed {
	x := &fuzzed{&archive{}, &pipes{make(chan net.Conn), make(chan struct{})}}
	startWith(f, x.a, func(o *smtpd.Options) {
		o.Listen = func(string, string) (net.Listener, error) { return x.p, nil }
		o.Limits.MaxErrors = 1 << 30
	})
	return x
}

// run sends the stream in pieces, the size of each one byte of sizes, and the
// end of the connection; it returns the replies and the bodies archived.
func (x *fuzzed) run(t *testing.T, stream, sizes []byte) (replies []string, archived []string) {
	x.a.mu.Lock()
	x.a.mails, x.a.contexts = nil, nil
	x.a.mu.Unlock()
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	x.p.conns <- halves{r1, w2}
	defer r2.Close()
	go func() {
		defer w1.Close()
		for i := 0; len(stream) > 0; i++ {
			n := len(stream)
			if len(sizes) > 0 {
				n = min(n, 1+int(sizes[i%len(sizes)]))
			}
			if _, err := w1.Write(stream[:n]); err != nil {
				return
			}
			stream = stream[n:]
		}
	}()
	all, err := io.ReadAll(r2)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		if len(line) < 6 || !strings.HasSuffix(line, "\r\n") {
			t.Fatalf("reply line %q", line)
		}
		if line[3] != '-' {
			replies = append(replies, line[:3])
		}
	}
	return replies, x.a.bodies()
}

const begin = "HELO x\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n"

// readBody reads the body of DATA the plain way: line by line, a line being
// what ends in CRLF (RFC 5321 4.5.2). It returns what follows the body.
func readBody(wire []byte) (body, rest []byte, whole bool) {
	for {
		i := bytes.Index(wire, []byte("\r\n"))
		if i < 0 {
			return nil, nil, false
		}
		line := wire[:i]
		wire = wire[i+2:]
		if string(line) == "." {
			return body, wire, true
		}
		body = append(append(body, bytes.TrimPrefix(line, []byte("."))...), "\r\n"...)
	}
}

// FuzzData compares bodies with what the plain reader makes of them.
func FuzzData(f *testing.F) {
	for _, tt := range bodies {
		if len(tt.wire) < 1000 {
			f.Add([]byte(tt.wire), []byte{3})
			f.Add([]byte(strings.Repeat("0123456789abcde\n", 4096)[:65536-len(tt.wire)/2]+tt.wire), []byte{})
		}
	}
	f.Add([]byte("cut off\r\n."), []byte{1, 2, 3})
	x := newFuzzed(f)
	f.Fuzz(func(t *testing.T, wire, sizes []byte) {
		body, rest, whole := readBody(wire)
		if whole {
			wire = wire[:len(wire)-len(rest)]
		}
		replies, archived := x.run(t, append([]byte(begin), wire...), sizes)
		want, wantReplies := []string{string(body)}, []string{"220", "250", "250", "250", "354", "250"}
		if !whole {
			want, wantReplies[5] = nil, "421"
		}
		if !slices.Equal(archived, want) {
			t.Errorf("archived %q, want %q", archived, want)
		}
		if !slices.Equal(replies, wantReplies) {
			t.Errorf("replies %v, want %v", replies, wantReplies)
		}
	})
}

// FuzzConversation makes commands and bodies out of random bytes, and knows
// what must come of them: bodies that look like commands must never be carried
// out, and no reply may be missing or too many.
func FuzzConversation(f *testing.F) {
	f.Add([]byte("mrd\x05hellonmrb\x03abcl\x02de"), []byte{7})
	f.Add([]byte("mrd\x0ca\r\n.\nNOOP\r\n.mrd\x00xrl\x00m"), []byte{0, 1, 2})
	f.Add([]byte("mb\x04NOOPrb\x06QUIT\r\nsb\x04abcdl\x01xmrl\x04mrb\x04"), []byte{})
	x := newFuzzed(f)
	f.Fuzz(func(t *testing.T, script, sizes []byte) {
		m := &model{replies: []string{"220", "250"}}
		m.wire.WriteString("HELO x\r\n")
		for len(script) > 0 {
			op := script[0]
			script = script[1:]
			var body []byte
			if strings.IndexByte("dbl", op) >= 0 && len(script) > 0 {
				n := min(int(script[0]), len(script)-1)
				body, script = script[1:1+n], script[1+n:]
			}
			m.do(op, body)
		}
		m.wire.WriteString("QUIT\r\n")
		m.say("221")
		replies, archived := x.run(t, m.wire.Bytes(), sizes)
		if !slices.Equal(replies, m.replies) {
			t.Errorf("%q\nreplies %v\nwant    %v", m.wire.String(), replies, m.replies)
		}
		if !slices.Equal(archived, m.archived) {
			t.Errorf("%q\narchived %q\nwant     %q", m.wire.String(), archived, m.archived)
		}
	})
}

// model is what a server has to do, without the bytes' being a stream.
type model struct {
	wire     bytes.Buffer
	replies  []string
	archived []string

	mail, chunks bool
	rcpts        int
	body         []byte
}

func (m *model) say(reply string) { m.replies = append(m.replies, reply) }

func (m *model) reset() { m.mail, m.chunks, m.rcpts, m.body = false, false, 0, nil }

func (m *model) do(op byte, body []byte) {
	switch op {
	case 'm':
		m.wire.WriteString("MAIL FROM:<a@b.c>\r\n")
		if m.mail {
			m.say("503")
			return
		}
		m.mail = true
		m.say("250")
	case 'r':
		m.wire.WriteString("RCPT TO:<d@e.f>\n")
		if !m.mail || m.chunks {
			m.say("503")
			return
		}
		m.rcpts++
		m.say("250")
	case 'd':
		m.wire.WriteString("DATA\r\n")
		switch {
		case m.chunks || !m.mail:
			m.say("503")
		case m.rcpts == 0:
			m.say("554")
		default:
			m.say("354")
			// As a client stuffs dots: at the beginning and after CRLF.
			stuffed := bytes.ReplaceAll(append([]byte("\r\n"), body...), []byte("\r\n."), []byte("\r\n.."))[2:]
			m.wire.Write(stuffed)
			m.wire.WriteString("\r\n.\r\n")
			m.say("250")
			m.archived = append(m.archived, string(body)+"\r\n")
			m.reset()
		}
	case 'b', 'l':
		fmt.Fprintf(&m.wire, "BDAT %d%s\r\n%s", len(body), map[byte]string{'l': " LAST"}[op], body)
		if m.rcpts == 0 {
			m.say("503")
			return
		}
		m.chunks = true
		m.body = append(m.body, body...)
		m.say("250")
		if op == 'l' {
			m.archived = append(m.archived, string(m.body))
			m.reset()
		}
	case 's':
		m.wire.WriteString("RSET\r\n")
		m.reset()
		m.say("250")
	case 'e':
		m.wire.WriteString("EHLO y\r\n")
		m.reset()
		m.say("250")
	default:
		m.wire.WriteString("noop \r\n")
		m.say("250")
	}
}

// FuzzStream sends anything: the server must answer in whole lines and end the
// connection, and no draft may be left (which the end of the test checks).
func FuzzStream(f *testing.F) {
	f.Add([]byte(begin+"x\r\n.\r\nQUIT\r\n"), []byte{})
	f.Add([]byte("EHLO x\r\nMAIL FROM:<\"a>\\\">@b> SIZE=1 BODY=BINARYMIME\r\nRCPT TO:<@a,@b:c@d> NOTIFY=NEVER\r\nBDAT 1000 LAST\r\nx"), []byte{})
	f.Add([]byte("EHLO x\r\nAUTH LOGIN\r\nSTARTTLS\r\nBDAT 5\r\nxxxxxBDAT x\r\nGET / HTTP/1.0\r\n\r\n"), []byte{5})
	x := newFuzzed(f)
	f.Fuzz(func(t *testing.T, stream, sizes []byte) { x.run(t, stream, sizes) })
}
