package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"chainmail/membership"
	"chainmail/node"
)

func newWitnessCommand() *cobra.Command {
	var join joining
	cmd := &cobra.Command{
		Use:   "witness --name NAME --peer HOST:PORT --token TOKEN",
		Short: "Run a witness: a member that votes and keeps no mail",
		Long: `Runs a witness. It gives two nodes a quorum, so that members can join, drain and be
removed while one of the nodes is down; mail flows without it. It needs little
memory and no disk to speak of: the host of the balancer is a good place.

On its first start, while its directory belongs to no cluster, it joins one by --peer
and --token, and writes a configuration file like join-node. Later starts need
neither.`,
		Example: `  chainmail witness --name w --data-dir /var/lib/chainmail-witness --peer 192.0.2.1:8025 --token chainmail-join-1.…
  chainmail witness --data-dir /var/lib/chainmail-witness`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.Flags().Set("role", roleWitness); err != nil {
				return err
			}
			config, file, err := join.witnessConfig(cmd.Flags())
			if err != nil {
				return err
			}
			if !membership.Exists(node.ClusterDir(config.DataDir)) {
				done, err := join.join(cmd, config, file)
				if err != nil {
					return err
				}
				sayJoined(cmd.ErrOrStderr(), config, done)
			}
			if err := becomeOwner(cmd.ErrOrStderr(), config.DataDir, os.Args[1:]); err != nil {
				return err
			}
			return runNode(cmd, config)
		},
	}
	flags := cmd.Flags()
	addNodeFlags(flags, "gossip", "raft", "http")
	flags.String("role", roleWitness, "")
	_ = flags.MarkHidden("role") // it exists
	join.addFlags(flags)
	return cmd
}

// witnessConfig refuses the configuration of a node that keeps mail.
func (j *joining) witnessConfig(flags *pflag.FlagSet) (node.Config, string, error) {
	file, err := j.configFile(flags)
	if err != nil {
		return node.Config{}, "", err
	}
	if exists(file) {
		alone, _, err := loadConfig(file, pflag.NewFlagSet("", pflag.ContinueOnError))
		if err != nil {
			return alone, "", err
		}
		if alone.Role != node.RoleWitness {
			return alone, "", usageError{fmt.Errorf("%s is the configuration of a node that keeps mail (role: %s): give the witness a --data-dir of its own, or write role: witness into the file", file, alone.Role)}
		}
	}
	return j.config(flags)
}
