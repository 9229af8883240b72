package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

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
answers nothing more and exits with 70.`,
		Example: "  chainmail node --data-dir ./data --smtp 127.0.0.1:2525 --http 127.0.0.1:8025",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := checkedConfig(file, cmd.Flags())
			if err != nil {
				return err
			}
			notes := cmd.ErrOrStderr()
			var n *node.Node
			options := node.Options{Version: version, Logger: newLogger(notes, config.Log)}
			if config.Log.Format == node.LogText {
				options.Ready = func() { printWelcome(notes, config.DataDir, n.Addrs()) }
			}
			if n, err = node.New(config, options); err != nil {
				return err
			}
			return n.Run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	addConfigFlag(flags, &file)
	flags.String("name", "", "`NAME` of the node (default the host's name)")
	flags.String("data-dir", "", "`DIRECTORY` of the archive (default "+node.Default().DataDir+")")
	flags.String("smtp", "", "`ADDRESS` of the connector named smtp (default :25)")
	flags.String("http", "", "`ADDRESS` of health, metrics and the API (default "+node.Default().HTTP+")")
	flags.String("log-level", "", "`LEVEL` of the log: debug, info, warn or error (default info)")
	return cmd
}

func newLogger(w io.Writer, c node.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // Validate refuses other words
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == node.LogJSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// printWelcome tells a person who started a node by hand how to use it.
func printWelcome(w io.Writer, dataDir string, addrs map[string]string) {
	smtp := addrs["smtp"]
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
	if http := addrs["http"]; http != "" {
		host, port := reachable(http)
		fmt.Fprintf(w, "  curl http://%s:%s/readyz\n", host, port)
	}
	fmt.Fprintln(w, "Stop the node with Ctrl-C.")
	fmt.Fprintln(w)
}
