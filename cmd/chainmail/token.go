package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
)

func newTokenCommand() *cobra.Command {
	return group("token", "Make tokens for joining the cluster and for the HTTP interface",
		newTokenJoinCommand(), newTokenAPICommand(), newTokenListCommand(), newTokenRevokeCommand())
}

func newTokenJoinCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
		valid  = node.Duration(time.Hour)
	)
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Make a token that lets one node join the cluster",
		Long: `Makes a token for 'chainmail join-node' or 'chainmail witness' on the machine that
shall join. It works once, and only for a short time. The token alone goes to
standard output; whoever has it can be a member, so treat it like a password.`,
		Example: `  TOKEN=$(chainmail token join)
  chainmail token join --valid 15m`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if valid < node.Duration(time.Second) {
				return usageError{fmt.Errorf("--valid is %s: use a time from 1s to 30d", valid)}
			}
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			t, err := c.JoinToken(cmd.Context(), time.Duration(valid))
			if err != nil {
				return err
			}
			if format == formatJSON {
				return printJSON(cmd.OutOrStdout(), t)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "It works once, until %s. On the machine that shall join:\n  chainmail join-node --name NAME --peer %s --token TOKEN --start\n",
				shortTime(t.ExpiresAt), sanitize(ownHTTP(cmd.Context(), c)))
			_, err = fmt.Fprintln(cmd.OutOrStdout(), t.Token)
			return err
		},
	}
	cmd.Flags().Var(&durationFlag{&valid}, "valid", "how long it works, such as 15m or 2h")
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

// ownHTTP is where others reach the node's HTTP port, as far as it is known.
func ownHTTP(ctx context.Context, c *client.Client) string {
	cluster, err := c.Cluster(ctx)
	if err == nil {
		if m, ok := member(cluster, cluster.Node); ok && m.Addresses["http"] != "" {
			return m.Addresses["http"]
		}
	}
	return "HOST:PORT"
}

func newTokenAPICommand() *cobra.Command {
	var (
		to      target
		format  outputFormat
		name    string
		scope   = api.ScopeRead
		expires string
	)
	cmd := &cobra.Command{
		Use:   "api",
		Short: "Make a token for the HTTP interface of all nodes",
		Long: `Makes a bearer token for the HTTP interface. It works on every node of the cluster
and changes nothing. What it may see is its scope:

  read     all that can be read over HTTP, all mail included
  cluster  the members of the cluster and how they are, and no mail: what a
           balancer needs

The secret alone goes to standard output; it is shown this once, the cluster keeps
only its hash. It carries the hash of the cluster's certificate authority, by which
a program that has only the token knows with whom it speaks.`,
		Example: `  TOKEN=$(chainmail token api --name backup --expires 90d)
  chainmail cluster ca > ca.pem
  curl --cacert ca.pem --connect-to ` + api.NodeName + `:8025:127.0.0.1:8025 \
    -H "Authorization: Bearer $TOKEN" https://` + api.NodeName + `:8025/api/v1/status
  chainmail token api --name balancer --scope cluster`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if scope != api.ScopeRead && scope != api.ScopeCluster {
				return usageError{fmt.Errorf("--scope is %q: use %s or %s", scope, api.ScopeRead, api.ScopeCluster)}
			}
			until, err := parseExpiry(expires, time.Now())
			if err != nil {
				return usageError{err}
			}
			c, err := to.client()
			if err != nil {
				return err
			}
			t, err := c.MakeToken(cmd.Context(), api.TokenRequest{Name: name, Scope: scope, ExpiresAt: until})
			if err != nil {
				return err
			}
			if format == formatJSON {
				return printJSON(cmd.OutOrStdout(), t)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "Token %s (%s), scope %s, expires: %s. Keep the secret, it is not shown again. Revoke it with: chainmail token revoke %s\n",
				t.ID, sanitize(t.Name), sanitize(t.Scope), expiry(t.ExpiresAt), t.ID)
			_, err = fmt.Fprintln(cmd.OutOrStdout(), t.Secret)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", defaultTokenName(), "who or what will use it, for `PEOPLE` to read")
	flags.StringVar(&scope, "scope", scope, "what it may see: `SCOPE` read or cluster")
	flags.StringVar(&expires, "expires", "", "`WHEN` it stops working: 90d, 2027-01-31, 2027-01-31T08:00:00Z (default never)")
	addOutputFlag(flags, &format)
	to.addFlags(flags)
	return cmd
}

func defaultTokenName() string {
	if user := os.Getenv("USER"); user != "" {
		return "made by " + user
	}
	return "unnamed"
}

func newTokenListCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the tokens for the HTTP interface, without their secrets",
		Long:  "Lists the cluster's tokens for the HTTP interface: the same on every node.",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			tokens, err := c.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			var rows table
			rows.add("ID", "SCOPE", "MADE", "EXPIRES", "NAME")
			for _, t := range tokens {
				if format == formatJSON {
					if err := printJSON(cmd.OutOrStdout(), t); err != nil {
						return err
					}
				}
				rows.add(t.ID, t.Scope, shortTime(t.CreatedAt), expiry(t.ExpiresAt), t.Name)
			}
			switch {
			case format == formatJSON:
				return nil
			case len(tokens) == 0:
				fmt.Fprintln(cmd.ErrOrStderr(), "No tokens.")
				return nil
			}
			return rows.print(cmd.OutOrStdout())
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

func newTokenRevokeCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke a token for the HTTP interface",
		Long: `Ends a token on all nodes. One that cannot be reached at the moment takes the token
until it hears of it; the answer names such nodes.`,
		Args: oneArgument("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return to.change(cmd, format, func(ctx context.Context, c *client.Client) (api.Changed, error) {
				return c.RevokeToken(ctx, args[0])
			})
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

func expiry(t time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case t.Before(time.Now()):
		return shortTime(t) + " (expired)"
	}
	return shortTime(t)
}
