package route_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"chainmail/archive/record"
	"chainmail/chain/route"
)

// What is said to a server depends on what it announced and on the mail.
func TestMailParameters(t *testing.T) {
	const all = "PIPELINING CHUNKING 8BITMIME BINARYMIME SMTPUTF8 SIZE:1000"
	for _, tt := range []struct {
		extensions, body, from, to string
		want                       string // command, then how the body comes
	}{
		{"", "x\r\n", "a@x", "b@x", "MAIL FROM:<a@x> DATA"},
		{"", "d\xc3\xb6s\r\n", "a@x", "b@x", "MAIL FROM:<a@x> DATA"},
		{all, "x\r\n", "a@x", "b@x", "MAIL FROM:<a@x> SIZE=3 BDAT 3 LAST"},
		{all, "d\xc3\xb6s\r\n", "a@x", "b@x", "MAIL FROM:<a@x> SIZE=6 BODY=8BITMIME BDAT 6 LAST"},
		{all, "a\nb\x00", "a@x", "b@x", "MAIL FROM:<a@x> SIZE=4 BODY=BINARYMIME BDAT 4 LAST"},
		{all, "", "a@x", "b@x", "MAIL FROM:<a@x> SIZE=0 BDAT 0 LAST"},
		{"CHUNKING 8BITMIME", "a\n\xff", "a@x", "b@x", "MAIL FROM:<a@x> BODY=8BITMIME BDAT 3 LAST"},
		{"BINARYMIME", "a\nb\r\n", "a@x", "b@x", "MAIL FROM:<a@x> DATA"},
		{"8bitmime size", "\xff\r\n", "a@x", "b@x", "MAIL FROM:<a@x> SIZE=3 BODY=8BITMIME DATA"},
		{all, "x\r\n", "", "b@x", "MAIL FROM:<> SIZE=3 BDAT 3 LAST"},
		{all, "x\r\n", "jürgen@x", "b@x", "MAIL FROM:<jürgen@x> SIZE=3 SMTPUTF8 BDAT 3 LAST"},
		{all, "x\r\n", "a@x", "用户@x", "MAIL FROM:<a@x> SIZE=3 SMTPUTF8 BDAT 3 LAST"},
	} {
		inVirtualTime(t, func(b *bench) {
			for e := range strings.FieldsSeq(tt.extensions) {
				b.extensions = append(b.extensions[:len(b.extensions):len(b.extensions)], strings.ReplaceAll(e, ":", " "))
			}
			b.extensions = b.extensions[4:] // those of the bench
			b.put(record.Position{Store: ownStore}, tt.body, tt.from, tt.to)
			b.start()
			b.idle()
			b.wantOnce(tt.body)
			var got []string
			for _, c := range b.commands() {
				if strings.HasPrefix(c, "MAIL") || strings.HasPrefix(c, "DATA") || strings.HasPrefix(c, "BDAT") {
					got = append(got, c)
				}
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("%s: %q, want %q", tt.extensions, got, tt.want)
			}
		})
	}
}

// What DATA cannot carry exactly arrives all the same, changed as little as
// possible; what CHUNKING carries arrives as it is.
func TestBytesThatDataCannotCarry(t *testing.T) {
	for body, byData := range map[string]string{
		"no end":               "no end\r\n",
		"bare\nLF and\rCR\r\n": "bare\nLF and\rCR\r\n",
		"\x00\r\n":             "\x00\r\n",
		"":                     "",
		"evil\n.\r\nMAIL\r\n":  "evil\n..\r\nMAIL\r\n",
		".\r\n..\r\n":          ".\r\n..\r\n",
	} {
		for _, extensions := range [][]string{nil, {"CHUNKING"}} {
			inVirtualTime(t, func(b *bench) {
				b.extensions = extensions
				b.add(body)
				b.start()
				b.idle()
				want := body
				if extensions == nil {
					want = byData
				}
				b.wantOnce(want)
			})
		}
	}
}

func TestOldServerKnowsNoEHLO(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.say = func(_ *session, step, _ string) string {
			if step == "EHLO" {
				return "502 5.5.1 what?"
			}
			return ""
		}
		bodies := b.letters(3)
		b.start()
		b.idle()
		b.wantOnce(bodies...)
		if got := b.commands()[:2]; !slices.Equal(got, []string{"EHLO node.test", "HELO node.test"}) {
			t.Errorf("%q", got)
		}
	})
}

// What the server could only refuse is parked without being sent.
func TestNotSent(t *testing.T) {
	for _, tt := range []struct {
		body, from string
		to         []string
		want       string
	}{
		{strings.Repeat("x", 100), "a@x", []string{"b@x"}, "not sent: its 100 bytes are more than the 99 that the server takes (SIZE)"},
		{"x\r\n", "a@x", nil, "not sent: its receipt names no recipient: set a recipient for the route"},
		{"x\r\n", "a@x>\r\nRSET", []string{"b@x"}, `not sent: a control character in the sender "a@x>\r\nRSET": set a sender for the route`},
		{"x\r\n", "a@x", []string{"b@x\r\nDATA"}, `not sent: a control character in the recipient "b@x\r\nDATA": set a recipient for the route`},
		{"x\r\n", "jürgen@x", []string{"b@x"}, "not sent: an address needs SMTPUTF8, which the server lacks: set sender and recipient for the route"},
	} {
		inVirtualTime(t, func(b *bench) {
			b.extensions = []string{"SIZE 99"}
			b.put(record.Position{Store: ownStore}, tt.body, tt.from, tt.to...)
			bodies := b.letters(2)
			b.start()
			b.idle()
			b.wantOnce(bodies...)
			parked := b.route.Parked(record.Position{}, 0)
			if len(parked) != 1 || parked[0].Reply != tt.want {
				t.Fatalf("%+v, want %s", parked, tt.want)
			}
			b.stop()
			b.change = func(o *route.Options) { o.Sender, o.Recipient = "<>", "archive@x" }
			b.start()
			b.extensions = nil
			time.Sleep(time.Minute) // for a new connection
			b.retry(1)
			mails := b.received()
			if m := mails[len(mails)-1]; m.from != "" || strings.Join(m.to, " ") != "archive@x" {
				t.Errorf("%+v", m)
			}
		})
	}
}

func TestOverrides(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.change = func(o *route.Options) { o.Sender, o.Recipient = "route@x", "archive@x" }
		b.put(record.Position{Store: ownStore}, "x\r\n", "a@x", "b@x", "c@x")
		b.start()
		b.idle()
		if m := b.received(); len(m) != 1 || m[0].from != "route@x" || strings.Join(m[0].to, " ") != "archive@x" {
			t.Errorf("%+v", m)
		}
	})
}

// A server that asks for what the route was not told is no reason to park
// mail.
func TestLoginRequired(t *testing.T) {
	for _, step := range []string{"CONNECT", "EHLO", "MAIL", "RCPT", "END"} {
		inVirtualTime(t, func(b *bench) {
			asking := true
			b.say = func(_ *session, at, _ string) string {
				switch {
				case !asking || at != step:
				case step == "CONNECT" || step == "EHLO":
					return "554 5.7.1 not you"
				default:
					return "530 5.7.0 log in first"
				}
				return ""
			}
			if step == "EHLO" {
				usual := b.say
				b.say = func(s *session, at, line string) string {
					if at == "HELO" {
						at = "EHLO"
					}
					return usual(s, at, line)
				}
			}
			bodies := b.letters(5)
			b.start()
			time.Sleep(time.Hour)
			synctest.Wait()
			if s := b.route.Status(); s.Parked != 0 || s.State != route.StateRetrying || !strings.Contains(s.Problem, "5.7.") {
				t.Errorf("%s: %+v", step, s)
			}
			asking = false
			b.idle()
			b.wantOnce(bodies...)
		})
	}
}

// A server that takes a mail before it has got it is not believed.
func TestDataAnsweredTooEarly(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		b.extensions = nil
		early := true
		b.say = func(_ *session, step, _ string) string {
			if step == "DATA" && early {
				return "250 2.0.0 taken"
			}
			return ""
		}
		b.add("x\r\n")
		b.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := b.route.Status(); s.Sent != 0 || s.Backlog != 1 || s.State != route.StateRetrying {
			t.Errorf("%+v", s)
		}
		early = false
		b.idle()
		b.wantOnce("x\r\n")
	})
}

// A server may refuse a large mail before it has read it, and close.
func TestRefusedWhileItIsSent(t *testing.T) {
	for _, lines := range []int{6_000, 6_001, 200_000, 200_001} { // the odd ones in chunks
		inVirtualTime(t, func(b *bench) {
			b.extensions = []string{"CHUNKING"}[:lines%2]
			b.add(numbered(lines))
			b.say = func(s *session, step, _ string) string {
				if step == "BODY" {
					fmt.Fprint(s.Conn, "552 5.3.4 too large\r\n")
					return drop
				}
				return ""
			}
			b.start()
			b.idle()
			parked := b.route.Parked(record.Position{}, 0)
			if len(parked) != 1 || parked[0].Reply != "552 5.3.4 too large" {
				t.Errorf("%+v", parked)
			}
		})
	}
}

// An idle connection that the server closed is no trouble.
func TestServerClosesIdleConnection(t *testing.T) {
	for _, goodbye := range []string{"", "421 4.4.2 idle for too long\r\n"} {
		inVirtualTime(t, func(b *bench) {
			var sessions []*session
			b.say = func(s *session, step, _ string) string {
				if step == "CONNECT" {
					b.mu2.Lock()
					defer b.mu2.Unlock()
					sessions = append(sessions, s)
				}
				return ""
			}
			b.start()
			b.add("one\r\n")
			synctest.Wait()
			b.mu2.Lock()
			if goodbye != "" {
				fmt.Fprint(sessions[0].Conn, goodbye)
			}
			sessions[0].Conn.Close()
			b.mu2.Unlock()
			b.add("two\r\n")
			synctest.Wait()
			b.wantOnce("one\r\n", "two\r\n") // at once
			b.mu2.Lock()
			defer b.mu2.Unlock()
			if len(sessions) != 2 {
				t.Errorf("%d connections", len(sessions))
			}
		})
	}
}

func TestTLS(t *testing.T) {
	server, ca := certificate(t)
	for _, tt := range []struct {
		name    string
		change  func(*route.Options, *receiver)
		secure  bool
		problem string // of a route that cannot send
	}{
		{"none, offered", func(o *route.Options, _ *receiver) { o.TLS = route.TLSNone }, false, ""},
		{"starttls", func(o *route.Options, _ *receiver) { o.TLS = route.TLSStartTLS }, true, ""},
		{"starttls, not offered", func(o *route.Options, x *receiver) { o.TLS, x.extensions = route.TLSStartTLS, nil }, false, ""},
		{"starttls, checked", func(o *route.Options, _ *receiver) { o.TLS, o.CAFile = route.TLSStartTLS, ca }, true, ""},
		{"starttls, checked and bad", func(o *route.Options, _ *receiver) {
			o.TLS, o.CAFile, o.Target = route.TLSStartTLS, ca, "other.test:25"
		}, true, "TLS: tls: failed to verify certificate: x509: certificate is valid for receiver.test, not other.test"},
		{"required", func(o *route.Options, _ *receiver) { o.TLS, o.CAFile = route.TLSRequired, ca }, true, ""},
		{
			"required, not offered", func(o *route.Options, x *receiver) { o.TLS, x.extensions = route.TLSRequired, nil }, false,
			"the server offers no STARTTLS, which this route requires",
		},
		{"required, unknown authority", func(o *route.Options, _ *receiver) {
			o.TLS, o.TLSConfig = route.TLSRequired, &tls.Config{RootCAs: x509.NewCertPool()}
		}, true, "TLS: tls: failed to verify certificate: x509: certificate signed by unknown authority"},
		{"implicit", func(o *route.Options, x *receiver) { o.TLS, o.CAFile, x.implicit = route.TLSImplicit, ca, true }, true, ""},
		{"injection", func(o *route.Options, _ *receiver) { o.TLS, o.CAFile = route.TLSRequired, ca }, false, "plain text came behind the answer to STARTTLS: somebody may be on the line"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inVirtualTime(t, func(b *bench) {
				b.tls, b.extensions = server, []string{"STARTTLS"}
				b.change = func(o *route.Options) { tt.change(o, b.receiver) }
				secure := false
				b.say = func(s *session, step, _ string) string {
					switch {
					case step == "MAIL":
						b.mu2.Lock()
						secure = s.secure
						b.mu2.Unlock()
					case step == "STARTTLS" && tt.name == "injection":
						return "220 go\r\n250-evil\r\n250 AUTH PLAIN"
					}
					return ""
				}
				b.add("x\r\n")
				b.start()
				time.Sleep(time.Minute)
				synctest.Wait()
				s := b.route.Status()
				if s.Problem != tt.problem || (tt.problem == "") != (s.Sent == 1) {
					t.Errorf("%+v", s)
				}
				b.mu2.Lock()
				defer b.mu2.Unlock()
				if tt.problem == "" && secure != tt.secure {
					t.Errorf("sent under TLS: %v", secure)
				}
			})
		})
	}
}

func TestLogin(t *testing.T) {
	server, ca := certificate(t)
	for _, tt := range []struct {
		auth    string
		want    []string
		answers []string
		problem string
	}{
		{"AUTH LOGIN PLAIN", []string{"AUTH PLAIN AHUAcA=="}, []string{"235 2.7.0 welcome"}, ""},
		{"AUTH=LOGIN", []string{"AUTH LOGIN", "dQ==", "cA=="}, []string{"334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "235 ok"}, ""},
		{"AUTH CRAM-MD5", nil, nil, "the server offers neither AUTH PLAIN nor AUTH LOGIN"},
		{"AUTH PLAIN", []string{"AUTH PLAIN AHUAcA=="}, []string{"535 5.7.8 wrong"}, "the answer to AUTH was: 535 5.7.8 wrong"},
	} {
		inVirtualTime(t, func(b *bench) {
			b.tls, b.extensions = server, []string{"STARTTLS", tt.auth}
			b.change = func(o *route.Options) { o.TLS, o.CAFile, o.User, o.Password = route.TLSStartTLS, ca, "u", "p" }
			n := 0
			b.say = func(s *session, step, line string) string {
				if i := slices.Index(tt.want, line); i >= 0 && s.secure {
					n++
					return tt.answers[i]
				}
				return ""
			}
			b.add("x\r\n")
			b.start()
			time.Sleep(500 * time.Millisecond)
			synctest.Wait()
			s := b.route.Status()
			if s.Problem != tt.problem || (tt.problem == "") != (s.Sent == 1) || n != len(tt.want) {
				t.Errorf("%s: %+v, %d steps", tt.auth, s, n)
			}
		})
	}
	// No password goes where it can be read.
	inVirtualTime(t, func(b *bench) {
		b.extensions = []string{"AUTH PLAIN"}
		b.change = func(o *route.Options) { o.TLS, o.User, o.Password = route.TLSStartTLS, "u", "p" }
		b.add("x\r\n")
		b.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, c := range b.commands() {
			if strings.HasPrefix(c, "AUTH") {
				t.Errorf("said %q", c)
			}
		}
		if s := b.route.Status(); s.Sent != 0 || !strings.Contains(s.Problem, "offers no STARTTLS") {
			t.Errorf("%+v", s)
		}
	})
}

func TestMetrics(t *testing.T) {
	inVirtualTime(t, func(b *bench) {
		registry := prometheus.NewPedanticRegistry()
		b.change = func(o *route.Options) { o.Registerer = registry }
		b.say = func(_ *session, step, body string) string {
			if step == "END" {
				return map[string]string{"later\r\n": "451 later", "never\r\n": "550 never"}[body]
			}
			return ""
		}
		b.add("good\r\n")
		b.add("later\r\n")
		b.add("never\r\n")
		b.start()
		synctest.Wait()
		err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP chainmail_route_backlog_receipts Receipts that are neither sent by the route nor parked.
# TYPE chainmail_route_backlog_receipts gauge
chainmail_route_backlog_receipts{route="second"} 1
# HELP chainmail_route_deferred_receipts Receipts of the backlog that wait for another attempt, by reason: the server's, or that the node cannot read them.
# TYPE chainmail_route_deferred_receipts gauge
chainmail_route_deferred_receipts{reason="server",route="second"} 1
chainmail_route_deferred_receipts{reason="unreadable",route="second"} 0
# HELP chainmail_route_failures_total Attempts of a route that failed: connection trouble; deferred by the server; parked, refused for good; unreadable, the node cannot read the mail.
# TYPE chainmail_route_failures_total counter
chainmail_route_failures_total{kind="connection",route="second"} 0
chainmail_route_failures_total{kind="deferred",route="second"} 1
chainmail_route_failures_total{kind="parked",route="second"} 1
chainmail_route_failures_total{kind="unreadable",route="second"} 0
# HELP chainmail_route_in_trouble 1 while the route has no working connection to its server.
# TYPE chainmail_route_in_trouble gauge
chainmail_route_in_trouble{route="second"} 0
# HELP chainmail_route_oldest_timestamp_seconds When the oldest receipt of the backlog was received, as Unix time; absent when none is known.
# TYPE chainmail_route_oldest_timestamp_seconds gauge
chainmail_route_oldest_timestamp_seconds{route="second"} 9.466848e+08
# HELP chainmail_route_parked_receipts Receipts that the route's server refused for good, or too often. They are tried again only when asked for.
# TYPE chainmail_route_parked_receipts gauge
chainmail_route_parked_receipts{route="second"} 1
# HELP chainmail_route_sent_bytes_total Bytes of the mails that the route's server has taken.
# TYPE chainmail_route_sent_bytes_total counter
chainmail_route_sent_bytes_total{route="second"} 6
# HELP chainmail_route_sent_total Mails that the route's server has taken.
# TYPE chainmail_route_sent_total counter
chainmail_route_sent_total{route="second"} 1
`))
		if err != nil {
			t.Error(err)
		}
		o := b.options()
		o.Name = "third"
		if _, err := route.New(o); err != nil {
			t.Errorf("a second route beside it: %v", err)
		}
	})
}

// certificate makes one for receiver.test, and the file of its authority.
func certificate(t *testing.T) (server *tls.Config, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"receiver.test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, ca
}
