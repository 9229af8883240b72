package membership_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"chainmail/membership"
	"chainmail/membership/ring"
)

// TestMovedOfTwo: of two nodes the one moves that cannot lead, because its log
// is behind. The other can only be elected if it finds it at its new address.
func TestMovedOfTwo(t *testing.T) {
	for _, at := range []string{"at start", "later"} {
		t.Run("advertised "+at, func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *cluster) {
				nodes := c.grow("a", "b")
				a, b := nodes[0], nodes[1]
				if c.leader() != a {
					t.Fatal("b leads")
				}
				b.kill()
				// An entry that only a has.
				if _, err := a.m.SetPolicies(t.Context(), copies(1)); err == nil {
					t.Fatal("changed without a quorum")
				}
				c.eventually(10*time.Second, "no leader", func() bool { return !a.m.Quorum() })
				b.ip = "10.0.0.99"
				o := b.options()
				if at == "later" {
					o.Advertise = ring.Addresses{}
				}
				m, err := membership.Open(o)
				if err != nil {
					t.Fatal(err)
				}
				b.run(m)
				if at == "later" {
					m.SetAdvertised(b.addresses())
				}
				if got := m.AddressOf("b"); got != b.addresses() {
					t.Errorf("b of itself: %+v", got)
				}
				c.eventually(10*time.Second, "a hears where b is", func() bool { return a.m.AddressOf("b") == b.addresses() })
				c.settled(2)
				c.eventually(30*time.Second, "the view has the new addresses", func() bool {
					m, _ := a.m.View().Member("b")
					return m.Addresses == b.addresses()
				})
				if _, err := a.m.SetPolicies(t.Context(), copies(2)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestAddressOf: what a member says counts while it is alive; for who is no
// member there is none.
func TestAddressOf(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		a, b := nodes[0], nodes[1]
		if got := a.m.AddressOf("x"); got != (ring.Addresses{}) {
			t.Errorf("of nobody: %+v", got)
		}
		view := b.addresses()
		c.net.Cut(a.ip, b.ip)
		c.eventually(10*time.Second, "they lose sight", func() bool { return !a.m.Alive("b") })
		said := view
		said.Chain = "10.0.0.2:9999"
		b.m.SetAdvertised(said)
		if got := a.m.AddressOf("b"); got != view {
			t.Errorf("cut off: %+v", got)
		}
		c.net.Heal(a.ip, b.ip)
		c.eventually(time.Minute, "a hears of it", func() bool { return a.m.AddressOf("b") == said })
		if _, err := b.m.UpdateSelf(t.Context(), view, "1"); err != nil {
			t.Fatal(err)
		}
		c.eventually(10*time.Second, "back", func() bool { return a.m.AddressOf("b") == view && b.m.AddressOf("b") == view })
		time.Sleep(time.Minute) // what UpdateSelf says is not undone
		if m, _ := a.m.View().Member("b"); m.Addresses != view {
			t.Errorf("%+v", m.Addresses)
		}
	})
}

// TestQuiet: to come, to stop and to come back is nothing to warn of.
func TestQuiet(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.grow("a", "b", "c")
		for _, n := range []*testNode{c.others(c.leader())[0], c.leader()} {
			n.stop()
			time.Sleep(time.Minute)
			n.start()
			c.settled(3)
		}
		if _, err := c.nodes["c"].m.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		c.nodes["c"].stop()
		time.Sleep(time.Minute)
		for line := range strings.Lines(c.log.String()) {
			if strings.Contains(line, "level="+slog.LevelWarn.String()) && strings.Contains(line, "library=raft") {
				t.Error(line)
			}
		}
	})
}
