package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"chainmail/node"
	"chainmail/node/api"
)

// joining is how a node asks to be a member: the flags that join-node and
// witness share.
type joining struct {
	peer, token string
	replace     bool
	file        string // that --config names
}

func (j *joining) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&j.peer, "peer", "", "`HOST:PORT` of a member's HTTP port")
	flags.StringVar(&j.token, "token", "", "`TOKEN` that 'chainmail token join' made on a member; - reads it from standard input")
	flags.BoolVar(&j.replace, "replace", false, "take over the name of a member whose disk is lost")
	addConfigFlag(flags, &j.file)
}

func newJoinNodeCommand() *cobra.Command {
	var (
		join    joining
		format  outputFormat
		start   bool
		witness bool
	)
	cmd := &cobra.Command{
		Use:   "join-node --name NAME --peer HOST:PORT --token TOKEN",
		Short: "Make this machine a member of a cluster",
		Long: `Asks a member of a running cluster to let this machine in, keeps the certificate
and keys that it is given in the data directory, and writes a configuration file
(nothing in it is secret). Then start the node; with --start the command goes on
as the node itself.

A configuration file that sets something already is used and not changed; it must
agree with the flags. Root who names a directory of another user, such as that of
the packaged service, does this as that user. On a machine with several networks,
--advertise-… say by which address the other nodes reach each port.

With --replace the new node takes the name of a member whose disk is lost: its old
log is frozen, the others give it everything back, and mail that nobody has is
named by position in the status. With --witness it votes and keeps no mail.`,
		Example: `  chainmail join-node --name b --peer 192.0.2.1:8025 --token chainmail-join-1.… --start
  chainmail join-node --name b --peer a:8025 --token - --data-dir /srv/mail --chain 10.0.0.2:8091 < token
  chainmail join-node --name b --peer a:8025 --token chainmail-join-1.… --replace`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := join.complete(cmd.InOrStdin()); err != nil {
				return usageError{err}
			}
			if witness {
				if err := cmd.Flags().Set("role", roleWitness); err != nil {
					return err
				}
			}
			config, file, err := join.config(cmd.Flags())
			if err != nil {
				return err
			}
			done, err := join.join(cmd, config, file)
			if err != nil {
				return err
			}
			switch {
			case start:
				sayJoined(cmd.ErrOrStderr(), config, done)
				if err := becomeOwner(cmd.ErrOrStderr(), config.DataDir, []string{"node", "--config", file}); err != nil {
					return err
				}
				return runNode(cmd, config)
			case format == formatJSON:
				return printJSON(cmd.OutOrStdout(), struct {
					api.Changed
					Config string `json:"config"`
				}{done, file})
			}
			return printJoined(cmd.OutOrStdout(), done, config, file)
		},
	}
	flags := cmd.Flags()
	addNodeFlags(flags, "smtp", "chain", "gossip", "raft", "http")
	join.addFlags(flags)
	flags.BoolVar(&witness, "witness", false, "vote, and keep no mail")
	flags.String("role", "", "")
	_ = flags.MarkHidden("role") // it exists
	flags.BoolVar(&start, "start", false, "go on as the node")
	addOutputFlag(flags, &format)
	return cmd
}

// sayJoined is for a node that is started at once: the answer to a join tells
// to start it.
func sayJoined(w io.Writer, config node.Config, done api.Changed) {
	fmt.Fprintf(w, "%s is a member of the cluster since epoch %d.\n", sanitize(config.Name), done.Epoch)
}

// serviceUnit is there when a package brought the service; tests put something
// else here.
var serviceUnit = "/lib/systemd/system/chainmail.service"

func printJoined(w io.Writer, done api.Changed, config node.Config, file string) error {
	start, of := "chainmail node --config "+file, " --data-dir "+config.DataDir
	if file == systemConfig && exists(serviceUnit) {
		start = "systemctl enable --now chainmail"
	}
	if file == systemConfig {
		of = "" // every command finds it
	}
	what, watch := "watch how it is given the history", " --watch"
	if config.Role == node.RoleWitness {
		what, watch = "see that it votes", ""
	}
	_, err := fmt.Fprintf(w, `%s
The configuration is in %s. Start the node:
  %s
and %s:
  chainmail status%s%s
`, sanitize(done.Message), file, start, what, of, watch)
	return err
}

// config is the configuration that the new member will have, and the file that
// it is or will be in.
func (j *joining) config(flags *pflag.FlagSet) (node.Config, string, error) {
	file, err := j.configFile(flags)
	if err != nil {
		return node.Config{}, "", err
	}
	read := file
	if !counts(file) {
		read = os.DevNull // an empty configuration, and not the system's
	}
	config, err := checkedConfig(read, flags)
	if err != nil {
		return config, "", err
	}
	if config.DataDir, err = filepath.Abs(config.DataDir); err != nil {
		return config, "", err
	}
	if read == file {
		err = agrees(file, flags, config)
	}
	return config, file, err
}

// configFile is the file that the node will read when it is started: --config,
// the data directory's own, or the system's when it is about this directory, or
// about none yet, as the packages bring it.
func (j *joining) configFile(flags *pflag.FlagSet) (string, error) {
	file, dir := configFile(j.file, flags), namedDirectory(flags)
	if file == systemConfig && j.file == "" && dir != "" {
		system, _, err := loadConfig(file, pflag.NewFlagSet("", pflag.ContinueOnError))
		if err != nil {
			return "", err
		}
		if system.DataDir != dir {
			file = ""
		}
	}
	if file == "" {
		if dir == "" || dir == defaultDirectory {
			dir = defaultDirectory
			if exists(systemConfig) && !counts(systemConfig) {
				return systemConfig, nil
			}
		}
		file = filepath.Join(dir, ownConfig)
	}
	return filepath.Abs(file)
}

// agrees refuses flags that say something else than a file that exists: the
// node would be started without them.
func agrees(file string, flags *pflag.FlagSet, config node.Config) error {
	alone, err := checkedConfig(file, pflag.NewFlagSet("", pflag.ContinueOnError))
	if err != nil {
		return err
	}
	if alone.DataDir, err = filepath.Abs(alone.DataDir); err != nil {
		return err
	}
	inFile, asked := settings(alone), settings(config)
	var differ []string
	flags.Visit(func(f *pflag.Flag) {
		if key, ok := configFlags[f.Name]; ok && inFile[key] != asked[key] {
			differ = append(differ, fmt.Sprintf("%s is %q in it and %q by --%s", strings.ReplaceAll(key, keyDelimiter, "."), inFile[key], asked[key], f.Name))
		}
	})
	if len(differ) > 0 {
		return usageError{fmt.Errorf("%s exists, and %s: correct the file or the flags, or name another file with --config", file, strings.Join(differ, "; "))}
	}
	return nil
}

// join makes the node a member, and then writes the file if there is none.
// What can fail for local reasons is tried first, since a token works once.
func (j *joining) join(cmd *cobra.Command, config node.Config, file string) (done api.Changed, err error) {
	if err := j.complete(cmd.InOrStdin()); err != nil {
		return done, usageError{err}
	}
	text, err := joinedConfig(config)
	if err != nil {
		return done, err
	}
	if err := os.MkdirAll(config.DataDir, 0o700); err != nil {
		return done, fmt.Errorf("data directory: %w: create it, or choose another with --data-dir", err)
	}
	notes, folder := cmd.ErrOrStderr(), filepath.Dir(file)
	write := !counts(file)
	if write {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return done, cannotWrite(err)
		}
		if err := asOwner(io.Discard, folder, func() error { return tryFile(file) }); err != nil {
			return done, cannotWrite(err)
		}
	}
	err = asOwner(notes, config.DataDir, func() (err error) {
		done, err = joinCluster(cmd.Context(), node.JoinOptions{Config: config, Peer: j.peer, Token: j.token, Replace: j.replace, Version: version})
		return err
	})
	if err != nil || !write {
		return done, err
	}
	err = asOwner(io.Discard, folder, func() error { return os.WriteFile(file, []byte(text), 0o644) })
	if err != nil {
		return done, fmt.Errorf("%s is a member now, but its configuration could not be written: %w; write %s yourself:\n%s", config.Name, err, file, text)
	}
	return done, nil
}

func cannotWrite(err error) error {
	return fmt.Errorf("cannot write the configuration: %w: name another file with --config", err)
}

// complete checks peer and token, and reads the token that is not on the
// command line.
func (j *joining) complete(in io.Reader) error {
	if j.peer == "" || j.token == "" {
		return errors.New("give --peer HOST:PORT of a member, and --token TOKEN that 'chainmail token join' printed there")
	}
	host, port, err := net.SplitHostPort(j.peer)
	if err != nil || host == "" || port == "" {
		return fmt.Errorf("--peer is %q: write the host and HTTP port of a member, for example 192.0.2.1:8025", j.peer)
	}
	if j.token == "-" {
		line, _ := bufio.NewReader(in).ReadString('\n') // what came is what counts
		if j.token = strings.TrimSpace(line); j.token == "" {
			return errors.New("no token came from standard input")
		}
	}
	return nil
}

// tryFile finds out whether a file could be written, and leaves no trace.
func tryFile(file string) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	return errors.Join(tmp.Close(), os.Remove(tmp.Name()))
}
