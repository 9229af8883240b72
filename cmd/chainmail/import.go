package main

import (
	"cmp"
	"errors"
	"fmt"
	"iter"

	"github.com/spf13/cobra"

	"chainmail/archive/mailbox"
	"chainmail/node/client"
)

func newImportCommand() *cobra.Command {
	var (
		to      target
		format  outputFormat
		dialect string
	)
	cmd := &cobra.Command{
		Use:   "import PATH...",
		Short: "Add messages from files",
		Long: `Adds messages from EML files, mbox files (gzip too), Maildirs, zip files with EML
files in them, and folders of any of these. The envelope is derived from each
message's header. What the archive holds already is not added again, so a stopped
import may be repeated.`,
		Example: "  chainmail import ~/Maildir old.mbox mails/",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("give at least one PATH")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, paths []string) error {
			quoting, err := mailbox.ParseMbox(dialect)
			if err != nil {
				return usageError{fmt.Errorf("--mbox: %w", err)}
			}
			totals, err := mailbox.Scan(paths)
			if err != nil {
				return fmt.Errorf("%w: name files and folders that exist", err)
			}
			c, err := to.client()
			if err != nil {
				return err
			}
			defer c.Close()
			source := importSource{notes: func(s string) { fmt.Fprintln(cmd.ErrOrStderr(), sanitize(s)) }}
			bar := newByteProgress(cmd.ErrOrStderr(), "importing", totals.Bytes)
			items := source.items(mailbox.Open(paths, mailbox.Options{Mbox: quoting}))
			summary, err := c.Import(cmd.Context(), items, client.DefaultWorkers, func(s client.Summary) {
				bar.setBytes(s.Bytes, s.Added+s.Existing+s.Failed)
			})
			bar.end()
			return cmp.Or(err, printSummary(cmd, format, "added", summary, source.skipped))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dialect, "mbox", string(mailbox.MboxAuto), "`DIALECT` of mbox files: auto, mboxo, mboxrd, mboxcl or mboxcl2")
	addOutputFlag(flags, &format)
	to.addFlags(flags)
	return cmd
}

// importSource gives the messages of files to a client, and says which files
// hold none.
type importSource struct {
	notes   func(string)
	skipped uint64
}

func (s *importSource) items(found iter.Seq2[mailbox.Item, error]) iter.Seq2[client.Item, error] {
	return func(yield func(client.Item, error) bool) {
		for it, err := range found {
			if errors.Is(err, mailbox.ErrSkipped) {
				s.skipped++
				s.notes("SKIPPED  " + it.Name + ": " + err.Error())
				continue
			}
			if !yield(client.Item{Name: it.Name, Open: it.Open}, err) {
				return
			}
		}
	}
}
