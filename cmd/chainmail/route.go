package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"chainmail/node/api"
)

func newRouteCommand() *cobra.Command {
	return group("route", "Show the routes to foreign mail servers, and send parked mail again",
		newRouteListCommand(), newRouteParkedCommand(), newRouteRetryCommand())
}

func newRouteListCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the node's routes and how far they are",
		Long: `Lists the routes of the node, as its configuration has them under routes, with
what is still to be sent and what the targets refused for good (parked).`,
		Example: "  chainmail route list",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			routes, err := c.Routes(cmd.Context())
			if err != nil {
				return err
			}
			if format == formatJSON {
				for _, r := range routes {
					if err := printJSON(cmd.OutOrStdout(), r); err != nil {
						return err
					}
				}
				return nil
			}
			if len(routes) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "No routes. They are made in the node's configuration, under routes.")
				return nil
			}
			rows := routeTable(routes)
			return rows.print(cmd.OutOrStdout())
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

func routeTable(routes []api.Route) table {
	var t table
	t.add("ROUTE", "TARGET", "STATE", "SENT", "TO SEND", "OLDEST", "PARKED", "PROBLEM")
	for _, r := range routes {
		oldest := "-"
		if r.Backlog > 0 {
			oldest = "unknown"
		}
		if r.Oldest != nil {
			oldest = shortTime(*r.Oldest)
		}
		problem := r.Problem
		if r.Next != nil && problem != "" {
			problem += "; tries again at " + shortTime(*r.Next)
		}
		t.add(r.Name, r.Target, r.State, humanCount(r.Sent), humanCount(r.Backlog), oldest, humanCount(r.Parked), problem)
	}
	return t
}

func newRouteParkedCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:   "parked NAME",
		Short: "List what a route's target refused for good",
		Long: `Lists the mail that the target of a route refused for good, with its words. It is
whole in this archive; 'chainmail route retry' sends it again.`,
		Example: "  chainmail route parked piler",
		Args:    oneArgument("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			parked, err := c.Parked(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var rows table
			rows.width, _ = terminalWidth(cmd.OutOrStdout())
			rows.add("POSITION", "MESSAGE", "REFUSED AT", "ATTEMPTS", "REPLY")
			for _, p := range parked {
				if format == formatJSON {
					if err := printJSON(cmd.OutOrStdout(), p); err != nil {
						return err
					}
				}
				rows.add(p.Position, p.SHA256[:min(shortID, len(p.SHA256))], shortTime(p.At), fmt.Sprint(p.Attempts), p.Reply)
			}
			switch {
			case format == formatJSON:
				return nil
			case len(parked) == 0:
				fmt.Fprintln(cmd.ErrOrStderr(), "Nothing is parked.")
				return nil
			}
			return rows.print(cmd.OutOrStdout())
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

func newRouteRetryCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:     "retry NAME [POSITION...]",
		Short:   "Send parked mail again, all of it or some",
		Example: "  chainmail route retry piler\n  chainmail route retry piler 4f2a9c1be0d37786:42",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("give the NAME of a route: 'chainmail route list' shows them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			n, err := c.Retry(cmd.Context(), args[0], args[1:])
			if err != nil {
				return err
			}
			if format == formatJSON {
				return printJSON(cmd.OutOrStdout(), api.Retried{Retried: n})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s by route %s again.\n", beSent(n), sanitize(args[0]))
			return err
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

func beSent(n int) string {
	if n == 1 {
		return "1 mail is sent"
	}
	return humanCount(uint64(n)) + " mails are sent"
}
