package node_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster/support"
)

const hello = "From: ann@example.com\r\nTo: bob@example.com\r\nSubject: Hello\r\n\r\nHello Bob\r\n"

func send(t *testing.T, addr, text string) {
	t.Helper()
	if err := smtp.SendMail(addr, nil, "ann@example.com", []string{"bob@example.com"}, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestMailComesBackAfterARestart(t *testing.T) {
	c := support.Config(t).Complete()
	first := support.Start(t, c)
	send(t, first.Addrs()["smtp"], hello)
	if err := first.End(); err != nil {
		t.Fatalf("ended with %v", err)
	}

	second := support.Start(t, c)
	var found []api.Message
	for m, err := range second.Client.Messages(t.Context(), client.Query{Subject: true}) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, m)
	}
	if len(found) != 1 || found[0].Subject != "Hello" || found[0].Receipts[0].Connector != "smtp" {
		t.Fatalf("found %+v", found)
	}
	body, err := second.Client.Raw(t.Context(), found[0].SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || string(got) != hello {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestSecondNodeOnADirectoryIsRefused(t *testing.T) {
	c := support.Config(t).Complete()
	support.Start(t, c)
	second, err := node.New(c, node.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = second.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "in use by another process") || !strings.Contains(err.Error(), c.DataDir) {
		t.Errorf("got %v", err)
	}
}

func TestTakenPortIsRefusedAndLeavesTheDirectoryFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, take := range map[string]func(*node.Config){
		"SMTP": func(c *node.Config) { c.Connectors[0].Listen, c.SMTP = l.Addr().String(), l.Addr().String() },
		"HTTP": func(c *node.Config) { c.HTTP = l.Addr().String() },
	} {
		t.Run(name, func(t *testing.T) {
			c := support.Config(t).Complete()
			taken := c
			taken.Connectors = append([]node.Connector{}, c.Connectors...)
			take(&taken)
			n, err := node.New(taken, node.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Run(t.Context()); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
				t.Errorf("got %v, which does not name the address", err)
			}
			support.Start(t, c)
		})
	}
}

func TestReadinessAndMetrics(t *testing.T) {
	r := support.Start(t, support.Config(t).Complete())
	base := "http://" + r.Addrs()["http"]
	if code, body := get(t, base+"/readyz"); code != http.StatusOK || !strings.Contains(body, api.StateActive) {
		t.Errorf("/readyz: %d %s", code, body)
	}
	send(t, r.Addrs()["smtp"], hello)
	_, metrics := get(t, base+"/metrics")
	for _, want := range []string{
		`chainmail_build_info{node="test",version="test"} 1`, "chainmail_archive_receipts_total 1",
		"go_goroutines", "process_resident_memory_bytes",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}

// TestDrain stops a node while one client is idle and another in the middle of
// a mail: the first is told 421, the second finishes and is archived, and
// /readyz says no as long as that takes.
func TestDrain(t *testing.T) {
	c := support.Config(t).Complete()
	r := support.Start(t, c)
	idle, busy := support.Dial(t, r.Addrs()["smtp"], "HELO client"), support.Dial(t, r.Addrs()["smtp"], "HELO client")
	busy.Say("MAIL FROM:<ann@example.com>", "250")
	busy.Say("RCPT TO:<bob@example.com>", "250")
	busy.Say("DATA", "354")
	busy.Write([]byte(hello[:40]))

	r.Stop()
	idle.Expect("421")
	if code, body := get(t, "http://"+r.Addrs()["http"]+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, api.StateDraining) {
		t.Errorf("/readyz while draining: %d %s", code, body)
	}
	if conn, err := net.DialTimeout("tcp", r.Addrs()["smtp"], time.Second); err == nil {
		conn.Close()
		t.Error("a draining node takes new connections")
	}
	busy.Write([]byte(hello[40:] + ".\r\n"))
	busy.Expect("250")
	if err := r.Wait(); err != nil {
		t.Fatal(err)
	}
	again := support.Start(t, c)
	s, err := again.Client.Status(t.Context())
	if err != nil || s.Messages != 1 {
		t.Errorf("%d messages after the drain, %v", s.Messages, err)
	}
}

func TestConfigurationAtFault(t *testing.T) {
	c := support.Config(t).Complete()
	c.HTTP = "nowhere"
	_, err := node.New(c, node.Options{})
	if problems, ok := errors.AsType[node.Problems](err); !ok || problems[0].Key != "http" {
		t.Errorf("got %v", err)
	}
}

const journalReport = "From: <postmaster@example.com>\r\n" +
	"To: <journal@archive.example.com>\r\n" +
	"X-MS-Journal-Report:\r\n" +
	"MIME-Version: 1.0\r\n" +
	"Content-Type: multipart/mixed; boundary=\"b\"\r\n" +
	"\r\n" +
	"--b\r\n" +
	"Content-Type: text/plain; charset=us-ascii\r\n" +
	"\r\n" +
	"Sender: ann@example.com\r\n" +
	"Subject: Hello\r\n" +
	"Message-Id: <1@example.com>\r\n" +
	"To: bob@example.com\r\n" +
	"Bcc: carl@example.com\r\n" +
	"\r\n" +
	"--b\r\n" +
	"Content-Type: message/rfc822\r\n" +
	"\r\n" +
	hello +
	"\r\n--b--\r\n"

// TestConnectors tells that what the configuration says of connectors reaches
// them: TLS, LMTP on a unix socket, journal reports, allow-lists and limits.
func TestConnectors(t *testing.T) {
	c := support.Config(t).Complete()
	cert, key := newCertificate(t, filepath.Dir(c.DataDir))
	socket := filepath.Join(filepath.Dir(c.DataDir), "lmtp")
	c.Limits.MaxMessageSize = 4 * node.KiB
	c.Connectors = []node.Connector{
		{Name: "smtp", TLS: node.TLS{Mode: node.TLSStartTLS, Cert: cert, Key: key}},
		{Name: "local", Kind: node.KindLMTP, Listen: "unix:" + socket},
		{Name: "exchange", Listen: "127.0.0.1:0", Journal: node.JournalExchange, Allow: node.Allow{Recipients: []string{"archive.example.com"}}},
	}
	r := support.Start(t, c.Complete())

	t.Run("starttls", func(t *testing.T) {
		s, err := smtp.Dial(r.Addrs()["smtp"])
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.StartTLS(&tls.Config{InsecureSkipVerify: true}); err != nil {
			t.Fatal(err)
		}
		if ok, size := s.Extension("SIZE"); !ok || size != "4096" {
			t.Errorf("SIZE %s, want 4096", size)
		}
	})
	t.Run("lmtp", func(t *testing.T) {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		d := support.Greet(t, conn, "LHLO client")
		for _, line := range []string{"MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.com>", "RCPT TO:<carl@example.com>"} {
			d.Say(line, "250")
		}
		d.Say("DATA", "354")
		d.Write([]byte("Subject: local\r\n\r\n.\r\n"))
		d.Expect("250")
		d.Expect("250")
	})
	t.Run("journal", func(t *testing.T) {
		addr := r.Addrs()["exchange"]
		if err := smtp.SendMail(addr, nil, "", []string{"journal@archive.example.com"}, []byte(journalReport)); err != nil {
			t.Fatal(err)
		}
		inner := sha256.Sum256([]byte(hello))
		m, err := r.Client.Message(t.Context(), hex.EncodeToString(inner[:]))
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Reports) != 1 || len(m.Receipts) != 1 || len(m.Receipts[0].Journal.Recipients) != 2 {
			t.Errorf("got %+v", m)
		}
		if err := smtp.SendMail(addr, nil, "", []string{"bob@example.com"}, []byte(hello)); err == nil {
			t.Error("a recipient that is not allowed was taken")
		}
	})
}

func newCertificate(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// TestNewCertificateIsUsed: a renewed certificate needs no restart.
func TestNewCertificateIsUsed(t *testing.T) {
	c := support.Config(t).Complete()
	dir := filepath.Dir(c.DataDir)
	cert, key := newCertificate(t, dir)
	c.Connectors = []node.Connector{{Name: "smtp", TLS: node.TLS{Mode: node.TLSImplicit, Cert: cert, Key: key}}}
	r := support.Start(t, c.Complete())
	offered := func() string {
		conn, err := tls.Dial("tcp", r.Addrs()["smtp"], &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return string(conn.ConnectionState().PeerCertificates[0].Raw)
	}
	old := offered()
	newCertificate(t, dir)
	for deadline := time.Now().Add(20 * time.Second); offered() == old; {
		if time.Now().After(deadline) {
			t.Fatal("the old certificate is still offered")
		}
	}
}
