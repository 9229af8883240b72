package netsim_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/testcluster/netsim"
)

// virtual runs a test in a bubble with a network of the hosts a and b.
func virtual(t *testing.T, test func(*testing.T, *netsim.Network)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := netsim.New(1)
		n.Host("a")
		n.Host("b")
		test(t, n)
	})
}

// pair is a connection of a to b, with both its ends.
func pair(t *testing.T, n *netsim.Network) (client, server net.Conn) {
	t.Helper()
	l := listen(t, n.Host("b"), "tcp", ":0")
	defer l.Close()
	client = dial(t, n.Host("a"), "tcp", l.Addr().String())
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

func listen(t *testing.T, h *netsim.Host, network, addr string) net.Listener {
	t.Helper()
	l, err := h.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, h *netsim.Host, network, addr string) net.Conn {
	t.Helper()
	c, err := h.Dial(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func packets(t *testing.T, h *netsim.Host, addr string) net.PacketConn {
	t.Helper()
	p, err := h.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if n, err := io.WriteString(c, text); err != nil || n != len(text) {
		t.Fatalf("%d bytes written: %v", n, err)
	}
}

// expect reads a text.
func expect(t *testing.T, c net.Conn, text string) {
	t.Helper()
	b := make([]byte, len(text))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("read %q, %v; want %q", b[:n], err, text)
	}
}

// expectSilence finds nothing to read within a time.
func expectSilence(t *testing.T, c net.Conn, d time.Duration) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(d))
	defer c.SetReadDeadline(time.Time{})
	n, err := c.Read(make([]byte, 100))
	if e, ok := errors.AsType[net.Error](err); n != 0 || !ok || !e.Timeout() {
		t.Fatalf("read %d bytes, %v; want nothing within %v", n, err, d)
	}
}

// expectError reads until an error, which must be the one wanted.
func expectError(t *testing.T, c net.Conn, want error) {
	t.Helper()
	if n, err := c.Read(make([]byte, 100)); n != 0 || !errors.Is(err, want) {
		t.Fatalf("read %d bytes, %v; want %v", n, err, want)
	}
}

// took fails unless the virtual clock went on by exactly d since start.
func took(t *testing.T, start time.Time, d time.Duration) {
	t.Helper()
	if got := time.Since(start); got != d {
		t.Errorf("it took %v, want %v", got, d)
	}
}
