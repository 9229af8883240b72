package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"chainmail/membership"
	"chainmail/node"
)

func newRecoverCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
		sure   bool
		yes    string
		file   string
	)
	cmd := &cobra.Command{
		Use:   "recover --i-lost-the-quorum",
		Short: "The last resort: make this node the only member",
		Long: `For a cluster whose majority of voters is lost for good: their disks are gone, not
only their network. It makes this stopped node the only member, so that members can
join, drain and be removed again. No mail is touched, and no mail needs this: it
flows without a quorum.

Do it on one node only, with all others stopped: the one with the latest epoch (see
'chainmail status' before). The other members are refused from then on. Each of them
comes back with 'chainmail join-node', and keeps its mail.

It asks for the name of the node; --yes NAME answers that.`,
		Example: "  chainmail recover --i-lost-the-quorum --data-dir /var/lib/chainmail",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !sure {
				return usageError{errors.New("this ends the old cluster's quorum for good: read 'chainmail recover --help', then add --i-lost-the-quorum")}
			}
			dir, name, err := to.stoppedNode(cmd, file)
			if err != nil {
				return err
			}
			switch {
			case yes == name:
			case yes != "":
				return usageError{fmt.Errorf("--yes is %s, and the node in %s is %s: give that name", yes, dir, name)}
			case !isTerminal(cmd.InOrStdin()):
				return usageError{fmt.Errorf("nobody can be asked here: add --yes %s", name)}
			default:
				question := fmt.Sprintf("Make %s (%s) the only member of its cluster? Every other node must be\nstopped, and this must be done on no other.", name, dir)
				if err := confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), question, name); err != nil {
					return err
				}
			}
			var report string
			err = asOwner(cmd.ErrOrStderr(), dir, func() (err error) {
				report, err = recoverQuorum(dir)
				return err
			})
			if err != nil {
				return err
			}
			if format == formatJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"node": name, "report": report})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), sanitizeLines(report))
			return err
		},
	}
	cmd.Flags().BoolVar(&sure, "i-lost-the-quorum", false, "the majority of the voters is lost for good")
	cmd.Flags().StringVar(&yes, "yes", "", "`NAME` of the node: do not ask")
	addConfigFlag(cmd.Flags(), &file)
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

// stoppedNode finds the data directory and name of a node that does not run.
func (t *target) stoppedNode(cmd *cobra.Command, file string) (dir, name string, err error) {
	if dir, err = t.directory(); err != nil {
		return "", "", err
	}
	c, err := t.client()
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	if status, err := c.Status(cmd.Context()); err == nil {
		return "", "", fmt.Errorf("the node %s runs on %s: stop it first, and all others", status.Node, dir)
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.String("data-dir", "", "")
	if err := flags.Set("data-dir", dir); err != nil {
		return "", "", err
	}
	config, _, err := loadConfig(file, flags)
	if err != nil {
		return "", "", err
	}
	view, err := membership.ReadView(node.ClusterDir(dir))
	if err != nil {
		return "", "", fmt.Errorf("%s: %w: name the data directory of a member with --data-dir", dir, err)
	}
	if _, there := view.Member(config.Name); !there {
		// It was named by a flag when it was started. The cluster's identity is
		// as good a proof that the operator knows what this is about.
		return dir, view.Cluster, nil
	}
	return dir, config.Name, nil
}
