package support

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"chainmail/node"
	"chainmail/node/client"
)

// ShortDir is a new directory that is removed at the end of the test. Its path
// is short enough for a socket, which that of t.TempDir may not be.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "chainmail")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Config is that of a node named "test" on free ports of loopback, with a data
// directory of its own that does not exist yet. The connectors are left to
// Complete.
func Config(t testing.TB) node.Config {
	t.Helper()
	c := node.Default()
	c.Name = "test"
	c.DataDir = filepath.Join(ShortDir(t), "data")
	for _, address := range []*string{&c.SMTP, &c.Chain, &c.Gossip, &c.Raft, &c.HTTP} {
		*address = "127.0.0.1:0"
	}
	c.Disk.MinFree = node.MiB
	return c
}

// Node is a node that runs in this process, and a client of it.
type Node struct {
	*node.Node
	*client.Client
	Stop func()       // asks it to end; does not wait
	Wait func() error // until it has ended
}

// Start starts a node and waits until it is ready. At the end of the test it is
// stopped, and must have ended without an error.
func Start(t testing.TB, c node.Config) Node {
	t.Helper()
	ready := make(chan struct{})
	n, err := node.New(c, node.Options{Version: "test", Ready: func() { close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = n.Run(ctx)
	}()
	r := Node{
		Node: n, Client: client.New(node.SocketPath(c.DataDir)), Stop: cancel,
		Wait: func() error { <-ended; return err },
	}
	select {
	case <-ready:
	case <-ended:
		cancel()
		t.Fatalf("the node did not start: %v", err)
	}
	t.Cleanup(func() {
		if err := r.End(); err != nil {
			t.Errorf("the node ended with: %v", err)
		}
	})
	return r
}

// End stops the node and waits for it.
func (n Node) End() error {
	n.Client.Close()
	n.Stop()
	return n.Wait()
}

// FreeAddr is an address of loopback that nobody listens on.
func FreeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
