package testcluster_test

import (
	"fmt"
	"testing"
	"time"

	"chainmail/testcluster"
)

// TestEachOfThreeIsKilled in turn under load, at a random point of its work.
// Mail that is accepted while it is dead reaches it on its return.
func TestEachOfThreeIsKilled(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			o := testcluster.Options{Nodes: 3, Replicas: testcluster.All, Seed: seed + 1}
			testcluster.Virtual(t, o, func(t *testing.T, c *testcluster.Cluster) {
				stop := c.Load("a", "b", "c")
				for i, name := range []string{"a", "b", "c"} {
					time.Sleep(2 * time.Second)
					if seed == 1 {
						c.Crash(name)
					} else {
						c.KillAtSync(name, 7+13*i+int(seed))
					}
					time.Sleep(6 * time.Second)
					c.Start(name)
				}
				time.Sleep(2 * time.Second)
				stop()
				c.Check()
			})
		})
	}
}

// TestOriginBurnsDown: what a node acknowledged with its copies is there when
// its disk is gone the next moment.
func TestOriginBurnsDown(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 3, Copies: 2}, func(t *testing.T, c *testcluster.Cluster) {
		c.Send("a", 50)
		c.Kill("a")
		c.Check()
		c.Replace("a")
		c.Check()
	})
}

// TestFiveNodesThreeReplicas: each mail is on three of the nodes, and two that
// die at once take none with them for good.
func TestFiveNodesThreeReplicas(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 5, Replicas: 3}, func(t *testing.T, c *testcluster.Cluster) {
		stop := c.Load("a", "b", "c", "d", "e")
		time.Sleep(3 * time.Second)
		c.Kill("b", "c")
		time.Sleep(5 * time.Second)
		c.StartAll("b", "c")
		time.Sleep(3 * time.Second)
		stop()
		c.Check()
	})
}

// TestIsolatedNode: cut off from the others and not from its clients, it goes
// on, and gives what it took when it is back.
func TestIsolatedNode(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 3}, func(t *testing.T, c *testcluster.Cluster) {
		stop := c.Load("a", "b", "c")
		time.Sleep(2 * time.Second)
		for _, other := range []string{"a", "c"} {
			c.Cut("b", other)
		}
		time.Sleep(15 * time.Second)
		c.Send("b", 10)
		c.Send("a", 10)
		stop()
		c.Check()
	})
}

// TestPartialPartition: two nodes do not reach one another, and a third one
// reaches both. By way of it, everything arrives while the cut lasts.
func TestPartialPartition(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 3, Replicas: testcluster.All}, func(t *testing.T, c *testcluster.Cluster) {
		c.Cut("a", "b")
		c.Send("a", 20)
		c.Send("b", 20)
		c.Eventually(time.Minute, "mail goes round the cut", func() error { return c.Held("a", "b", "c") })
		c.Check()
	})
}
