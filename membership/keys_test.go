package membership_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chainmail/membership"
)

// onDisk is what these tests read of a node's view.json.
type onDisk struct {
	State struct {
		View struct {
			Epoch uint64 `json:"epoch"`
		} `json:"view"`
		Gossip struct {
			Keys [][]byte `json:"keys"`
		} `json:"gossip"`
	} `json:"state"`
}

func (n *testNode) disk() (d onDisk) {
	n.c.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.dir, "view.json"))
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil {
		n.c.t.Fatal(err)
	}
	return d
}

func (n *testNode) certificates() []string {
	m, _ := n.m.View().Member(n.name)
	return m.Certificates
}

// TestRotateKeys: all keys are replaced while everybody sees everybody; who
// slept through it catches up.
func TestRotateKeys(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c", "d")
		away := nodes[3]
		away.kill()
		c.settled(3)
		before := map[string][]string{}
		for _, n := range nodes {
			before[n.name] = n.certificates()
		}
		gossip := nodes[0].disk().State.Gossip.Keys[0]
		pem := filepath.Join(nodes[1].dir, "node.pem")
		old, err := tls.LoadX509KeyPair(pem, pem)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nodes[1].m.RotateKeys(t.Context()); err != nil {
			t.Fatal(err)
		}
		if nodes[1].m.Rotating() == "" {
			t.Error("no rotation is under way")
		}
		_, err = nodes[1].m.RotateKeys(t.Context())
		refused(t, err, membership.ErrRefused, "a rotation of the keys is under way since epoch")

		renewed := func(n *testNode) bool {
			now := n.certificates()
			return len(now) == 1 && !slices.Contains(before[n.name], now[0])
		}
		c.eventually(time.Minute, "three have new keys", func() bool {
			for _, n := range c.others() {
				if n.m.Rotating() != "" || !renewed(n) {
					return false
				}
				for _, o := range c.others() {
					if !n.m.Alive(o.name) {
						t.Fatalf("%s lost sight of %s", n.name, o.name)
					}
				}
			}
			return true
		})
		for _, n := range c.others() {
			if keys := n.disk().State.Gossip.Keys; len(keys) != 1 || string(keys[0]) == string(gossip) {
				t.Errorf("%s has %d gossip keys", n.name, len(keys))
			}
		}
		_, _, err = handshake(c, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{old}}, nodes[0].m.ServerTLS())
		refused(t, err, membership.ErrNotMember, "the certificate of b is not that of a member")
		// Everybody restarts with what is on the disk.
		for _, n := range c.others() {
			n.stop()
			n.start()
		}
		c.settled(3)
		// d knows none of the new certificates, nor the gossip key; and its view
		// is too old to list them.
		away.start()
		c.settled(3)
		c.eventually(time.Minute, "d has new keys too", func() bool { return renewed(away) && away.m.Rotating() == "" })
		time.Sleep(time.Minute)
		c.settled(3)
	})
}

// TestRotateKilled: a node that is killed in the middle of it ends it when it
// is back.
func TestRotateKilled(t *testing.T) {
	for _, after := range []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 700 * time.Millisecond, time.Second, 2 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *cluster) {
				nodes := c.grow("a", "b", "c")
				before := nodes[1].certificates()
				if _, err := nodes[0].m.RotateKeys(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(after)
				nodes[1].kill()
				time.Sleep(20 * time.Second)
				nodes[1].start()
				c.eventually(time.Minute, "b has a new certificate", func() bool {
					now := nodes[1].certificates()
					return len(now) == 1 && !slices.Contains(before, now[0]) && nodes[1].m.Rotating() == ""
				})
				c.settled(3)
			})
		})
	}
}

// handshake connects two TLS ends, and sends a byte both ways.
func handshake(c *cluster, client, server *tls.Config) (peer tls.ConnectionState, clientErr, serverErr error) {
	l, err := c.net.listen("10.0.9.1", "10.0.9.1:1")
	if err != nil {
		c.t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		s := tls.Server(raw, server)
		_, err = io.ReadFull(s, make([]byte, 1))
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		peer = s.ConnectionState()
		done <- err
	}()
	raw, err := c.net.Host("10.0.9.2").Dial(c.t.Context(), "tcp", "10.0.9.1:1")
	if err != nil {
		c.t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, client)
	_, clientErr = conn.Write([]byte{1})
	if clientErr == nil {
		_, clientErr = io.ReadFull(conn, make([]byte, 1))
	}
	if clientErr != nil {
		raw.Close()
	}
	return peer, clientErr, <-done
}

func TestTLS(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		a, b, gone := nodes[0].m, nodes[1].m, nodes[2].m
		x := c.node("x")
		x.create()
		x.start()

		peer, cErr, sErr := handshake(c, a.ClientTLS("b"), b.ServerTLS())
		if cErr != nil || sErr != nil {
			t.Fatalf("member to member: %v, %v", cErr, sErr)
		}
		if name, err := b.PeerOf(peer); name != "a" || err != nil {
			t.Errorf("b sees %q, %v", name, err)
		}
		_, cErr, _ = handshake(c, a.ClientTLS("c"), b.ServerTLS())
		if cErr == nil || !strings.Contains(cErr.Error(), "the node at this address is b, not c") {
			t.Errorf("another member than was meant: %v", cErr)
		}
		_, cErr, _ = handshake(c, a.ClientTLS("x"), x.m.ServerTLS())
		refused(t, cErr, membership.ErrNotMember, "was not signed by this cluster's CA")
		anonymous := &tls.Config{InsecureSkipVerify: true}
		peer, cErr, sErr = handshake(c, anonymous, b.ServerTLS())
		if cErr != nil || sErr != nil {
			t.Errorf("a client without a certificate, as a joiner: %v, %v", cErr, sErr)
		}
		_, err := b.PeerOf(peer)
		refused(t, err, membership.ErrNotMember, "only members may do this")
		stranger := x.m.ClientTLS("x")
		stranger.VerifyConnection = nil
		_, cErr, sErr = handshake(c, stranger, b.ServerTLS())
		if cErr == nil {
			t.Error("the certificate of another cluster was taken")
		}
		refused(t, sErr, membership.ErrNotMember, "was not signed by this cluster's CA")
		old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}
		if _, _, sErr = handshake(c, old, b.ServerTLS()); sErr == nil {
			t.Error("TLS 1.2 was taken")
		}

		peer, cErr, sErr = handshake(c, gone.ClientTLS("b"), b.ServerTLS())
		if cErr != nil || sErr != nil {
			t.Fatal(cErr, sErr)
		}
		if _, err := b.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		_, err = b.PeerOf(peer) // a connection that is open
		refused(t, err, membership.ErrNotMember, "was removed, replaced, or has not joined yet")
		_, _, sErr = handshake(c, gone.ClientTLS("b"), b.ServerTLS())
		refused(t, sErr, membership.ErrNotMember, "was removed, replaced, or has not joined yet")
		_, cErr, _ = handshake(c, b.ClientTLS("c"), gone.ServerTLS())
		refused(t, cErr, membership.ErrNotMember, "was removed, replaced, or has not joined yet")
	})
}

// TestRaftPortIsForMembers: neither without a certificate nor with a foreign
// one does anybody get past the handshake.
func TestRaftPortIsForMembers(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.grow("a")[0]
		x := c.node("x")
		x.create()
		x.start()
		foreign := x.m.ClientTLS("x")
		foreign.VerifyConnection = nil
		for name, config := range map[string]*tls.Config{"no certificate": {InsecureSkipVerify: true}, "foreign certificate": foreign} {
			raw, err := c.net.Host(x.ip).Dial(t.Context(), "tcp", a.addresses().Raft)
			if err != nil {
				t.Fatal(err)
			}
			conn := tls.Client(raw, config)
			_, err = conn.Write([]byte("C\x00\x00\x00\x02{}"))
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
			}
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%s: got in: %v", name, err)
			}
			raw.Close()
		}
		// Who says nothing is hung up on.
		raw, err := c.net.Host(x.ip).Dial(t.Context(), "tcp", a.addresses().Raft)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		start := time.Now()
		if _, err := raw.Read(make([]byte, 1)); err == nil || time.Since(start) > 6*time.Second {
			t.Errorf("silent stranger: %v after %v", err, time.Since(start))
		}
		if p := a.m.Problems(); len(p) > 0 {
			t.Error(p)
		}
	})
}

// TestRemovedIsCutOff: a connection that is open ends when its member is
// removed.
func TestRemovedIsCutOff(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		raw, err := c.net.Host(nodes[2].ip).Dial(t.Context(), "tcp", nodes[0].addresses().Raft)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		conn := tls.Client(raw, nodes[2].m.ClientTLS("a"))
		if _, err := conn.Write([]byte("R")); err != nil {
			t.Fatal(err)
		}
		if _, err := nodes[1].m.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("still open: %v", err)
		}
	})
}
