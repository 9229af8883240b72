package testcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
)

// What a node takes while it is being drained must be on the others when it has
// left: its disk may be in the dustbin then.

func (c *Cluster) drain(name string) {
	c.t.Helper()
	c.Change("drain "+name, func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.Drain(ctx, name) })
}

// lateMail is a client that is slow at one step of its mail.
type lateMail struct {
	*session
	mail *mail
}

// begin brings a mail as far as the reply to the last of these commands.
func (c *Cluster) begin(to string, commands int) lateMail {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	s, err := c.connect(ctx, to)
	c.must(err, "connect to %s", to)
	l := lateMail{s, c.ledger.next(to)}
	c.must(s.conn.SetDeadline(time.Now().Add(10*mailTimeout)), "set a deadline")
	for _, line := range lateCommands[:commands] {
		_, err := s.say(line.code, "%s", line.text)
		c.must(err, "say %q to %s", line.text, to)
	}
	return l
}

var lateCommands = []struct {
	code int
	text string
}{{250, "MAIL FROM:<late@example.com>"}, {250, "RCPT TO:<late@archive.example>"}, {354, "DATA"}}

// finish sends the rest, and reports whether the mail was acknowledged.
func (c *Cluster) finish(l lateMail, commands int) error {
	for _, line := range lateCommands[commands:] {
		if _, err := l.say(line.code, "%s", line.text); err != nil {
			return err
		}
	}
	w := l.text.DotWriter()
	if _, err := w.Write(l.mail.text(c.ledger.seed)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, reply, err := l.text.ReadResponse(250)
	if err != nil {
		return err
	}
	said := archivedAs.FindStringSubmatch(reply)
	if said == nil {
		return fmt.Errorf("it was answered %q", reply)
	}
	c.ledger.acknowledge(l.mail, said[1])
	return nil
}

// TestDrainAndLateMail: a mail that began while the node still took mail and
// ends when it would have left is on the others, or is not acknowledged.
func TestDrainAndLateMail(t *testing.T) {
	for _, commands := range []int{1, 2, 3} {
		for _, late := range []time.Duration{14 * time.Second, 16 * time.Second, 20 * time.Second, 40 * time.Second} {
			t.Run(fmt.Sprintf("%s after %v", lateCommands[commands-1].text[:4], late), func(t *testing.T) {
				t.Parallel()
				Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
					c.drain("b")
					l := c.begin("b", commands)
					defer l.close()
					time.Sleep(late)
					err := c.finish(l, commands)
					t.Log("the late mail:", err)
					l.close()
					if err := c.Leave("b"); err != nil {
						t.Error(err)
					}
					c.Await("a", "b", Left)
					c.Check()
				})
			})
		}
	}
}

// state is what one node sees of another: its state, or Left.
func (c *Cluster) state(seer, name string) string {
	c.t.Helper()
	v, err := c.View(seer)
	c.must(err, "ask %s for the cluster", seer)
	if i := slices.IndexFunc(v.Members, func(m api.Member) bool { return m.Name == name }); i >= 0 {
		return v.Members[i].State
	}
	return Left
}

// leaveGrace is shorter than nodes have it, where load goes on meanwhile.
const leaveGrace = 3 * time.Second

func shortGrace(c *node.Config) { c.Limits.LeaveGrace = node.Duration(leaveGrace) }

// TestDrainThenDeath: what a node took in its grace is on enough disks without
// its own: the power of another node goes when it has just left.
func TestDrainThenDeath(t *testing.T) {
	for _, dies := range []string{"a", "c"} {
		for _, o := range []Options{{Nodes: 3, Copies: 2, Replicas: All}, {Nodes: 3, Copies: 2, Replicas: 2}, {Nodes: 3, Copies: 2, Replicas: 2, WhenShort: "tempfail"}} {
			o.Config = shortGrace
			t.Run(fmt.Sprint(dies, o.Replicas, o.WhenShort), func(t *testing.T) {
				t.Parallel()
				Virtual(t, o, func(t *testing.T, c *Cluster) {
					stop := c.Load("a", "b", "c")
					time.Sleep(time.Second)
					c.drain("b")
					if err := c.Leave("b"); err != nil {
						t.Error(err)
					}
					// What the others were acknowledged after it left is not in question.
					c.Kill(dies)
					stop()
					left := map[string]string{"a": "c", "c": "a"}[dies]
					taken := 0
					for _, m := range c.ledger.acknowledged() {
						if m.node != "b" {
							continue
						}
						taken++
						if _, err := c.Client(left).Message(t.Context(), m.position); err != nil {
							t.Errorf("mail %d, acknowledged by b as %s: %v", m.n, m.position, err)
						}
					}
					if taken < 20 {
						t.Errorf("b took %d mails: too few to show anything", taken)
					}
					c.Start(dies)
					c.Check()
				})
			})
		}
	}
}

// TestDrainAndPowerCuts: at many moments of a drain under load, the power of
// one node goes and comes back. The drained node leaves all the same, and nothing
// that anybody acknowledged is missing on the others.
func TestDrainAndPowerCuts(t *testing.T) {
	cuts := []int{5, 150}
	for _, dies := range []string{"a", "b", "c"} {
		for _, n := range cuts {
			t.Run(fmt.Sprintf("%s at sync %d", dies, n), func(t *testing.T) {
				t.Parallel()
				Virtual(t, Options{Nodes: 3, Copies: 2, Replicas: All, Seed: uint64(n), Config: shortGrace}, func(t *testing.T, c *Cluster) {
					stop := c.Load("a", "b", "c")
					time.Sleep(time.Second)
					c.drain("b")
					c.KillAtSync(dies, n)
					c.comeBackAndLeave(dies, "b")
					stop()
					c.Check()
				})
			})
		}
	}
}

// TestDrainAndDeathAtTheEnd: the power of one node goes about when the drained
// one is taken out: before, in the middle, and after it.
func TestDrainAndDeathAtTheEnd(t *testing.T) {
	for _, dies := range []string{"a", "b", "c"} {
		for _, after := range []time.Duration{0, 3, 1001} {
			t.Run(fmt.Sprintf("%s after %d ms", dies, after), func(t *testing.T) {
				t.Parallel()
				Virtual(t, Options{Nodes: 3, Copies: 2, Replicas: All, Seed: uint64(after) + 1, Config: shortGrace}, func(t *testing.T, c *Cluster) {
					stop := c.Load("a", "b", "c")
					time.Sleep(time.Second)
					c.drain("b")
					time.Sleep(leaveGrace + after*time.Millisecond)
					c.Kill(dies)
					c.comeBackAndLeave(dies, "b")
					stop()
					c.Check()
				})
			})
		}
	}
}

// comeBackAndLeave starts a node again that lost its power, unless it has left,
// and waits until the drained one has.
func (c *Cluster) comeBackAndLeave(died, drained string) {
	c.t.Helper()
	time.Sleep(3 * time.Second)
	if died != drained {
		c.Start(died)
	} else if c.state("a", drained) == Left {
		return
	} else {
		c.Start(died)
	}
	if err := c.Leave(drained); err != nil {
		c.t.Errorf("%s ended with %v", drained, err)
	}
	c.Await("a", drained, Left)
}

// TestDrainAndRestart: a node that starts while it is drained takes no mail, for
// it may have been taken out already; with the drain called off it does.
func TestDrainAndRestart(t *testing.T) {
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		slow := int64(2000)
		c.Set(api.PolicyChange{BackfillRate: &slow})
		c.Send("b", 20)
		c.Stop("b")
		c.drain("b")
		c.Start("b")
		c.Await("b", "b", api.StateDraining)
		c.Restart("b")
		if err := c.Offer("b", 1); err == nil {
			t.Error("a node that starts while it is drained takes mail")
		}
		c.Change("let b stay", func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.CancelDrain(ctx, "b") })
		c.Await("b", "b", api.StateActive)
		c.Eventually(10*time.Second, "b takes mail again", func() error { return c.Offer("b", 1) })
		c.Settle()
		c.Check()
	})
}

// TestDrainCalledOffAtTheEnd: a node that had closed its door to be taken out,
// and could not be for want of the others, takes mail again when it may stay.
func TestDrainCalledOffAtTheEnd(t *testing.T) {
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		c.Send("b", 20)
		c.Settle()
		c.drain("b")
		l := c.begin("b", 3)
		defer l.close()
		time.Sleep(14 * time.Second)
		c.Isolate("b")
		time.Sleep(5 * time.Second)
		if err := c.finish(l, 3); err == nil {
			t.Error("mail was acknowledged by a node that may be none any more")
		}
		c.Change("let b stay", func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.CancelDrain(ctx, "b") })
		c.Heal()
		c.Await("b", "b", api.StateActive)
		c.Eventually(time.Minute, "b takes mail again", func() error { return c.Offer("b", 1) })
		c.Settle()
		c.Check()
	})
}

// TestDrainAndEndlessMail: a client that sends a byte now and then does not hold
// up a drain for longer than it would a stop.
func TestDrainAndEndlessMail(t *testing.T) {
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		l := c.begin("b", 3)
		defer l.close()
		c.must(l.text.PrintfLine("Subject: endless\r\n"), "begin a body")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for l.text.PrintfLine("%01000d", 1) == nil {
				time.Sleep(time.Second)
			}
		}()
		began := time.Now()
		c.drain("b")
		c.Await("a", "b", Left)
		if took := time.Since(began); took > 50*time.Second {
			t.Errorf("it left after %v", took)
		}
		if err := c.Leave("b"); err != nil {
			t.Error(err)
		}
		<-ended
		c.Check()
	})
}

// TestRemovedWhileMailComesIn: a node that was cut off and removed hears of it
// before a client has ended its mail. A copy on its disk is none.
func TestRemovedWhileMailComesIn(t *testing.T) {
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		l := c.begin("b", 3)
		defer l.close()
		c.Isolate("b")
		c.Await("a", "b", api.StateUnreachable)
		c.Change("remove b", func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.Remove(ctx, "b", "b") })
		c.Heal()
		time.Sleep(10 * time.Second)
		if err := c.finish(l, 3); err == nil {
			t.Error("mail was acknowledged by a node that is no member any more")
		}
		l.close()
		if err := c.Leave("b"); !errors.Is(err, node.ErrNotMember) {
			t.Errorf("it ended with %v", err)
		}
		c.Check()
	})
}

// TestImportWhileDraining: who imports is told where to go on.
func TestImportWhileDraining(t *testing.T) {
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		slow := int64(2000)
		c.Set(api.PolicyChange{BackfillRate: &slow})
		c.Stop("c")
		c.Send("b", 3) // which c is to keep: b cannot leave before it is back
		c.drain("b")
		time.Sleep(16 * time.Second)
		text := "From: a@example.com\r\n\r\nlate\r\n"
		_, err := c.Client("b").Upload(t.Context(), io.NopCloser(strings.NewReader(text)), int64(len(text)))
		if refused, ok := errors.AsType[*client.Error](err); !ok || refused.Status != 503 || !strings.Contains(err.Error(), "import on another member") {
			t.Errorf("%v", err)
		}
		c.Start("c")
		if err := c.Leave("b"); err != nil {
			t.Error(err)
		}
	})
}
