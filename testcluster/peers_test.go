package testcluster_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"chainmail/archive/mail/mailtest"
	"chainmail/archive/record"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/testcluster/support"
)

// The tests of this and the next files let programs that we did not write hand
// in mail: what they take for SMTP is what counts.

func lookFor(t *testing.T, program, debianPackage string) string {
	t.Helper()
	return mailtest.Program(t, program, debianPackage)
}

func missing(t *testing.T, debianPackage string) { t.Helper(); mailtest.Missing(t, debianPackage) }

// needRoot skips a test that only root can run.
func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("%s as root only", why)
	}
}

const (
	peerUser, peerPassword = "journal", "correct horse"
	// utf8Sender and utf8Recipient are addresses that need SMTPUTF8 (RFC 6531).
	utf8Sender, utf8Recipient = "jürgen@bücher.example", "用户@例子.example"
)

// peerConfig is config with connectors for every way in, and the file with the
// certificate that their clients shall verify.
func peerConfig(t *testing.T) (c node.Config, certificate string) {
	t.Helper()
	c = config(t)
	dir := filepath.Dir(c.DataDir)
	cert, key := makeCertificate(t, dir)
	hash, err := bcrypt.GenerateFromPassword([]byte(peerPassword), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	users := filepath.Join(dir, "users")
	writeFile(t, users, peerUser+":"+string(hash)+"\n")
	c.Connectors = append(c.Connectors,
		node.Connector{
			Name: "login", Listen: "127.0.0.1:0",
			TLS:  node.TLS{Mode: node.TLSRequired, Cert: cert, Key: key},
			Auth: node.Auth{Mode: node.AuthRequired, Users: users},
		},
		node.Connector{Name: "starttls", Listen: "127.0.0.1:0", TLS: node.TLS{Mode: node.TLSRequired, Cert: cert, Key: key}},
		node.Connector{Name: "implicit", Listen: "127.0.0.1:0", TLS: node.TLS{Mode: node.TLSImplicit, Cert: cert, Key: key}},
		node.Connector{Name: "balanced", Listen: "127.0.0.1:0", ProxyProtocol: node.ProxyProtocol{Trusted: []string{"127.0.0.1"}}},
	)
	return c.Complete(), cert
}

// makeCertificate makes a certificate for 127.0.0.1 that vouches for itself.
func makeCertificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:     []string{"localhost"},
		IsCA:         true, BasicConstraintsValid: true,
	}
	public, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeFile(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: public})))
	writeFile(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	return cert, key
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// sends runs a peer to its end, with input, and returns what it said.
func sends(t *testing.T, input []byte, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(program), err, out)
	}
	return strings.TrimSpace(string(out))
}

// receipts finds a message, compares its bytes, and returns its receipts.
func receipts(t *testing.T, n support.Node, msg []byte) []api.Receipt {
	t.Helper()
	id := record.Hash(sha256.Sum256(msg)).String()
	m, err := n.Message(t.Context(), id)
	if err != nil {
		t.Fatalf("not archived as it was sent: %v", err)
	}
	if got := raw(t, n, id); !bytes.Equal(got, msg) {
		t.Errorf("%d bytes archived, %d sent:\n%q\n%q", len(got), len(msg), got, msg)
	}
	return m.Receipts
}

func raw(t *testing.T, n support.Node, id string) []byte {
	t.Helper()
	r, err := n.Raw(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// expectReceipt compares all that the transport said. In want, TLS may be the
// first word, and Client the address without the port that a peer chose.
func expectReceipt(t *testing.T, got, want api.Receipt) {
	t.Helper()
	if !strings.Contains(want.Client, ":") {
		got.Client, _, _ = net.SplitHostPort(got.Client)
	}
	got.TLS, _, _ = strings.Cut(got.TLS, " ")
	if got.From != want.From || !slices.Equal(got.To, want.To) || got.Client != want.Client || got.Helo != want.Helo ||
		got.TLS != want.TLS || got.User != want.User || got.Connector != want.Connector {
		t.Errorf("receipt\n%+v, want\n%+v", got, want)
	}
}

// peerText is a message with what MTAs and libraries like to change: lines of
// dots, a "From " line, 8-bit bytes, trailing blanks. what makes it unique.
func peerText(what string) string {
	return "From: ann@example.com\nTo: bob@example.com\nSubject: " + what + "\nX-Raw: caf\xe9\n\n" +
		".\n..\n.hidden\nFrom here on\n\u20ac and \xff\xfe\ntrailing \t\n\nlast line"
}

// crlf is a text as it must be archived: with the line ends of SMTP.
func crlf(text string) []byte {
	return []byte(strings.ReplaceAll(text, "\n", "\r\n") + "\r\n")
}

func TestPeerSwaks(t *testing.T) {
	swaks := lookFor(t, "swaks", "swaks")
	c, cert := peerConfig(t)
	n := support.Start(t, c)
	verified := []string{"--tls-verify", "--tls-ca-path", cert}
	for _, tt := range []struct {
		connector string
		options   []string
		want      api.Receipt
	}{
		{connector: "smtp"},
		{connector: "lmtp", options: []string{"--protocol", "LMTP"}},
		{"starttls", append(verified, "--tls"), api.Receipt{TLS: "TLS1.3"}},
		{"implicit", append(verified, "--tls-on-connect"), api.Receipt{TLS: "TLS1.3"}},
		{
			"login", append(verified, "--tls", "--auth", "PLAIN", "--auth-user", peerUser, "--auth-password", peerPassword),
			api.Receipt{TLS: "TLS1.3", User: peerUser},
		},
		{"balanced", []string{
			"--local-interface", "127.0.0.1", "--proxy-version", "2", "--proxy-family", "AF_INET",
			"--proxy-source", "192.0.2.7", "--proxy-source-port", "4711", "--proxy-dest", "192.0.2.1", "--proxy-dest-port", "25",
		}, api.Receipt{Client: "192.0.2.7:4711"}},
	} {
		t.Run(tt.connector, func(t *testing.T) {
			text := peerText("swaks to " + tt.connector)
			args := []string{
				"--server", n.Addrs()[tt.connector], "--from", "ann@example.com", "--to", "bob@example.com,carl@example.com",
				"--ehlo", "swaks.example", "--local-interface", "127.0.0.2", "--data", "-",
			}
			sends(t, []byte(text), swaks, append(args, tt.options...)...)
			got := receipts(t, n, crlf(text))
			want := tt.want
			want.From, want.To = "ann@example.com", []string{"bob@example.com", "carl@example.com"}
			want.Helo, want.Connector = "swaks.example", tt.connector
			if want.Client == "" {
				want.Client = "127.0.0.2"
			}
			expectReceipt(t, got[0], want)
		})
	}
	t.Run("wrong password", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), swaks, "--server", n.Addrs()["login"], "--from", "a@example.com", "--to", "b@example.com",
			"--tls", "--auth", "PLAIN", "--auth-user", peerUser, "--auth-password", "wrong", "--body", "no")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "535 5.7.8") {
			t.Errorf("%v, want a refusal with 535 5.7.8:\n%s", err, out)
		}
	})
}

// smtplibScript sends standard input and prints the address it sent from.
const smtplibScript = `
import smtplib, ssl, sys
host, port, cert, user, password, sender, recipient, *options = sys.argv[1:]
with smtplib.SMTP(host, int(port), local_hostname="python.example", timeout=60) as s:
    s.ehlo()
    if cert:
        s.starttls(context=ssl.create_default_context(cafile=cert))
        s.ehlo()
    for extension in "8bitmime", "smtputf8":
        assert s.has_extn(extension), extension
    if user:
        s.login(user, password)
    refused = s.sendmail(sender, [recipient], sys.stdin.buffer.read(), mail_options=options)
    assert not refused, refused
    print("%s:%d" % s.sock.getsockname())
`

func TestPeerSmtplib(t *testing.T) {
	python := lookFor(t, "python3", "python3")
	c, cert := peerConfig(t)
	n := support.Start(t, c)
	for _, tt := range []struct {
		name, connector, cert, user string
		from, to                    string
		options                     []string
		tls                         string
	}{
		{"8BITMIME", "smtp", "", "", "ann@example.com", "bob@example.com", []string{"BODY=8BITMIME"}, ""},
		{"SMTPUTF8", "smtp", "", "", utf8Sender, utf8Recipient, []string{"SMTPUTF8", "BODY=8BITMIME"}, ""},
		{"STARTTLS", "starttls", cert, "", utf8Sender, utf8Recipient, []string{"SMTPUTF8"}, "TLS1.3"},
		{"AUTH", "login", cert, peerUser, "ann@example.com", "bob@example.com", nil, "TLS1.3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			msg := crlf(peerText("smtplib " + tt.name))
			host, port, err := net.SplitHostPort(n.Addrs()[tt.connector])
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"-c", smtplibScript, host, port, tt.cert, tt.user, peerPassword, tt.from, tt.to}
			client := sends(t, msg, python, append(args, tt.options...)...)
			expectReceipt(t, receipts(t, n, msg)[0], api.Receipt{
				From: tt.from, To: []string{tt.to}, Client: client, Helo: "python.example",
				TLS: tt.tls, User: tt.user, Connector: tt.connector,
			})
		})
	}
}

// TestPeerSMTPSource: Postfix's load generator, whose every mail has a recipient
// of its own, so that each acknowledgement can be found again.
func TestPeerSMTPSource(t *testing.T) {
	source := lookFor(t, "smtp-source", "postfix")
	const sessions, mails = 20, 200
	n := support.Start(t, config(t))
	for _, tt := range []struct {
		connector string
		options   []string
	}{
		{"smtp", nil},
		{"lmtp", []string{"-L"}},
		{"smtp", []string{"-d"}}, // all mail of a session over one connection
	} {
		name := strings.Join(append([]string{tt.connector}, tt.options...), " ")
		t.Run(name, func(t *testing.T) {
			text := peerText("smtp-source " + name)
			file := filepath.Join(t.TempDir(), "message")
			writeFile(t, file, text+"\n")
			args := []string{
				"-s", fmt.Sprint(sessions), "-m", fmt.Sprint(mails), "-N", "-F", file,
				"-f", "ann@example.com", "-t", "bob@example.com", "-M", "source.example",
			}
			sends(t, nil, source, append(append(args, tt.options...), n.Addrs()[tt.connector])...)
			all := receipts(t, n, crlf(text+"\n")) // it adds an empty line
			to := map[string]bool{}
			for _, r := range all {
				to[strings.Join(r.To, " ")] = true
				expectReceipt(t, r, api.Receipt{
					From: "ann@example.com", To: r.To, Client: "127.0.0.1", Helo: "source.example", Connector: tt.connector,
				})
			}
			if len(all) != mails || len(to) != mails {
				t.Errorf("%d receipts with %d recipients, want %d of each", len(all), len(to), mails)
			}
		})
	}
}
