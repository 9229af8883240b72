package membership_test

import (
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// outsider is a memberlist without our rules on the same network.
type outsider struct {
	*memNet
	ip      string
	listen  net.Listener
	sock    net.PacketConn
	packets chan *memberlist.Packet
	streams chan net.Conn
}

func (o *outsider) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.ParseIP(o.ip), 7946, nil
}

func (o *outsider) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := net.ResolveUDPAddr("udp", addr)
	if err == nil {
		_, err = o.sock.WriteTo(b, to)
	}
	return time.Now(), err
}
func (o *outsider) PacketCh() <-chan *memberlist.Packet { return o.packets }
func (o *outsider) StreamCh() <-chan net.Conn           { return o.streams }
func (o *outsider) Shutdown() error {
	o.listen.Close()
	return o.sock.Close()
}

func (o *outsider) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return net.Conn(nil), fmt.Errorf("no way to %s", addr)
}

type dialler struct {
	*outsider
	c *cluster
}

func (d dialler) DialTimeout(addr string, _ time.Duration) (net.Conn, error) {
	return d.Host(d.ip).Dial(d.c.t.Context(), "tcp", addr)
}

func (o *outsider) run() {
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := o.sock.ReadFrom(buf)
			if err != nil {
				return
			}
			o.packets <- &memberlist.Packet{Buf: append([]byte{}, buf[:n]...), From: from, Timestamp: time.Now()}
		}
	}()
	go func() {
		for {
			c, err := o.listen.Accept()
			if err != nil {
				return
			}
			o.streams <- c
		}
	}()
}

// TestGossipOutsider: who has no key, another key, or even the right key but no
// place in the view, changes nothing.
func TestGossipOutsider(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		right := nodes[0].disk().State.Gossip.Keys[0]
		for i, tt := range []struct {
			what, name string
			key        []byte
		}{
			{"no key", "evil", nil},
			{"another key", "evil", make([]byte, 32)},
			{"the right key, no place in the view", "evil", right},
			{"the right key and the name of a member", "b", right},
		} {
			o := &outsider{memNet: c.net, ip: fmt.Sprintf("10.0.7.%d", i+1), packets: make(chan *memberlist.Packet, 100), streams: make(chan net.Conn, 10)}
			var err error
			if o.listen, err = c.net.listen(o.ip, o.ip+":7946"); err != nil {
				t.Fatal(err)
			}
			if o.sock, err = c.net.listenPacket(o.ip, o.ip+":7946"); err != nil {
				t.Fatal(err)
			}
			o.run()
			config := memberlist.DefaultLANConfig()
			config.Name, config.Transport, config.SecretKey = tt.name, dialler{o, c}, tt.key
			config.TCPTimeout = time.Second
			config.LogOutput = io.Discard
			config.Logger = log.New(io.Discard, "", 0)
			config.LogOutput = nil
			list, err := memberlist.Create(config)
			if err != nil {
				t.Fatal(err)
			}
			for range 5 {
				_, _ = list.Join([]string{"a/" + nodes[0].addresses().Gossip})
				time.Sleep(2 * time.Second)
			}
			for _, n := range nodes {
				if n.m.Alive("evil") || !n.m.Alive("a") || !n.m.Alive("b") || len(n.m.View().Members) != 2 || !n.m.Quorum() {
					t.Errorf("%s: %s lets it in", tt.what, n.name)
				}
				if l := n.m.Liveness("b"); l.Version != "1" {
					t.Errorf("%s: %s believes %+v of b", tt.what, n.name, l)
				}
			}
			if err := list.Shutdown(); err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Second)
		}
		c.settled(2)
		if !strings.Contains(c.log.String(), "library=memberlist") {
			t.Error("nothing logged")
		}
	})
}
