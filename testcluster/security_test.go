package testcluster

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chainmail/membership"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
)

// Who may do what at the four ports of a node, beside that for mail. The tests
// speak from hosts of their own, byte by byte, as nobody's program would.

// ports of virtual nodes.
const (
	chainPort  = "8091"
	gossipPort = "8092"
	raftPort   = "8093"
	httpPort   = "8025"
)

// visitor is somebody on a host, with a certificate or without.
type visitor struct {
	t    *testing.T
	c    *Cluster
	host string
	cert *tls.Certificate
}

// answerTime is longer than any node takes to answer or to hang up.
const answerTime = 15 * time.Second

func (v visitor) dial(to, port string) net.Conn {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), answerTime)
	defer cancel()
	conn, err := v.c.Net.Host(v.host).Dial(ctx, "tcp", net.JoinHostPort(to, port))
	v.c.must(err, "reach port %s of %s", port, to)
	v.c.must(conn.SetDeadline(time.Now().Add(answerTime)), "set a deadline")
	return conn
}

// tls is a visitor's side of TLS: it believes everybody, and shows its
// certificate whatever the server asks for.
func (v visitor) tls(alpn ...string) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, NextProtos: alpn,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if v.cert == nil {
				return new(tls.Certificate), nil
			}
			return v.cert, nil
		},
	}
}

// dialogue is a conversation in SMTP.
type dialogue struct {
	visitor
	net.Conn
	r *bufio.Reader
}

// smtp begins one with the chain's port.
func (v visitor) smtp(to string) *dialogue {
	v.t.Helper()
	conn := v.dial(to, chainPort)
	d := &dialogue{v, conn, bufio.NewReader(conn)}
	if greeting := d.reply(); !strings.HasPrefix(greeting, "220 "+to+" ") {
		v.t.Errorf("%s greets with %q", to, greeting)
	}
	return d
}

// reply reads one, its lines joined; what is no reply is an end in words.
func (d *dialogue) reply() string {
	_ = d.SetReadDeadline(time.Now().Add(answerTime))
	var lines []string
	for {
		line, err := d.r.ReadString('\n')
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return "silence"
		case err != nil:
			return "closed"
		}
		line = strings.TrimRight(line, "\r\n")
		lines = append(lines, line)
		if len(line) < 4 || line[3] != '-' {
			return strings.Join(lines, "|")
		}
	}
}

func (d *dialogue) say(format string, a ...any) string {
	_, _ = fmt.Fprintf(d.Conn, format+"\r\n", a...) // a failure shows in the reply
	return d.reply()
}

// expect says something and wants a reply that begins so.
func (d *dialogue) expect(want, format string, a ...any) {
	d.t.Helper()
	if got := d.say(format, a...); !strings.HasPrefix(got, want) {
		d.t.Errorf("%.80q is answered %.400q, want %q", fmt.Sprintf(format, a...), got, want)
	}
}

// ended wants the connection to be closed by the other side.
func (d *dialogue) ended() {
	d.t.Helper()
	if got := d.reply(); got != "closed" {
		d.t.Errorf("the connection goes on with %q", got)
	}
}

// startTLS goes on under TLS.
func (d *dialogue) startTLS() {
	d.t.Helper()
	d.expect("220 ", "STARTTLS")
	conn := tls.Client(d.Conn, d.visitor.tls())
	d.c.must(conn.HandshakeContext(d.t.Context()), "shake hands with the chain's port")
	d.Conn, d.r = conn, bufio.NewReader(conn)
}

// peer goes as far as a member gets: what it says next is the link's.
func (v visitor) peer(to string) *dialogue {
	v.t.Helper()
	d := v.smtp(to)
	d.expect("250-", "EHLO %s", v.host)
	d.startTLS()
	return d
}

// browser asks over HTTP, with the cluster's ALPN or as people do.
func (v visitor) browser(alpn ...string) *http.Client {
	h := &http.Client{Timeout: answerTime, Transport: &http.Transport{
		DialContext:     v.c.Net.Host(v.host).Dial,
		TLSClientConfig: v.tls(alpn...),
	}}
	v.t.Cleanup(h.CloseIdleConnections)
	return h
}

// ask gives the status and the error's text of an answer.
func (v visitor) ask(h *http.Client, method, address, body string) (code int, said api.Error) {
	v.t.Helper()
	r, err := http.NewRequestWithContext(v.t.Context(), method, address, strings.NewReader(body))
	v.c.must(err, "make a request")
	answer, err := h.Do(r)
	v.c.must(err, "ask for %s", address)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	v.c.must(err, "read the answer to %s", address)
	_ = json.Unmarshal(text, &said) // what is no error has none
	return answer.StatusCode, said
}

// raft tries to get past the raft port's handshake and says what happens when
// it wants to be heard.
func (v visitor) raft(to string, kind byte) (net.Conn, error) {
	conn := tls.Client(v.dial(to, raftPort), v.tls())
	if err := conn.HandshakeContext(v.t.Context()); err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte{kind}); err != nil {
		return nil, err
	}
	// With TLS 1.3 a client hears of the refusal when it reads. A member is
	// heard in silence.
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, err := conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	_ = conn.SetDeadline(time.Time{})
	return conn, err
}

// certificate is that of a node, from its disk.
func (c *Cluster) certificate(name string) *tls.Certificate {
	c.t.Helper()
	return certificateIn(c.t, node.ClusterDir(c.backend.(*virtual).machine(name).config.DataDir))
}

func certificateIn(t testing.TB, dir string) *tls.Certificate {
	t.Helper()
	file := filepath.Join(dir, "node.pem")
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

// forged is a certificate that says of itself what a member's says, signed by
// somebody else: by the holder of signer, or by an authority of its own.
func forged(t *testing.T, like *tls.Certificate, signer *tls.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: like.Leaf.Subject, URIs: like.Leaf.URIs,
		NotBefore: like.Leaf.NotBefore, NotAfter: like.Leaf.NotAfter,
		KeyUsage: like.Leaf.KeyUsage, ExtKeyUsage: like.Leaf.ExtKeyUsage,
	}
	above := &x509.Certificate{
		SerialNumber: big.NewInt(8), Subject: pkix.Name{CommonName: like.Leaf.Issuer.CommonName},
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, PublicKey: &key.PublicKey,
	}
	signing, chain := any(key), [][]byte(nil)
	if signer != nil {
		above, signing, chain = signer.Leaf, signer.PrivateKey, signer.Certificate
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, above, &key.PublicKey, signing)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: append([][]byte{der}, chain...), PrivateKey: key}
}

// shape is what nobody but an administrator changes.
func (c *Cluster) shape() string {
	c.t.Helper()
	v, err := c.View("a")
	c.must(err, "look at the cluster")
	var names []string
	for _, m := range v.Members {
		names = append(names, fmt.Sprint(m.Name, m.Role, m.Addresses))
	}
	return fmt.Sprint(v.Epoch, v.Policies, slices.Sorted(slices.Values(v.Voters)), names)
}

// operations are all that a node's HTTP port knows, by its own description,
// with something in the place of each parameter of a path.
func (v visitor) operations(to string) (all [][2]string) {
	v.t.Helper()
	answer, err := v.browser().Get("http://" + to + ":" + httpPort + api.Prefix + "/openapi.json")
	v.c.must(err, "read the description of the HTTP port")
	defer answer.Body.Close()
	var description struct {
		Paths map[string]map[string]any `json:"paths"`
	}
	v.c.must(json.NewDecoder(answer.Body).Decode(&description), "read the description of the HTTP port")
	for path, methods := range description.Paths {
		for {
			before, rest, ok := strings.Cut(path, "{")
			if !ok {
				break
			}
			_, after, _ := strings.Cut(rest, "}")
			path = before + "b" + after
		}
		for method := range methods {
			all = append(all, [2]string{strings.ToUpper(method), path})
		}
	}
	if len(all) < 25 {
		v.t.Errorf("only %d operations are described", len(all))
	}
	return all
}

// openToAll are the operations that need no right; join needs a token inside.
var openToAll = []string{"GET /healthz", "GET /readyz", "GET /metrics", "GET " + api.Prefix + "/openapi.json"}

const joinOperation = "POST " + api.Prefix + "/cluster/join"

// TestStrangers: without a certificate of this cluster nobody can do anything
// on the chain's port, the raft port, or HTTP; nor can who has one that only
// looks like it.
func TestStrangers(t *testing.T) {
	elsewhere := t.TempDir()
	if err := membership.Create(elsewhere, membership.CreateOptions{Name: "b"}); err != nil {
		t.Fatal(err)
	}
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		before := c.shape()
		b := c.certificate("b")
		for _, tt := range []struct {
			who  string
			cert *tls.Certificate
			why  string // in the words of the nodes
		}{
			{"nobody", nil, ""},
			{"another authority of the same name", forged(t, b, nil), `the certificate of "b" was not signed by this cluster's CA`},
			{"a node of another cluster", certificateIn(t, elsewhere), `the certificate of "b" was not signed by this cluster's CA`},
			{"somebody with a member's signature", forged(t, b, b), `the certificate of "b" was not signed by this cluster's CA`},
		} {
			v := visitor{t, c, "stranger", tt.cert}
			t.Log(tt.who)
			v.strangerOnChain(tt.why)
			v.strangerOnRaft()
			v.strangerOnHTTP(tt.why)
		}
		if after := c.shape(); after != before {
			t.Errorf("the cluster was %s and is %s", before, after)
		}
		c.Send("a", 5)
		c.Check() // also that nothing was archived
	})
}

func (v visitor) strangerOnChain(why string) {
	v.t.Helper()
	refusal := "550 5.7.1 this port is for the nodes of the cluster; your address " + v.c.Net.Host(v.host).IP().String() + " is not on the list of foreign mail servers"
	d := v.smtp("a")
	defer d.Close()
	if offers := d.say("EHLO stranger"); !strings.Contains(offers, "STARTTLS") || strings.Contains(offers, "XCHAINMAIL") {
		v.t.Errorf("EHLO is answered %q", offers)
	}
	for _, command := range []string{"MAIL FROM:<b@chain.invalid> BODY=BINARYMIME", "RCPT TO:<live@chain.invalid>", "DATA", "VRFY root", "RSET", "AUTH PLAIN AGEAYg=="} {
		d.expect(refusal, "%s", command)
	}
	d.expect("250 2.0.0 ", "NOOP")
	d.startTLS()
	if why != "" {
		d.expect("554 5.7.1 your certificate is refused: "+why, "EHLO b")
		d.ended()
		return
	}
	if offers := d.say("EHLO b"); !strings.HasPrefix(offers, "250-") || strings.Contains(offers, "XCHAINMAIL") {
		v.t.Errorf("EHLO under TLS is answered %q", offers)
	}
	d.expect(refusal, "MAIL FROM:<b@chain.invalid> BODY=BINARYMIME")
	d.expect(refusal, "BDAT 4 LAST") // what follows must not be taken for commands
	d.ended()
}

func (v visitor) strangerOnRaft() {
	v.t.Helper()
	for _, kind := range []byte("RC") {
		if _, err := v.raft("a", kind); err == nil || !strings.Contains(err.Error(), "tls:") {
			v.t.Errorf("the raft port answers a stranger: %v", err)
		}
	}
	plain := v.dial("a", raftPort)
	defer plain.Close()
	_, _ = plain.Write([]byte("C{}"))
	begin := time.Now()
	if b, err := io.ReadAll(plain); err != nil || len(b) > 7 || time.Since(begin) > 6*time.Second { // 7: an alert of TLS
		v.t.Errorf("the raft port answers plain text after %v: %q, %v", time.Since(begin), b, err)
	}
}

func (v visitor) strangerOnHTTP(why string) {
	v.t.Helper()
	people, nodes := v.browser(), v.browser(client.Protocol)
	for _, o := range v.operations("a") {
		operation := o[0] + " " + o[1]
		code, said := v.ask(people, o[0], "http://a:"+httpPort+o[1], "{}")
		want := http.StatusUnauthorized
		switch {
		case slices.Contains(openToAll, operation):
			want = http.StatusOK
		case operation == joinOperation, strings.Contains(o[1], "/cluster/self"), strings.Contains(o[1], "/cluster/digests"):
			want = http.StatusForbidden
		}
		if code != want {
			v.t.Errorf("%s by plain HTTP is answered %d %v, want %d", operation, code, said, want)
		}
		if v.cert == nil && want == http.StatusUnauthorized {
			want = http.StatusUnauthorized // a token is what is missing
		} else if want != http.StatusOK {
			want = http.StatusForbidden
		}
		if operation == joinOperation {
			want = http.StatusBadRequest // it is read, and lacks everything
		}
		code, said = v.ask(nodes, o[0], "https://a:"+httpPort+o[1], "{}")
		if code != want || why != "" && want == http.StatusForbidden && !strings.Contains(said.Error, why) {
			v.t.Errorf("%s by the cluster's TLS is answered %d %v, want %d because %s", operation, code, said, want, why)
		}
	}
}

// TestRemovedMember: the certificate of a node that was removed is worth
// nothing from then on, on connections that were open before, too.
func TestRemovedMember(t *testing.T) {
	Virtual(t, Options{Nodes: 4}, func(t *testing.T, c *Cluster) {
		c.Send("a", 5)
		c.Settle()
		c.Stop("d")
		c.Await("a", "d", api.StateUnreachable)
		// From here on the test is d, as it was: with its key, and at its address.
		d := visitor{t, c, "d", c.certificate("d")}
		link := d.peer("a")
		defer link.Close()
		if offers := link.say("EHLO d"); !strings.Contains(offers, "XCHAINMAIL 1 1") {
			t.Fatalf("a member is answered %q", offers)
		}
		nodes := d.browser(client.Protocol)
		self := "https://a:" + httpPort + api.Prefix + "/cluster/self"
		if code, said := d.ask(nodes, "GET", self, ""); code != http.StatusOK {
			t.Fatalf("a member is answered %d %v", code, said)
		}
		var raft []net.Conn
		for _, kind := range []byte("RC") {
			conn, err := d.raft("a", kind)
			c.must(err, "open a connection to the raft port as a member")
			raft = append(raft, conn)
			defer conn.Close()
		}

		c.Change("remove d", func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.Remove(ctx, "d", "") })

		removed := time.Now()
		if got := link.reply(); got != "421 4.3.2 the node is stopping" {
			t.Errorf("on the link a removed node is told %q", got)
		}
		link.ended()
		_, err := raft[0].Read(make([]byte, 1))
		if took := time.Since(removed); err == nil || took > 2*time.Second {
			t.Errorf("open connections of a removed node last for %v more: %v", took, err)
		}
		if _, err := raft[1].Write([]byte("\x00\x00\x00\x02{}")); err == nil {
			_ = raft[1].SetReadDeadline(time.Now().Add(answerTime))
			if answer, _ := io.ReadAll(raft[1]); len(answer) > 0 {
				t.Errorf("the raft port answers a removed node %q", answer)
			}
		}
		const why = "the certificate of d is not that of a member"
		if code, said := d.ask(nodes, "GET", self, ""); code != http.StatusForbidden || !strings.Contains(said.Error, why) {
			t.Errorf("HTTP answers a removed node %d %v", code, said)
		}
		for _, to := range []string{"a", "b", "c"} {
			again := d.peer(to)
			again.expect("554 5.7.1 your certificate is refused: "+why, "EHLO d")
			again.ended()
			if _, err := d.raft(to, 'R'); err == nil {
				t.Errorf("the raft port of %s takes a removed node", to)
			}
		}
		c.Send("a", 5)
		c.Check()
	})
}
