package testcluster_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chainmail/node"
	"chainmail/node/client"
	"chainmail/testcluster"
	"chainmail/testcluster/local"
	"chainmail/testcluster/support"
)

// TestProcesses: the scenario of the virtual cluster with the real program.
func TestProcesses(t *testing.T) {
	c := testcluster.Processes(t, support.Program(t), testcluster.Options{Nodes: 3, Replicas: testcluster.All})
	stop := c.Load("a", "b", "c")
	time.Sleep(time.Second)
	c.Kill("b")
	c.Send("a", 20)
	c.Start("b")
	c.Send("b", 20)
	stop()
	c.Check()
	c.Kill("c")
	c.Replace("c")
	c.Check()
}

// screen is what a person sees.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) shows(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.text.String(), text)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// TestRun: what make run does, twice on the same directory.
func TestRun(t *testing.T) {
	base, err := local.FreeBasePort(2)
	if err != nil {
		t.Fatal(err)
	}
	dir := support.ShortDir(t)
	o := local.RunOptions{Nodes: 2, Dir: dir, Copies: 2, Replicas: -1, BasePort: base, Program: support.Program(t)}
	t.Setenv("CHAINMAIL_DISK_MIN_FREE", "1MiB")
	msg := []byte("Subject: Hello\r\n\r\nHi\r\n")
	for round := range 2 {
		out := new(screen)
		o.Out = io.MultiWriter(out, t.Output())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- local.Run(ctx, o) }()
		eventually(t, 2*time.Minute, "the cluster is up", func() bool {
			select {
			case err := <-done:
				t.Fatalf("it ended: %v\n%s", err, out)
			default:
			}
			return out.shows("Ctrl-C stops all nodes")
		})
		p, err := local.New(local.Options{Dir: dir, BasePort: base})
		if err != nil {
			t.Fatal(err)
		}
		support.Dial(t, p.Addr("a", "smtp"), "EHLO test").Data(msg, 1, 1)
		b := client.New(node.SocketPath(filepath.Join(dir, "b")))
		eventually(t, 10*time.Second, "the mail is on the other node", func() bool {
			s, err := b.Status(t.Context())
			return err == nil && s.Receipts == uint64(round)+1
		})
		b.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("round %d ended with %v", round, err)
		}
		if !out.shows("The data is kept in " + dir) {
			t.Errorf("it does not say where the data is:\n%s", out)
		}
		if conn, err := net.Dial("tcp", p.Addr("b", "http")); err == nil {
			conn.Close()
			t.Error("node b lives on")
		}
	}
}
