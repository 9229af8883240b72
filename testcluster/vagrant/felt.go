package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"chainmail/node/api"
)

// A step whose fault did not happen would pass whatever the cluster does. So the
// fault must be seen before it is mended.

func (d *drill) missNode1(ctx context.Context) error { return d.missed(ctx, d.nodes[0], d.nodes[1]) }

func (d *drill) missNode2(ctx context.Context) error { return d.missed(ctx, d.nodes[1], d.nodes[0]) }

func (d *drill) missNode3(ctx context.Context) error { return d.missed(ctx, d.nodes[2], d.nodes[0]) }

// notice is how long a node may take to see that another one is gone, after hold.
const notice = time.Minute

// missed waits until one node finds that it does not reach another one.
func (d *drill) missed(ctx context.Context, lost, witness string) error {
	for deadline := time.Now().Add(notice); ; {
		c, err := d.status(ctx, witness)
		if err != nil {
			return err
		}
		state := stateOf(c, lost)
		if state == api.StateUnreachable {
			d.say("%s finds %s %s; the cluster is %s", witness, lost, state, c.Verdict)
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s should not reach %s now, and finds it %s: the fault did not happen", witness, lost, state)
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

func stateOf(c api.Cluster, name string) string {
	i := slices.IndexFunc(c.Members, func(m api.Member) bool { return m.Name == name })
	if i < 0 {
		return "no member"
	}
	return c.Members[i].State
}

func (d *drill) missFront(ctx context.Context) error {
	lost := d.nodes[2]
	if _, err := d.taken(ctx, lost); err == nil {
		return fmt.Errorf("%s still answers on the front network: the fault did not happen", lost)
	}
	d.say("%s does not answer on the front network", lost)
	return nil
}

func (d *drill) missBalancer(ctx context.Context) error {
	dialer := net.Dialer{Timeout: 2 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", d.target)
	if err == nil {
		conn.Close()
		return errors.New("the balancer still takes connections: the fault did not happen")
	}
	d.say("nobody takes mail at %s", d.target)
	return nil
}
