package chain_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/archive/record"
	"chainmail/chain"
	"chainmail/membership/ring"
)

func TestMailGoesAroundTheRing(t *testing.T) {
	inCluster(t, "a b c", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		a := c.nodes["a"]
		begin := time.Now()
		_, copies, short := a.accept("first mail")
		if copies != 2 || short {
			t.Errorf("copies %d, short %v", copies, short)
		}
		if took := time.Since(begin); took > 10*time.Millisecond {
			t.Errorf("an idle cluster took %v for two syncs", took)
		}
		c.within(time.Second, "all hold it", c.holds("a b c", storeOf(1), 1, 1))
		for range 20 {
			a.accept("more")
		}
		c.within(time.Second, "all hold it", c.holds("a b c", storeOf(1), 1, 21))
		time.Sleep(10 * time.Second) // standbys have had their time
		for name, n := range c.nodes {
			if n.archive.twice > 0 {
				t.Errorf("%s got %d receipts twice", name, n.archive.twice)
			}
		}
		// The body of the twenty is the same: it came once.
		if got := c.nodes["c"].archive.bodiesIn; got != 2 {
			t.Errorf("%d bodies came for 2 different ones", got)
		}
		if sent := a.peer("c").Link.Receipts; sent != 0 {
			t.Errorf("a sent %d receipts to c, which b feeds", sent)
		}
	})
}

func TestBothNodesOfTwo(t *testing.T) {
	inCluster(t, "a b", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		for _, dead := range []string{"b", "a"} {
			alive := map[string]string{"a": "b", "b": "a"}[dead]
			n := c.nodes[alive]
			if _, copies, short := n.accept("both are there"); copies != 2 || short {
				t.Errorf("copies %d, short %v", copies, short)
			}
			c.nodes[dead].kill()
			c.within(time.Second, "a refused connection is noticed", func() bool { return !n.peer(dead).Link.Live })
			begin := time.Now()
			for i := range 100 {
				if _, copies, short := n.accept(fmt.Sprint("alone ", dead, i)); copies != 1 || !short {
					t.Fatalf("copies %d, short %v", copies, short)
				}
			}
			if took := time.Since(begin); took > 200*time.Millisecond {
				t.Errorf("100 mails waited %v for a node that is known to be dead", took)
			}
			time.Sleep(10 * time.Minute)
			if b := n.peer(dead).Backlog; b == nil || b.Receipts != 100 || b.Bytes == nil || *b.Bytes == 0 || b.Oldest == nil || time.Since(*b.Oldest) < 9*time.Minute {
				t.Errorf("backlog of the dead: %+v", b)
			}
			if s := n.chain.Status(); s.ShortNow != 100 {
				t.Errorf("short now: %d", s.ShortNow)
			}
			c.start(dead)
			c.within(7*time.Second, "it has all", func() bool {
				return c.nodes[dead].archive.held(n.archive.store).Count() == n.archive.held(n.archive.store).Count()
			})
			c.within(3*time.Second, "and it is seen", func() bool {
				b, s := n.peer(dead).Backlog, n.chain.Status()
				return b.Receipts == 0 && *b.Bytes == 0 && s.ShortNow == 0
			})
			c.linked()
		}
	})
}

func TestDeadNodeIsRoutedAround(t *testing.T) {
	inCluster(t, "a b c d", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		a := c.nodes["a"]
		a.accept("one")
		c.within(time.Second, "a b c", c.holds("a b c", storeOf(1), 1, 1))
		if got := c.nodes["d"].archive.held(storeOf(1)); len(got) > 0 {
			t.Errorf("d keeps no log of a, but holds %v", got)
		}
		c.nodes["b"].kill()
		begin := time.Now()
		if _, copies, short := a.accept("two"); copies != 2 || short {
			t.Errorf("copies %d, short %v", copies, short)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("refused connection: routed around after %v", took)
		}
		c.start("b")
		c.within(7*time.Second, "b is given what it missed", c.holds("a b c", storeOf(1), 1, 2))
	})
}

func TestSilentNodeIsRoutedAroundWithinFiveSeconds(t *testing.T) {
	inCluster(t, "a b c", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		c.net.silence("a", "b", true)
		c.net.silence("c", "b", true)
		begin := time.Now()
		// So much that all buffers on the way to b are full.
		c.nodes["a"].archive.add([]byte(strings.Repeat("much ", 600_000)))
		_, copies, short := c.nodes["a"].accept("who takes this?")
		took := time.Since(begin)
		if copies != 2 || short || took > 3500*time.Millisecond {
			t.Errorf("copies %d, short %v after %v", copies, short, took)
		}
		c.within(5*time.Second, "it is known", func() bool { return !c.nodes["a"].peer("b").Link.Live })
		begin = time.Now()
		c.nodes["a"].accept("the next one waits for nobody")
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("took %v", took)
		}
		c.net.silence("a", "b", false)
		c.net.silence("c", "b", false)
		c.within(15*time.Second, "b has both", c.holds("b", storeOf(1), 1, 3))
	})
}

func TestGossipKnowsFirst(t *testing.T) {
	inCluster(t, "a b c", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		c.net.silence("a", "b", true)
		c.net.silence("c", "b", true)
		c.gossip("b", false)
		time.Sleep(10 * time.Millisecond)
		begin := time.Now()
		if _, copies, short := c.nodes["a"].accept("mail"); copies != 2 || short || time.Since(begin) > 100*time.Millisecond {
			t.Errorf("copies %d, short %v after %v", copies, short, time.Since(begin))
		}
		c.net.silence("a", "b", false)
		c.net.silence("c", "b", false)
		c.gossip("b", true)
		c.within(7*time.Second, "b has it", c.holds("b", storeOf(1), 1, 1))
	})
}

// Gossip may be wrong: a node that answers the link is not dead.
func TestGossipIsWrong(t *testing.T) {
	inCluster(t, "a b", policies(2, 2), func(t *testing.T, c *cluster) {
		c.linked()
		c.gossip("b", false)
		c.within(time.Second, "b shows that it lives", func() bool { return c.nodes["a"].peer("b").Link.Live })
		if _, copies, _ := c.nodes["a"].accept("mail"); copies != 2 {
			t.Errorf("copies %d", copies)
		}
	})
}

func TestPartitionHealsBothWays(t *testing.T) {
	inCluster(t, "a b c", policies(1, 3), func(t *testing.T, c *cluster) {
		c.linked()
		c.net.silence("a", "b", true)
		c.net.silence("a", "c", true)
		for i := range 500 {
			for _, n := range c.nodes {
				n.accept(fmt.Sprint(n.name, i))
			}
		}
		time.Sleep(time.Minute)
		c.within(0, "b and c go on", c.holds("b c", storeOf(2), 1, 500))
		c.net.silence("a", "b", false)
		c.net.silence("a", "c", false)
		c.within(20*time.Second, "all hold all", func() bool {
			return c.holds("a b c", storeOf(1), 1, 500)() && c.holds("a b c", storeOf(2), 1, 500)() && c.holds("a b c", storeOf(3), 1, 500)()
		})
	})
}

func TestStandbyHealsPartialPartition(t *testing.T) {
	inCluster(t, "a b c", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		c.net.silence("b", "c", true) // both see a
		time.Sleep(10 * time.Second)
		for i := range 30 {
			if _, copies, short := c.nodes["a"].accept(fmt.Sprint(i)); copies != 2 || short {
				t.Errorf("copies %d, short %v", copies, short)
			}
			time.Sleep(100 * time.Millisecond)
		}
		took := c.within(15*time.Second, "c has all by a", c.holds("c", storeOf(1), 1, 30))
		t.Logf("after %v", took)
		if n := c.nodes["c"].archive.twice; n > 0 {
			t.Errorf("%d came twice", n)
		}
	})
}

func TestFullPeerIsRoutedAround(t *testing.T) {
	inCluster(t, "a b c", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		b := c.nodes["b"].archive
		b.refuse(chain.ErrFull, nil)
		if _, copies, short := c.nodes["a"].accept("mail"); copies != 2 || short {
			t.Errorf("copies %d, short %v", copies, short)
		}
		time.Sleep(3 * time.Second)
		if l := c.nodes["a"].peer("b").Link; l.Live || l.State != chain.StateRefused || !strings.Contains(l.Problem, "nearly full") {
			t.Errorf("link: %+v", l)
		}
		begin := time.Now()
		c.nodes["a"].accept("second")
		if time.Since(begin) > 100*time.Millisecond {
			t.Errorf("took %v", time.Since(begin))
		}
		b.refuse(nil, nil)
		c.within(10*time.Second, "b gets both", c.holds("b", storeOf(1), 1, 2))
		if l := c.nodes["a"].peer("b").Link; !l.Live || l.Problem != "" {
			t.Errorf("link: %+v", l)
		}
	})
}

// Busy for a moment is no reason to give mail with fewer copies.
func TestBusyPeerIsTriedAgain(t *testing.T) {
	inCluster(t, "a b", policies(2, 2), func(t *testing.T, c *cluster) {
		c.linked()
		b := c.nodes["b"].archive
		b.refuse(nil, chain.ErrBusy)
		time.AfterFunc(50*time.Millisecond, func() { b.refuse(nil, nil) })
		if _, copies, short := c.nodes["a"].accept("mail"); copies != 2 || short {
			t.Errorf("copies %d, short %v", copies, short)
		}
		b.refuse(nil, chain.ErrBusy)
		begin := time.Now()
		if _, copies, short := c.nodes["a"].accept("mail"); copies != 1 || !short || time.Since(begin) > 2*time.Second {
			t.Errorf("copies %d, short %v after %v", copies, short, time.Since(begin))
		}
		b.refuse(nil, nil)
		c.within(10*time.Second, "b gets it", c.holds("b", storeOf(1), 1, 2))
	})
}

func TestOwnDamageHoldsUpNobody(t *testing.T) {
	for _, size := range []int{1000, 3 << 20, 20 << 20} {
		inCluster(t, "a b c", policies(1, 3), func(t *testing.T, c *cluster) {
			c.nodes["b"].kill()
			c.nodes["c"].kill()
			a := c.nodes["a"]
			var rotten record.Position
			for i := range 10 {
				body := fmt.Sprint("mail ", i)
				if i == 4 {
					body = strings.Repeat("x", size)
				}
				p, _, _ := a.accept(body)
				if i == 4 {
					rotten = p
				}
			}
			a.archive.rot(rotten)
			c.start("b")
			c.within(20*time.Second, "all but one", func() bool {
				return c.nodes["b"].archive.held(storeOf(1)).String() == "1-4,6-10"
			})
			if why := a.peer("b").Rejected[rotten]; !strings.Contains(why, "corrupt") {
				t.Errorf("%v: %q", rotten, why)
			}
			if l := a.peer("b").Link; !l.Live {
				t.Errorf("link: %+v", l)
			}
		})
	}
}

// A copy that is found damaged is punched out of the holdings; so it is sent
// again, and the belief about it ends.
func TestDamagedCopyIsSentAgain(t *testing.T) {
	inCluster(t, "a b", policies(2, 2), func(t *testing.T, c *cluster) {
		c.linked()
		a, b := c.nodes["a"], c.nodes["b"]
		for i := range 5 {
			a.accept(fmt.Sprint(i))
		}
		b.archive.damage(record.Position{Store: storeOf(1), Seq: 3})
		if got := b.archive.held(storeOf(1)).String(); got != "1-2,4-5" {
			t.Fatal(got)
		}
		c.within(3*time.Second, "repaired", c.holds("b", storeOf(1), 1, 5))
		a.archive.damage(record.Position{Store: storeOf(1), Seq: 2})
		c.within(6*time.Second, "the origin as well", c.holds("a", storeOf(1), 1, 5))
	})
}

func TestEmptyDiskIsFilledAgain(t *testing.T) {
	inCluster(t, "a b c", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		for _, n := range c.nodes {
			for i := range 20 {
				n.accept(fmt.Sprint(n.name, i))
			}
		}
		b := c.nodes["b"]
		b.kill()
		b.archive = newFakeArchive("b", storeOf(9))
		c.change(func(v *ring.View) { v.Members[1].ID = "b-2" })
		synctest.Wait()
		if got := c.nodes["a"].peer("b"); got.Backlog != nil || got.Logs != nil {
			t.Errorf("copies on a lost disk are believed in: %+v", got)
		}
		c.start("b")
		c.within(10*time.Second, "b has all again, its old log as well", func() bool {
			return c.holds("b", storeOf(1), 1, 20)() && c.holds("b", storeOf(2), 1, 20)() && c.holds("b", storeOf(3), 1, 20)()
		})
		if l, _ := b.archive.Log(storeOf(2)); l.Origin != "b" {
			t.Errorf("origin of the old log: %q", l.Origin)
		}
	})
}

func TestLargeMailDoesNotBlockLive(t *testing.T) {
	inCluster(t, "a b", policies(2, 2), func(t *testing.T, c *cluster) {
		c.linked()
		a := c.nodes["a"]
		large := strings.Repeat("large ", 100<<20/6)
		var done sync.WaitGroup
		done.Go(func() {
			if _, copies, short := a.accept(large); copies != 2 || short {
				t.Errorf("large mail: copies %d, short %v", copies, short)
			}
		})
		for i := range 50 {
			begin := time.Now()
			if _, copies, short := a.accept(fmt.Sprint("small ", i)); copies != 2 || short || time.Since(begin) > 20*time.Millisecond {
				t.Errorf("small mail: copies %d, short %v after %v", copies, short, time.Since(begin))
			}
		}
		done.Wait()
	})
}

func TestThreeCopies(t *testing.T) {
	inCluster(t, "a b c", policies(3, 3), func(t *testing.T, c *cluster) {
		c.linked()
		time.Sleep(3 * time.Second)
		begin := time.Now()
		for i := range 10 {
			if _, copies, short := c.nodes["a"].accept(fmt.Sprint(i)); copies != 3 || short {
				t.Errorf("copies %d, short %v", copies, short)
			}
		}
		if took := time.Since(begin); took > 200*time.Millisecond {
			t.Errorf("10 mails took %v", took)
		}
		c.nodes["c"].kill()
		begin = time.Now()
		if _, copies, short := c.nodes["a"].accept("two only"); !short || time.Since(begin) > 100*time.Millisecond {
			t.Errorf("copies %d, short %v after %v", copies, short, time.Since(begin))
		}
		if s := c.nodes["a"].chain.Status(); s.ShortEver != 1 {
			t.Errorf("short ever: %d", s.ShortEver)
		}
	})
}

// A keeper that answers, but never gets around to the mail.
func TestAckTimeout(t *testing.T) {
	p := policies(2, 2)
	p.AckTimeout = time.Second
	inCluster(t, "a b", p, func(t *testing.T, c *cluster) {
		c.linked()
		c.nodes["b"].archive.syncTime = 1500 * time.Millisecond
		begin := time.Now()
		_, copies, short := c.nodes["a"].accept("mail")
		if took := time.Since(begin); copies != 1 || !short || took < time.Second || took > time.Second+10*time.Millisecond {
			t.Errorf("copies %d, short %v after %v", copies, short, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, short := c.nodes["a"].chain.Wait(ctx, c.nodes["a"].archive.add([]byte("client gone"))); !short {
			t.Error("the end of the context is no copy")
		}
		time.Sleep(10 * time.Second)
	})
}

func TestThousandSessionsShareContainers(t *testing.T) {
	inCluster(t, "a b", policies(2, 2), func(t *testing.T, c *cluster) {
		c.linked()
		a := c.nodes["a"]
		var sessions sync.WaitGroup
		for i := range 1000 {
			sessions.Go(func() {
				if _, copies, short := a.accept(fmt.Sprint(i)); copies != 2 || short {
					t.Errorf("copies %d, short %v", copies, short)
				}
			})
		}
		sessions.Wait()
		if n := c.nodes["b"].archive.intakes; n > 50 {
			t.Errorf("%d containers for 1000 mails", n)
		}
		if s := a.chain.Status(); s.Waiting != 0 {
			t.Errorf("%d wait", s.Waiting)
		}
	})
}

func TestFewerReplicasThanNodes(t *testing.T) {
	inCluster(t, "a b c d e", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		for _, n := range c.nodes {
			for i := range 10 {
				n.accept(fmt.Sprint(n.name, i))
			}
		}
		order := []string{"a", "b", "c", "d", "e"}
		time.Sleep(5 * time.Second)
		for i := range order {
			for k := range order {
				held := c.nodes[order[(i+k)%5]].archive.held(storeOf(i + 1)).Count()
				if want := map[bool]uint64{true: 10}[k < 3]; held != want {
					t.Errorf("%s holds %d of the log of %s", order[(i+k)%5], held, order[i])
				}
			}
		}
	})
}

// A draining node hands over what it holds; history stays where it is enough.
func TestDrainingNodeHandsOver(t *testing.T) {
	inCluster(t, "a b c d", policies(2, 2), func(t *testing.T, c *cluster) {
		c.linked()
		for i := range 10 {
			c.nodes["a"].accept(fmt.Sprint("a", i))
			c.nodes["b"].accept(fmt.Sprint("b", i))
		}
		c.change(func(v *ring.View) { v.Members[1].State = ring.Draining })
		c.within(10*time.Second, "a's log is on a and c, b's on c and d", func() bool {
			return c.holds("a c", storeOf(1), 1, 10)() && c.holds("c d", storeOf(2), 1, 10)()
		})
		l, _ := c.nodes["a"].archive.Log(storeOf(1))
		if last := l.Placements[len(l.Placements)-1]; last.From != 11 || strings.Join(last.Nodes, " ") != "a c" {
			t.Errorf("placements: %+v", l.Placements)
		}
	})
}

func TestLostIsTold(t *testing.T) {
	inCluster(t, "a b c", policies(2, 3), func(t *testing.T, c *cluster) {
		c.linked()
		c.net.silence("a", "b", true)
		c.net.silence("c", "b", true)
		c.within(10*time.Second, "b is alone", func() bool { return !c.nodes["b"].peer("a").Link.Live && !c.nodes["b"].peer("c").Link.Live })
		c.nodes["b"].accept("only b has this")
		c.net.silence("a", "b", false)
		// b tells a of it, but dies before it is handed over.
		c.nodes["b"].archive.rot(record.Position{Store: storeOf(2), Seq: 1})
		c.within(10*time.Second, "a hears of it", func() bool {
			b := c.nodes["a"].chain.Status().Backlog
			return b.Receipts == 1 && b.Lost == 0
		})
		c.nodes["b"].kill()
		c.within(time.Second, "it is called lost", func() bool {
			b := c.nodes["a"].chain.Status().Backlog
			return b.Receipts == 1 && b.Lost == 1 && b.LostAt[0] == storeOf(2).String()+":1"
		})
		c.within(3*time.Second, "and c knows of it as well", func() bool {
			return c.nodes["c"].chain.Status().Backlog.Lost == 1
		})
	})
}
