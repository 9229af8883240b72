package smtpd_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/emersion/go-smtp"

	"chainmail/archive/record"
	"chainmail/node/smtpd"
)

// nowhere is a draft that keeps nothing: what is measured is the reception.
type nowhere struct{}

func (nowhere) Write(p []byte) (int, error)                    { return len(p), nil }
func (nowhere) Commit(record.Envelope) (record.Receipt, error) { return record.Receipt{}, nil }
func (nowhere) Discard()                                       {}

func benchServer(b *testing.B) string {
	s, err := smtpd.New(smtpd.Options{
		Connectors: []smtpd.Connector{{Name: "smtp", Address: "127.0.0.1:0"}},
		Begin:      func(context.Context) smtpd.Draft { return nowhere{} },
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Open(); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	return s.Listeners()[0].Address
}

// goSMTP is go-smtp's own server with a backend that keeps nothing.
func goSMTP(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return discarding{}, nil }))
	s.ErrorLog = log.New(io.Discard, "", 0)
	go s.Serve(l)
	b.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

type discarding struct{}

func (discarding) Reset()                               {}
func (discarding) Logout() error                        { return nil }
func (discarding) Mail(string, *smtp.MailOptions) error { return nil }
func (discarding) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (discarding) Data(r io.Reader) error               { _, err := io.Copy(io.Discard, r); return err }

func BenchmarkReceive(b *testing.B) {
	servers := []struct {
		name  string
		start func(*testing.B) string
	}{{"chainmail", benchServer}, {"go-smtp", goSMTP}}
	for _, by := range []string{"DATA", "BDAT"} {
		for _, size := range []int{4 << 10, 50 << 10, 1 << 20} {
			for _, server := range servers {
				for _, sessions := range []int{1, 32} {
					b.Run(fmt.Sprintf("%s/%dKiB/%s/sessions=%d", by, size>>10, server.name, sessions), func(b *testing.B) {
						receive(b, server.start(b), by, size, sessions)
					})
				}
			}
		}
	}
}

// receive sends b.N mails over some sessions. The sender is as cheap as it can
// be, for it shares the processors.
func receive(b *testing.B, addr, by string, size, sessions int) {
	line := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 2)[:76] + "\r\n"
	body := []byte(strings.Repeat(line, size/len(line)+1)[:size-2] + "\r\n")
	command := []byte("MAIL FROM:<sender@example.com>\r\nRCPT TO:<recipient@example.com>\r\n")
	var rest []byte
	if by == "DATA" {
		command = append(command, "DATA\r\n"...)
		rest = append(bytes.Clone(body), ".\r\n"...)
	} else {
		command = append(fmt.Appendf(command, "BDAT %d LAST\r\n", size), body...)
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	conns := make([]net.Conn, sessions)
	readers := make([]*bufio.Reader, sessions)
	for i := range conns {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		conns[i], readers[i] = conn, bufio.NewReader(conn)
		fmt.Fprintf(conn, "HELO x\r\n")
		skip(b, readers[i], 2)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	runtime.GC()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			conn, r := conns[i], readers[i]
			for left.Add(-1) >= 0 {
				conn.Write(command)
				skip(b, r, 3)
				if rest != nil {
					conn.Write(rest)
					skip(b, r, 1)
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
}

func skip(b *testing.B, r *bufio.Reader, lines int) {
	for range lines {
		line, err := r.ReadSlice('\n')
		if err != nil || line[0] > '3' {
			b.Errorf("got %q and %v", line, err)
			return
		}
	}
}
