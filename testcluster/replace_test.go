package testcluster_test

import (
	"testing"
	"time"

	"chainmail/archive/record"
	"chainmail/node/api"
	"chainmail/testcluster"
)

// TestReplace: a node whose disk is lost takes its place again, and is complete
// and verified.
func TestReplace(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 3, Replicas: testcluster.All}, func(t *testing.T, c *testcluster.Cluster) {
		for _, name := range []string{"a", "b", "c"} {
			c.Send(name, 60)
		}
		c.Kill("b")
		c.Send("a", 20)
		stop := c.Load("a", "c")
		c.Replace("b")
		stop()
		c.Check()
		last, err := c.Client("b").VerifyCluster(t.Context(), func(ev api.ClusterVerifyEvent) {
			if ev.Problem != "" {
				t.Errorf("%s, log %s: %s: %v", ev.Node, ev.Log, ev.Problem, ev.At)
			}
		})
		if err != nil || !last.Done || last.Bad != 0 || last.Checked < 600 {
			t.Errorf("verification of the cluster: %+v, %v", last, err)
		}
	})
}

// TestReplaceReportsWhatIsLost: mail that only the lost disk had is named by
// position, and no other mail is missing.
func TestReplaceReportsWhatIsLost(t *testing.T) {
	testcluster.Virtual(t, testcluster.Options{Nodes: 2, Witness: true}, func(t *testing.T, c *testcluster.Cluster) {
		c.Send("a", 20)
		c.Send("b", 20)
		slow := int64(400_000) // bytes a second: a container of 4 MiB takes some seconds
		c.Set(api.PolicyChange{BackfillRate: &slow})
		c.Cut("a", "b")
		time.Sleep(10 * time.Second)
		const alone = 900
		c.Send("b", alone) // short of copies
		c.Heal()
		time.Sleep(8 * time.Second) // a hears of them, and gets some
		c.Kill("b")
		c.Replace("b")
		var lost []string
		c.Eventually(time.Minute, "the loss is reported", func() error {
			v, err := c.View("a")
			if err != nil {
				return err
			}
			lost, err = lostAt(v)
			return err
		})
		if len(lost) >= alone {
			t.Errorf("%d of %d mails are reported as lost", len(lost), alone)
		}
		c.GiveUp(lost...)
		c.Check()
	})
}

// lostAt lists every position that a view reports as lost.
func lostAt(v api.Cluster) (positions []string, err error) {
	seen := map[string]bool{}
	for _, m := range v.Members {
		if m.Backlog == nil {
			continue
		}
		for _, at := range m.Backlog.LostAt {
			store, ranges, err := splitLost(at)
			if err != nil {
				return nil, err
			}
			for _, r := range ranges {
				for seq := r.First; seq <= r.Last; seq++ {
					p := record.Position{Store: store, Seq: seq}.String()
					if !seen[p] {
						seen[p] = true
						positions = append(positions, p)
					}
				}
			}
		}
	}
	if len(positions) == 0 {
		return nil, errNothingLost
	}
	return positions, nil
}
