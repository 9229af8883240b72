package testcluster_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chainmail/node"
	"chainmail/node/client"
)

// running is a node that lives in this process.
type running struct {
	*node.Node
	*client.Client
	stop func() // ends it and waits
}

// config is that of a node on free ports of loopback, with an LMTP listener.
func config(t testing.TB) node.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "chainmail") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := node.Default()
	c.Name = "test"
	c.DataDir = filepath.Join(dir, "data")
	c.SMTP, c.HTTP = "127.0.0.1:0", "127.0.0.1:0"
	c.Connectors = []node.Connector{
		{Name: "smtp"},
		{Name: "lmtp", Kind: node.KindLMTP, Listen: "127.0.0.1:0"},
		{Name: "exchange", Listen: "127.0.0.1:0", Journal: node.JournalExchange},
	}
	c.Disk.MinFree = node.MiB
	return c.Complete()
}

func start(t testing.TB, c node.Config) running {
	t.Helper()
	ready := make(chan struct{})
	n, err := node.New(c, node.Options{Version: "test", Ready: func() { close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatalf("the node did not start: %v", err)
	}
	api := client.New(node.SocketPath(c.DataDir))
	r := running{n, api, sync.OnceFunc(func() {
		api.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the node ended with: %v", err)
		}
	})}
	t.Cleanup(r.stop)
	return r
}

// sender is one SMTP or LMTP connection that sends exactly the bytes it is
// told to.
type sender struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func dial(t *testing.T, addr, hello string) *sender {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	s := &sender{t, conn, bufio.NewReader(conn)}
	s.expect("220")
	s.say(hello, "250")
	return s
}

func (s *sender) write(b []byte) {
	s.t.Helper()
	if _, err := s.conn.Write(b); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sender) say(line, code string) string {
	s.t.Helper()
	s.write([]byte(line + "\r\n"))
	return s.expect(code)
}

// expect reads one reply, all its lines, and returns the last.
func (s *sender) expect(code string) string {
	s.t.Helper()
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			s.t.Fatalf("waiting for %s: %v", code, err)
		}
		if !strings.HasPrefix(line, code) {
			s.t.Fatalf("reply %q, want %s", line, code)
		}
		if line[3] == ' ' {
			return strings.TrimSpace(line)
		}
	}
}

func (s *sender) envelope(recipients int) {
	s.t.Helper()
	s.say("MAIL FROM:<a@example.com>", "250")
	for i := range recipients {
		s.say(fmt.Sprintf("RCPT TO:<r%d@example.com>", i), "250")
	}
}

// data sends msg by DATA and returns what must have been archived: DATA cannot
// end a message without a line end.
func (s *sender) data(msg []byte, recipients, replies int) []byte {
	s.t.Helper()
	s.envelope(recipients)
	s.say("DATA", "354")
	if !bytes.HasSuffix(msg, []byte("\r\n")) && len(msg) > 0 {
		msg = append(bytes.Clone(msg), "\r\n"...)
	}
	wire := bytes.ReplaceAll(append([]byte("\r\n"), msg...), []byte("\r\n."), []byte("\r\n.."))[2:]
	s.write(append(wire, ".\r\n"...))
	for range replies {
		s.expect("250")
	}
	return msg
}

// bdat sends msg in two chunks.
func (s *sender) bdat(msg []byte, recipients int) []byte {
	s.t.Helper()
	s.envelope(recipients)
	half := len(msg) / 2
	s.write(append(fmt.Appendf(nil, "BDAT %d\r\n", half), msg[:half]...))
	s.expect("250")
	s.write(append(fmt.Appendf(nil, "BDAT %d LAST\r\n", len(msg)-half), msg[half:]...))
	s.expect("250")
	return msg
}
