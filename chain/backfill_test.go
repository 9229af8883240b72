package chain_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"chainmail/archive/record"
	"chainmail/chain"
	"chainmail/membership/ring"
)

// fill gives a node mail while nobody else runs.
func (n *node) fill(count, size int) {
	n.archive.syncTime = 0
	for i := range count {
		body := fmt.Sprint(n.name, i, " ")
		n.archive.add([]byte(body + strings.Repeat("x", max(0, size-len(body)))))
	}
	n.archive.syncTime = time.Millisecond
}

func TestBackfillRate(t *testing.T) {
	p := policies(1, 3)
	p.BackfillRate = 1 << 20
	inCluster(t, "a b", p, func(t *testing.T, c *cluster) {
		c.nodes["b"].kill()
		c.nodes["a"].fill(1000, 64<<10)
		c.start("b")
		c.linked()
		begin := time.Now()
		for i := range 100 { // new mail is not bound
			before := time.Now()
			c.change(func(v *ring.View) { v.Policies.Copies = 2 })
			if _, copies, _ := c.nodes["a"].accept(fmt.Sprint("new ", i)); copies != 2 || time.Since(before) > 50*time.Millisecond {
				t.Fatalf("copies %d after %v", copies, time.Since(before))
			}
			time.Sleep(100 * time.Millisecond)
		}
		c.within(2*time.Minute, "all history", c.holds("b", storeOf(1), 1, 1100))
		if took := time.Since(begin); took < 55*time.Second || took > 75*time.Second {
			t.Errorf("64 MiB at 1 MiB/s took %v", took)
		}
		if l := c.nodes["a"].peer("b").Link; l.ByteRate > 2<<20 || l.Receipts != 1100 {
			t.Errorf("link: %+v", l)
		}
	})
}

// What was there before a node started is not taken for mail that is on its
// way, however short the node has been running.
func TestHistoryIsNoNews(t *testing.T) {
	p := policies(1, 3)
	p.BackfillRate = 64 << 10
	inCluster(t, "a b", p, func(t *testing.T, c *cluster) {
		c.nodes["b"].kill()
		c.nodes["a"].fill(1000, 64<<10)
		c.start("b")
		c.linked()
		time.Sleep(100 * time.Millisecond)
		if own := c.nodes["b"].chain.Status().Backlog; own == nil || own.Receipts-own.InFlight < 900 {
			t.Errorf("backlog of a node that just started: %+v", own)
		}
	})
}

// While one node sends the history, the standby sees that and keeps quiet.
func TestHistoryComesOnce(t *testing.T) {
	p := policies(1, 3)
	p.BackfillRate = 1 << 20
	inCluster(t, "a b c", p, func(t *testing.T, c *cluster) {
		c.nodes["b"].kill()
		c.nodes["a"].fill(1000, 64<<10)
		c.within(2*time.Minute, "c has it", c.holds("c", storeOf(1), 1, 1000))
		c.start("b")
		c.linked()
		c.within(2*time.Minute, "b has it", c.holds("b", storeOf(1), 1, 1000))
		if n := c.nodes["b"].archive.twice; n > 100 {
			t.Errorf("%d of 1000 receipts came twice", n)
		}
		if n := c.nodes["c"].peer("b").Link.Receipts; n > 100 {
			t.Errorf("c sent %d", n)
		}
	})
}

// What the first feeder cannot read, another one sends.
func TestStandbyFillsHoles(t *testing.T) {
	inCluster(t, "a b c", policies(1, 3), func(t *testing.T, c *cluster) {
		c.linked()
		c.nodes["b"].kill()
		c.nodes["a"].fill(100, 1000)
		c.within(time.Minute, "c has it", c.holds("c", storeOf(1), 1, 100))
		time.Sleep(2 * time.Second)
		bad := record.Position{Store: storeOf(1), Seq: 50}
		c.nodes["a"].archive.rot(bad)
		c.nodes["a"].damaged = c.nodes["a"].archive.damage // the check that is asked for finds it
		c.start("b")
		c.within(20*time.Second, "b has all", c.holds("b", storeOf(1), 1, 100))
		c.within(10*time.Second, "a is repaired", c.holds("a", storeOf(1), 1, 100))
	})
}

// A receiver that does not hold a body, although it holds the receipt that
// came with it, gets it with the next one.
func TestBodyIsSentWhenItIsNeeded(t *testing.T) {
	inCluster(t, "a b", policies(2, 2), func(t *testing.T, c *cluster) {
		c.linked()
		a, b := c.nodes["a"], c.nodes["b"]
		a.accept("the same")
		b.archive.forgetBodies()
		if _, copies, short := a.accept("the same"); copies != 2 || short {
			t.Errorf("copies %d, short %v", copies, short)
		}
		if b.archive.bodiesIn != 2 {
			t.Errorf("%d bodies came", b.archive.bodiesIn)
		}
	})
}

// One receipt that the peer refuses as damaged holds up no other.
func TestPeerRejectsOneReceipt(t *testing.T) {
	inCluster(t, "a b", policies(1, 2), func(t *testing.T, c *cluster) {
		c.nodes["b"].kill()
		a := c.nodes["a"]
		a.fill(100, 1000)
		a.archive.forge(7)
		a.archive.forge(100)
		c.start("b")
		c.within(20*time.Second, "all others", func() bool { return c.nodes["b"].archive.held(storeOf(1)).String() == "1-6,8-99" })
		for _, seq := range []record.Seq{7, 100} {
			if why := a.peer("b").Rejected[record.Position{Store: storeOf(1), Seq: seq}]; !strings.Contains(why, "554 5.6.0") {
				t.Errorf("%d: %q", seq, why)
			}
		}
		if l := a.peer("b").Link; !l.Live {
			t.Errorf("link: %+v", l)
		}
	})
}

// New mail that piles up beyond any liveness becomes history, oldest first.
func TestPileOfNewMail(t *testing.T) {
	inCluster(t, "a b", policies(1, 2), func(t *testing.T, c *cluster) {
		c.linked()
		c.nodes["b"].archive.syncTime = 50 * time.Millisecond
		c.nodes["a"].fill(20_000, 100)
		c.within(time.Minute, "all", c.holds("b", storeOf(1), 1, 20_000))
		if n := c.nodes["b"].archive.twice; n > 0 {
			t.Errorf("%d came twice", n)
		}
	})
}

// Whatever happens to links and nodes, what a node believes of another never
// exceeds what that one holds, and in the end all hold all.
func TestChaos(t *testing.T) {
	for seed := range uint64(4) {
		inCluster(t, "a b c", policies(2, 3), func(t *testing.T, c *cluster) {
			r := rand.New(rand.NewPCG(seed, 1))
			names := []string{"a", "b", "c"}
			pick := func() *node { return c.nodes[names[r.IntN(3)]] }
			for range 300 {
				n := pick()
				switch x := r.IntN(20); {
				case x < 12:
					if n.cancel != nil {
						n.archive.add(fmt.Append(nil, "mail ", r.IntN(50)))
					}
				case x == 12 && n.cancel != nil:
					n.kill()
				case x == 13 && n.cancel == nil:
					c.start(n.name)
				case x == 14:
					if other := pick(); other != n {
						c.net.silence(n.name, other.name, r.IntN(2) == 0)
					}
				case x == 15:
					if l := n.archive.held(storeOf(1 + r.IntN(3))); l.Count() > 0 {
						for i, s := range []record.StoreID{storeOf(1), storeOf(2), storeOf(3)} {
							seq := n.archive.held(s).Last()
							// Damage is repaired as long as another copy exists.
							if seq > 0 && names[i] != n.name && c.holds(strings.Join(names, " "), s, seq, seq)() {
								n.archive.damage(record.Position{Store: s, Seq: seq})
								break
							}
						}
					}
				case x == 16:
					n.archive.refuse(nil, map[bool]error{true: chain.ErrBusy}[r.IntN(2) == 0])
				default:
					time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
				}
				c.beliefs()
			}
			for i, name := range names {
				c.net.silence(name, names[(i+1)%3], false)
				c.nodes[name].archive.refuse(nil, nil)
				if c.nodes[name].cancel == nil {
					c.start(name)
				}
			}
			c.within(2*time.Minute, "all hold all", func() bool {
				for i, name := range names {
					s := storeOf(i + 1)
					if !c.holds("a b c", s, 1, c.nodes[name].archive.last(s))() {
						return false
					}
				}
				return true
			})
			c.within(5*time.Second, "and say so", func() bool {
				for _, n := range c.nodes {
					s := n.chain.Status()
					if s.ShortNow != 0 || s.Backlog == nil || s.Backlog.Receipts != 0 {
						return false
					}
				}
				return true
			})
		})
	}
}

// beliefs checks that no living node believes more of another than that one
// has on disk. Damage is believed in until it is told; so it is left out.
func (c *cluster) beliefs() {
	c.t.Helper()
	for _, n := range c.nodes {
		if n.cancel == nil {
			continue
		}
		for _, p := range n.chain.Status().Peers {
			for _, l := range p.Logs {
				if more := l.Held.Minus(c.nodes[p.Name].archive.everHeld(l.Store)); len(more) > 0 {
					c.t.Fatalf("%s believes that %s holds %v of %v", n.name, p.Name, more, l.Store)
				}
			}
		}
	}
}
