package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// mainCF is Postfix as a fair opponent: it takes mail on the loopback interface,
// syncs its queue file before it answers, as it always does, and throws the
// mail away afterwards. Limits that would slow one busy client down are off,
// and so is its habit to brake its input when delivery falls behind.
const mainCF = `compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = loopback-only
inet_protocols = ipv4
myhostname = postfix.load.example
mydestination =
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
local_transport = discard:
relay_transport = discard:
default_transport = discard:
alias_maps =
alias_database =
local_recipient_maps =
biff = no
message_size_limit = 209715200
mailbox_size_limit = 0
in_flow_delay = 0
smtpd_client_connection_count_limit = 0
smtpd_recipient_limit = 10000
`

// masterCF runs nothing in a chroot.
const masterCF = `%[1]s inet n - n - 200 smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
showq unix n - n - - showq
`

// startPostfix runs the Debian package from a configuration of our own, beside
// any other Postfix of the machine.
func startPostfix(ctx context.Context, dir string) (*server, error) {
	command, err := findPostfix()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config")
	for _, d := range []string{config, filepath.Join(dir, "queue"), filepath.Join(dir, "data")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := giveToPostfix(filepath.Join(dir, "data")); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"main.cf": fmt.Sprintf(mainCF, dir), "master.cf": fmt.Sprintf(masterCF, addr)} {
		if err := os.WriteFile(filepath.Join(config, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	control := func(verb string) error {
		if out, err := exec.CommandContext(ctx, command, "-c", config, verb).CombinedOutput(); err != nil {
			return fmt.Errorf("postfix %s: %w; the system's mail log says why %s", verb, err, tail(string(out)))
		}
		return nil
	}
	if err := control("start"); err != nil {
		return nil, err
	}
	pid, err := masterPID(dir)
	if err != nil {
		return nil, err
	}
	stop := func() error {
		ctx = context.WithoutCancel(ctx)
		return control("stop")
	}
	return &server{addr, pid, stop}, nil
}

func findPostfix() (string, error) {
	command, err := exec.LookPath("postfix")
	if err != nil {
		command = "/usr/sbin/postfix" // not in the PATH of everybody
	}
	if _, err := os.Stat(command); err != nil {
		return "", fmt.Errorf("%w: install the Debian package postfix", errAbsent)
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("%w for this user: Postfix starts as root only", errAbsent)
	}
	return command, nil
}

// giveToPostfix makes its mail_owner the owner of a directory.
func giveToPostfix(dir string) error {
	owner, err := user.Lookup("postfix")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(owner.Uid)
	if err != nil {
		return err
	}
	return os.Chown(dir, uid, -1)
}

func masterPID(dir string) (int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "queue/pid/master.pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}
