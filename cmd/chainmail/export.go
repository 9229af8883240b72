package main

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"chainmail/archive/mailbox"
	"chainmail/node/client"
)

func newExportCommand() *cobra.Command {
	var (
		to     target
		chosen selection
		format outputFormat
		layout string
	)
	cmd := &cobra.Command{
		Use:   "export --format FORMAT OUT",
		Short: "Write many messages to files",
		Long: `Writes the chosen messages, by default all, byte for byte as they were received:

  eml      OUT is a folder with one file for each message, named by its SHA-256
  maildir  OUT is a Maildir
  mbox     OUT is one file (mboxrd)
  zip      OUT is one file, with EML files by date and a list of the envelopes

A message is checked against its SHA-256 before it is written; damaged ones are
left out and listed, and the exit code is then 1. An export into a folder may be
repeated and goes on where it ended.`,
		Example: "  chainmail export --format mbox --since 7d week.mbox\n  chainmail export --format zip --to bob@example.com bob.zip",
		Args:    oneArgument("OUT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if layout == "" {
				return usageError{errors.New("no format: give --format eml, maildir, mbox or zip")}
			}
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			status, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			sink, err := mailbox.Create(mailbox.Format(layout), args[0])
			if err != nil {
				return err
			}
			defer sink.Discard()
			total := status.Messages
			if chosen.query() != (client.Query{}) {
				total = 0 // nobody knows how many of them match
			}
			bar := newProgress(cmd.ErrOrStderr(), "exporting", total)
			summary, err := c.Export(cmd.Context(), chosen.query(), sink, func(s client.Summary) {
				bar.set(s.Added+s.Existing+s.Failed, s.Bytes)
			})
			bar.end()
			if err == nil {
				err = sink.Close()
			}
			return cmp.Or(err, printSummary(cmd, format, "exported", summary, 0))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&layout, "format", "", "`FORMAT` of the output: eml, maildir, mbox or zip")
	chosen.addFlags(flags)
	addOutputFlag(flags, &format)
	to.addFlags(flags)
	return cmd
}

// transferred is the summary of an export or import for programs.
type transferred struct {
	Added    uint64            `json:"added"`
	Existing uint64            `json:"existing"`
	Skipped  uint64            `json:"skipped"`
	Failed   uint64            `json:"failed"`
	Bytes    int64             `json:"bytes"`
	Failures []transferFailure `json:"failures"` // the first hundred
}

type transferFailure struct {
	Name  string `json:"name"`
	Error string `json:"error"`
}

// printSummary tells what became of the messages, and returns the error for
// the exit code when some failed.
func printSummary(cmd *cobra.Command, format outputFormat, done string, s client.Summary, skipped uint64) error {
	failed := error(nil)
	if s.Failed > 0 {
		failed = quietError{exitFailed}
	}
	if format == formatJSON {
		t := transferred{s.Added, s.Existing, skipped, s.Failed, s.Bytes, []transferFailure{}}
		for _, f := range s.Failures {
			t.Failures = append(t.Failures, transferFailure{f.Name, f.Err.Error()})
		}
		return cmp.Or(printJSON(cmd.OutOrStdout(), t), failed)
	}
	for _, f := range s.Failures {
		fmt.Fprintf(cmd.ErrOrStderr(), "FAILED  %s: %s\n", sanitize(f.Name), sanitize(f.Err.Error()))
	}
	if more := s.Failed - uint64(len(s.Failures)); more > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "FAILED  and %s more\n", humanCount(more))
	}
	line := fmt.Sprintf("%s %s", plural(s.Added, "message"), done)
	if s.Existing > 0 {
		line += fmt.Sprintf(", %s there already", humanCount(s.Existing))
	}
	if skipped > 0 {
		line += fmt.Sprintf(", %s without mail skipped", plural(skipped, "file"))
	}
	if s.Failed > 0 {
		line += fmt.Sprintf(", %s failed", humanCount(s.Failed))
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s; %s read.\n", line, humanSize(s.Bytes))
	return cmp.Or(err, failed)
}
