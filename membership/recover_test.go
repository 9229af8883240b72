package membership_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chainmail/membership"
	"chainmail/membership/ring"
)

func TestRecover(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		a := nodes[0]
		if _, err := a.m.SetState(t.Context(), "b", ring.Active); err != nil {
			t.Fatal(err)
		}
		c.settled(3)
		for _, n := range nodes {
			n.kill()
		}
		before := a.disk().State.View.Epoch
		report, err := membership.Recover(a.dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"a alone is now cluster", "Removed: b, c. Their certificates are refused", "chainmail join-node"} {
			if !strings.Contains(report, want) {
				t.Errorf("report without %q:\n%s", want, report)
			}
		}
		a.start()
		c.settled(1)
		v := a.m.View()
		if len(v.Members) != 1 || uint64(v.Epoch) < before+1000 || v.Members[0].State != ring.Active {
			t.Errorf("recovered: %+v", v)
		}
		if _, err := a.m.SetPolicies(t.Context(), copies(1)); err != nil {
			t.Error(err)
		}
		// b does not know; it cannot get in as it is, and can with a token.
		nodes[1].start()
		time.Sleep(time.Minute)
		if a.m.Alive("b") || len(a.m.View().Members) != 1 {
			t.Error("b is back without joining")
		}
		if p := nodes[1].m.Problems(); len(p) == 0 {
			t.Error("b does not notice")
		}
		nodes[1].stop()
		nodes[1].join(a)
		c.settled(2)
		if nodes[1].m.Cluster() != v.Cluster {
			t.Error("another cluster")
		}
	})
}

// TestRecoverDamaged: the log is lost; the view on the disk is enough.
func TestRecoverDamaged(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		a := nodes[0]
		if _, err := a.m.SetPolicies(t.Context(), copies(1)); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			n.kill()
		}
		if err := os.WriteFile(filepath.Join(a.dir, "raft", "meta.json"), []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
		report, err := membership.Recover(a.dir)
		if err != nil || !strings.Contains(report, "could not be read") {
			t.Fatalf("%v\n%s", err, report)
		}
		a.start()
		c.settled(1)
		if v := a.m.View(); v.Policies.Copies != 1 || len(v.Members) != 1 {
			t.Errorf("recovered: %+v", v)
		}
		nodes[1].join(a)
		c.settled(2)
	})
}

func TestRecoverIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		w := c.node("w")
		w.role = ring.Witness
		w.join(nodes[0])
		c.settled(3)
		if _, err := nodes[0].m.Remove(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		c.eventually(10*time.Second, "b finds out", func() bool { return len(nodes[1].m.Problems()) > 0 })
		c.stopAll()
		before := w.disk()
		_, err := membership.Recover(w.dir)
		refused(t, err, membership.ErrRefused, "w is a witness and holds no mail: recover on a node that does")
		if after := w.disk(); after.State.View.Epoch != before.State.View.Epoch {
			t.Error("a refused recovery changed something")
		}
		if report, err := membership.Recover(nodes[0].dir); err != nil || !strings.Contains(report, "Removed: w.") {
			t.Errorf("%v\n%s", err, report)
		}
	})
}
