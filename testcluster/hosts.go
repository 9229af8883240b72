package testcluster

import (
	"context"
	"net"
	"testing"
	"time"

	"chainmail/testcluster/local"
	"chainmail/testcluster/netns"
)

// OnHosts is a cluster of processes on hosts of their own.
type OnHosts struct {
	*Cluster
	Lab       *netns.Lab       // what is done to the networks
	Processes *local.Processes // nodes, and the balancer
	// Reach is where mail to a name is sent, in place of the address that a node or
	// the balancer of that name has. Set it before mail is sent.
	Reach map[string]string
}

// Hosts makes a cluster of processes of the real program, each on a host with a
// card on the clients' network and one on the nodes'. Mail comes from a host of
// the clients'. There may be more hosts.
func Hosts(t testing.TB, program string, o Options, more ...netns.Host) *OnHosts {
	t.Helper()
	o = o.withDefaults()
	lab, err := local.NewLab(o.Nodes, more...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	b := newProcesses(t, local.Options{Program: program, Lab: lab})
	reach := map[string]string{}
	return &OnHosts{form(t, o, nil, onHosts{b, reach}), lab, b.Processes, reach}
}

// onHosts is a backend whose clients are on a host of their own.
type onHosts struct {
	*processes
	reach map[string]string
}

func (p onHosts) dial(ctx context.Context, name string) (net.Conn, error) {
	addr, elsewhere := p.reach[name]
	if !elsewhere {
		return p.Dial(ctx, local.Client, p.Addr(name, "smtp"))
	}
	conn, err := p.Dial(ctx, local.Client, addr)
	if err != nil {
		return nil, err
	}
	// Who waits for an answer from an address that has changed its host learns by
	// this alone that nobody there knows the connection.
	keepAlive := net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3}
	return conn, conn.(*net.TCPConn).SetKeepAliveConfig(keepAlive)
}

// StartBalancer puts a balancer in front of all nodes. Mail is sent to it by the
// name local.Balancer.
func (c *OnHosts) StartBalancer() {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	c.must(c.Processes.StartBalancer(ctx, c.Running()...), "start the balancer")
	c.t.Cleanup(func() {
		if c.Processes.PID(local.Balancer) == 0 {
			return
		}
		if err := c.Processes.Stop(local.Balancer); err != nil {
			c.t.Error(err)
		}
	})
}

// Heal ends all that was done to the networks.
func (c *OnHosts) Heal() {
	c.t.Helper()
	c.must(c.Lab.HealAll(), "heal the networks")
}

// Check heals the networks and compares what every node holds with what was
// acknowledged.
func (c *OnHosts) Check() {
	c.t.Helper()
	c.Heal()
	c.Cluster.Check()
}
