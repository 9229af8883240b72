package main

import (
	"io"

	"github.com/spf13/cobra"
)

func newGetCommand() *cobra.Command {
	var to target
	cmd := &cobra.Command{
		Use:   "get ID",
		Short: "Write a message's exact bytes to standard output",
		Long: "Writes the bytes of a message exactly as they were received.\n" + idHelp + `

The bytes are checked against their SHA-256 on the way; when they do not match,
the command fails and what it wrote must not be used.`,
		Example: "  chainmail get 3f9a0c1d2e4b > mail.eml\n  chainmail get 3f9a0c1d2e4b | sha256sum",
		Args:    oneArgument("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := to.client()
			if err != nil {
				return err
			}
			body, err := c.Raw(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer body.Close()
			_, err = io.Copy(cmd.OutOrStdout(), body)
			return err
		},
	}
	to.addFlags(cmd.Flags())
	return cmd
}
