package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"chainmail/node"
)

func newNodeCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run a node: take mail and archive it",
		Long: `Runs one node of the archive. Its configuration comes from flags, from the
environment (CHAINMAIL_SMTP, CHAINMAIL_LIMITS_MAX_MESSAGE_SIZE and so on) and from a
YAML file, in this order; packaging/chainmail.yaml documents every key.

SIGTERM or SIGINT stops it in order: new mail is answered 421, mail in flight
finishes and is archived, then it exits with 0. A second signal ends it at once;
nothing that was answered 250 is lost. When the archive cannot write, the node
answers nothing more and exits with 70.

Root who starts it on a directory of another user, such as that of the packaged
service, runs it as that user. Under systemd it says when it is ready and how it is,
and gives signs of life for the watchdog (see sd_notify(3)).`,
		Example: `  chainmail node --data-dir ./data --smtp 127.0.0.1:2525 --http 127.0.0.1:8025
  chainmail node --config /etc/chainmail/chainmail.yaml`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := checkedConfig(file, cmd.Flags())
			if err != nil {
				return err
			}
			if err := becomeOwner(cmd.ErrOrStderr(), config.DataDir, os.Args[1:]); err != nil {
				return err
			}
			return runNode(cmd, config)
		},
	}
	addConfigFlag(cmd.Flags(), &file)
	addNodeFlags(cmd.Flags(), "smtp", "chain", "gossip", "raft", "http")
	return cmd
}

// listeners are the ports of a node: what the flags of the same names set, and
// those with "advertise-" before the name.
var listeners = map[string]struct{ what, standard string }{
	"smtp":   {"of the connector named smtp", ":25"},
	"chain":  {"for mail from the other nodes", node.Default().Chain},
	"gossip": {"for the other nodes' gossip", node.Default().Gossip},
	"raft":   {"for the other nodes' Raft", node.Default().Raft},
	"http":   {"of health, metrics, the API, and for the other nodes", node.Default().HTTP},
}

// addNodeFlags adds the flags of a node that has these listeners.
func addNodeFlags(flags *pflag.FlagSet, ports ...string) {
	flags.SortFlags = false
	flags.String("name", "", "`NAME` of the node (default the host's name)")
	flags.String("data-dir", "", "`DIRECTORY` of the node (default "+node.Default().DataDir+")")
	for _, port := range ports {
		flags.String(port, "", fmt.Sprintf("`ADDRESS` %s (default %s)", listeners[port].what, listeners[port].standard))
	}
	for _, port := range ports {
		flags.String("advertise-"+port, "", "`ADDRESS` or host by which others reach --"+port+", when it is another one")
	}
	flags.String("log-level", "", "`LEVEL` of the log: debug, info, warn or error (default info)")
}

// serveNode runs a node until the command's context ends.
func serveNode(cmd *cobra.Command, config node.Config) error {
	notes, by, ready := cmd.ErrOrStderr(), newSupervisor(), make(chan struct{})
	var n *node.Node
	options := node.Options{Version: version, Logger: newLogger(notes, config.Log)}
	options.Ready = func() {
		if config.Log.Format == node.LogText && !by.present() {
			printWelcome(notes, welcome{config: config, addrs: n.Addrs(), advertised: n.Advertised(), members: n.Members()})
		}
		close(ready)
	}
	n, err := node.New(config, options)
	if err != nil {
		return err
	}
	ended := by.followNode(cmd.Context(), config, ready)
	err = n.Run(cmd.Context())
	ended(err)
	if errors.Is(err, node.ErrNotMember) {
		return usageError{err} // so that a supervisor does not start it for ever
	}
	return err
}

func newLogger(w io.Writer, c node.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // Validate refuses other words
	}
	options := &slog.HandlerOptions{Level: level}
	form := func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, options) }
	if c.Format == node.LogJSON {
		form = func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, options) }
	}
	if w == os.Stderr && toJournal() {
		return slog.New(newJournalHandler(w, form))
	}
	return slog.New(form(w))
}

// welcome is what a person is told of a node that is ready.
type welcome struct {
	config            node.Config
	addrs, advertised map[string]string // by port: where it listens, and where others reach it
	members           int               // of the cluster that keep mail
}

// printWelcome tells a person who started a node by hand how to use it.
func printWelcome(w io.Writer, is welcome) {
	config := is.config
	if config.Role == node.RoleWitness {
		fmt.Fprintf(w, "\nThe witness %s votes; it keeps no mail. Stop it with Ctrl-C.\n\n", config.Name)
		return
	}
	dataDir := config.DataDir
	smtp := is.addrs["smtp"]
	if smtp == "" {
		return // connectors of the operator's own, who knows how to reach them
	}
	host, port := reachable(smtp)
	fmt.Fprintf(w, `
The node takes mail on %s. Send it one:
  swaks --server %s:%s --from ann@example.com --to bob@example.com --header "Subject: Hello"
or, without swaks:
  python3 -c 'import smtplib; smtplib.SMTP("%s", %s).sendmail("ann@example.com", ["bob@example.com"], "Subject: Hello\r\n\r\nHello Bob\r\n")'
See it:
  %s list --data-dir %s
`, smtp, host, port, host, port, programName(), dataDir)
	host, port = reachable(is.addrs["http"])
	fmt.Fprintf(w, "  curl http://%s:%s/readyz\n", host, port)
	if is.members > 1 {
		fmt.Fprintf(w, "How the cluster of %d nodes is:\n  %s status --data-dir %s\n", is.members, programName(), dataDir)
	} else {
		printHowToJoin(w, is)
	}
	fmt.Fprintln(w, "Stop the node with Ctrl-C.")
	fmt.Fprintln(w)
}

// printHowToJoin tells how a second node is added: one node is no archive yet.
func printHowToJoin(w io.Writer, is welcome) {
	there, peer := "on the other machine", is.advertised["http"]
	if host, port, err := net.SplitHostPort(peer); err != nil || port == "0" || loopback(host) {
		host, port := reachable(is.addrs["http"])
		there, peer = there+", with the address of this one in place of "+host, host+":"+port
	}
	fmt.Fprintf(w, `Add a second node, so that mail survives the loss of this one. Make a token here:
  %s token join --data-dir %s
and %s:
  chainmail join-node --name NAME --peer %s --token TOKEN --start
`, programName(), is.config.DataDir, there, peer)
}
