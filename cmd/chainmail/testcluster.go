package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"chainmail/node/api"
	"chainmail/testcluster/local"
)

func newTestClusterCommand() *cobra.Command {
	return group("testcluster", "Start clusters on this machine, to try and to test", newTestClusterRunCommand())
}

// The modes of testcluster run, and what it may be told of the balancer.
const (
	modeProcesses = "processes" // all on loopback
	modeNetNS     = "netns"     // each on a host of its own

	lbYes, lbNo, lbAuto = "yes", "no", "auto"
)

// needNginx says why there can be no balancer; tests put something else here.
var needNginx = local.NeedNginx

func newTestClusterRunCommand() *cobra.Command {
	options, replicas, mode, lb := local.RunOptions{Nodes: 3, BasePort: 2500}, "", modeProcesses, lbNo
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Start nodes on this machine, joined and ready; Ctrl-C stops them",
		Long: `Starts real nodes as processes on this machine, joins them to one cluster, and
prints their addresses. The first node is called a, the next b and so on. Node i
(from 0) takes mail on --base-port + 10 i; the next ports are those of chain,
gossip, raft and HTTP. Ctrl-C stops all of them in order.

With --lb, an nginx is put in front of them by 'chainmail lb run': one address for
mail, --base-port - 100, and one for HTTP, four ports on. It goes on when nodes die.
--lb=auto does so if nginx is installed, and does without it else.

With --mode netns (root only), each node, the balancer and a client are hosts of
their own: network namespaces with two cards, front (192.0.2.0/24) for mail and
chain (198.51.100.0/24) for the nodes among themselves. What it prints says how to
send mail from the client, and how to cut networks and pull cables.

Without --dir everything is gone after that; with it, node a is in FOLDER/a and so
on, and the next start with the same folder goes on with the same cluster. All that
are in it start, more than --nodes too, as when one joined by hand; one that was
drained or removed does not, and no other takes its place. The commands find node a
of ./data by themselves; for any other, give them --data-dir.
"make run" is the first example.`,
		Example: "  chainmail testcluster run --nodes 3 --lb --dir ./data\n  chainmail status\n  chainmail testcluster run --nodes 5 --copies 2 --replicas 3 --base-port 3000 --dir ./five\n  chainmail status --data-dir ./five/a\n  sudo chainmail testcluster run --lb --mode netns",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if options.Replicas, err = parseReplicas(replicas); err != nil {
				return usageError{err}
			}
			if mode != modeProcesses && mode != modeNetNS {
				return usageError{fmt.Errorf("--mode is %q: use %s or %s", mode, modeProcesses, modeNetNS)}
			}
			options.NetNS = mode == modeNetNS
			if options.Balancer, err = wantBalancer(lb, cmd.ErrOrStderr()); err != nil {
				return usageError{err}
			}
			if err := checkTestCluster(options, cmd.Flags().Changed("base-port")); err != nil {
				return usageError{err}
			}
			if options.Program, err = os.Executable(); err != nil {
				return fmt.Errorf("cannot find this program's file: %w", err)
			}
			options.Out = cmd.OutOrStdout()
			return runTestCluster(cmd.Context(), options)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&options.Nodes, "nodes", options.Nodes, "how many `NODES`, if FOLDER does not hold more")
	flags.StringVar(&lb, "lb", lb, "whether there is a balancer in front of them: `WHETHER` yes, no or auto")
	flags.Lookup("lb").NoOptDefVal = lbYes
	flags.StringVar(&mode, "mode", mode, "where they run: `MODE` processes, on loopback, or netns, each on a host of its own")
	flags.StringVar(&options.Dir, "dir", "", "`FOLDER` for their data (default a temporary one)")
	flags.IntVar(&options.Copies, "copies", 0, "`COPIES` on disk before a mail is answered 250 (default as any cluster: 2)")
	flags.StringVar(&replicas, "replicas", "", "how many `NODES` keep each mail, or all (default as any cluster: 3)")
	flags.IntVar(&options.BasePort, "base-port", options.BasePort, "SMTP `PORT` of the first node, on loopback")
	return cmd
}

// wantBalancer reads --lb; with auto, there is a note on why there is none.
func wantBalancer(lb string, notes io.Writer) (bool, error) {
	switch lb {
	case lbYes, lbNo:
		return lb == lbYes, nil
	case lbAuto:
		err := needNginx()
		if err != nil {
			fmt.Fprintf(notes, "There is no balancer in front of the nodes: %v\n", err)
		}
		return err == nil, nil
	}
	return false, fmt.Errorf("--lb is %q: use %s, %s or %s", lb, lbYes, lbNo, lbAuto)
}

// parseReplicas reads --replicas; empty means as any cluster.
func parseReplicas(s string) (int, error) {
	var change api.PolicyChange
	switch {
	case s == "":
		return 0, nil
	case s == "all":
		return -1, nil
	case !readCount(s, &change.Replicas):
		return 0, fmt.Errorf("--replicas is %q: use a number from 1, or all", s)
	}
	return *change.Replicas, nil
}

func checkTestCluster(o local.RunOptions, portGiven bool) error {
	const (
		mostNodes    = 26 // named by letters
		portsPerNode = 10 // from one node to the next
	)
	switch last := o.BasePort + portsPerNode*o.Nodes - 1; {
	case o.Nodes < 1 || o.Nodes > mostNodes:
		return fmt.Errorf("--nodes is %d: use a number from 1 to %d", o.Nodes, mostNodes)
	case o.Copies < 0:
		return fmt.Errorf("--copies is %d: use a number from 1", o.Copies)
	case o.NetNS && portGiven:
		return fmt.Errorf("--base-port is for --mode %s: on hosts of their own, nodes have the ports of real ones", modeProcesses)
	case o.NetNS:
		return nil
	case o.BasePort < 1 || last > 65535:
		return fmt.Errorf("--base-port is %d: %d nodes need the ports from there to %d, and the last one that there is is 65535", o.BasePort, o.Nodes, last)
	case o.Balancer && o.BasePort <= local.BalancerBefore:
		return fmt.Errorf("--base-port is %d: the balancer takes ports from %d before it on: use one from %d", o.BasePort, local.BalancerBefore, local.BalancerBefore+1)
	}
	return nil
}
