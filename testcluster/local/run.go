package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"chainmail/node/api"
	"chainmail/testcluster/netns"
)

// RunOptions say what cluster Run runs.
type RunOptions struct {
	Nodes    int
	Dir      string // keeps the nodes' data; empty: a new one, removed at the end
	Copies   int    // policy; 0: as it is
	Replicas int    // policy; 0: as it is; negative: all
	BasePort int    // of nodes on loopback
	NetNS    bool   // each on a host of its own, see package netns
	Balancer bool   // in front of them
	Program  string // the chainmail to run; empty: this program
	Out      io.Writer
}

const startLimit = 2 * time.Minute // for all nodes to be up and members

// Run starts a cluster, or the one that Dir holds, says how to use it, and
// waits until ctx ends; then it stops all nodes. A node that dies is reported.
func Run(ctx context.Context, o RunOptions) (err error) {
	if o.Nodes < 1 || o.Nodes > maxNodes {
		return fmt.Errorf("%d nodes: want 1 to %d", o.Nodes, maxNodes)
	}
	if o.Balancer {
		if err := NeedNginx(); err != nil {
			return err
		}
	}
	var lab *netns.Lab
	if o.NetNS {
		if lab, err = NewLab(o.Nodes); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lab.Close()) }()
	}
	kept := o.Dir != ""
	if !kept {
		if o.Dir, err = os.MkdirTemp("", "chainmail-cluster"); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, os.RemoveAll(o.Dir))
			fmt.Fprintf(o.Out, "%s is removed; name a directory with --dir to keep the mail.\n", o.Dir)
		}()
	}
	died := make(chan end, maxNodes+1)
	p, err := New(Options{Program: o.Program, Dir: o.Dir, BasePort: o.BasePort, Lab: lab, Ended: func(name string, state *os.ProcessState) {
		died <- end{name, state}
	}})
	if err != nil {
		return err
	}
	defer func() {
		fmt.Fprintln(o.Out, "Stopping all nodes.")
		err = errors.Join(err, p.StopAll())
		if kept {
			fmt.Fprintf(o.Out, "The data is kept in %s.\n", o.Dir)
		}
	}()
	if err := bringUp(ctx, p, o); err != nil {
		if ctx.Err() != nil {
			return nil // asked to end while it began
		}
		return err
	}
	explain(o.Out, p)
	return watch(ctx, p, o.Out, died)
}

// bringUp starts the nodes that Dir holds, lets the others join, and waits
// until all are members in full.
func bringUp(ctx context.Context, p *Processes, o RunOptions) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not within %v", startLimit))
	defer cancel()
	names := make([]string, o.Nodes)
	for i := range names {
		names[i] = Name(i)
	}
	known, err := p.Known()
	if err != nil {
		return err
	}
	if len(known) > 0 && (!slices.Contains(known, names[0]) || len(known) > o.Nodes) {
		return fmt.Errorf("%s holds the nodes %s: give --nodes %d, or another --dir", o.Dir, strings.Join(known, ", "), Index(known[len(known)-1])+1)
	}
	if err := p.keepPlace(len(known) > 0); err != nil {
		return err
	}
	all := slices.Clone(names)
	if o.Balancer {
		all = append(all, Balancer)
	}
	if err := p.Check(all...); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "Starting %s in %s.\n", strings.Join(names, ", "), o.Dir)
	for _, name := range names {
		if name != names[0] && !p.joined(name) {
			if err := p.Join(ctx, name, names[0]); err != nil {
				return err
			}
		}
		if err := p.Start(ctx, name); err != nil {
			return err
		}
	}
	if change := o.policies(); len(change) > 0 {
		if _, err := p.Run(ctx, names[0], append([]string{"cluster", "set"}, change...)...); err != nil {
			return err
		}
	}
	if err := p.AwaitActive(ctx, names...); err != nil || !o.Balancer {
		return err
	}
	return p.StartBalancer(ctx, names...)
}

// keepPlace notes where the nodes are, and refuses to start those that have
// been elsewhere: when all move at once, nobody is left to tell them where the
// others are now.
func (p *Processes) keepPlace(known bool) error {
	file, now := filepath.Join(p.options.Dir, "addresses"), p.Addr(Name(0), "smtp")
	b, err := os.ReadFile(file)
	if before := strings.TrimSpace(string(b)); known && err == nil && before != now {
		return fmt.Errorf("%s holds nodes that know node a at %s, and now it would be %s: give the same --mode and --base-port as before, or another --dir", p.options.Dir, before, now)
	}
	return os.WriteFile(file, []byte(now+"\n"), 0o600)
}

// policies are the arguments of "cluster set".
func (o RunOptions) policies() (args []string) {
	if o.Copies > 0 {
		args = append(args, fmt.Sprintf("copies=%d", o.Copies))
	}
	switch {
	case o.Replicas > 0:
		args = append(args, fmt.Sprintf("replicas=%d", o.Replicas))
	case o.Replicas < 0:
		args = append(args, "replicas=all")
	}
	return args
}

// AwaitActive waits until the first of the nodes sees all of them active.
func (p *Processes) AwaitActive(ctx context.Context, names ...string) error {
	c := p.Client(names[0])
	defer c.Close()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		view, err := c.Cluster(ctx)
		if err == nil {
			if err = missing(view, names); err == nil {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the cluster is not complete: %w: %w", context.Cause(ctx), err)
		}
	}
}

// missing says which of the nodes is not active.
func missing(view api.Cluster, names []string) error {
	for _, name := range names {
		i := slices.IndexFunc(view.Members, func(m api.Member) bool { return m.Name == name })
		switch {
		case i < 0:
			return fmt.Errorf("%s is no member", name)
		case view.Members[i].State != api.StateActive:
			return fmt.Errorf("%s is %s", name, view.Members[i].State)
		}
	}
	return nil
}

// explain tells a person what runs and what to try.
func explain(w io.Writer, p *Processes) {
	names := p.Running()
	if i := slices.Index(names, Balancer); i >= 0 {
		names = append([]string{Balancer}, slices.Delete(names, i, i+1)...)
		fmt.Fprintf(w, "\nThe cluster takes mail on %s, and answers HTTP on http://%s\n", p.Addr(Balancer, "smtp"), p.Addr(Balancer, "http"))
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "NODE\tPROCESS\tSMTP\tHTTP\tDATA\n")
	for _, name := range names {
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\n", name, p.PID(name), p.Addr(name, "smtp"), p.Addr(name, "http"), p.DataDir(name))
	}
	_ = table.Flush() // as the other output: who closed it does not want to read
	program, client := p.options.Program, p.site.prefix(Client)
	to, server := "any node", names[0]
	if server == Balancer {
		to, names = "whichever node the balancer chooses", names[1:]
	}
	first, last := names[0], names[len(names)-1]
	fmt.Fprintf(w, "\nSend a mail to %s:\n  %sswaks --server %s --from ann@example.com --to bob@example.com --header \"Subject: Hello\"\n", to, client, p.Addr(server, "smtp"))
	fmt.Fprintf(w, "It is on the others too:\n  %s list --data-dir %s\n", program, p.DataDir(last))
	fmt.Fprintf(w, "How the cluster is:\n  %s status --data-dir %s\n", program, p.DataDir(first))
	fmt.Fprintf(w, "Kill a node, send more mail, and ask another how it goes:\n  kill -9 %d\n", p.PID(last))
	p.site.explain(w, names)
	fmt.Fprintf(w, "What they say is in %s/*.log. Ctrl-C stops all nodes.\n\n", p.options.Dir)
}

// end is that of a process that was not asked to.
type end struct {
	name  string
	state *os.ProcessState
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// watch reports nodes, and the balancer, when they die, until ctx ends.
func watch(ctx context.Context, p *Processes, w io.Writer, died <-chan end) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-died:
			fmt.Fprintf(w, "%s ended (%v). To start it again, in another terminal:\n  %s\n", capital(what(d.name)), d.state, p.StartCommand(d.name))
		}
		if !slices.ContainsFunc(p.Running(), func(name string) bool { return name != Balancer }) {
			return errors.New("no node is left: see their logs")
		}
	}
}
