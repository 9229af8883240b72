package testcluster_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster/support"
)

// postfixMain makes Postfix what an administrator makes it for journaling: it
// sends a copy of all its mail to the node, and verifies the node's certificate.
const postfixMain = `compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
mail_owner = postfix
setgid_group = postdrop
maillog_file = %[1]s/log
maillog_file_prefixes = %[1]s
inet_interfaces = loopback-only
inet_protocols = ipv4
myhostname = postfix.example
mydestination =
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
alias_maps =
alias_database =
biff = no
smtp_tls_security_level = encrypt
smtp_tls_CAfile = %[2]s
smtp_tls_mandatory_protocols = >=TLSv1.3
relayhost = [127.0.0.1]:%[3]s
always_bcc = journal@archive.example
`

// postfixMaster runs nothing in a chroot.
const postfixMaster = `%[1]s inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
smtp unix - - n - - smtp
anvil unix - - n - 1 anvil
`

// TestPeerPostfix hands mail to a real Postfix, which journals it to the node
// over STARTTLS. Nothing but its trace header is added on the way.
func TestPeerPostfix(t *testing.T) {
	postfix := lookFor(t, "postfix", "postfix")
	needRoot(t, "Postfix starts")
	c, cert := peerConfig(t)
	n := support.Start(t, c)
	front := startPostfix(t, postfix, cert, n.Addrs()["starttls"])

	msg := support.Dial(t, front, "EHLO test").Data(crlf("Message-ID: <1@example.com>\nDate: Thu, 23 Nov 2023 14:34:00 +0000\n"+peerText("Postfix")), 2, 1)
	var found []api.Message
	eventually(t, 30*time.Second, "Postfix delivers the mail", func() bool {
		found = nil
		for m, err := range n.Messages(t.Context(), client.Query{}) {
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, m)
		}
		return len(found) > 0
	})
	got := raw(t, n, found[0].SHA256)
	if trace, ok := bytes.CutSuffix(got, msg); len(found) != 1 || !ok || !bytes.HasPrefix(trace, []byte("Received: from test (")) {
		t.Errorf("%d messages archived, the first is\n%q, want a Received header and then\n%q", len(found), got, msg)
	}
	expectReceipt(t, found[0].Receipts[0], api.Receipt{
		From: "a@example.com", To: []string{"journal@archive.example", "r0@example.com", "r1@example.com"},
		Client: "127.0.0.1", Helo: "postfix.example", TLS: "TLS1.3", Connector: "starttls",
	})
}

// startPostfix runs the Debian package from a configuration of our own, beside
// any other Postfix of the machine, and returns where it listens.
func startPostfix(t *testing.T, postfix, cert, archive string) (addr string) {
	t.Helper()
	owner, err := user.Lookup("postfix")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(owner.Uid)
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir: the user postfix must be able to enter it.
	dir, err := os.MkdirTemp("", "chainmail-postfix")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config, data, queue := filepath.Join(dir, "config"), filepath.Join(dir, "data"), filepath.Join(dir, "queue")
	for _, d := range []string{dir, config, data, queue} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(data, uid, -1); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := bytes.Cut([]byte(archive), []byte(":"))
	addr = support.FreeAddr(t)
	writeFile(t, filepath.Join(dir, "ca.pem"), string(ca))
	writeFile(t, filepath.Join(config, "main.cf"), fmt.Sprintf(postfixMain, dir, filepath.Join(dir, "ca.pem"), port))
	writeFile(t, filepath.Join(config, "master.cf"), fmt.Sprintf(postfixMaster, addr))
	for _, public := range []string{filepath.Join(config, "main.cf"), filepath.Join(config, "master.cf"), filepath.Join(dir, "ca.pem")} {
		if err := os.Chmod(public, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command(postfix, "-c", config, "stop").CombinedOutput(); err != nil {
			t.Errorf("postfix stop: %v\n%s", err, out)
		}
		if log, err := os.ReadFile(filepath.Join(dir, "log")); err == nil && t.Failed() {
			t.Logf("the log of Postfix:\n%s", log)
		}
	})
	sends(t, nil, postfix, "-c", config, "start")
	return addr
}
