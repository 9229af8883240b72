package membership_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chainmail/membership"
	"chainmail/membership/ring"
	"chainmail/node/api"
)

// inBubble runs a test of a cluster in virtual time.
func inBubble(t *testing.T, f func(t *testing.T, c *cluster)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.stopAll()
		f(t, c)
	})
}

func copies(n int) api.PolicyChange { return api.PolicyChange{Copies: &n} }

func TestOneNode(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a")
		a.create()
		a.start()
		if v := a.m.View(); v.Epoch != 1 || len(v.Members) != 1 || v.Members[0].State != ring.Active || !a.m.Alive("a") {
			t.Errorf("first view: %+v", v)
		}
		c.settled(1)
		e, err := a.m.SetPolicies(t.Context(), copies(1))
		if err != nil || e != 2 || a.m.View().Policies.Copies != 1 {
			t.Fatalf("epoch %d, %v, %+v", e, err, a.m.View())
		}
		a.stop()
		a.start()
		if v := a.m.View(); v.Epoch != 2 || v.Policies.Copies != 1 {
			t.Errorf("after a restart: %+v", v)
		}
		if e, err := a.m.SetPolicies(t.Context(), copies(3)); err != nil || e != 3 {
			t.Errorf("change right after a restart: epoch %d, %v", e, err)
		}
	})
}

func TestGrowToSix(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		for i, name := range []string{"a", "b", "c", "d", "e", "f"} {
			n := c.node(name)
			if i == 0 {
				n.create()
				n.start()
			} else {
				n.join(c.others()[i-1]) // by the one that joined last, which does not lead
				if m, _ := n.m.View().Member(name); m.State != ring.Joining {
					t.Errorf("%s is %s", name, m.State)
				}
			}
			c.settled([]int{1, 2, 3, 3, 5, 5}[i])
		}
		if got := strings.Join(c.nodes["d"].m.View().Ring(), ""); got != "abcdef" {
			t.Errorf("ring %v", got)
		}
		for _, n := range c.others() {
			c.eventually(5*time.Second, n.name+" hears what c says of itself", func() bool {
				l := n.m.Liveness("c")
				return l.Version == "1" && l.Epoch == n.m.View().Epoch && !l.Since.IsZero()
			})
		}
	})
}

// TestChangesFromEveryMember: whoever is asked, the leader makes the change,
// and who asked sees it.
func TestChangesFromEveryMember(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.grow("a", "b", "c")
		for i, n := range c.others() {
			c.settled(3)
			before := n.m.View().Epoch
			e, err := n.m.SetPolicies(t.Context(), copies(3-i))
			if err != nil || e != before+1 || n.m.View().Epoch != e || n.m.View().Policies.Copies != 3-i {
				t.Errorf("%s: epoch %d → %d, %v, copies %d", n.name, before, e, err, n.m.View().Policies.Copies)
			}
			if e2, err := n.m.SetPolicies(t.Context(), copies(3-i)); err != nil || e2 != e {
				t.Errorf("%s: the same again: epoch %d → %d, %v", n.name, e, e2, err)
			}
		}
		if _, err := c.nodes["c"].m.Move(t.Context(), "a", "b"); err != nil {
			t.Error(err)
		}
		c.settled(3)
		if got := strings.Join(c.nodes["b"].m.View().Ring(), ""); got != "bac" {
			t.Errorf("ring %v", got)
		}
	})
}

func TestLeaderDies(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.grow("a", "b", "c")
		dead := c.leader()
		dead.kill()
		for _, n := range c.others() {
			took := c.eventually(10*time.Second, "death noticed", func() bool { return !n.m.Alive(dead.name) })
			if took > 4500*time.Millisecond {
				t.Errorf("%s noticed the death after %v", n.name, took)
			}
		}
		c.settled(3) // nobody can take the dead one's vote
		asked := c.others()[0]
		if _, err := asked.m.SetPolicies(t.Context(), copies(1)); err != nil {
			t.Error(err)
		}
		dead.start()
		if !dead.m.Alive(dead.name) {
			t.Error("a node does not take itself for alive")
		}
		c.settled(3)
		if dead.m.View().Policies.Copies != 1 {
			t.Error("the dead one did not learn what it missed")
		}
	})
}

// TestChangeWhileTheLeaderDies: a change that is asked for in the seconds
// without a leader waits for the next one.
func TestChangeWhileTheLeaderDies(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.grow("a", "b", "c")
		dead := c.leader()
		dead.kill()
		if _, err := c.others()[0].m.SetPolicies(t.Context(), copies(1)); err != nil {
			t.Error(err)
		}
	})
}

// TestPoliteStop: the others know at once, and the lead is handed over.
func TestPoliteStop(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.grow("a", "b", "c")
		gone := c.leader()
		gone.stop()
		other := c.others()[0]
		if took := c.eventually(time.Second, "the stop noticed", func() bool { return !other.m.Alive(gone.name) }); took > 500*time.Millisecond {
			t.Errorf("noticed after %v", took)
		}
		if took := c.eventually(5*time.Second, "another leader", other.m.Quorum); took > 500*time.Millisecond {
			t.Errorf("no leader for %v", took)
		}
	})
}

// TestTwoNodesOneDead is the commonest cluster. Without a quorum nothing can be
// changed, and all else works.
func TestTwoNodesOneDead(t *testing.T) {
	for _, which := range []string{"leader", "follower"} {
		t.Run(which+" dies", func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *cluster) {
				c.grow("a", "b")
				dead := c.leader()
				if which == "follower" {
					dead = c.others(dead)[0]
				}
				left := c.others(dead)[0]
				dead.kill()
				c.eventually(5*time.Second, "death noticed", func() bool { return !left.m.Alive(dead.name) })
				start := time.Now()
				_, err := left.m.SetPolicies(t.Context(), copies(1))
				if took := time.Since(start); !errors.Is(err, membership.ErrNoQuorum) || took > 3*time.Second {
					t.Fatalf("after %v: %v", took, err)
				}
				want := "no leader: a change needs a majority of the voters; alive: " + left.name + "; missing: " + dead.name +
					"; mail flows all the same. Start the missing ones; if they will never come back, see 'chainmail recover --i-lost-the-quorum'"
				if got, _, _ := strings.Cut(err.Error(), ". The change was handed over"); got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				if left.m.Quorum() || left.m.Leader() != "" || len(left.m.Voters()) != 2 || len(left.m.View().Members) != 2 || !left.m.Alive(left.name) {
					t.Errorf("left alone: leader %q, voters %v", left.m.Leader(), left.m.Voters())
				}
				// The same from a cold start.
				left.stop()
				left.start()
				if v := left.m.View(); len(v.Members) != 2 || left.m.Alive(dead.name) || !left.m.Alive(left.name) {
					t.Errorf("after a restart: %+v", v)
				}
				time.Sleep(time.Minute)
				dead.start()
				c.settled(2)
				if _, err := left.m.SetPolicies(t.Context(), copies(1)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestWitnessGivesQuorum: with a witness, two nodes can lose one and still be
// changed.
func TestWitnessGivesQuorum(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		w := c.node("w")
		w.role = ring.Witness
		w.join(nodes[1])
		c.settled(3)
		m, _ := w.m.View().Member("w")
		if m.Role != ring.Witness || m.State != ring.Active || m.Addresses.SMTP != "" || w.m.Role() != ring.Witness || slices.Contains(w.m.View().Ring(), "w") {
			t.Errorf("witness: %+v", m)
		}
		nodes[1].kill()
		c.settled(3)
		if _, err := nodes[0].m.SetPolicies(t.Context(), copies(1)); err != nil {
			t.Error(err)
		}
		for _, refused := range []func() (ring.Epoch, error){
			func() (ring.Epoch, error) { return w.m.SetState(t.Context(), "w", ring.Draining) },
			func() (ring.Epoch, error) { return w.m.Move(t.Context(), "w", "a") },
		} {
			if _, err := refused(); !errors.Is(err, membership.ErrRefused) {
				t.Errorf("a witness drained or moved: %v", err)
			}
		}
		if _, err := nodes[0].m.Remove(t.Context(), "w"); err != nil {
			t.Error(err)
		}
	})
}

// TestDeadVoterGivesItsVoteUp: but only to somebody who can use it.
func TestDeadVoterGivesItsVoteUp(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c", "d")
		voters := nodes[0].m.Voters()
		i := slices.IndexFunc(nodes, func(n *testNode) bool { return n != c.leader() && slices.Contains(voters, n.name) })
		dead := nodes[i]
		dead.kill()
		left := c.others()[0]
		c.eventually(time.Minute, "the vote moves", func() bool {
			v := left.m.Voters()
			return len(v) == 3 && !slices.Contains(v, dead.name)
		})
		if len(left.m.View().Members) != 4 {
			t.Error("a dead member was removed")
		}
	})
}

func TestRestartOfAll(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		epoch := nodes[0].m.View().Epoch
		for _, n := range nodes {
			n.kill()
		}
		time.Sleep(time.Hour)
		for _, n := range nodes {
			n.start()
			if n.m.View().Epoch != epoch {
				t.Errorf("%s starts with epoch %d", n.name, n.m.View().Epoch)
			}
		}
		c.settled(3)
	})
}

// TestPartition: the smaller part cannot change anything, the larger one can,
// and the smaller one learns of it later.
func TestPartition(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.grow("a", "b", "c")
		alone := c.leader()
		rest := c.others(alone)
		for _, n := range rest {
			c.net.Cut(alone.ip, n.ip)
		}
		c.eventually(20*time.Second, "the larger part has a leader", func() bool { return rest[0].m.Quorum() && !alone.m.Quorum() })
		if _, err := rest[0].m.SetPolicies(t.Context(), copies(1)); err != nil {
			t.Error(err)
		}
		if _, err := alone.m.SetPolicies(t.Context(), copies(3)); !errors.Is(err, membership.ErrNoQuorum) {
			t.Errorf("the smaller part: %v", err)
		}
		time.Sleep(time.Minute)
		for _, n := range rest {
			c.net.Heal(alone.ip, n.ip)
		}
		c.settled(3)
		if got := alone.m.View().Policies.Copies; got != 1 {
			t.Errorf("copies %d", got)
		}
	})
}

// TestMovedNode: a node that comes back under another address says so, and is
// found by those that only know its old one.
func TestMovedNode(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		moved := nodes[2]
		moved.stop()
		c.settled(3)
		moved.ip = "10.0.0.99"
		moved.start()
		c.settled(3)
		c.eventually(30*time.Second, "the view has the new addresses", func() bool {
			m, _ := nodes[0].m.View().Member("c")
			return m.Addresses == moved.addresses()
		})
	})
}

// TestHostNames: addresses may be names, whose addresses change.
func TestHostNames(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		c.net.change(func() { c.net.names["a.example"], c.net.names["b.example"] = "10.0.0.1", "10.0.0.2" })
		for _, n := range nodes {
			named := n.addresses()
			named.Gossip, named.Raft = n.name+".example:7946", n.name+".example:7947"
			n.stop()
			o := n.options()
			o.Advertise = named
			m, err := membership.Open(o)
			if err != nil {
				t.Fatal(err)
			}
			n.run(m)
			c.settled(2)
			c.eventually(30*time.Second, "the view has the names", func() bool {
				x, _ := n.m.View().Member(n.name)
				return x.Addresses == named
			})
		}
		time.Sleep(time.Minute)
		c.settled(2)
		// b's machine gets another address; its name stays.
		b := nodes[1]
		b.stop()
		b.ip = "10.0.0.98"
		c.net.change(func() { c.net.names["b.example"] = b.ip })
		o := b.options()
		o.Advertise = ring.Addresses{} // as the view says
		m, err := membership.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		b.run(m)
		c.settled(2)
	})
}

// TestDamagedLog: Raft is lost, and nothing else. Changes go by the others.
func TestDamagedLog(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		b := nodes[1]
		b.stop()
		if err := os.WriteFile(filepath.Join(b.dir, "raft", "meta.json"), []byte(`{"crc32c":1,"content":{}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		b.start()
		c.eventually(10*time.Second, "the problem shows", func() bool { return len(b.m.Problems()) == 1 })
		if p := b.m.Problems()[0]; !strings.Contains(p, "mail flows") || !strings.Contains(p, "join-node --replace") {
			t.Errorf("problem: %s", p)
		}
		c.eventually(10*time.Second, "b is alive and sees the others", func() bool {
			return nodes[0].m.Alive("b") && b.m.Alive("a") && b.m.Alive("c")
		})
		if _, err := b.m.SetPolicies(t.Context(), copies(1)); err != nil {
			t.Error(err)
		}
		if got := nodes[2].m.View().Policies.Copies; got != 1 {
			t.Errorf("copies %d", got)
		}
	})
}

// TestDiskFails: where Raft would panic because it cannot write, the node
// stays, says so, and comes back when the disk does.
func TestDiskFails(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.grow("a", "b", "c")
		leader := c.leader()
		b := c.others(leader)[0]
		raft := filepath.Join(b.dir, "raft")
		if err := os.Rename(raft, raft+".away"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(raft, nil, 0o600); err != nil { // so that nothing can be made there
			t.Fatal(err)
		}
		leader.kill() // an election makes b write its vote
		c.eventually(time.Minute, "the problem shows", func() bool { return len(b.m.Problems()) > 0 })
		if !b.m.Alive(b.name) || len(b.m.View().Members) != 3 {
			t.Error("the view is lost")
		}
		if err := errors.Join(os.Remove(raft), os.Rename(raft+".away", raft)); err != nil {
			t.Fatal(err)
		}
		leader.start()
		c.settled(3)
		if p := b.m.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
	})
}

func TestInUse(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.grow("a")[0]
		if _, err := membership.Open(a.options()); !errors.Is(err, membership.ErrInUse) {
			t.Errorf("opened twice: %v", err)
		}
		if _, err := membership.Recover(a.dir); !errors.Is(err, membership.ErrInUse) {
			t.Errorf("recovered while it runs: %v", err)
		}
		if err := membership.Create(a.dir, membership.CreateOptions{Name: "a"}); !errors.Is(err, membership.ErrExists) {
			t.Errorf("created again: %v", err)
		}
		none := filepath.Join(c.dir, "none")
		o := a.options()
		o.Dir = none
		if _, err := membership.Open(o); !errors.Is(err, membership.ErrNoCluster) || membership.Exists(none) {
			t.Errorf("opened nothing: %v", err)
		}
		if _, err := membership.Recover(none); !errors.Is(err, membership.ErrNoCluster) {
			t.Errorf("recovered nothing: %v", err)
		}
	})
}

// TestNeverRun: what was opened and never run gives everything back.
func TestNeverRun(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a")
		a.create()
		for range 2 {
			m, err := membership.Open(a.options())
			if err != nil {
				t.Fatal(err)
			}
			if g, r := m.Addrs(); g != "10.0.0.1:7946" || r != "10.0.0.1:7947" {
				t.Errorf("bound to %s and %s", g, r)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestMetrics(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a")
		a.create()
		registry := prometheus.NewPedanticRegistry()
		o := a.options()
		o.Registerer = registry
		m, err := membership.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		a.run(m)
		c.settled(1)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			if len(f.GetHelp()) < 20 {
				t.Errorf("%s has no help for people", f.GetName())
			}
			got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
		}
		for name, want := range map[string]float64{
			"chainmail_cluster_epoch": 1, "chainmail_cluster_members": 1, "chainmail_cluster_member_alive": 1, "chainmail_cluster_member_voter": 1,
			"chainmail_cluster_leader": 1, "chainmail_cluster_quorum": 1, "chainmail_cluster_problems": 0, "chainmail_cluster_rotating_keys": 0,
		} {
			if v, ok := got[name]; !ok || v != want {
				t.Errorf("%s = %v, want %v", name, v, want)
			}
		}
	})
}
