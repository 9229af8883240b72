package testcluster

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"chainmail/node/api"
)

// TestSiege: one stranger who holds all the connections that it can get, and
// says nothing on them, keeps no member out: changes are made by way of any
// member, and all see each other.
func TestSiege(t *testing.T) {
	const hands = 120
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		ctx, cancel := context.WithCancel(context.Background())
		var stranger sync.WaitGroup
		defer stranger.Wait()
		defer cancel()
		for range hands {
			stranger.Go(func() { c.holdOn(ctx, net.JoinHostPort("a", raftPort)) })
		}
		time.Sleep(5 * time.Second)
		c.Stop("b") // it must come back in while the stranger stands there
		time.Sleep(10 * time.Second)
		c.Start("b")
		c.Eventually(time.Minute, "b sees all others", func() error {
			v, err := c.View("b")
			if err == nil && v.Verdict != api.Green {
				err = fmt.Errorf("it is %s: %q", v.Verdict, v.Reasons)
			}
			return err
		})
		if _, err := c.Client("b").JoinToken(ctx, time.Hour); err != nil {
			t.Errorf("a change by way of b: %v", err)
		}
	})
}

// holdOn connects again and again, and keeps what it gets until it is closed.
func (c *Cluster) holdOn(ctx context.Context, addr string) {
	for ctx.Err() == nil {
		conn, err := c.Net.Host("stranger").Dial(ctx, "tcp", addr)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			for err == nil {
				_, err = conn.Read(make([]byte, 100))
			}
			stop()
			conn.Close()
		}
		pause(ctx, 10*time.Millisecond)
	}
}
