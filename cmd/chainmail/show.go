package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"chainmail/node/api"
)

const idHelp = "ID is a message's SHA-256, at least the first 4 digits of it, or a position such as\n4f2a9c1be0d37786:42. The SHA-256 of a message inside journal reports works too."

func newShowCommand() *cobra.Command {
	var (
		to     target
		format outputFormat
	)
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a message's receipts and header",
		Long:  "Shows every receipt of a message (who handed it in, when, for whom) and its header.\n" + idHelp,
		Args:  oneArgument("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			m, err := c.Message(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if format == formatJSON {
				return printJSON(cmd.OutOrStdout(), m)
			}
			return printMessage(cmd.OutOrStdout(), m)
		},
	}
	addOutputFlag(cmd.Flags(), &format)
	to.addFlags(cmd.Flags())
	return cmd
}

func printMessage(w io.Writer, m api.Message) error {
	var t table
	t.add("SHA-256", m.SHA256)
	t.add("Size", fmt.Sprintf("%s (%s)", humanSize(m.Size), plural(uint64(m.Size), "byte")))
	t.add("Subject", m.Subject)
	if m.Problem != "" {
		t.add("Problem", m.Problem)
	}
	for _, r := range m.Reports {
		t.add("In journal report", r)
	}
	for i, r := range m.Receipts {
		t.add("")
		t.add(fmt.Sprintf("Receipt %d of %d", i+1, len(m.Receipts)), r.Position)
		t.addReceipt(r)
	}
	if len(m.Headers) > 0 {
		t.add("")
		t.add("Header")
	}
	for _, h := range m.Headers {
		t.add("  "+h.Name+": ", h.Value)
	}
	return t.printAsList(w)
}

func (t *table) addReceipt(r api.Receipt) {
	from := r.From
	if from == "" {
		from = "<>"
	}
	t.add("  received", shortTime(r.ReceivedAt))
	t.add("  connector", r.Connector)
	t.add("  client", presented(r))
	t.add("  from", from)
	for _, to := range r.To {
		t.add("  to", to)
	}
	j := r.Journal
	if j == nil {
		return
	}
	t.add("  journal report of", j.InnerSHA256)
	t.add("    sender", j.Sender)
	if j.OnBehalfOf != "" {
		t.add("    on behalf of", j.OnBehalfOf)
	}
	t.add("    message ID", j.MessageID)
	for _, rcpt := range j.Recipients {
		line := rcpt.Address
		if rcpt.Expanded != "" {
			line += " (expanded from " + rcpt.Expanded + ")"
		}
		if rcpt.Forwarded != "" {
			line += " (forwarded by " + rcpt.Forwarded + ")"
		}
		t.add("    "+strings.ToLower(rcpt.Role), line)
	}
}

// presented is how the other side presented itself.
func presented(r api.Receipt) string {
	var parts []string
	if r.Client != "" {
		parts = append(parts, r.Client)
	}
	if r.Helo != "" {
		parts = append(parts, "as "+r.Helo)
	}
	if r.User != "" {
		parts = append(parts, "user "+r.User)
	}
	if r.TLS != "" {
		parts = append(parts, r.TLS)
	}
	if len(parts) == 0 {
		return "local"
	}
	return strings.Join(parts, ", ")
}
