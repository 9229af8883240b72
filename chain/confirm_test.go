package chain_test

import (
	"fmt"
	"testing"
	"time"

	"chainmail/archive/record"
)

func TestConfirm(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(c *cluster) // after all hold a's 20 receipts and a is down
		want bool
		took time.Duration // at most
	}{
		{"all agree", func(c *cluster) {}, true, time.Second},
		{"set back", func(c *cluster) { c.nodes["a"].archive.setBack(15) }, false, time.Second},
		{"set back, and only one knows", func(c *cluster) {
			c.nodes["a"].archive.setBack(15)
			c.nodes["b"].archive.wipe()
		}, false, time.Second},
		{"only hearsay", func(c *cluster) { // b and c hold no more than a, but b has heard of more
			c.nodes["a"].archive.setBack(19)
			c.nodes["b"].archive.damage(record.Position{Store: storeOf(1), Seq: 20})
			c.nodes["c"].archive.damage(record.Position{Store: storeOf(1), Seq: 20})
		}, false, time.Second},
		{"one is silent", func(c *cluster) { c.nodes["b"].kill() }, false, 2100 * time.Millisecond},
		{"who keeps none of it need not speak", func(c *cluster) { c.nodes["d"].kill() }, true, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inCluster(t, "a b c d", policies(2, 3), func(t *testing.T, c *cluster) {
				c.linked()
				for i := range 20 {
					c.nodes["a"].accept(fmt.Sprint(i))
				}
				c.within(time.Second, "all hold it", c.holds("a b c", storeOf(1), 1, 20))
				time.Sleep(2 * time.Second)
				c.nodes["a"].kill()
				tt.do(c)
				n := c.start("a")
				begin := time.Now()
				if got := n.chain.Confirm(t.Context()); got != tt.want {
					t.Errorf("confirmed: %v", got)
				}
				if took := time.Since(begin); took > tt.took {
					t.Errorf("after %v", took)
				}
			})
		})
	}
	inCluster(t, "a", policies(2, 3), func(t *testing.T, c *cluster) {
		c.nodes["a"].accept("alone")
		if !c.nodes["a"].chain.Confirm(t.Context()) {
			t.Error("a single node asks nobody")
		}
	})
}
