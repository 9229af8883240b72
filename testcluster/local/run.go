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
	r := &run{RunOptions: o, died: make(chan end, maxNodes+1), told: map[string]bool{}}
	if o.Dir == "" {
		if err := r.makeTemp(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.removeTemp()) }()
	}
	if r.plan, err = makePlan(r.Dir, o.Nodes); err != nil {
		return err
	}
	var lab *netns.Lab
	if o.NetNS {
		if lab, err = NewLab(r.plan.hosts()); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lab.Close()) }()
	}
	r.p, err = New(Options{Program: o.Program, Dir: r.Dir, BasePort: o.BasePort, Lab: lab, Ended: func(name string, state *os.ProcessState) {
		r.died <- end{name, state}
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop(err)) }()
	if err := r.bringUp(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // asked to end while it began
		}
		return err
	}
	explain(o.Out, r.p)
	return r.watch(ctx)
}

// run is one Run.
type run struct {
	RunOptions
	temp bool // Dir is removed at the end
	plan plan
	p    *Processes // nil until there can be processes
	died chan end
	told map[string]bool // who is known to have left
}

func (r *run) makeTemp() (err error) {
	r.temp = true
	if r.Dir, err = os.MkdirTemp("", "chainmail-cluster"); err != nil {
		return err
	}
	return os.Chmod(r.Dir, 0o711) //nolint:gosec // for the balancer's workers; nodes' directories are their own
}

func (r *run) removeTemp() error {
	err := os.RemoveAll(r.Dir)
	if r.p != nil && r.p.started() {
		fmt.Fprintf(r.Out, "%s is removed; name a directory with --dir to keep the mail.\n", r.Dir)
	}
	return err
}

// stop stops all, and says where the data is unless that goes too. Where nothing
// was started, because something was wrong, it says nothing.
func (r *run) stop(wrong error) error {
	if !r.p.started() {
		return nil
	}
	if len(r.p.Running()) > 0 {
		fmt.Fprintln(r.Out, "Stopping all nodes.")
	}
	err := r.p.StopAll()
	switch {
	case r.temp:
	case wrong != nil || err != nil:
		fmt.Fprintf(r.Out, "The data is kept in %[1]s, and what the nodes said in %[1]s/*.log.\n", r.Dir)
	default:
		fmt.Fprintf(r.Out, "The data is kept in %s.\n", r.Dir)
	}
	return err
}

// bringUp starts the members that Dir holds, lets the others join, and waits
// until all are members in full.
func (r *run) bringUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not within %v", startLimit))
	defer cancel()
	if err := r.p.keepPlace(len(r.plan.members) > 0); err != nil {
		return err
	}
	all := r.plan.all()
	if r.Balancer {
		all = append(all, Balancer)
	}
	if err := r.p.Check(all...); err != nil {
		return err
	}
	fmt.Fprint(r.Out, r.plan.say(r.Dir, r.Nodes))
	names, err := r.startMembers(ctx)
	if err == nil {
		names, err = r.joinFresh(ctx, names)
	}
	if err != nil {
		return err
	}
	if change := r.policies(); len(change) > 0 {
		if _, err := r.p.Run(ctx, names[0], append([]string{"cluster", "set"}, change...)...); err != nil {
			return err
		}
	}
	if !r.Balancer {
		return nil
	}
	return r.p.StartBalancer(ctx, names...)
}

// startMembers starts those that have data, and returns who of them is active.
func (r *run) startMembers(ctx context.Context) ([]string, error) {
	for _, name := range r.plan.members {
		if err := r.p.up(ctx, name); err != nil && !r.isGone(name) {
			return nil, err
		}
	}
	return r.settle(ctx, r.plan.members)
}

// joinFresh lets the new nodes join those that are active; without any, the first
// one founds the cluster. It returns all of them.
func (r *run) joinFresh(ctx context.Context, names []string) ([]string, error) {
	if len(r.plan.fresh) == 0 {
		return names, nil
	}
	for _, name := range r.plan.fresh {
		if len(names) > 0 {
			if err := r.p.Join(ctx, name, names[0]); err != nil {
				return nil, err
			}
		}
		if err := r.p.Start(ctx, name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return r.settle(ctx, names)
}

// isGone reports whether a node has ended because it is no member any more, and
// says so once.
func (r *run) isGone(name string) bool {
	if r.p.PID(name) != 0 || !r.p.left(name) {
		return false
	}
	if !r.told[name] {
		fmt.Fprint(r.Out, leftLine(r.Dir, name))
	}
	r.told[name] = true
	return true
}

// settle waits until all nodes are active but those that leave, and returns the
// active ones. That a node was drained while it did not run, it learns from the
// others.
func (r *run) settle(ctx context.Context, names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, nil
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		names = slices.DeleteFunc(slices.Clone(names), r.isGone)
		if len(names) == 0 {
			return nil, errors.New("no node is a member any more")
		}
		for _, name := range names {
			if r.p.PID(name) == 0 {
				return nil, r.p.death(name)
			}
		}
		active, err := r.p.active(ctx, names)
		if err == nil && len(active) > 0 {
			return active, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, incomplete(ctx, err)
		}
	}
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
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		active, err := p.active(ctx, names)
		if err == nil && len(active) == len(names) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return incomplete(ctx, err)
		}
	}
}

func incomplete(ctx context.Context, err error) error {
	if err == nil {
		err = errors.New("nodes are draining")
	}
	return fmt.Errorf("the cluster is not complete: %w: %w", context.Cause(ctx), err)
}

// active are those that the first of the nodes sees so. It is an error when one
// is neither that nor draining.
func (p *Processes) active(ctx context.Context, names []string) (active []string, err error) {
	c := p.Client(names[0])
	defer c.Close()
	view, err := c.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		i := slices.IndexFunc(view.Members, func(m api.Member) bool { return m.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("%s is no member", name)
		}
		switch state := view.Members[i].State; state {
		case api.StateActive:
			active = append(active, name)
		case api.StateDraining:
		default:
			return nil, fmt.Errorf("%s is %s", name, state)
		}
	}
	return active, nil
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

// watch reports nodes, and the balancer, when they die or leave, until ctx ends.
func (r *run) watch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-r.died:
			if !r.isGone(d.name) {
				fmt.Fprintf(r.Out, "%s ended (%v). To start it again, in another terminal:\n  %s\n", capital(what(d.name)), d.state, r.p.StartCommand(d.name))
			}
		}
		if !slices.ContainsFunc(r.p.Running(), func(name string) bool { return name != Balancer }) {
			return errors.New("no node is left: see their logs")
		}
	}
}
