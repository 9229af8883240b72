package main

import (
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"chainmail/node"
	"chainmail/node/client"
)

// localData is where `make run` keeps the data of its first node.
const localData = "data/a"

// target is the node that a command talks to.
type target struct{ dataDir, socket string }

func (t *target) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&t.dataDir, "data-dir", "", "data `DIRECTORY` of the node (default as the node's: $CHAINMAIL_DATA_DIR, the configuration file, ./"+localData+" when it holds an archive, "+node.Default().DataDir+")")
	flags.StringVar(&t.socket, "socket", "", "admin `SOCKET` of the node (default DIRECTORY/"+filepath.Base(node.SocketPath(""))+")")
}

// directory is the data directory that the operator means.
func (t *target) directory() (string, error) {
	if t.dataDir != "" {
		return t.dataDir, nil
	}
	none := pflag.NewFlagSet("", pflag.ContinueOnError)
	if namedDirectory(none) == "" && configFile("", none) == "" && exists(node.ArchiveDir(localData)) {
		return "./" + localData, nil
	}
	config, _, err := loadConfig("", none)
	return config.DataDir, err
}

func (t *target) socketPath() (string, error) {
	if t.socket != "" {
		return t.socket, nil
	}
	dir, err := t.directory()
	return node.SocketPath(dir), err
}

func (t *target) client() (*client.Client, error) {
	socket, err := t.socketPath()
	if err != nil {
		return nil, err
	}
	return client.New(socket), nil
}

// selection is the choice of messages that list and export share.
type selection struct {
	since, until instant
	from, to     string
}

func (s *selection) addFlags(flags *pflag.FlagSet) {
	s.since.now, s.until.now = time.Now, time.Now
	flags.Var(&s.since, "since", "only mail received at or after TIME: 2026-01-31, 2026-01-31T08:00:00Z, or how long ago, such as 12h or 7d")
	flags.Var(&s.until, "until", "only mail received before TIME")
	flags.StringVar(&s.from, "from", "", "only mail from this `ADDRESS` or domain, by envelope or journal report")
	flags.StringVar(&s.to, "to", "", "only mail to this `ADDRESS` or domain, by envelope or journal report")
}

// query asks for the chosen messages.
func (s *selection) query() client.Query {
	return client.Query{Since: s.since.rfc3339(), Until: s.until.rfc3339(), From: s.from, To: s.to}
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, terminal := terminalWidth(f)
	return terminal
}
