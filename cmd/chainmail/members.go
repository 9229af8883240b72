package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"chainmail/membership"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
)

// printChanged says what a change of the cluster did.
func printChanged(cmd *cobra.Command, format outputFormat, done api.Changed) error {
	if format == formatJSON {
		return printJSON(cmd.OutOrStdout(), done)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), sanitize(done.Message))
	return err
}

func newDrainNodeCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
		wait   bool
		cancel bool
	)
	cmd := &cobra.Command{
		Use:   "drain-node [NAME]",
		Short: "Let a member hand over its mail and leave the cluster",
		Long: `Lets a member leave in order, by default the node that is asked: it takes mail
for limits.leave_grace more, so that balancers lead its clients elsewhere, and then
answers 421; it waits until everything that it holds has its copies on the others,
and leaves. Nothing is lost, and nothing is deleted on its disk. --wait shows the
progress until it has left; --cancel lets a member that drains stay.

The exit code is 1 when the drain is refused, or ends before the member has left.`,
		Example: "  chainmail drain-node b --wait",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("give one NAME or none, not %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if len(args) == 0 {
				cluster, err := c.Cluster(cmd.Context())
				if err != nil {
					return err
				}
				args = []string{cluster.Node}
			}
			name, change := args[0], c.Drain
			if cancel {
				change = c.CancelDrain
			}
			done, err := change(cmd.Context(), name)
			if err != nil {
				return err
			}
			if err := printChanged(cmd, format, done); err != nil || !wait || cancel {
				return err
			}
			socket, err := to.socketPath()
			if err != nil {
				return err
			}
			w := drainWait{client: c, dir: filepath.Dir(socket), notes: cmd.ErrOrStderr()}
			return w.untilLeft(cmd.Context(), name)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it has left, and show the progress")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "let a member that drains stay")
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

// pollPeriod is how often a command that waits looks again.
var pollPeriod = time.Second

// endPolls is how often a node that answers no more is looked for: it may be
// about to write down that it has left, or be started again.
const endPolls = 3

// drainWait waits for a member to leave.
type drainWait struct {
	client *client.Client
	dir    string // data directory of the node that is asked
	notes  io.Writer
}

// untilLeft reports a line whenever the progress has changed.
func (w drainWait) untilLeft(ctx context.Context, name string) error {
	handedOver := false // it is the node that is asked, and nothing was left to hand over
	said, silent := "", 0
	for {
		cluster, err := w.client.Cluster(ctx)
		m, there := member(cluster, name)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %s goes on draining; 'chainmail drain-node %s --wait' waits again", context.Cause(ctx), name, name)
		case err == nil && !there, err != nil && w.leftOnDisk(name):
			fmt.Fprintf(w.notes, "%s has left the cluster.\n", sanitize(name))
			return nil
		case err != nil && silent < endPolls:
			silent++
		case handedOver && errors.Is(err, client.ErrNoNode):
			fmt.Fprintf(w.notes, "%s has handed over everything, and has ended: it has left the cluster.\n", sanitize(name))
			return nil
		case errors.Is(err, client.ErrNoNode):
			return fmt.Errorf("cannot tell whether %s has left: the node that was asked runs no more: ask another member with 'chainmail status'", name)
		case err != nil:
			return fmt.Errorf("cannot tell whether %s has left: %w: ask another member with 'chainmail status'", name, err)
		case m.State != api.StateDraining && m.State != api.StateUnreachable:
			return fmt.Errorf("%s does not drain any more, it is %s: see 'chainmail status'", name, m.State)
		default:
			silent = 0
			handedOver = name == cluster.Node && m.Self != nil && m.Self.ToHandOver != nil && *m.Self.ToHandOver == 0
			if line := drainProgress(m); line != said {
				said = line
				fmt.Fprintln(w.notes, sanitize(line))
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollPeriod):
		}
	}
}

// leftOnDisk reports whether the last committed view that a node has kept is
// without the member.
func (w drainWait) leftOnDisk(name string) bool {
	view, err := membership.ReadView(node.ClusterDir(w.dir))
	_, there := view.Member(name)
	return err == nil && !there
}

func member(c api.Cluster, name string) (api.Member, bool) {
	for _, m := range c.Members {
		if m.Name == name {
			return m, true
		}
	}
	return api.Member{}, false
}

// drainProgress tells what the others still lack.
func drainProgress(draining api.Member) string {
	line := draining.Name + " is draining"
	switch s := draining.Self; {
	case s == nil:
		line += "; what it still has to hand over is not known: it does not answer"
	case s.ToHandOver != nil: // else it has not yet heard that it drains
		line += "; it still has to hand over " + plural(*s.ToHandOver, "receipt")
	}
	if draining.Reason != "" {
		line += "; " + draining.Reason
	}
	return line
}

func newRemoveNodeCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
		force  string
		yes    bool
	)
	cmd := &cobra.Command{
		Use:   "remove-node NAME",
		Short: "Remove a dead member from the cluster",
		Long: `Removes a member that will not come back. One that is alive should leave in order:
see drain-node. Removal is refused while that might lose mail that only the dead
member holds; --force NAME removes it all the same, and that mail is named in the
status of the cluster until the disk comes back.

On a terminal it asks first.`,
		Example: "  chainmail remove-node b\n  chainmail remove-node b --force b",
		Args:    oneArgument("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if force != "" && force != name {
				return usageError{fmt.Errorf("--force is %s, and the member is %s: repeat the member's name to force its removal", force, name)}
			}
			if isTerminal(cmd.InOrStdin()) && !yes {
				question := fmt.Sprintf("Remove %s from the cluster? Its certificate stops working at once.", name)
				if force != "" {
					question += " Mail that only it holds may be lost."
				}
				if err := confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), question, name); err != nil {
					return err
				}
			}
			return to.change(cmd, format, func(ctx context.Context, c *client.Client) (api.Changed, error) {
				return c.Remove(ctx, name, force)
			})
		},
	}
	cmd.Flags().StringVar(&force, "force", "", "the member's `NAME` again: remove it although mail may be lost")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

// change asks the node for a change of the cluster and prints the answer.
func (t *target) change(cmd *cobra.Command, format outputFormat, do func(context.Context, *client.Client) (api.Changed, error)) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	defer c.Close()
	done, err := do(cmd.Context(), c)
	if err != nil {
		return err
	}
	return printChanged(cmd, format, done)
}

func newRingCommand() *cobra.Command {
	return group("ring", "Change the order of the ring", newRingMoveCommand())
}

func newRingMoveCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
		after  string
	)
	cmd := &cobra.Command{
		Use:   "move NAME --after NAME",
		Short: "Give a member another place in the ring",
		Long: `Puts a member behind another one, which then sends to it. New mail goes to its new
keepers at once; history stays where it has its copies.`,
		Example: "  chainmail ring move c --after a",
		Args:    oneArgument("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if after == "" {
				return usageError{errors.New("no place is given: add --after NAME")}
			}
			return to.change(cmd, format, func(ctx context.Context, c *client.Client) (api.Changed, error) {
				return c.Move(ctx, args[0], after)
			})
		},
	}
	cmd.Flags().StringVar(&after, "after", "", "`NAME` of the member that shall be before it")
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

func newSafeToStopCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:   "safe-to-stop NAME",
		Short: "May a member be stopped for a while?",
		Long: `Tells whether a member may be stopped, for an upgrade or a repair, without mail
being refused or left with fewer copies than the policies ask for. The exit code
is 0 when it may, and 1 with the reasons when not. It says so when the member is
down already.`,
		Example: "  chainmail safe-to-stop b && ssh b systemctl restart chainmail",
		Args:    oneArgument("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			answer, err := c.SafeToStop(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if format == formatJSON {
				err = printJSON(cmd.OutOrStdout(), answer)
			} else {
				err = printSafeToStop(cmd.OutOrStdout(), answer, isDown(cmd.Context(), c, args[0]))
			}
			if err == nil && !answer.Safe {
				err = quietError{exitFailed}
			}
			return err
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

// isDown reports whether the node sees that a member does not answer.
func isDown(ctx context.Context, c *client.Client, name string) bool {
	cluster, err := c.Cluster(ctx)
	m, _ := member(cluster, name)
	return err == nil && m.State == api.StateUnreachable
}

func printSafeToStop(w io.Writer, answer api.SafeToStop, down bool) error {
	name := sanitize(answer.Name)
	switch {
	case answer.Safe && down:
		_, err := fmt.Fprintf(w, "%s does not answer: it is down already, or cut off.\n", name)
		return err
	case answer.Safe:
		_, err := fmt.Fprintf(w, "%s may be stopped.\n", name)
		return err
	case down:
		fmt.Fprintf(w, "%s does not answer: it is down already, or cut off. It should be up:\n", name)
	default:
		fmt.Fprintf(w, "%s should not be stopped now:\n", name)
	}
	for _, why := range answer.Reasons {
		if _, err := fmt.Fprintf(w, "  %s\n", sanitize(why)); err != nil {
			return err
		}
	}
	return nil
}

func newKeysCommand() *cobra.Command {
	return group("keys", "Change the keys of the cluster", newKeysRotateCommand())
}

func newKeysRotateCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Give the cluster new keys",
		Long: `Replaces the key of the gossip between the nodes and every node's certificate, one
after the other, while mail flows. Do it when a node's disk may have been read by
others. It goes on by itself; status tells when it is done.`,
		Example: "  chainmail keys rotate",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return to.change(cmd, format, func(ctx context.Context, c *client.Client) (api.Changed, error) {
				return c.RotateKeys(ctx)
			})
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}
