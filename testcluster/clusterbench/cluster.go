package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"chainmail/node/client"
	"chainmail/testcluster/load"
	"chainmail/testcluster/local"
	"chainmail/testcluster/machine"
)

const (
	startLimit = 2 * time.Minute // for a cluster to be up
	healLimit  = 5 * time.Minute // for every node to hold all
	look       = 5 * time.Millisecond
)

// cluster is some nodes that run, named a, b, c …; clients send to a.
type cluster struct {
	*local.Processes
	dir     string
	names   []string
	clients map[string]*client.Client // of their admin sockets
}

// start starts a cluster of this many nodes, where 250 means two copies and
// every mail comes to three nodes, as far as there are so many.
func (b *bench) start(ctx context.Context, nodes int) (c *cluster, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not up within %v", startLimit))
	defer cancel()
	c = &cluster{clients: map[string]*client.Client{}}
	if c.dir, err = os.MkdirTemp(b.dir, strconv.Itoa(nodes)+"-"); err != nil {
		return nil, err
	}
	base, err := local.FreeBasePort(nodes)
	if err != nil {
		return nil, err
	}
	if c.Processes, err = local.New(local.Options{Program: b.program, Dir: c.dir, BasePort: base}); err != nil {
		return nil, err
	}
	if err := c.bringUp(ctx, nodes); err != nil {
		return nil, errors.Join(err, c.end())
	}
	return c, nil
}

func (c *cluster) bringUp(ctx context.Context, nodes int) error {
	for i := range nodes {
		name := local.Name(i)
		if i > 0 {
			if err := c.Join(ctx, name, "a"); err != nil {
				return err
			}
		}
		if err := c.Start(ctx, name); err != nil {
			return err
		}
		c.names = append(c.names, name)
		c.clients[name] = c.Client(name)
	}
	if _, err := c.Run(ctx, "a", "cluster", "set", "copies=2", "replicas=3"); err != nil {
		return err
	}
	if err := c.AwaitActive(ctx, c.names...); err != nil {
		return err
	}
	_, err := c.healed(ctx)
	return err
}

// end stops all nodes and removes their data.
func (c *cluster) end() error {
	for _, client := range c.clients {
		client.Close()
	}
	return errors.Join(c.StopAll(), os.RemoveAll(c.dir))
}

// with starts a cluster for a measurement and ends it.
func (b *bench) with(ctx context.Context, nodes int, measure func(*cluster) error) error {
	c, err := b.start(ctx, nodes)
	if err != nil {
		return err
	}
	return errors.Join(measure(c), c.end())
}

// pids are the processes of some nodes.
func (c *cluster) pids(names ...string) (pids []int) {
	for _, name := range names {
		pids = append(pids, c.PID(name))
	}
	return pids
}

// archive is the directory of a node's mail.
func (c *cluster) archive(name string) string { return filepath.Join(c.DataDir(name), "archive") }

// receipts is how many receipts of all logs a node holds.
func (c *cluster) receipts(ctx context.Context, name string) (uint64, error) {
	s, err := c.clients[name].Status(ctx)
	return s.Receipts, err
}

// await asks every few milliseconds until done says yes. Errors mean no: a node
// may just be starting.
func await(ctx context.Context, what string, done func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, healLimit, fmt.Errorf("not within %v", healLimit))
	defer cancel()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		yes, err := done(ctx)
		if yes && err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: %w", what, context.Cause(ctx)), err)
		}
	}
}

// holdAll waits until the named nodes hold as many receipts as a does, and
// returns the number. Nothing may come in meanwhile.
func (c *cluster) holdAll(ctx context.Context, names ...string) (all uint64, err error) {
	err = await(ctx, "nodes hold all mail", func(ctx context.Context) (bool, error) {
		if all, err = c.receipts(ctx, "a"); err != nil {
			return false, err
		}
		for _, name := range names {
			if n, err := c.receipts(ctx, name); n != all || err != nil {
				return false, err
			}
		}
		return true, nil
	})
	return all, err
}

// healed waits until every node holds all, has links to all others, and is
// idle. It returns the processor time used so far by each.
func (c *cluster) healed(ctx context.Context) (cpu map[string]time.Duration, err error) {
	if _, err := c.holdAll(ctx, c.names...); err != nil {
		return nil, err
	}
	err = await(ctx, "links between all nodes", func(ctx context.Context) (bool, error) {
		for _, name := range c.names {
			if up, err := c.metric(ctx, name, "chainmail_chain_link_up"); err != nil || int(up) != len(c.names)-1 {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := machine.Settle(ctx, c.pids(c.names...)...); err != nil {
		return nil, err
	}
	return c.cpu()
}

// cpu is the processor time used so far by each running node.
func (c *cluster) cpu() (used map[string]time.Duration, err error) {
	used = map[string]time.Duration{}
	for _, name := range c.Running() {
		if used[name], err = machine.CPU(c.PID(name)); err != nil {
			return nil, err
		}
	}
	return used, nil
}

// metric is the sum of a metric of a node over all label sets that hold the
// given words, such as `peer="b"`.
func (c *cluster) metric(ctx context.Context, node, name string, labels ...string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Addr(node, "http")+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		v, ok, err := sampleOf(lines.Text(), name, labels)
		if err != nil {
			return 0, fmt.Errorf("metrics of node %s: %w", node, err)
		}
		if ok {
			sum += v
		}
	}
	return sum, lines.Err()
}

// sampleOf reads a line of Prometheus' text format; false when it is of another
// metric or of other labels.
func sampleOf(line, name string, labels []string) (value float64, ok bool, err error) {
	rest, ok := strings.CutPrefix(line, name)
	if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
		return 0, false, nil
	}
	end := strings.LastIndexByte(rest, ' ')
	for _, l := range labels {
		if !strings.Contains(rest[:end], l) {
			return 0, false, nil
		}
	}
	value, err = strconv.ParseFloat(rest[end+1:], 64)
	return value, err == nil, err
}

// send is a load on node a whose every mail must be taken.
func (c *cluster) send(ctx context.Context, o load.Options) (load.Report, error) {
	return c.sendTo(ctx, "a", o)
}

// sendTo is a load on a node, or on the balancer.
func (c *cluster) sendTo(ctx context.Context, name string, o load.Options) (load.Report, error) {
	o.Target = c.Addr(name, "smtp")
	r, err := load.Run(ctx, o)
	if err == nil && (r.Acked == 0 || r.Refused+r.GivenUp+r.Unanswered > 0) {
		err = fmt.Errorf("not all mail was taken:\n%s", r)
	}
	return r, err
}
