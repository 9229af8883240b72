package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"chainmail/node/api"
)

const (
	shortID        = 12 // digits of a SHA-256 in a table: distinct among billions of mails
	addressColumns = 28 // of an address in a table
	defaultLimit   = 100
)

func newListCommand() *cobra.Command {
	var (
		to     target
		chosen selection
		format outputFormat
		after  string
		order  = newestFirst
		limit  int
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List messages, the newest first",
		Long: `Lists messages by the time of their first receipt, the newest first. To read
everything while mail arrives, use --order oldest: what is new comes last, and
--after with the last ID seen goes on from there another day.`,
		Example: `  chainmail list --since 1h
  chainmail list --from ann@example.com --since 2026-01-01 --until 2026-02-01
  chainmail list --order oldest --limit 0 -o json | jq -r .sha256`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return usageError{fmt.Errorf("--limit is %d: use a number from 1, or 0 for all", limit)}
			}
			c, err := to.client()
			if err != nil {
				return err
			}
			q := chosen.query()
			q.After, q.Subject, q.Newest = after, true, order == newestFirst
			if limit > 0 {
				q.Limit = limit + 1 // one more, to know whether there is more
			}
			show := newMessagePrinter(cmd.OutOrStdout(), format)
			n, last := 0, ""
			for m, err := range c.Messages(cmd.Context(), q) {
				if err != nil {
					return err
				}
				if limit > 0 && n == limit {
					fmt.Fprintf(cmd.ErrOrStderr(), "There are more; go on with --after %s, or use --limit 0 for all.\n", last)
					break
				}
				n, last = n+1, m.Receipts[0].Position
				if err := show.add(m); err != nil {
					return err
				}
			}
			if n == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "No messages.")
			}
			return show.flush()
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&limit, "limit", defaultLimit, "show at most `N` messages; 0 means all")
	flags.StringVar(&after, "after", "", "go on behind the message with this `ID`, in the same order")
	flags.Var(&order, "order", "which messages come first")
	chosen.addFlags(flags)
	addOutputFlag(flags, &format)
	to.addFlags(flags)
	return cmd
}

// listOrder is the value of --order.
type listOrder string

const (
	newestFirst listOrder = "newest"
	oldestFirst listOrder = "oldest"
)

// String, Set and Type make it a pflag.Value.
func (o *listOrder) String() string { return string(*o) }

// Set accepts "newest" and "oldest".
func (o *listOrder) Set(s string) error {
	switch v := listOrder(s); v {
	case newestFirst, oldestFirst:
		*o = v
		return nil
	}
	return errors.New("use newest or oldest")
}

// Type names the value in the help.
func (o *listOrder) Type() string { return "newest|oldest" }

// messagePrinter prints messages as a table, or as one JSON object a line.
type messagePrinter struct {
	out    io.Writer
	format outputFormat
	table  table
}

// tableRows are printed at once: their widths decide those of the columns.
const tableRows = 500

func newMessagePrinter(out io.Writer, format outputFormat) *messagePrinter {
	p := &messagePrinter{out: out, format: format}
	p.table.width, _ = terminalWidth(out)
	return p
}

func (p *messagePrinter) add(m api.Message) error {
	if p.format == formatJSON {
		return printJSON(p.out, m)
	}
	if len(p.table.rows) == 0 {
		p.table.add("RECEIVED", "SIZE", "ID", "FROM", "TO", "SUBJECT")
	}
	from, to := parties(m)
	p.table.add(shortTime(m.ReceivedAt), humanSize(m.Size), m.SHA256[:min(shortID, len(m.SHA256))],
		truncate(sanitize(from), addressColumns), recipients(to), m.Subject)
	if len(p.table.rows) > tableRows {
		return p.flush()
	}
	return nil
}

func (p *messagePrinter) flush() error {
	err := p.table.print(p.out)
	p.table.rows = nil
	return err
}

// parties are sender and recipients: those of the message inside, if this is a
// journal report, since a report's own envelope only names the journal mailbox.
func parties(m api.Message) (from string, to []string) {
	seen := map[string]bool{}
	for _, r := range m.Receipts {
		sender, all := r.From, r.To
		if r.Journal != nil {
			sender, all = r.Journal.Sender, nil
			for _, rcpt := range r.Journal.Recipients {
				all = append(all, rcpt.Address)
			}
		}
		if from == "" {
			from = sender
		}
		for _, a := range all {
			if !seen[a] {
				seen[a] = true
				to = append(to, a)
			}
		}
	}
	if from == "" {
		from = "<>"
	}
	return from, to
}

func recipients(to []string) string {
	switch len(to) {
	case 0:
		return ""
	case 1:
		return truncate(sanitize(to[0]), addressColumns)
	}
	more := fmt.Sprintf(" +%d", len(to)-1)
	return truncate(sanitize(to[0]), addressColumns-len(more)) + more
}
