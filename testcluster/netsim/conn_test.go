package netsim_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"chainmail/testcluster/netsim"
)

// TestConformance: the suite that Go has for implementations of net.Conn.
func TestConformance(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				h := netsim.New(1).Host("a")
				l, err := h.Listen(network, map[string]string{"tcp": ":0", "unix": "/run/sock"}[network])
				if err != nil {
					return nil, nil, nil, err
				}
				defer l.Close()
				if c1, err = h.Dial(t.Context(), network, l.Addr().String()); err != nil {
					return nil, nil, nil, err
				}
				c2, err = l.Accept()
				return c1, c2, func() { c1.Close(); c2.Close() }, err
			})
		})
	}
}

func TestAddresses(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		client, server := pair(t, n)
		if got := client.RemoteAddr().(*net.TCPAddr); !got.IP.Equal(n.Host("b").IP()) || got.String() != server.LocalAddr().String() {
			t.Errorf("dialed %v, listening on %v", got, server.LocalAddr())
		}
		if got := server.RemoteAddr().(*net.TCPAddr); !got.IP.Equal(n.Host("a").IP()) || got.String() != client.LocalAddr().String() {
			t.Errorf("client %v, seen as %v", client.LocalAddr(), got)
		}
		l := listen(t, n.Host("b"), "tcp", "0.0.0.0:25")
		if got := l.Addr().String(); got != "10.0.0.2:25" {
			t.Errorf("listening on %s", got)
		}
		for _, addr := range []string{"10.0.0.2:25", "b:25"} {
			dial(t, n.Host("a"), "tcp", addr)
		}
		for _, addr := range []string{"localhost:25", "127.0.0.1:25", ":25"} {
			dial(t, n.Host("b"), "tcp", addr)
		}
	})
}

func TestListenErrors(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		a := n.Host("a")
		listen(t, a, "tcp", ":25")
		listen(t, a, "unix", "/run/sock")
		packets(t, a, ":53")
		for _, tt := range []struct {
			network, addr string
			want          error
		}{
			{"tcp", "10.0.0.1:25", syscall.EADDRINUSE},
			{"unix", "/run/sock", syscall.EADDRINUSE},
			{"tcp", "10.0.0.2:26", syscall.EADDRNOTAVAIL},
			{"tcp", "10.9.9.9:26", syscall.EADDRNOTAVAIL},
		} {
			if _, err := a.Listen(tt.network, tt.addr); !errors.Is(err, tt.want) {
				t.Errorf("%s %s: %v, want %v", tt.network, tt.addr, err, tt.want)
			}
		}
		for _, addr := range []string{"25", ":99999", ":smtp", "nobody:25"} {
			if _, err := a.Listen("tcp", addr); err == nil {
				t.Errorf("listening on %q", addr)
			}
		}
		if _, err := a.ListenPacket("udp", ":53"); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("UDP port taken twice: %v", err)
		}
		if _, err := a.Listen("sctp", ":1"); err == nil {
			t.Error("an unknown network is taken")
		}
	})
}

func TestDialErrors(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		a := n.Host("a")
		for addr, want := range map[string]error{
			"10.0.0.2:25": syscall.ECONNREFUSED,
			"10.9.9.9:25": syscall.EHOSTUNREACH,
		} {
			if _, err := a.Dial(t.Context(), "tcp", addr); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", addr, err, want)
			}
		}
		if _, err := a.Dial(t.Context(), "unix", "/run/sock"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("unix: %v", err)
		}
		if _, err := a.Dial(t.Context(), "tcp", "nobody:25"); err == nil {
			t.Error("connected to nobody")
		}
	})
}

// TestManyBytes: what arrives is what was sent, through a window that is
// smaller, in both directions at once.
func TestManyBytes(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		n.SetLinks(netsim.Link{Latency: time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.01})
		client, server := pair(t, n)
		var wg sync.WaitGroup
		for i, ends := range [][2]net.Conn{{client, server}, {server, client}} {
			random := rand.NewChaCha8([32]byte{byte(i)})
			sent, received := sha256.New(), sha256.New()
			wg.Go(func() {
				w := io.MultiWriter(ends[0], sent)
				if _, err := io.CopyN(w, random, 3<<20); err != nil {
					t.Error(err)
				}
				ends[0].(interface{ CloseWrite() error }).CloseWrite()
			})
			wg.Go(func() {
				if n, err := io.Copy(received, ends[1]); err != nil || n != 3<<20 {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
			defer func() {
				if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
					t.Error("not the bytes that were sent")
				}
			}()
		}
		wg.Wait()
	})
}

func TestLatencyAndBandwidth(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		n.SetLink("a", "b", netsim.Link{Latency: 10 * time.Millisecond, Bandwidth: 100_000})
		start := time.Now()
		client, server := pair(t, n)
		took(t, start, 20*time.Millisecond) // a handshake

		start = time.Now()
		write(t, client, string(make([]byte, 50_000)))
		took(t, start, 0)
		if _, err := io.ReadFull(server, make([]byte, 50_000)); err != nil {
			t.Fatal(err)
		}
		took(t, start, 510*time.Millisecond)
	})
}

// TestFullWindow: a writer waits for a reader that is slow, and for its
// deadline.
func TestFullWindow(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		client, server := pair(t, n)
		start := time.Now()
		client.SetWriteDeadline(start.Add(time.Minute))
		sent, err := client.Write(make([]byte, 10<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || sent == 0 || sent > 1<<20 {
			t.Errorf("%d bytes written, %v", sent, err)
		}
		took(t, start, time.Minute)
		client.SetWriteDeadline(time.Time{})
		client.Close()
		if got, err := io.Copy(io.Discard, server); err != nil || got != int64(sent) {
			t.Errorf("%d of %d bytes arrived, %v", got, sent, err)
		}
	})
}

func TestHalfClose(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		client, server := pair(t, n)
		write(t, client, "question")
		if err := client.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("written after the end: %v", err)
		}
		if b, err := io.ReadAll(server); err != nil || string(b) != "question" {
			t.Errorf("got %q, %v", b, err)
		}
		write(t, server, "answer")
		server.Close()
		if b, err := io.ReadAll(client); err != nil || string(b) != "answer" {
			t.Errorf("got %q, %v", b, err)
		}
	})
}

// TestWriteToAClosedConnection: the first write meets nobody, and the answer
// to it resets the connection.
func TestWriteToAClosedConnection(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		client, server := pair(t, n)
		server.Close()
		expectError(t, client, io.EOF)
		write(t, client, "anybody there?")
		time.Sleep(time.Second)
		if _, err := client.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the second write: %v", err)
		}
	})
}

// TestCloseWithUnreadData resets, after what was written before.
func TestCloseWithUnreadData(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		client, server := pair(t, n)
		write(t, client, "unread")
		write(t, server, "421 go away")
		time.Sleep(time.Second)
		server.Close()
		expect(t, client, "421 go away")
		time.Sleep(time.Second)
		if _, err := client.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("written to a reset connection: %v", err)
		}
	})
}

func TestCloseEndsWaiting(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		l := listen(t, n.Host("a"), "tcp", ":0")
		p := packets(t, n.Host("a"), ":0")
		client, server := pair(t, n)
		reader, _ := pair(t, n)
		var wg sync.WaitGroup
		closed := func(what string, f func() error) {
			wg.Go(func() {
				if err := f(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		closed("accept", func() error { _, err := l.Accept(); return err })
		closed("packet", func() error { _, _, err := p.ReadFrom(make([]byte, 1)); return err })
		closed("read", func() error { _, err := reader.Read(make([]byte, 1)); return err })
		closed("write", func() error { _, err := server.Write(make([]byte, 10<<20)); return err })
		time.Sleep(time.Second)
		for _, c := range []io.Closer{l, p, server, client, reader} {
			c.Close()
			if err := c.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("closed twice: %v", err)
			}
		}
		wg.Wait()
		if n.Sockets("a") != 0 || n.Sockets("b") != 1 { // the reader's other end
			t.Errorf("sockets left: %d and %d", n.Sockets("a"), n.Sockets("b"))
		}
	})
}
