package route_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chainmail/archive/mail/mailtest"
	"chainmail/chain/route"
)

// Postfix's smtp-sink is a server that we did not write, over real sockets.
// At first it is not there, then it closes at every DATA, then it is well.
func TestPostfixSink(t *testing.T) {
	sink := findSink(t)
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := listener.Addr().String()
	listener.Close()

	s := newSource()
	var bodies []string
	for i := range 60 {
		body := fmt.Sprintf("Subject: mail %d\r\n\r\n.dot\r\n..\r\n.\r\n%send %d\r\n", i, strings.Repeat("0123456789\r\n", i*200), i)
		s.add(body)
		bodies = append(bodies, body)
	}
	r, err := route.New(route.Options{
		Name: "sink", Target: target, TLS: route.TLSNone, From: route.FromBeginning, Concurrency: 4,
		Hostname: "node.test", Dir: filepath.Join(dir, "routes"), Source: s, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	waitFor(t, r, func(s route.Status) bool { return s.State == route.StateRetrying })

	stop := startSink(t, sink, target, "-q", "DATA")
	problem := r.Status().Problem
	waitFor(t, r, func(s route.Status) bool { return s.Problem != problem }) // it was there, and closed
	stop()
	dump := filepath.Join(dir, "dump")
	startSink(t, sink, target, "-D", dump)
	waitFor(t, r, func(s route.Status) bool { return s.Backlog == 0 })

	text, err := os.ReadFile(dump)
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range bodies {
		// The sink writes LF, and an empty line behind each mail.
		if n := strings.Count(string(text), "\n"+strings.ReplaceAll(body, "\r\n", "\n")+"\n"); n != 1 {
			t.Errorf("%.20q arrived %d times", body, n)
		}
	}
}

func waitFor(t *testing.T, r *route.Route, reached func(route.Status) bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		s := r.Status()
		if reached(s) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("still %+v", s)
		}
	}
}

func findSink(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"smtp-sink", "/usr/sbin/smtp-sink"} { // sbin is not in everybody's PATH
		if file, err := exec.LookPath(name); err == nil {
			return file
		}
	}
	if os.Getenv(mailtest.RequireVariable) == "1" && os.Geteuid() == 0 {
		t.Fatalf("install the Debian package postfix, or unset %s", mailtest.RequireVariable)
	}
	t.Skip("install the Debian package postfix for this test")
	return ""
}

func startSink(t *testing.T, sink, address string, options ...string) (stop func()) {
	t.Helper()
	if os.Geteuid() == 0 {
		options = append(options, "-u", "root")
	}
	cmd := exec.Command(sink, append(options, address, "100")...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return stop
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
