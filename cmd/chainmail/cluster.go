package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chainmail/membership/ring"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
)

const roleWitness = string(node.RoleWitness)

func newClusterCommand() *cobra.Command {
	return group("cluster", "Show and change what is the same on every node",
		newClusterShowCommand(), newClusterSetCommand(), newClusterCACommand())
}

func newClusterShowCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show policies, voters and the members' addresses",
		Long:    "Shows what the members of the cluster agreed on. How they are is told by status.",
		Example: "  chainmail cluster show",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			cluster, err := c.Cluster(cmd.Context())
			if err != nil {
				return err
			}
			if format == formatJSON {
				return printJSON(cmd.OutOrStdout(), cluster)
			}
			return printCluster(cmd.OutOrStdout(), cluster)
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

func newClusterCACommand() *cobra.Command {
	var to target
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Print the certificate by which nodes are verified",
		Long: `Prints the certificate of the cluster's own authority, in PEM. With it balancers and
programs verify any node over TLS, by the name ` + api.NodeName + `.
It is no secret.`,
		Example: `  chainmail cluster ca > /etc/nginx/chainmail-ca.pem`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			ca, err := c.CA(cmd.Context())
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(ca)
			return err
		},
	}
	to.addFlags(cmd.Flags())
	return cmd
}

func printCluster(w io.Writer, c api.Cluster) error {
	var t table
	t.add("Cluster", c.ID)
	t.add("Epoch", humanCount(c.Epoch))
	t.add("Voters", votersLine(c))
	t.add("")
	p := c.Policies
	t.add("copies", fmt.Sprint(p.Copies))
	t.add("replicas", replicasText(p.Replicas))
	t.add("when_short", p.WhenShort)
	t.add("ack_timeout", secondsText(p.AckTimeout))
	t.add("backfill_rate", rateText(p.BackfillRate))
	t.add("balancers", balancersText(p.Balancers))
	if err := t.printAsList(w); err != nil {
		return err
	}
	fmt.Fprintln(w)
	members := table{}
	members.add("MEMBER", "ROLE", "SMTP", "CHAIN", "GOSSIP", "RAFT", "HTTP")
	for _, m := range c.Members {
		row := []string{m.Name, m.Role}
		for _, port := range []string{"smtp", "chain", "gossip", "raft", "http"} {
			row = append(row, orDash(m.Addresses[port]))
		}
		members.add(row...)
	}
	return members.print(w)
}

func votersLine(c api.Cluster) string {
	leader := "leader " + c.Leader
	if c.Leader == "" {
		leader = "no leader"
	}
	if !c.Quorum {
		leader += ", NO QUORUM: nothing can be changed, mail flows all the same"
	}
	return strings.Join(c.Voters, ", ") + " (" + leader + ")"
}

func replicasText(n int) string {
	if n == 0 {
		return "all"
	}
	return strconv.Itoa(n)
}

func secondsText(s float64) string { return node.Duration(s * float64(time.Second)).String() }

func rateText(n int64) string {
	if n == 0 {
		return "unlimited"
	}
	return node.Size(n).String() + " a second"
}

func balancersText(balancers []string) string {
	if len(balancers) == 0 {
		return "none"
	}
	return strings.Join(balancers, ", ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newClusterSetCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:   "set KEY=VALUE...",
		Short: "Change policies, for every node at once",
		Long: `Changes what must be the same on every node. The keys:

  copies=N                      copies on disk before a mail is answered 250
  replicas=N|all                nodes that keep each mail
  when_short=accept|tempfail    when the copies cannot be had in time: 250, counted
                                and shown as short, or 451
  ack_timeout=DURATION          how long a 250 waits for copies
  backfill_rate=SIZE|unlimited  bytes a second that one node sends another to catch up
  balancers=ADDRESS,...|none    IP addresses and blocks of the balancers in front of
                                the nodes: their word on a client's address is
                                believed, and their SMTP connections must begin with
                                a PROXY header`,
		Example: `  chainmail cluster set copies=2 replicas=3 when_short=accept
  chainmail cluster set ack_timeout=5s backfill_rate=20MiB
  chainmail cluster set balancers=192.0.2.10,192.0.2.11`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("give at least one KEY=VALUE")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := parsePolicies(args)
			if err != nil {
				return usageError{err}
			}
			return to.change(cmd, format, func(ctx context.Context, c *client.Client) (api.Changed, error) {
				return c.SetPolicies(ctx, change)
			})
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

// policies reads the value of each policy into a change, or says what it
// should be.
var policies = map[string]struct {
	want string
	read func(value string, c *api.PolicyChange) bool
}{
	"copies":   {"a number from 1", func(v string, c *api.PolicyChange) bool { return readCount(v, &c.Copies) }},
	"replicas": {"a number from 1, or all", readReplicas},
	"when_short": {"accept or tempfail", func(v string, c *api.PolicyChange) bool {
		c.WhenShort = &v
		return v == "accept" || v == "tempfail"
	}},
	"ack_timeout": {"a duration such as 5s", func(v string, c *api.PolicyChange) bool {
		var d node.Duration
		ok := d.UnmarshalText([]byte(v)) == nil && d > 0
		seconds := time.Duration(d).Seconds()
		c.AckTimeout = &seconds
		return ok
	}},
	"backfill_rate": {"bytes a second such as 20MiB, or unlimited", func(v string, c *api.PolicyChange) bool {
		var size node.Size
		ok := v == "unlimited" || size.UnmarshalText([]byte(v)) == nil
		n := int64(size)
		c.BackfillRate = &n
		return ok
	}},
	"balancers": {"IP addresses and blocks such as 192.0.2.10,192.0.2.16/28, or none", readBalancers},
}

func readBalancers(v string, c *api.PolicyChange) bool {
	list, err := balancers(v)
	c.Balancers = &list
	return err == nil
}

// balancers reads a list; an empty one means none, too.
func balancers(v string) ([]string, error) {
	if v == "" || v == "none" {
		return []string{}, nil
	}
	return ring.ParseBalancers(strings.Split(v, ","))
}

func readCount(v string, into **int) bool {
	n, err := strconv.Atoi(v)
	*into = &n
	return err == nil && n >= 1
}

func readReplicas(v string, c *api.PolicyChange) bool {
	if v == "all" {
		c.Replicas = new(int)
		return true
	}
	return readCount(v, &c.Replicas)
}

func parsePolicies(args []string) (change api.PolicyChange, err error) {
	seen := map[string]bool{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		known := slices.Sorted(maps.Keys(policies))
		switch policy, there := policies[key]; {
		case !there:
			return change, fmt.Errorf("there is no policy %q: they are %s", key, strings.Join(known, ", "))
		case !ok:
			return change, fmt.Errorf("%s has no value: write %s=VALUE, %s", key, key, policy.want)
		case seen[key]:
			return change, fmt.Errorf("%s is given twice: give it once", key)
		case !policy.read(value, &change) && key == "balancers":
			_, err := balancers(value)
			return change, err // it names the one that is wrong
		case !policy.read(value, &change):
			return change, fmt.Errorf("%s is %q: write %s", key, value, policy.want)
		}
		seen[key] = true
	}
	return change, nil
}
