package smtpd_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"chainmail/node/smtpd"
)

// Dialogues are scripts in testdata/dialogue. A line of a script is one of
//
//	# remark
//	set KEY VALUE      before the connection: kind, max_message_size, …
//	C LINE             the client sends the line and CRLF
//	R [N] "BYTES"      the client sends these bytes (N times), quoted as in Go
//	H                  the client closes its half of the connection
//	S PREFIX           the server's next reply begins so
//	X                  the server closes the connection
//	A FROM TO… "BODY"  the archive has got this mail, in this order
//
// At the end of a script the archive must have got no more than its A lines.
func TestDialogues(t *testing.T) {
	files, err := filepath.Glob("testdata/dialogue/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no dialogues found", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			d := &dialogue{t: t, file: file}
			for i, line := range strings.Split(string(text), "\n") {
				d.line = i + 1
				op, arg, _ := strings.Cut(line, " ")
				d.step(op, arg)
			}
			d.op("X", "")
			if mails := d.server.received(); len(mails) != d.archived {
				t.Errorf("archived %d mails, want %d: %q", len(mails), d.archived, d.server.bodies())
			}
		})
	}
}

type dialogue struct {
	t        *testing.T
	file     string
	line     int
	set      []func(*smtpd.Options)
	server   *testServer
	client   *client
	closed   bool
	archived int
}

func (d *dialogue) fatalf(format string, args ...any) {
	d.t.Helper()
	d.t.Fatalf("%s:%d: %s", d.file, d.line, fmt.Sprintf(format, args...))
}

func (d *dialogue) step(op, arg string) {
	switch op {
	case "", "#":
	case "set":
		d.setting(arg)
	default:
		if d.server == nil {
			d.server = start(d.t, func(o *smtpd.Options) {
				for _, f := range d.set {
					f(o)
				}
			})
			d.client = d.server.dial()
		}
		d.op(op, arg)
	}
}

func (d *dialogue) setting(arg string) {
	key, value, _ := strings.Cut(arg, " ")
	n, _ := strconv.ParseInt(value, 10, 64)
	d.set = append(d.set, func(o *smtpd.Options) {
		c := &o.Connectors[0]
		switch key {
		case "kind":
			if c.Kind = smtpd.Kind(value); c.Kind == smtpd.KindChain {
				c.TLSConfig, _ = certificate(d.t)
				c.Peer = func(tls.ConnectionState) (string, error) { panic("a peer in plain text") }
				c.Serve = func(context.Context, net.Conn, string) { panic("served in plain text") }
			}
		case "clients":
			c.Clients = strings.Fields(value)
		case "max_message_size":
			o.Limits.MaxMessageSize = n
		case "max_recipients":
			o.Limits.MaxRecipients = int(n)
		case "max_errors":
			o.Limits.MaxErrors = int(n)
		case "senders":
			c.Senders = strings.Fields(value)
		case "recipients":
			c.Recipients = strings.Fields(value)
		case "messages_per_minute":
			o.Limits.MessagesPerMinute = float64(n)
		default:
			d.fatalf("unknown setting %q", key)
		}
	})
}

func (d *dialogue) op(op, arg string) {
	switch op {
	case "C":
		d.send(arg + "\r\n")
	case "R":
		times := 1
		if n, rest, ok := strings.Cut(arg, " "); ok && arg[0] != '"' {
			times, _ = strconv.Atoi(n)
			arg = rest
		}
		raw, err := strconv.Unquote(arg)
		if err != nil {
			d.fatalf("%v", err)
		}
		d.send(strings.Repeat(raw, times))
	case "H":
		if err := d.client.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			d.fatalf("%v", err)
		}
	case "S":
		got, err := d.client.reply()
		if err != nil || !strings.HasPrefix(got, arg) {
			d.fatalf("got %q and %v, want %q", got, err, arg)
		}
	case "X":
		d.end()
	case "A":
		d.archive(arg)
	default:
		d.fatalf("unknown step %q", op)
	}
}

func (d *dialogue) send(s string) {
	if _, err := io.WriteString(d.client, s); err != nil {
		d.fatalf("%v", err)
	}
}

// end waits for the server to close; at the end of a script the client does.
func (d *dialogue) end() {
	if d.closed {
		return
	}
	if d.line > 0 && d.client != nil {
		if c, ok := d.client.Conn.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
	}
	if got, err := d.client.reply(); err == nil || got != "" {
		d.fatalf("got %q and %v, want the end of the connection", got, err)
	}
	d.closed = true
}

func (d *dialogue) archive(arg string) {
	mails := d.server.received()
	if len(mails) <= d.archived {
		d.fatalf("not archived")
	}
	m := mails[d.archived]
	got := fmt.Sprintf("<%s> <%s> %q", m.envelope.From, strings.Join(m.envelope.To, "> <"), m.body)
	if got != arg {
		d.fatalf("archived %s", got)
	}
	d.archived++
}
