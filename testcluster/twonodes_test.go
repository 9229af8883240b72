package testcluster_test

import (
	"fmt"
	"testing"
	"time"

	"chainmail/testcluster"
)

// TestTwoNodes: the commonest cluster. One node dies under load; the other one
// has all that it acknowledged, goes on without a quorum, and the dead one has
// everything within seconds of its return.
func TestTwoNodes(t *testing.T) {
	for _, witness := range []bool{false, true} {
		for _, dies := range []string{"a", "b"} {
			t.Run(fmt.Sprintf("%s dies, witness %t", dies, witness), func(t *testing.T) {
				testcluster.Virtual(t, testcluster.Options{Nodes: 2, Witness: witness}, func(t *testing.T, c *testcluster.Cluster) {
					lives := map[string]string{"a": "b", "b": "a"}[dies]
					stop := c.Load("a", "b")
					time.Sleep(3 * time.Second)
					c.KillAtSync(dies, 10)
					time.Sleep(10 * time.Second)
					c.Send(lives, 20)
					if v, err := c.View(lives); err != nil || v.Quorum != witness {
						t.Errorf("with %s dead there is a quorum: %t, %v", dies, v.Quorum, err)
					}
					if stop() < 30 {
						t.Errorf("only %d mails acknowledged", c.Acknowledged())
					}
					c.Check() // of the one that lives: it has the last mails of the dead one
					c.Start(dies)
					c.SettleWithin(10 * time.Second)
					c.Check()
				})
			})
		}
	}
}

// TestTwoNodesColdStart: both are dead, and start in either order.
func TestTwoNodesColdStart(t *testing.T) {
	for _, first := range []string{"a", "b"} {
		t.Run(first+" first", func(t *testing.T) {
			testcluster.Virtual(t, testcluster.Options{Nodes: 2}, func(t *testing.T, c *testcluster.Cluster) {
				second := map[string]string{"a": "b", "b": "a"}[first]
				stop := c.Load("a", "b")
				time.Sleep(2 * time.Second)
				c.Kill("a", "b")
				stop()
				c.Start(first)
				c.Send(first, 10)
				c.Start(second)
				c.Send(second, 10)
				c.Check()
			})
		})
	}
}

// TestTwoNodesCutApart: neither knows what the other one does, both go on.
func TestTwoNodesCutApart(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 2}, func(t *testing.T, c *testcluster.Cluster) {
		stop := c.Load("a", "b")
		for range 2 {
			time.Sleep(2 * time.Second)
			c.Cut("a", "b")
			time.Sleep(10 * time.Second)
			c.Send("a", 5)
			c.Send("b", 5)
			c.Heal()
		}
		stop()
		c.SettleWithin(time.Minute)
		c.Check()
	})
}

// TestTwoNodesRecover: one of two nodes is gone for good, and with it the
// quorum. The other one becomes a cluster of its own, which is joined again:
// with an empty disk, or with mail that only the lost one has after all.
func TestTwoNodesRecover(t *testing.T) {
	for _, wiped := range []bool{true, false} {
		t.Run(fmt.Sprint("disk wiped ", wiped), func(t *testing.T) {
			testcluster.Virtual(t, testcluster.Options{Nodes: 2}, func(t *testing.T, c *testcluster.Cluster) {
				c.Send("a", 20)
				c.Send("b", 20)
				if !wiped {
					c.Cut("a", "b")
					time.Sleep(10 * time.Second)
					c.Send("b", 20) // short of copies
				}
				c.Kill("b")
				c.Heal()
				c.Stop("a")
				c.Recover("a")
				c.Send("a", 20)
				if wiped {
					c.Wipe("b")
				}
				c.Rejoin("b")
				c.Send("b", 20)
				c.Check()
			})
		})
	}
}
