package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"chainmail/node"
	"chainmail/testcluster/load"
)

func newLoadCommand() *cobra.Command {
	var (
		to         target
		format     outputFormat
		options    load.Options
		size       = node.Size(4096)
		acked      string
		check      string
		startTLS   bool
		skipVerify bool
	)
	cmd := &cobra.Command{
		Use:   "load {--target ADDRESS | --check FILE}",
		Short: "Send much mail, and check that all of it was kept",
		Long: `Sends mail as fast as a server takes it. With --acked, the SHA-256 of every mail
that was answered 250 is added to a file; with --check, all mails of such a file
are read back from the node, and missing, altered and duplicated ones reported
(exit code 1).`,
		Example: `  chainmail load --target 127.0.0.1:2525 --sessions 32 --size 50KiB --count 10000 --acked acked.txt
  chainmail load --check acked.txt --data-dir ./data`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case (options.Target == "") == (check == ""):
				return usageError{errors.New("give either --target ADDRESS to send, or --check FILE to read back")}
			case check != "":
				return checkLoad(cmd, &to, check, format)
			case options.Count == 0 && options.Duration == 0:
				return usageError{errors.New("nothing says when to stop: give --count or --duration")}
			}
			options.Size = int(size)
			if startTLS || options.ImplicitTLS {
				options.TLS = &tls.Config{InsecureSkipVerify: skipVerify} //nolint:gosec // a test of load, asked for by a flag
			}
			return sendLoad(cmd, options, acked, format)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&options.Target, "target", "", "`ADDRESS` to send to: host:port, or the path of a unix socket")
	flags.IntVar(&options.Sessions, "sessions", 1, "connections at a time")
	flags.Var(&sizeFlag{&size}, "size", "size of a mail, such as 4096 or 50KiB")
	flags.Int64Var(&options.Count, "count", 0, "how many mails to send")
	flags.DurationVar(&options.Duration, "duration", 0, "how long to send")
	flags.Float64Var(&options.Rate, "rate", 0, "mails per second of all sessions (default as fast as they go)")
	flags.IntVar(&options.PerSession, "per-session", 0, "mails over one connection before the next one (default no limit)")
	flags.BoolVar(&options.BDAT, "bdat", false, "send by BDAT instead of DATA")
	flags.BoolVar(&options.LMTP, "lmtp", false, "speak LMTP")
	flags.BoolVar(&startTLS, "starttls", false, "use STARTTLS")
	flags.BoolVar(&options.ImplicitTLS, "tls", false, "use TLS from the first byte")
	flags.BoolVar(&skipVerify, "insecure", false, "take any certificate")
	flags.StringVar(&options.From, "mail-from", "", "sender `ADDRESS`")
	flags.StringVar(&options.To, "rcpt-to", "", "recipient `ADDRESS`")
	flags.IntVar(&options.Recipients, "recipients", 1, "recipients of each mail")
	flags.Uint64Var(&options.Seed, "seed", 0, "makes the same mails again (default random)")
	flags.StringVar(&acked, "acked", "", "add the SHA-256 of each acknowledged mail to this `FILE`")
	flags.StringVar(&check, "check", "", "read back every mail of this `FILE`")
	addOutputFlag(flags, &format)
	to.addFlags(flags)
	return cmd
}

func sendLoad(cmd *cobra.Command, options load.Options, acked string, format outputFormat) (err error) {
	if acked != "" {
		f, err := os.OpenFile(acked, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("--acked: %w: name a file that can be written", err)
		}
		defer f.Close()
		options.Acked = f
	}
	bar := newProgress(cmd.ErrOrStderr(), "sending", uint64(options.Count))
	options.Progress = func(p load.Progress) { bar.set(uint64(p.Acked), p.Bytes) }
	report, err := load.Run(cmd.Context(), options)
	bar.end()
	if format == formatJSON {
		err = errors.Join(err, printJSON(cmd.OutOrStdout(), report))
	} else if report.Seconds > 0 {
		fmt.Fprint(cmd.OutOrStdout(), sanitizeLines(report.String()))
	}
	if err == nil && report.Acked == 0 {
		return fmt.Errorf("no mail was acknowledged by %s", options.Target)
	}
	return err
}

func checkLoad(cmd *cobra.Command, to *target, file string, format outputFormat) error {
	list, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("--check: %w: name a file that --acked wrote", err)
	}
	defer list.Close()
	c, err := to.client()
	if err != nil {
		return err
	}
	defer c.Close()
	var bar *progress
	report, err := load.Check(cmd.Context(), list, load.Node(c), load.CheckOptions{
		Progress: func(checked, total int) {
			if bar == nil {
				bar = newProgress(cmd.ErrOrStderr(), "checking", uint64(total))
			}
			bar.set(uint64(checked), 0)
		},
	})
	bar.end()
	if err != nil {
		return err
	}
	if format == formatJSON {
		err = printJSON(cmd.OutOrStdout(), report)
	} else {
		_, err = fmt.Fprint(cmd.OutOrStdout(), sanitizeLines(report.String()))
	}
	if err == nil && !report.OK() {
		err = quietError{exitFailed}
	}
	return err
}
