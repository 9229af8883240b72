package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"chainmail/node/api"
	"chainmail/testcluster/load"
)

// status is what a node says of the cluster.
func (d *drill) status(ctx context.Context, name string) (api.Cluster, error) {
	// Its exit code tells the verdict, which is in the answer too.
	out, err := d.lab.on(ctx, name, nil, "chainmail status -o json")
	var answer struct {
		Cluster *api.Cluster `json:"cluster"`
	}
	if bad := json.Unmarshal(out, &answer); bad != nil || answer.Cluster == nil {
		return api.Cluster{}, errors.Join(fmt.Errorf("%s gives no status", name), err)
	}
	return *answer.Cluster, nil
}

// unwell is why a cluster is not as it should be, empty when it is: green, with
// all members active and all logs on all of them.
func unwell(c api.Cluster, nodes []string) string {
	if c.Verdict != api.Green {
		return c.Verdict + ": " + strings.Join(c.Reasons, "; ")
	}
	for _, node := range nodes {
		i := slices.IndexFunc(c.Members, func(m api.Member) bool { return m.Name == node })
		switch {
		case i < 0:
			return node + " is no member"
		case c.Members[i].State != "active":
			return node + " is " + c.Members[i].State
		case c.Members[i].Backlog == nil:
			return "nobody knows what " + node + " lacks"
		case c.Members[i].Backlog.Receipts > 0:
			return fmt.Sprintf("%s lacks %d receipts", node, c.Members[i].Backlog.Receipts)
		}
	}
	return ""
}

// green waits until every node finds the cluster well, and says how long it took.
func (d *drill) green(ctx context.Context) error {
	start, deadline := time.Now(), time.Now().Add(d.patience)
	for _, node := range d.nodes {
		for {
			c, err := d.status(ctx, node)
			why := unwell(c, d.nodes)
			if err != nil {
				why = err.Error()
			}
			if why == "" {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the cluster is not well after %v, as %s sees it: %s", d.patience, node, why)
			}
			if err := sleep(ctx, 2*time.Second); err != nil {
				return err
			}
		}
	}
	d.say("green on all nodes after %s", seconds(time.Since(start)))
	return nil
}

// check reads every acknowledged mail back from every node, and lets the nodes
// compare what they hold.
func (d *drill) check(ctx context.Context) error {
	start := time.Now()
	failures := make([]error, len(d.nodes))
	var work sync.WaitGroup
	for i, node := range d.nodes {
		work.Go(func() { failures[i] = d.readBack(ctx, node) })
	}
	work.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	if out, err := d.lab.on(ctx, d.nodes[0], nil, "chainmail verify --cluster"); err != nil {
		return fmt.Errorf("the replicas differ: %w\n%s", err, tail(string(out), 10))
	}
	d.say("all %d mails acknowledged so far are on %s, byte for byte; the replicas are alike (%s)",
		d.acked.total(), strings.Join(d.nodes, ", "), seconds(time.Since(start)))
	return nil
}

// readBack checks one node.
func (d *drill) readBack(ctx context.Context, node string) error {
	list, err := os.Open(d.list)
	if err != nil {
		return err
	}
	defer list.Close()
	out, err := d.lab.on(ctx, node, list, "chainmail load --check /dev/stdin -o json")
	var report load.CheckReport
	if bad := json.Unmarshal(out, &report); bad != nil {
		return errors.Join(fmt.Errorf("%s did not tell what it holds", node), err)
	}
	return judge(node, report, d.acked.total())
}

// judge says what a node lacks of the acknowledged mail. A mail that is there twice
// is no loss: a client whose answer was lost sends it again.
func judge(node string, report load.CheckReport, acked int) error {
	if bad := len(report.Missing) + len(report.Altered) + len(report.Unreadable); bad > 0 {
		return fmt.Errorf("LOSS on %s: of %d acknowledged mails %d are missing, %d altered, %d unreadable; the first: %s",
			node, report.Acked, len(report.Missing), len(report.Altered), len(report.Unreadable),
			slices.Concat(report.Missing, report.Altered, report.Unreadable)[0])
	}
	if report.Acked != acked {
		return fmt.Errorf("%s was asked for %d mails, and %d were acknowledged: the list is not whole", node, report.Acked, acked)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
