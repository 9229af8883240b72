package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"chainmail/node/api"
)

func newStatusCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the state of the running node",
		Long: `Shows the state of the running node, its archive, and what the background check
found. The exit code is 1 when there are findings or no mail is taken.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if format == formatJSON {
				err = printJSON(cmd.OutOrStdout(), s)
			} else {
				err = printStatus(cmd.OutOrStdout(), s, time.Now())
			}
			if err == nil && (s.State != api.StateActive || len(s.Scrub.Findings) > 0) {
				err = quietError{exitFailed}
			}
			return err
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

func printStatus(w io.Writer, s api.Status, now time.Time) error {
	state := s.State
	if s.Reason != "" {
		state += ": " + s.Reason
	}
	var t table
	t.add("Node", s.Node)
	t.add("State", state)
	t.add("Version", s.Version)
	t.add("Up since", fmt.Sprintf("%s (%s)", shortTime(s.StartedAt), span(now.Sub(s.StartedAt))))
	t.add("Data directory", s.DataDir)
	t.add("Store", s.Store)
	t.add("Messages", fmt.Sprintf("%s in %s", humanCount(s.Messages), plural(s.Receipts, "receipt")))
	t.add("Size", fmt.Sprintf("%s of mail, %s on disk", humanSize(s.RawBytes), humanSize(s.StoredSize)))
	t.add("Disk", fmt.Sprintf("%s free; below %s new mail gets 452", humanSize(s.Disk.Free), humanSize(s.Disk.MinFree)))
	t.add("Memory", fmt.Sprintf("%s of %s for incoming mail in use", humanSize(s.Memory.InFlight), humanSize(s.Memory.Limit)))
	t.add("Last check", lastCheck(s.Scrub))
	if s.Scrub.Total > 0 && !s.Scrub.StartedAt.IsZero() && s.Scrub.Checked < s.Scrub.Total {
		t.add("Running check", fmt.Sprintf("%s of %s", humanCount(s.Scrub.Checked), plural(s.Scrub.Total, "receipt")))
	}
	for _, f := range s.Scrub.Findings {
		t.add("  BAD "+f.Position, f.Problem)
	}
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
