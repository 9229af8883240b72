package main

import (
	"context"
	"fmt"
	"strings"
)

// step is one thing that goes wrong.
type step struct {
	name   string
	title  string
	breaks func(*drill, context.Context) error
	felt   func(*drill, context.Context) error // an error when nothing broke: then nothing would be shown
	mends  func(*drill, context.Context) error
}

// steps are all of them, in the order in which they are done.
var steps = []step{
	{"flow", "nothing is broken", (*drill).trueClient, (*drill).nothing, (*drill).nothing},
	{"kill", "node2 loses its power and comes back", (*drill).killNode, (*drill).missNode2, (*drill).startNode},
	{"stop", "the service of node2 is stopped in order and started again", (*drill).stopService, (*drill).missNode2, (*drill).startService},
	{"chain", "the chain network's cable of node3 is pulled", (*drill).pullChain, (*drill).missNode3, (*drill).plugChain},
	{"front", "the front network's cable of node3 is pulled", (*drill).pullFront, (*drill).missFront, (*drill).plugFront},
	{"replace", "node1 is destroyed, and another host with an empty disk takes its name", (*drill).destroyNode, (*drill).missNode1, (*drill).makeNode},
	{"balancer", "the balancer loses its power and comes back", (*drill).killBalancer, (*drill).missBalancer, (*drill).startBalancer},
}

func (*drill) nothing(context.Context) error { return nil }

func stepNames() []string {
	var names []string
	for _, s := range steps {
		names = append(names, s.name)
	}
	return names
}

// choose picks the steps that are named; all when none is.
func choose(only string) ([]step, error) {
	if only == "" {
		return steps, nil
	}
	var chosen []step
	for name := range strings.SplitSeq(only, ",") {
		found := false
		for _, s := range steps {
			if s.name == strings.TrimSpace(name) {
				chosen, found = append(chosen, s), true
			}
		}
		if !found {
			return nil, fmt.Errorf("-only %s: there is no such step; there are %s", name, strings.Join(stepNames(), ", "))
		}
	}
	return chosen, nil
}

func (d *drill) killNode(ctx context.Context) error {
	return d.powerCut(ctx, d.nodes[1])
}

func (d *drill) startNode(ctx context.Context) error {
	return d.bringUp(ctx, d.nodes[1])
}

func (d *drill) stopService(ctx context.Context) error {
	d.say("systemctl stop chainmail on %s", d.nodes[1])
	_, err := d.lab.on(ctx, d.nodes[1], nil, "systemctl stop chainmail")
	return err
}

func (d *drill) startService(ctx context.Context) error {
	d.say("starting it again")
	_, err := d.lab.on(ctx, d.nodes[1], nil, "systemctl start chainmail")
	return err
}

func (d *drill) pullChain(ctx context.Context) error {
	d.say("pulling the chain network's cable of %s", d.nodes[2])
	return d.cable(ctx, d.nodes[2], d.networks["chain"], false)
}

func (d *drill) plugChain(ctx context.Context) error {
	d.say("plugging it in again")
	return d.cable(ctx, d.nodes[2], d.networks["chain"], true)
}

func (d *drill) pullFront(ctx context.Context) error {
	d.say("pulling the front network's cable of %s", d.nodes[2])
	return d.cable(ctx, d.nodes[2], d.networks["front"], false)
}

func (d *drill) plugFront(ctx context.Context) error {
	d.say("plugging it in again")
	return d.cable(ctx, d.nodes[2], d.networks["front"], true)
}

func (d *drill) destroyNode(ctx context.Context) error {
	return d.vagrant(ctx, "destroy", "-f", d.nodes[0])
}

func (d *drill) makeNode(ctx context.Context) error {
	return d.bringUp(ctx, d.nodes[0])
}

func (d *drill) killBalancer(ctx context.Context) error {
	return d.powerCut(ctx, "lb")
}

func (d *drill) startBalancer(ctx context.Context) error {
	return d.bringUp(ctx, "lb")
}

// vagrant runs one of its commands and tells of it.
func (d *drill) vagrant(ctx context.Context, args ...string) error {
	d.say("vagrant %s", strings.Join(args, " "))
	if err := d.lab.run(ctx, args...); err != nil {
		return err
	}
	d.say("vagrant %s: done", args[0])
	return nil
}

// bringUp starts a host, or makes it anew, and learns how it is reached now.
func (d *drill) bringUp(ctx context.Context, name string) error {
	if err := d.vagrant(ctx, "up", name); err != nil {
		return err
	}
	return d.lab.learn(ctx, name)
}
