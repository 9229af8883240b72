package support

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// Dialogue is one SMTP or LMTP connection that sends exactly the bytes it is
// told to. What does not go as expected ends the test.
type Dialogue struct {
	Conn net.Conn
	t    testing.TB
	r    *bufio.Reader
}

// Dial connects to a server and says hello, such as "EHLO test".
func Dial(t testing.TB, addr, hello string) *Dialogue {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return Greet(t, conn, hello)
}

// Greet does it on a connection, which is closed at the end of the test.
func Greet(t testing.TB, conn net.Conn, hello string) *Dialogue {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	d := &Dialogue{conn, t, bufio.NewReader(conn)}
	d.Expect("220")
	d.Say(hello, "250")
	return d
}

// Write sends bytes as they are.
func (d *Dialogue) Write(b []byte) {
	d.t.Helper()
	if _, err := d.Conn.Write(b); err != nil {
		d.t.Fatal(err)
	}
}

// Say sends a line and expects the reply.
func (d *Dialogue) Say(line, code string) string {
	d.t.Helper()
	d.Write([]byte(line + "\r\n"))
	return d.Expect(code)
}

// Expect reads one reply, all its lines, and returns the last.
func (d *Dialogue) Expect(code string) string {
	d.t.Helper()
	for {
		line, err := d.r.ReadString('\n')
		if err != nil {
			d.t.Fatalf("waiting for %s: %v", code, err)
		}
		if !strings.HasPrefix(line, code) {
			d.t.Fatalf("reply %q, want %s", line, code)
		}
		if line[3] == ' ' {
			return strings.TrimSpace(line)
		}
	}
}

// Envelope sends MAIL and RCPT for recipients r0@example.com and so on.
func (d *Dialogue) Envelope(recipients int) {
	d.t.Helper()
	d.Say("MAIL FROM:<a@example.com>", "250")
	for i := range recipients {
		d.Say(fmt.Sprintf("RCPT TO:<r%d@example.com>", i), "250")
	}
}

// Data sends a message by DATA and returns what must have been archived: DATA
// cannot end a message without a line end.
func (d *Dialogue) Data(msg []byte, recipients, replies int) []byte {
	d.t.Helper()
	d.Envelope(recipients)
	d.Say("DATA", "354")
	if !bytes.HasSuffix(msg, []byte("\r\n")) && len(msg) > 0 {
		msg = append(bytes.Clone(msg), "\r\n"...)
	}
	wire := bytes.ReplaceAll(append([]byte("\r\n"), msg...), []byte("\r\n."), []byte("\r\n.."))[2:]
	d.Write(append(wire, ".\r\n"...))
	for range replies {
		d.Expect("250")
	}
	return msg
}

// BDAT sends a message in two chunks.
func (d *Dialogue) BDAT(msg []byte, recipients int) []byte {
	d.t.Helper()
	d.Envelope(recipients)
	half := len(msg) / 2
	d.Write(append(fmt.Appendf(nil, "BDAT %d\r\n", half), msg[:half]...))
	d.Expect("250")
	d.Write(append(fmt.Appendf(nil, "BDAT %d LAST\r\n", len(msg)-half), msg[half:]...))
	d.Expect("250")
	return msg
}
