package testcluster_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"chainmail/archive/record"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster"
)

var errNothingLost = errors.New("nothing is reported as lost")

// splitLost reads "store:ranges".
func splitLost(at string) (record.StoreID, record.Ranges, error) {
	store, ranges, _ := strings.Cut(at, ":")
	id, err := record.ParseStoreID(store)
	if err != nil {
		return 0, nil, err
	}
	r, err := record.ParseRanges(ranges)
	return id, r, err
}

func drain(c *testcluster.Cluster, name string) {
	c.Change("drain "+name, func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.Drain(ctx, name) })
}

// TestJoinUnderLoad: a new node takes mail at once, and is active when it has
// the history too.
func TestJoinUnderLoad(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 2, Replicas: testcluster.All}, func(t *testing.T, c *testcluster.Cluster) {
		c.Send("a", 100)
		stop := c.Load("a", "b")
		time.Sleep(2 * time.Second)
		c.Join("c")
		c.Send("c", 10)
		stopNew := c.Load("c")
		c.Await("a", "c", api.StateActive)
		time.Sleep(2 * time.Second)
		stop()
		stopNew()
		c.Check()
	})
}

// TestJoinInterrupted: the joining node, and the one that lets it in, lose
// power in the middle.
func TestJoinInterrupted(t *testing.T) {
	for _, dies := range []string{"a", "c"} {
		t.Run(dies, func(t *testing.T) {
			testcluster.Virtual(t, testcluster.Options{Nodes: 2, Replicas: testcluster.All}, func(t *testing.T, c *testcluster.Cluster) {
				slow := int64(200_000)
				c.Set(api.PolicyChange{BackfillRate: &slow})
				c.Send("a", 50)
				c.Send("b", 50)
				c.Join("c")
				stop := c.Load("a", "b", "c")
				for n := range 2 {
					c.KillAtSync(dies, 5+20*n)
					time.Sleep(3 * time.Second)
					c.Start(dies)
				}
				stop()
				c.Await("b", "c", api.StateActive)
				c.Check()
			})
		})
	}
}

// TestDrain: a node that is drained under load leaves when all that it holds is
// on the others, and ends; the others lack nothing.
func TestDrain(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 4, Replicas: 2}, func(t *testing.T, c *testcluster.Cluster) {
		for _, name := range []string{"a", "b", "c", "d"} {
			c.Send(name, 40)
		}
		stop := c.Load("a", "b", "c", "d")
		time.Sleep(2 * time.Second)
		drain(c, "b")
		c.Leave("b")
		c.Await("a", "b", testcluster.Left)
		stop()
		c.Check()
	})
}

// TestDrainGivesTime: a node that is drained says at once that it is not ready,
// and goes on taking mail for a while, so that a balancer that asks it can lead
// its clients elsewhere before any of them meets an error.
func TestDrainGivesTime(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 3}, func(t *testing.T, c *testcluster.Cluster) {
		drain(c, "b")
		time.Sleep(time.Second)
		status, err := c.Client("b").Status(t.Context())
		if err != nil || status.State != api.StateDraining {
			t.Errorf("a second after the drain began, b is %q (%v)", status.State, err)
		}
		for range 13 {
			c.Send("b", 2)
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Second)
		if err := c.Offer("b", 1); err == nil {
			t.Error("b takes mail when its time is over")
		}
		c.Leave("b")
		c.Await("a", "b", testcluster.Left)
		c.Check()
	})
}

// TestDrainInterrupted: the node that drains, and one that takes its copies,
// lose power meanwhile.
func TestDrainInterrupted(t *testing.T) {
	for _, dies := range []string{"b", "c"} {
		t.Run(dies, func(t *testing.T) {
			testcluster.Virtual(t, testcluster.Options{Nodes: 4, Replicas: 2}, func(t *testing.T, c *testcluster.Cluster) {
				slow := int64(200_000)
				c.Set(api.PolicyChange{BackfillRate: &slow})
				for _, name := range []string{"a", "b", "c", "d"} {
					c.Send(name, 40)
				}
				drain(c, "b")
				c.KillAtSync(dies, 3)
				time.Sleep(3 * time.Second)
				c.Start(dies)
				c.Leave("b")
				c.Await("a", "b", testcluster.Left)
				c.Check()
			})
		})
	}
}

// TestRemoveTheDead: what it alone held is refused to be given up; with its
// name repeated, the others go on without it and have their replicas.
func TestRemoveTheDead(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 4, Replicas: 2}, func(t *testing.T, c *testcluster.Cluster) {
		for _, name := range []string{"a", "b", "c", "d"} {
			c.Send(name, 40)
		}
		c.Settle()
		c.Kill("d")
		c.Await("a", "d", api.StateUnreachable)
		c.Change("remove d", func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.Remove(ctx, "d", "") })
		c.Await("a", "d", testcluster.Left)
		c.Check()
	})
}

// TestRingMove: another order changes who sends to whom, and no mail is
// missing; a node dies in the middle.
// TestRemoveInterrupted: power is cut on a node that keeps copying what the
// removed one kept, and on the leader in the middle of the change itself.
func TestRemoveInterrupted(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 4, Replicas: 3}, func(t *testing.T, c *testcluster.Cluster) {
		stop := c.Load("a", "b", "c", "d")
		time.Sleep(2 * time.Second)
		stop()
		c.Settle()
		c.Kill("d")
		time.Sleep(10 * time.Second) // gossip sees that it is dead
		stop = c.Load("b", "c")
		asked := make(chan error)
		ask := c.Client("a")
		go func() {
			_, err := ask.Remove(t.Context(), "d", "")
			asked <- err
		}()
		time.Sleep(500 * time.Microsecond)
		c.Kill("a") // the leader, in the middle of the change
		t.Log("the answer of the node that died:", <-asked)
		c.Change("remove d", func(ctx context.Context, m *client.Client) (api.Changed, error) {
			v, err := m.Cluster(ctx)
			if err == nil && len(v.Members) == 3 {
				return api.Changed{}, nil // it was made
			}
			return m.Remove(ctx, "d", "")
		})
		c.KillAtSync("b", 5)
		time.Sleep(3 * time.Second)
		c.Start("a")
		c.Start("b")
		stop()
		c.Eventually(time.Minute, "d is no member", func() error {
			v, err := c.View("c")
			if err == nil && len(v.Members) != 3 {
				err = errors.New("it still is")
			}
			return err
		})
		c.Check()
	})
}

func TestRingMove(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 4, Replicas: 2}, func(t *testing.T, c *testcluster.Cluster) {
		stop := c.Load("a", "b", "c", "d")
		time.Sleep(2 * time.Second)
		c.Change("move a after c", func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.Move(ctx, "a", "c") })
		c.KillAtSync("c", 10)
		time.Sleep(3 * time.Second)
		c.Start("c")
		stop()
		v, err := c.View("b")
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		for _, m := range v.Members {
			order = append(order, m.Name)
		}
		if got := strings.Join(order, " "); got != "b c a d" {
			t.Errorf("the ring is %s", got)
		}
		c.Check()
	})
}
