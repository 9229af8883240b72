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
	"chainmail/membership/ring"
)

// awaitRemoved waits, by Changed alone, until a node knows that it was removed.
func awaitRemoved(t *testing.T, n *testNode, within time.Duration) {
	t.Helper()
	deadline := time.After(within)
	for {
		changed := n.m.Changed()
		if n.m.Removed() {
			break
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s does not learn within %v that it was removed: %v", n.name, within, n.m.Problems())
		}
	}
	if p := strings.Join(n.m.Problems(), "\n"); !strings.Contains(p, n.name+" is no longer a member") || !strings.Contains(p, "join-node") {
		t.Errorf("problems: %s", p)
	}
}

// TestRemovedWhileDown: a node that comes back learns that it was removed
// meanwhile, from its peers; what it is told is not on its disk.
func TestRemovedWhileDown(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		a, b, gone := nodes[0], nodes[1], nodes[2]
		gone.kill()
		c.eventually(10*time.Second, "the death is noticed", func() bool { return !a.m.Alive("c") })
		if _, err := a.m.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			gone.start()
			awaitRemoved(t, gone, time.Second)
			if _, still := gone.m.View().Member("c"); !still {
				t.Error("the test is of a node whose view is old")
			}
			time.Sleep(time.Minute)
			if !gone.m.Removed() || a.m.Removed() || b.m.Removed() {
				t.Errorf("removed: a %v, b %v, c %v", a.m.Removed(), b.m.Removed(), gone.m.Removed())
			}
			gone.stop()
		}
		gone.join(a)
		c.settled(3)
		time.Sleep(time.Minute)
		if gone.m.Removed() || len(gone.m.Problems()) > 0 {
			t.Errorf("after it joined again: %v", gone.m.Problems())
		}
	})
}

// TestRemovedWhileCutOff: the same without a restart.
func TestRemovedWhileCutOff(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		gone := nodes[2]
		for _, n := range nodes[:2] {
			c.net.Cut(gone.ip, n.ip)
		}
		c.eventually(30*time.Second, "the others have a leader", func() bool { return nodes[0].m.Quorum() && !nodes[0].m.Alive("c") })
		if _, err := nodes[0].m.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if gone.m.Removed() {
			t.Error("nobody can have told")
		}
		for _, n := range nodes[:2] {
			c.net.Heal(gone.ip, n.ip)
		}
		awaitRemoved(t, gone, 10*time.Second)
	})
}

// TestReplacedLearnsIt: who has the former disk of a member that was replaced.
func TestReplacedLearnsIt(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		a, b := nodes[0], nodes[1]
		w := c.node("w")
		w.role = ring.Witness
		w.join(a)
		c.settled(3)
		b.kill()
		c.eventually(10*time.Second, "b is dead", func() bool { return !a.m.Alive("b") && !w.m.Alive("b") })
		former := filepath.Join(c.dir, "former")
		if err := os.Rename(b.dir, former); err != nil {
			t.Fatal(err)
		}
		o := b.joinOptions(a, a.token())
		o.Replace = true
		if err := membership.Join(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		b.start()
		c.settled(3)
		ghost := c.node("ghost")
		ghost.name, ghost.dir = "b", former
		ghost.start()
		awaitRemoved(t, ghost, 5*time.Second)
		if b.m.Removed() {
			t.Error("the one that replaced it takes itself for removed")
		}
		delete(c.nodes, "ghost")
		ghost.stop()
		c.settled(3)
	})
}

// TestLeftBehindByRecover: two of three go on without the one that recovered,
// until they hear of it.
func TestLeftBehindByRecover(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		for _, n := range nodes {
			n.kill()
		}
		if _, err := membership.Recover(nodes[0].dir); err != nil {
			t.Fatal(err)
		}
		nodes[1].start()
		nodes[2].start()
		c.eventually(time.Minute, "b and c have a leader", nodes[1].m.Quorum)
		if nodes[1].m.Removed() || nodes[2].m.Removed() {
			t.Error("nobody can have told")
		}
		nodes[0].start()
		awaitRemoved(t, nodes[1], 10*time.Second)
		awaitRemoved(t, nodes[2], 10*time.Second)
		if nodes[0].m.Removed() {
			t.Error("the one that recovered believes those that are behind")
		}
	})
}

// TestRefusalByOneThatIsBehind: a member that does not know a newcomer yet
// refuses it, and the newcomer does not take itself for removed.
func TestRefusalByOneThatIsBehind(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		behind := nodes[2]
		for _, n := range nodes[:2] {
			c.net.Cut(behind.ip, n.ip)
		}
		c.eventually(30*time.Second, "the others have a leader", func() bool { return nodes[0].m.Quorum() && !nodes[0].m.Alive("c") })
		d := c.node("d")
		d.join(nodes[0])
		time.Sleep(time.Minute)
		if s := c.standing(d, behind); s.Member || s.Epoch >= d.m.View().Epoch {
			t.Errorf("the test is of a member that is behind: %+v", s)
		}
		if d.m.Removed() || len(d.m.Problems()) > 0 {
			t.Errorf("removed: %v", d.m.Problems())
		}
		for _, n := range nodes[:2] {
			c.net.Heal(behind.ip, n.ip)
		}
		c.settled(3)
		if d.m.Removed() {
			t.Error("removed")
		}
	})
}

// theirStanding is the answer as it travels.
type theirStanding struct {
	Cluster string     `json:"cluster"`
	Epoch   ring.Epoch `json:"epoch"`
	Member  bool       `json:"member"`
}

// askStanding asks a node how the one with these TLS settings stands with it.
func (c *cluster) askStanding(from, to *testNode, config *tls.Config) (s theirStanding, err error) {
	c.t.Helper()
	raw, err := c.net.Host(from.ip).Dial(c.t.Context(), "tcp", to.addresses().Raft)
	if err != nil {
		c.t.Fatal(err)
	}
	defer raw.Close()
	config.NextProtos = []string{"chainmail-standing/1"}
	b, err := io.ReadAll(tls.Client(raw, config))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(b[4:], &s)
}

func (c *cluster) standing(from, to *testNode) theirStanding {
	c.t.Helper()
	s, err := c.askStanding(from, to, from.m.ClientTLS(to.name))
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// TestStandingIsAllThatAStrangerHas: the question is answered to who has a
// certificate of the CA, and nothing else can be had by that way.
func TestStandingIsAllThatAStrangerHas(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		a, gone := nodes[0], nodes[2]
		if s := c.standing(gone, a); !s.Member || s.Cluster != a.m.Cluster() || s.Epoch != a.m.View().Epoch {
			t.Errorf("a member: %+v", s)
		}
		x := c.node("x")
		x.create()
		x.start()
		foreign := x.m.ClientTLS("x")
		foreign.VerifyConnection = nil
		for name, config := range map[string]*tls.Config{"no certificate": {InsecureSkipVerify: true}, "foreign certificate": foreign} {
			if s, err := c.askStanding(x, a, config); err == nil {
				t.Errorf("%s: answered %+v", name, s)
			}
		}
		x.stop()
		delete(c.nodes, "x")
		gone.kill()
		c.eventually(10*time.Second, "c is dead", func() bool { return !a.m.Alive("c") })
		if _, err := a.m.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		raw, err := c.net.Host(gone.ip).Dial(t.Context(), "tcp", a.addresses().Raft)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		config := gone.m.ClientTLS("a")
		config.NextProtos = []string{"chainmail-standing/1"}
		conn := tls.Client(raw, config)
		if _, err := conn.Write([]byte("C\x00\x00\x00\x02{}")); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		var s map[string]any
		if err := json.Unmarshal(b[4:], &s); err != nil || len(s) != 3 || s["member"] != false {
			t.Errorf("a removed one: %s, %v", b, err)
		}
	})
}

func drain(t *testing.T, n *testNode, s ring.State) {
	t.Helper()
	if _, err := n.m.SetState(t.Context(), n.name, s); err != nil {
		t.Fatal(err)
	}
}

// TestRemoveDrained: a node that left knows it, at once and after a restart,
// whether it led or not, and even if its Raft does not run.
func TestRemoveDrained(t *testing.T) {
	for _, which := range []string{"leader", "follower", "no Raft"} {
		t.Run(which, func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *cluster) {
				c.grow("a", "b", "c")
				n := c.leader()
				if which != "leader" {
					n = c.others(n)[0]
				}
				drain(t, n, ring.Active)
				drain(t, n, ring.Draining)
				if which == "no Raft" {
					n.stop()
					if err := os.WriteFile(filepath.Join(n.dir, "raft", "meta.json"), []byte("junk"), 0o600); err != nil {
						t.Fatal(err)
					}
					n.start()
					c.eventually(10*time.Second, "n is back", func() bool { return len(n.m.Problems()) > 0 && n.m.Alive(c.others(n)[0].name) })
				}
				start := time.Now()
				e, err := n.m.RemoveDrained(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("took %v", took)
				}
				disk, err := membership.ReadView(n.dir)
				if err != nil {
					t.Fatal(err)
				}
				for what, v := range map[string]ring.View{"view": n.m.View(), "disk": disk} {
					if _, still := v.Member(n.name); still || v.Epoch < e || len(v.Members) != 2 {
						t.Errorf("%s: %+v", what, v)
					}
				}
				if !n.m.Removed() {
					t.Error("it does not say that it left")
				}
				n.stop()
				n.start()
				if !n.m.Removed() {
					t.Error("a restart forgets it")
				}
				n.stop()
				c.settled(2)
			})
		})
	}
}

// TestDrainCalledOff: it wins, whatever the node itself believes.
func TestDrainCalledOff(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.grow("a", "b", "c")
		leader := c.leader()
		for _, n := range []*testNode{leader, c.others(leader)[0]} {
			drain(t, n, ring.Active)
			drain(t, n, ring.Draining)
			drain(t, n, ring.Active)
			_, err := n.m.RemoveDrained(t.Context())
			refused(t, err, membership.ErrRefused, n.name+" is active: it stays, because its drain was called off")
			if c.leader() != leader {
				t.Error("the lead moved for nothing")
			}
			c.settled(3)
			if m, ok := n.m.View().Member(n.name); !ok || m.State != ring.Active || n.m.Removed() {
				t.Errorf("%+v", n.m.View())
			}
		}
	})
}

// TestRemoveItself: the plain removal leaves the same traces.
func TestRemoveItself(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		n := c.grow("a", "b")[1]
		if _, err := n.m.Remove(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		disk, err := membership.ReadView(n.dir)
		if err != nil || slices.Contains(disk.Ring(), "b") || slices.Contains(n.m.View().Ring(), "b") || !n.m.Removed() {
			t.Errorf("%v, on disk %v, removed %v, %v", n.m.View().Ring(), disk.Ring(), n.m.Removed(), err)
		}
		n.stop()
		c.settled(1)
	})
}

// TestPortInUse: Open says what to do, and gives back what it took.
func TestPortInUse(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a")
		a.create()
		for port, flag := range map[string]string{"7946": "--gossip", "7947": "--raft"} {
			other, err := c.net.listen(a.ip, a.ip+":"+port)
			if err != nil {
				t.Fatal(err)
			}
			m, err := membership.Open(a.options())
			if err == nil || m != nil || !strings.Contains(err.Error(), "choose another address with "+flag) || errors.Is(err, membership.ErrInUse) {
				t.Errorf("%s: %v, %v", port, m, err)
			}
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
			if m, err = membership.Open(a.options()); err != nil {
				t.Fatalf("after %s was free again: %v", port, err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
