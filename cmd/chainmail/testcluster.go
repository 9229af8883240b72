package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"chainmail/node/api"
	"chainmail/testcluster/local"
)

func newTestClusterCommand() *cobra.Command {
	return group("testcluster", "Start clusters on this machine, to try and to test", newTestClusterRunCommand())
}

// portsPerNode is how far the ports of one node are from those of the next.
const portsPerNode = 10

func newTestClusterRunCommand() *cobra.Command {
	options, replicas := local.RunOptions{Nodes: 3, BasePort: 2500}, ""
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Start nodes on loopback, joined and ready; Ctrl-C stops them",
		Long: `Starts real nodes as processes on this machine, joins them to one cluster, and
prints their addresses. The first node is called a, the next b and so on. Node i
(from 0) takes mail on --base-port + 10 i; the next ports are those of chain,
gossip, raft and HTTP. Ctrl-C stops all of them in order.

Without --dir everything is gone after that; with it, node a is in FOLDER/a and so
on, and the next start with the same folder goes on with the same cluster. The
commands find node a of ./data by themselves; for any other, give them --data-dir.
"make run" is the first example.`,
		Example: "  chainmail testcluster run --nodes 3 --dir ./data\n  chainmail status\n  chainmail testcluster run --nodes 5 --copies 2 --replicas 3 --base-port 3000 --dir ./five\n  chainmail status --data-dir ./five/a",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if options.Replicas, err = parseReplicas(replicas); err != nil {
				return usageError{err}
			}
			if err := checkTestCluster(options); err != nil {
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
	flags.IntVar(&options.Nodes, "nodes", options.Nodes, "how many `NODES`")
	flags.StringVar(&options.Dir, "dir", "", "`FOLDER` for their data (default a temporary one)")
	flags.IntVar(&options.Copies, "copies", 0, "`COPIES` on disk before a mail is answered 250 (default as any cluster: 2)")
	flags.StringVar(&replicas, "replicas", "", "how many `NODES` keep each mail, or all (default as any cluster: 3)")
	flags.IntVar(&options.BasePort, "base-port", options.BasePort, "SMTP `PORT` of the first node")
	return cmd
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

func checkTestCluster(o local.RunOptions) error {
	const mostNodes = 26 // named by letters
	switch last := o.BasePort + portsPerNode*o.Nodes - 1; {
	case o.Nodes < 1 || o.Nodes > mostNodes:
		return fmt.Errorf("--nodes is %d: use a number from 1 to %d", o.Nodes, mostNodes)
	case o.Copies < 0:
		return fmt.Errorf("--copies is %d: use a number from 1", o.Copies)
	case o.BasePort < 1 || last > 65535:
		return fmt.Errorf("--base-port is %d: %d nodes need the ports from there to %d, and the last one that there is is 65535", o.BasePort, o.Nodes, last)
	}
	return nil
}
