package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"chainmail/node"
)

// The exit codes of every command.
const (
	exitOK     = 0
	exitFailed = 1  // the command failed, was refused, or found something
	exitUsage  = 2  // a flag, an argument or the configuration is wrong
	exitFatal  = 70 // EX_SOFTWARE: the archive cannot be trusted to write any more
)

// streams are the standard streams of a command.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// usageError is a command line that cannot be carried out as written.
type usageError struct{ error }

// quietError ends a command with a code after it has said everything itself.
type quietError struct{ code int }

func (e quietError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, io streams) int {
	root := newRoot(io)
	started := false
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !started { // cobra refused the command line itself
		err = usageError{fmt.Errorf("%s: %s", firstLine(err.Error()), advice(cmd, err))}
	}
	return report(io.err, err)
}

// report prints an error as operators read it and returns the exit code.
func report(w io.Writer, err error) int {
	if quiet, ok := err.(quietError); ok { //nolint:errorlint // joined with another, that one must be printed
		return quiet.code
	}
	if problems, ok := errors.AsType[node.Problems](err); ok {
		for _, p := range problems {
			fmt.Fprintf(w, "chainmail: config: %s\n", sanitize(p.Error()))
		}
		return exitUsage
	}
	fmt.Fprintf(w, "chainmail: %s\n", sanitize(strings.Join(strings.Split(err.Error(), "\n"), "; ")))
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailed
}

func advice(cmd *cobra.Command, err error) string {
	if _, typed, ok := strings.Cut(err.Error(), `unknown command "`); ok {
		typed, _, _ = strings.Cut(typed, `"`)
		if near := cmd.SuggestionsFor(typed); len(near) > 0 {
			return "did you mean " + cmd.CommandPath() + " " + near[0] + "?"
		}
	}
	return "see " + cmd.CommandPath() + " --help"
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func newRoot(io streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "chainmail",
		Short: "A highly available e-mail archive",
		Long: `chainmail archives the mail that a mail system journals to it over SMTP.
It answers 250 only when a mail is on disk, and gives every byte back.

The members of a cluster forward mail to one another, so that it outlives any of
them: see status, token join and join-node.

Exit codes: 0 done; 1 failed, refused, or something was found; 2 the command line
or the configuration is wrong; 70 the archive could not write and the node stopped
itself.`,
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.NoArgs,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(io.in)
	root.SetOut(io.out)
	root.SetErr(io.err)
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.AddGroup(
		&cobra.Group{ID: "node", Title: "The node:"},
		&cobra.Group{ID: "cluster", Title: "The cluster:"},
		&cobra.Group{ID: "mail", Title: "The mail in it (asks the running node over its admin socket):"},
		&cobra.Group{ID: "tools", Title: "Tools:"},
	)
	for _, c := range []struct {
		group string
		cmd   *cobra.Command
	}{
		{"node", newNodeCommand()},
		{"node", newConfigCommand()},
		{"node", newStatusCommand()},
		{"node", newTokenCommand()},
		{"node", newRouteCommand()},
		{"cluster", newJoinNodeCommand()},
		{"cluster", newWitnessCommand()},
		{"cluster", newClusterCommand()},
		{"cluster", newSafeToStopCommand()},
		{"cluster", newDrainNodeCommand()},
		{"cluster", newRemoveNodeCommand()},
		{"cluster", newRingCommand()},
		{"cluster", newKeysCommand()},
		{"cluster", newRecoverCommand()},
		{"cluster", newLBCommand()},
		{"mail", newListCommand()},
		{"mail", newShowCommand()},
		{"mail", newGetCommand()},
		{"mail", newExportCommand()},
		{"mail", newImportCommand()},
		{"mail", newVerifyCommand()},
		{"tools", newLoadCommand()},
		{"tools", newTestClusterCommand()},
		{"tools", newManCommand()},
		{"tools", newVersionCommand()},
	} {
		c.cmd.GroupID = c.group
		root.AddCommand(c.cmd)
	}
	root.SetHelpCommandGroupID("tools")
	root.SetCompletionCommandGroupID("tools")
	return root
}

// group makes a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	g.AddCommand(children...)
	return g
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("this command takes flags only, not %q", args[0])
}

// oneArgument refuses anything but one argument, by the name that the help
// gives it.
func oneArgument(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return fmt.Errorf("give one %s, not %d", name, len(args))
	}
}
