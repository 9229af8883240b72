package smtpd_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"chainmail/node/smtpd"
)

func usersFile(t *testing.T, users ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "users")
	writeUsers(t, file, users...)
	return file
}

func writeUsers(t *testing.T, file string, users ...string) {
	t.Helper()
	var text strings.Builder
	for _, user := range users {
		name, password, _ := strings.Cut(user, ":")
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		// As htpasswd -B writes it.
		text.WriteString(name + ":" + strings.Replace(string(hash), "$2a$", "$2y$", 1) + "\n")
	}
	if err := os.WriteFile(file, []byte("# users\n\n"+text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestAuth(t *testing.T) {
	file := usersFile(t, "journal:secret", "other:word")
	s := start(t, func(o *smtpd.Options) {
		o.Connectors[0].Auth, o.Connectors[0].Users = smtpd.AuthRequired, file
	})
	c := s.dial()
	c.want("220")
	if caps := c.cmd("EHLO x", "250"); !strings.Contains(caps, "AUTH PLAIN LOGIN") {
		t.Errorf("not announced: %s", caps)
	}
	c.cmd("MAIL FROM:<a@b.c>", "530 5.7.0")
	c.cmd("AUTH PLAIN "+b64("\x00journal\x00wrong"), "535 5.7.8")
	c.cmd("AUTH PLAIN "+b64("\x00nobody\x00secret"), "535 5.7.8")
	c.cmd("AUTH PLAIN "+b64("other\x00journal\x00secret"), "501")
	c.cmd("AUTH PLAIN "+b64("nonsense"), "501")
	c.cmd("AUTH PLAIN !", "454")
	c.cmd("AUTH CRAM-MD5", "504")
	c.cmd("AUTH LOGIN", "334 "+b64("Username:"))
	c.cmd("*", "501")
	// Inside the dialogue no line is a command, whatever it looks like.
	c.cmd("AUTH LOGIN", "334")
	c.cmd("BDAT 10", "454")
	c.cmd("AUTH LOGIN", "334")
	c.cmd(strings.Repeat("x", 100_000), "500 5.5.2")
	c.cmd("NOOP", "250")
	c.cmd("AUTH LOGIN", "334")
	c.cmd(b64("journal"), "334 "+b64("Password:"))
	c.cmd(b64("secret"), "235")
	c.cmd("AUTH PLAIN "+b64("\x00journal\x00secret"), "503")
	c.mail("x\r\n.\r\n")
	if e := s.received()[0].envelope; e.User != "journal" {
		t.Errorf("envelope %+v", e)
	}

	c = s.hello()
	c.cmd("AUTH PLAIN", "334 ")
	c.cmd(b64("journal\x00journal\x00secret"), "235")
	c.mail("x\r\n.\r\n")

	c = s.hello()
	c.cmd("AUTH LOGIN "+b64("other"), "334 "+b64("Password:"))
	c.cmd(b64("word"), "235")
}

func TestUsersAreReadAgain(t *testing.T) {
	file := usersFile(t, "a:1")
	s := start(t, func(o *smtpd.Options) {
		o.Connectors[0].Auth, o.Connectors[0].Users = smtpd.AuthOptional, file
	})
	login := func(user string) bool {
		c := s.hello()
		c.send("AUTH PLAIN " + b64("\x00"+user+"\x001") + "\r\n")
		line, err := c.reply()
		return err == nil && strings.HasPrefix(line, "235")
	}
	// eventually: the file is looked at once a second at most.
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); {
			if time.Now().After(deadline) {
				t.Fatalf("not in time: %s", what)
			}
		}
	}
	if !login("a") || login("b") {
		t.Fatal("wrong users at first")
	}
	writeUsers(t, file, "b:1", "c:1")
	eventually("the new users count", func() bool { return login("b") && !login("a") })
	if err := os.WriteFile(file, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := s.hello() // without AUTH, which is optional
	c.mail("x\r\n.\r\n")
	if !login("c") {
		t.Error("a broken file took the users away")
	}
}

func TestNoPasswordsInPlainText(t *testing.T) {
	server, config := certificate(t)
	file := usersFile(t, "a:1")
	// Behind the balancer the client is not on this machine.
	s := start(t, func(o *smtpd.Options) {
		c := &o.Connectors[0]
		c.Auth, c.Users, c.TLS, c.TLSConfig = smtpd.AuthRequired, file, smtpd.TLSStartTLS, server
		c.ProxyFrom = []string{"127.0.0.0/8"}
	})
	c := s.dial()
	c.send("PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n")
	c.want("220")
	if caps := c.cmd("EHLO x", "250"); strings.Contains(caps, "AUTH") {
		t.Errorf("AUTH is announced in plain text: %s", caps)
	}
	c.cmd("AUTH PLAIN "+b64("\x00a\x001"), "538 5.7.11")
	c = c.startTLS(config)
	if caps := c.cmd("EHLO x", "250"); !strings.Contains(caps, "AUTH PLAIN LOGIN") {
		t.Errorf("AUTH is not announced under TLS: %s", caps)
	}
	c.cmd("AUTH PLAIN "+b64("\x00a\x001"), "235")
	c.mail("x\r\n.\r\n")
}
