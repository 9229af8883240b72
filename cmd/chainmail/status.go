package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"chainmail/node/api"
	"chainmail/node/client"
)

func newStatusCommand() *cobra.Command {
	var (
		to       target
		format   outputFormat
		watch    bool
		interval time.Duration
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the state of the cluster and of the running node",
		Long: `Shows the cluster as the running node sees it, with one verdict, and then the node
itself, its archive, and what the background check found:

  GREEN   every mail has its copies, and every member is well
  YELLOW  no mail is in danger, but something needs time or care
  RED     mail has fewer copies than the policy asks for, is refused or damaged

What is not known is shown as unknown. LACKS, BYTES and OLDEST are what a member
should hold and does not: how many receipts, their size, the age of the oldest.
SHORT are mails that a member took and that have too few copies at present.

The exit code is 0 for green and yellow, and 1 for red, or when this node takes no
mail or has damaged receipts. With --watch it is 0 when Ctrl-C ends it.`,
		Example: "  chainmail status\n  chainmail status --watch --interval 5s\n  chainmail status -o json | jq -r .cluster.verdict",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval <= 0 {
				return usageError{fmt.Errorf("--interval is %s: use a time such as 2s", interval)}
			}
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if watch {
				return watchStatus(cmd, c, format, interval)
			}
			s, err := wholeStatus(cmd.Context(), c)
			if err == nil {
				err = s.print(cmd.OutOrStdout(), format, time.Now())
			}
			if err == nil && s.bad() {
				err = quietError{exitFailed}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again and again")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "`TIME` between two looks of --watch")
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

// fullStatus is a node and the cluster around it.
type fullStatus struct {
	api.Status
	Cluster *api.Cluster `json:"cluster,omitempty"` // nil: the node is in none
}

func wholeStatus(ctx context.Context, c *client.Client) (s fullStatus, err error) {
	if s.Status, err = c.Status(ctx); err != nil {
		return s, err
	}
	cluster, err := c.Cluster(ctx)
	if refused, ok := errors.AsType[*client.Error](err); ok && refused.Status == http.StatusNotFound {
		return s, nil
	}
	s.Cluster = &cluster
	return s, err
}

// bad decides the exit code.
func (s fullStatus) bad() bool {
	takesMail := s.State == api.StateActive || s.State == api.StateJoining
	return !takesMail || len(s.Scrub.Findings) > 0 || s.Cluster != nil && s.Cluster.Verdict == api.Red
}

func (s fullStatus) print(w io.Writer, format outputFormat, now time.Time) error {
	if format == formatJSON {
		return printJSON(w, s)
	}
	if s.Cluster != nil {
		if err := printClusterState(w, *s.Cluster); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	var own api.Member
	if s.Cluster != nil {
		own, _ = member(*s.Cluster, s.Cluster.Node)
	}
	return printStatus(w, s.Status, own, now)
}

// clearScreen moves the cursor home and clears the screen (ECMA-48 CUP, ED).
const clearScreen = "\x1b[H\x1b[2J"

// watchStatus prints the status until the command's context ends. A node that
// does not answer for a while is what one watches for: it is said, and asked
// again.
func watchStatus(cmd *cobra.Command, c *client.Client, format outputFormat, interval time.Duration) error {
	ctx := cmd.Context()
	for first := true; ; first = false {
		s, problem := wholeStatus(ctx, c)
		select {
		case <-ctx.Done():
			return nil
		default:
		}
		if err := printPage(cmd.OutOrStdout(), cmd.ErrOrStderr(), s, problem, format, first); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
	}
}

// printPage prints one look at the status, or why there is none. A terminal
// gets it at once, so that nothing flickers.
func printPage(out, notes io.Writer, s fullStatus, problem error, format outputFormat, first bool) error {
	now := time.Now()
	var page bytes.Buffer
	switch {
	case format == formatJSON:
	case isTerminal(out):
		fmt.Fprintf(&page, "%s%s\n\n", clearScreen, shortTime(now))
	case first:
		fmt.Fprintf(&page, "%s\n\n", shortTime(now))
	default:
		fmt.Fprintf(&page, "\n%s\n\n", shortTime(now))
	}
	if problem == nil {
		problem = s.print(&page, format, now)
	}
	if _, err := out.Write(page.Bytes()); err != nil {
		return err
	}
	if problem != nil {
		fmt.Fprintf(notes, "chainmail: %s\n", sanitize(problem.Error()))
	}
	return nil
}

// printStatus prints what concerns one node, which is own in its cluster. A
// witness has no mail to tell of.
func printStatus(w io.Writer, s api.Status, own api.Member, now time.Time) error {
	state := s.State
	if s.Reason != "" {
		state += ": " + s.Reason
	}
	var t table
	t.add("This node", fmt.Sprintf("%s (%s)", s.Node, s.Version))
	t.add("State", state)
	t.add("Up since", fmt.Sprintf("%s (%s)", shortTime(s.StartedAt), span(now.Sub(s.StartedAt))))
	if own.Role == roleWitness {
		t.add("Data directory", s.DataDir)
		t.add("Role", "witness: it votes, and keeps no mail")
		return t.printAsList(w)
	}
	t.add("Data directory", fmt.Sprintf("%s (store %s)", s.DataDir, s.Store))
	t.add("Messages", fmt.Sprintf("%s in %s", humanCount(s.Messages), plural(s.Receipts, "receipt")))
	t.add("Size", fmt.Sprintf("%s of mail, %s on disk", humanSize(s.RawBytes), humanSize(s.StoredSize)))
	t.add("Disk", fmt.Sprintf("%s free; below %s new mail gets 452", humanSize(s.Disk.Free), humanSize(s.Disk.MinFree)))
	t.add("Last check", lastCheck(s.Scrub))
	if s.Scrub.Total > 0 && !s.Scrub.StartedAt.IsZero() && s.Scrub.Checked < s.Scrub.Total {
		t.add("Running check", fmt.Sprintf("%s of %s", humanCount(s.Scrub.Checked), plural(s.Scrub.Total, "receipt")))
	}
	for _, f := range s.Scrub.Findings {
		t.add("  BAD "+f.Position, f.Problem)
	}
	addConflicts(&t, s.Conflicts, own.Self)
	for _, l := range s.Listeners {
		t.add("Listening", fmt.Sprintf("%s on %s (%s), %s", l.Name, l.Address, l.Kind, plural(uint64(l.Connections), "connection")))
	}
	return t.printAsList(w)
}

func lastCheck(s api.Scrub) string {
	bad := "every message is whole"
	if n := len(s.Findings); n > 0 {
		bad = plural(uint64(n), "bad receipt") + ", see below; chainmail verify checks all again"
	}
	if s.FinishedAt.IsZero() {
		if len(s.Findings) == 0 {
			return "none finished yet"
		}
		return bad
	}
	return shortTime(s.FinishedAt) + ": " + bad
}

// shownConflicts is how many positions with two contents a person is shown.
const shownConflicts = 20

// addConflicts lists positions with two contents. The list that a node gives
// is cut short; how many there are in all is in what it tells its peers.
func addConflicts(t *table, conflicts []api.Conflict, self *api.SelfReport) {
	if len(conflicts) == 0 {
		return
	}
	all := uint64(len(conflicts))
	if self != nil {
		all = max(all, self.Quarantined)
	}
	verb := " have"
	if all == 1 {
		verb = " has"
	}
	t.add("Quarantine", plural(all, "position")+verb+" two contents, since some node's disk was set back; both mails are kept")
	shown := conflicts[:min(len(conflicts), shownConflicts)]
	width := 0
	for _, c := range shown {
		width = max(width, columns(c.Position))
	}
	for _, c := range shown {
		t.add(fmt.Sprintf("  TWICE %-*s", width, c.Position), fmt.Sprintf("holds %s; the %s that %s sent for it at %s is kept as %s",
			c.Held[:min(shortID, len(c.Held))], c.Refused[:min(shortID, len(c.Refused))], c.Peer, shortTime(c.At), c.Kept))
	}
	if more := all - uint64(len(shown)); more > 0 {
		t.add(fmt.Sprintf("  and %s more", humanCount(more)))
	}
}

// span prints a duration in its two largest units.
func span(d time.Duration) string {
	days, d := d/(24*time.Hour), d%(24*time.Hour)
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, d/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}
