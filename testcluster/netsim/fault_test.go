package netsim_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"chainmail/testcluster/netsim"
)

// TestCut: nobody is told of a cut, and after it nothing is missing.
func TestCut(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		client, server := pair(t, n)
		write(t, client, "before ")
		time.Sleep(time.Second)
		n.Cut("a", "b")
		write(t, client, "during ")
		write(t, server, "back")
		expect(t, server, "before ")
		expectSilence(t, server, time.Minute)
		expectSilence(t, client, time.Minute)
		n.Heal("a", "b")
		write(t, client, "after")
		expect(t, server, "during after")
		expect(t, client, "back")
	})
}

// TestCutOneWay: the other direction goes on until its window is full of what
// nobody could acknowledge.
func TestCutOneWay(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		client, server := pair(t, n)
		n.CutOneWay("a", "b")
		write(t, client, "question")
		write(t, server, "greeting")
		expect(t, client, "greeting")
		expectSilence(t, server, time.Minute)
		go io.Copy(io.Discard, client)
		server.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := server.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a window without end: %v", err)
		}
		n.Heal("a", "b")
		expect(t, server, "question")
		server.SetWriteDeadline(time.Time{})
		write(t, server, string(make([]byte, 1<<20)))
	})
}

// TestKeepAlive ends a connection over a cut as package net's keep-alive does,
// and not one over a shorter cut.
func TestKeepAlive(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		client, server := pair(t, n)
		n.Cut("a", "b")
		time.Sleep(time.Minute)
		n.Heal("a", "b")
		time.Sleep(10 * time.Minute)
		write(t, client, "still there")
		expect(t, server, "still there")

		n.Cut("a", "b")
		start := time.Now()
		expectError(t, client, syscall.ETIMEDOUT)
		took(t, start, 150*time.Second)
		expectError(t, server, syscall.ETIMEDOUT)
	})
}

func TestDialOverACut(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		listen(t, n.Host("b"), "tcp", ":25")
		n.Cut("a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, err := n.Host("a").Dial(ctx, "tcp", "b:25")
		if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() {
			t.Errorf("dialed over a cut: %v", err)
		}
		took(t, start, 3*time.Second)

		start = time.Now()
		if _, err := n.Host("a").Dial(t.Context(), "tcp", "b:25"); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("dialed without a limit: %v", err)
		}
		took(t, start, 127*time.Second)

		time.AfterFunc(10*time.Second, func() { n.HealAll() })
		dial(t, n.Host("a"), "tcp", "b:25")
	})
}

func TestRefuse(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		l := listen(t, n.Host("b"), "tcp", ":25")
		client, server := pair(t, n)
		n.Refuse("a", "b")
		expectError(t, client, syscall.ECONNRESET)
		expectError(t, server, syscall.ECONNRESET)
		if _, err := n.Host("a").Dial(t.Context(), "tcp", l.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dialed: %v", err)
		}
		dial(t, n.Host("b"), "tcp", ":25")
		dial(t, n.Host("c"), "tcp", "b:25")
		n.Heal("a", "b")
		dial(t, n.Host("a"), "tcp", "b:25")
	})
}

// TestCrash: the process is gone and the machine says so; the next process has
// the ports again, and the old one can do nothing.
func TestCrash(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		old := n.Host("b")
		l := listen(t, old, "tcp", ":25")
		packets(t, old, ":53")
		client, server := pair(t, n)
		write(t, server, "250 OK")
		n.Crash("b")
		expect(t, client, "250 OK")
		expectError(t, client, syscall.ECONNRESET)
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a dead process accepts: %v", err)
		}
		if _, err := server.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a dead process writes: %v", err)
		}
		if _, err := old.Listen("tcp", ":25"); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("a dead process listens: %v", err)
		}
		if _, err := old.Dial(t.Context(), "tcp", "a:25"); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("a dead process dials: %v", err)
		}
		if _, err := n.Host("a").Dial(t.Context(), "tcp", "b:25"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a dead process is connected to: %v", err)
		}
		listen(t, n.Host("b"), "tcp", ":25")
		packets(t, n.Host("b"), ":53")
		dial(t, n.Host("a"), "tcp", "b:25")
	})
}

// TestPowerOff: silence while it is off, resets when it is on again.
func TestPowerOff(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		idle, _ := pair(t, n)
		busy, server := pair(t, n)
		write(t, server, "never sent")
		n.PowerOff("b")
		write(t, busy, "into the void")
		expectSilence(t, idle, time.Minute)
		expectSilence(t, busy, time.Minute/2)
		if _, err := n.Host("b").Listen("tcp", ":25"); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("listening without power: %v", err)
		}
		n.PowerOn("b")
		start := time.Now()
		expectError(t, busy, syscall.ECONNRESET)
		took(t, start, 200*time.Millisecond)
		expectError(t, idle, syscall.ECONNRESET)
		took(t, start, 15*time.Second)
		listen(t, n.Host("b"), "tcp", ":25")
		dial(t, n.Host("a"), "tcp", "b:25")
	})
}

// TestPowerOffUnderACut: who could not hear that the machine was off hears it
// after the cut.
func TestPowerOffUnderACut(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		client, _ := pair(t, n)
		n.Cut("a", "b")
		n.PowerOff("b")
		n.PowerOn("b")
		write(t, client, "hello")
		expectSilence(t, client, time.Minute)
		n.HealAll()
		expectError(t, client, syscall.ECONNRESET)
	})
}

// TestCrashOfAHostThatTalksToItself closes both ends.
func TestCrashOfAHostThatTalksToItself(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		a := n.Host("a")
		l := listen(t, a, "unix", "/run/sock")
		client := dial(t, a, "unix", "/run/sock")
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		n.Crash("a")
		expectError(t, client, net.ErrClosed)
		expectError(t, server, net.ErrClosed)
		if n.Sockets("a") != 0 {
			t.Errorf("%d sockets", n.Sockets("a"))
		}
	})
}

// TestDialOfACrashingHost: the dialer's own process dies meanwhile.
func TestDialOfACrashingHost(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		n.Cut("a", "b")
		time.AfterFunc(time.Second, func() { n.Crash("a") })
		if _, err := n.Host("a").Dial(t.Context(), "tcp", "b:25"); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("dialed: %v", err)
		}
	})
}
