package netsim_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"chainmail/testcluster/netsim"
)

// receive reads packets until none came for a second, and returns them.
func receive(t *testing.T, p net.PacketConn) (got []string) {
	t.Helper()
	b := make([]byte, 1000)
	for {
		p.SetReadDeadline(time.Now().Add(time.Second))
		n, _, err := p.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.SetReadDeadline(time.Time{})
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(b[:n]))
	}
}

func TestPackets(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		a, b := packets(t, n.Host("a"), ":53"), packets(t, n.Host("b"), ":0")
		if _, err := a.WriteTo([]byte("ping"), b.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		k, from, err := b.ReadFrom(buf)
		if err != nil || string(buf[:k]) != "ping" || from.String() != "10.0.0.1:53" {
			t.Errorf("got %q from %v, %v", buf[:k], from, err)
		}
		c := dial(t, n.Host("b"), "udp", "a:53")
		write(t, c, "pong")
		if k, from, err = a.ReadFrom(buf); err != nil || from.String() != c.LocalAddr().String() {
			t.Fatalf("got %q from %v, %v", buf[:k], from, err)
		}
		b.WriteTo([]byte("not for a connected socket"), c.LocalAddr())
		a.WriteTo([]byte("reply"), from)
		expect(t, c, "reply")
		expectSilence(t, c, time.Second)

		if _, err := a.WriteTo(make([]byte, 70_000), b.LocalAddr()); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("a packet that is too long: %v", err)
		}
	})
}

// TestPacketsVanish: whatever keeps a packet away, the sender is not told.
func TestPacketsVanish(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		a, b := packets(t, n.Host("a"), ":53"), packets(t, n.Host("b"), ":53")
		send := func(text string) {
			t.Helper()
			if _, err := a.WriteTo([]byte(text), b.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		send("sent before")
		n.Cut("a", "b")
		send("cut")
		n.Heal("a", "b")
		n.CutOneWay("b", "a")
		send("other way cut")
		n.Refuse("a", "b")
		send("refused")
		n.HealAll()
		if got := fmt.Sprint(receive(t, b)); got != "[sent before other way cut]" {
			t.Errorf("got %s", got)
		}
		n.PowerOff("b")
		send("off")
		n.PowerOn("b")
		send("nobody listens")
		b = packets(t, n.Host("b"), ":53")
		for range 1000 {
			send(string(make([]byte, 1000)))
		}
		if got := len(receive(t, b)); got == 0 || got > 250 {
			t.Errorf("%d packets of 1000 bytes in a buffer of 208 KiB", got)
		}
	})
}

func TestLossAndJitter(t *testing.T) {
	virtual(t, func(t *testing.T, n *netsim.Network) {
		n.SetLinks(netsim.Link{Latency: time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.3})
		a, b := packets(t, n.Host("a"), ":53"), packets(t, n.Host("b"), ":53")
		for i := range 1000 {
			if _, err := a.WriteTo(fmt.Appendf(nil, "%04d", i), b.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		got := receive(t, b)
		overtaken := 0
		for i := range got[1:] {
			if got[i] > got[i+1] {
				overtaken++
			}
		}
		if len(got) < 600 || len(got) > 800 || overtaken == 0 {
			t.Errorf("%d of 1000 packets arrived, %d overtaken", len(got), overtaken)
		}
	})
}
