package testcluster

import (
	"bufio"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/archive/record"
	"chainmail/membership"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/testcluster/netsim"
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
	d.Close()
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
var openToAll = []string{
	"GET /healthz", "GET /readyz", "GET /syncz", "GET /metrics",
	"GET " + api.Prefix + "/openapi.json", "GET " + api.Prefix + "/cluster/ca",
}

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
		_ = raft[0].SetReadDeadline(time.Now().Add(answerTime))
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

// TestRemovedMemberMayNotSend: what is on its way on a link when its member is
// removed is not taken.
func TestRemovedMemberMayNotSend(t *testing.T) {
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		p := c.standIn(t, "c", "1 1")
		c.Await("a", "c", api.StateUnreachable)
		link := p.peer("b")
		defer link.Close()
		link.expect("250-", "EHLO c")
		if said := link.deliver("hello", p.hello()); !strings.HasPrefix(said, "250-{") {
			t.Fatalf("a member's hello is answered %s", said)
		}
		at, text := record.Position{Store: 0xc, Seq: 1}, []byte("too late\r\n")
		container := newParcel().log(record.Log{Store: at.Store, Origin: "c"}).receipt(receiptOf(at, 1, text), text).end()
		half := len(container) / 2
		_, _ = fmt.Fprintf(link.Conn, "MAIL FROM:<c@chain.invalid> BODY=BINARYMIME\r\nRCPT TO:<live@chain.invalid>\r\nBDAT %d LAST\r\n%s", len(container), container[:half])
		for range 2 {
			if said := link.reply(); !strings.HasPrefix(said, "250 ") {
				t.Fatalf("a member is answered %s", said)
			}
		}
		p.leave()
		// It is unreachable, and gossip finds that out in its time.
		c.Change("remove c", func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.Remove(ctx, "c", "c") })
		c.Await("b", "c", Left)
		_, _ = link.Conn.Write(container[half:])
		if said := link.reply(); strings.HasPrefix(said, "250") {
			t.Errorf("a removed node is answered %q", said)
		}
		c.Send("a", 3)
		c.Check() // also that nothing else was archived
	})
}

// TestForeignServers: whose address is on the list may hand over mail on the
// chain's port, byte for byte, and nothing else; what looks like the link's is
// mail like any other.
func TestForeignServers(t *testing.T) {
	const friend, other = "friend", "other"
	var addresses []string
	o := Options{Nodes: 2, Config: func(k *node.Config) { k.ChainAllow = addresses }}
	synctest.Test(t, func(t *testing.T) {
		n := netsim.New(1)
		addresses = []string{n.Host(friend).IP().String(), "192.0.2.0/24"}
		c := form(t, o.withDefaults(), n, newVirtual(t, o.withDefaults(), n))
		before := c.shape()
		elsewhere := forged(t, c.certificate("b"), nil)
		for _, cert := range []*tls.Certificate{nil, elsewhere} {
			for _, secure := range []bool{false, true} {
				d := visitor{t, c, friend, cert}.smtp("a")
				offers := d.say("EHLO friend")
				if secure {
					d.startTLS()
					offers = d.say("EHLO friend")
				}
				if !strings.Contains(offers, "CHUNKING") || strings.Contains(offers, "XCHAINMAIL") {
					t.Errorf("a foreign server is offered %q", offers)
				}
				d.mails(c.ledger)
				d.expect("221 ", "QUIT")
				d.Close()
			}
		}
		stranger := visitor{t, c, other, nil}
		stranger.strangerOnChain("")
		friendly := visitor{t, c, friend, nil}
		friendly.strangerOnRaft()
		friendly.strangerOnHTTP("")
		if after := c.shape(); after != before {
			t.Errorf("the cluster was %s and is %s", before, after)
		}
		c.Check()
		for m, err := range c.Client("b").Messages(t.Context(), client.Query{}) {
			c.must(err, "list what b holds")
			if r := m.Receipts[0]; r.Connector != "chain" || !strings.HasPrefix(r.Client, addresses[0]+":") {
				t.Errorf("the mail of a foreign server came by %q from %q", r.Connector, r.Client)
			}
		}
	})
}

// mails hands in mail that is addressed to the link, and mail that is one of
// its containers.
func (d *dialogue) mails(l *ledger) {
	d.t.Helper()
	for _, to := range []string{"hello", "live", "bulk"} {
		m := l.next("a")
		text := m.text(l.seed)
		d.expect("250 ", "MAIL FROM:<b@chain.invalid> BODY=BINARYMIME")
		d.expect("250 ", "RCPT TO:<%s@chain.invalid>", to)
		_, _ = fmt.Fprintf(d.Conn, "BDAT %d LAST\r\n", len(text))
		_, _ = d.Conn.Write(text)
		said := archivedAs.FindStringSubmatch(d.reply())
		if said == nil || said[2] != m.hash.String() {
			d.t.Fatalf("mail of a foreign server to %s is answered %q", to, said)
		}
		l.acknowledge(m, said[1])
	}
	// A container that would be a receipt of the log 0f0f, were it taken for one.
	at, text := record.Position{Store: 0xf0f, Seq: 1}, []byte("smuggled\r\n")
	container := newParcel().log(record.Log{Store: at.Store, Origin: "b"}).receipt(receiptOf(at, 1, text), text).end()
	said := archivedAs.FindStringSubmatch(d.deliver("live", container))
	hash := record.Hash(sha256.Sum256(container))
	if said == nil || said[2] != hash.String() {
		d.t.Fatalf("a foreign server's container is answered %q", said)
	}
	l.mu.Lock()
	l.sent[hash] = &mail{n: -1} // it is no mail of the ledger's making
	l.mu.Unlock()
}

// joiner asks to be let in, with a key of its own.
type joiner struct {
	visitor
	key *ecdsa.PrivateKey
}

func (c *Cluster) joiner(t *testing.T) joiner {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	c.must(err, "make a key")
	return joiner{visitor{t, c, "joiner", nil}, key}
}

func (j joiner) request(token, name string) api.JoinRequest {
	return api.JoinRequest{Token: token, Name: name, Role: "data", Version: version, CSR: j.csr(x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}), Addresses: map[string]string{
		"smtp": "10.9.9.9:25", "chain": "10.9.9.9:8091", "gossip": "10.9.9.9:8092", "raft": "10.9.9.9:8093", "http": "10.9.9.9:8025",
	}}
}

func (j joiner) csr(r x509.CertificateRequest) []byte {
	j.t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &r, j.key)
	j.c.must(err, "make a certificate request")
	return der
}

// ask asks one node, and gives the certificate when it is let in.
func (j joiner) ask(to string, r api.JoinRequest) (*x509.Certificate, error) {
	j.t.Helper()
	who := client.NewPeer(to+":"+httpPort, j.tls(), j.c.Net.Host(j.host).Dial)
	defer who.Close()
	var answer struct {
		Certificate []byte `json:"certificate"`
	}
	if err := who.Join(j.t.Context(), r, &answer); err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(answer.Certificate)
	j.c.must(err, "read the certificate")
	return leaf, nil
}

// TestJoinTokens: one token lets one node in, in time, under a name that is
// free; whoever is refused changes nothing.
func TestJoinTokens(t *testing.T) {
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		token := func(valid time.Duration) string {
			t.Helper()
			k, err := c.Client("b").JoinToken(t.Context(), valid)
			c.must(err, "get a token")
			return k.Token
		}
		good, late := token(24*time.Hour), token(time.Minute)
		time.Sleep(2 * time.Minute)
		const prefix = len("chainmail-join-1.")
		other := good[:prefix] + strings.Repeat("A", 12) + good[prefix+12:]
		key := c.joiner(t)
		changed := func(change func(*api.JoinRequest)) api.JoinRequest {
			r := key.request(good, "x")
			change(&r)
			return r
		}
		before := c.shape()
		spoiled := key.request(good, "x").CSR
		spoiled[len(spoiled)-10] ^= 1
		for _, tt := range []struct {
			what string
			r    api.JoinRequest
			code int
			want string
		}{
			{"garbage", key.request("garbage", "x"), 403, "this is not a join token, or not the whole of it"},
			{"half", key.request(good[:len(good)/2], "x"), 403, "this is not a join token, or not the whole of it"},
			{"other cluster", key.request(other, "x"), 403, "belongs to another cluster"},
			{"other secret", key.request(good[:len(good)-4]+"AAAA", "x"), 403, "is not known to this cluster"},
			{"expired", key.request(late, "x"), 403, "expired at "},
			{"name taken", key.request(good, "b"), 409, "the name b is taken by a member"},
			{"own name in capitals", key.request(good, "B"), 409, "name"},
			{"name of a path", key.request(good, "../x"), 409, "name"},
			{"living member", changed(func(r *api.JoinRequest) { *r = key.request(good, "b"); r.Replace = true }), 409, "b is alive and cannot be replaced: stop it first"},
			{"nobody to replace", changed(func(r *api.JoinRequest) { r.Replace = true }), 404, "there is no member x to replace"},
			{"no role", changed(func(r *api.JoinRequest) { r.Role = "king" }), 409, `"king" is not a role`},
			{"no address", changed(func(r *api.JoinRequest) { delete(r.Addresses, "chain") }), 409, "cannot be reached by the other members"},
			{"no CSR", changed(func(r *api.JoinRequest) { r.CSR = []byte("x") }), 409, ""},
			{"spoiled CSR", changed(func(r *api.JoinRequest) { r.CSR = spoiled }), 409, ""},
		} {
			for _, to := range []string{"a", "b"} { // the leader, and one that asks it
				_, err := key.ask(to, tt.r)
				if said, ok := errors.AsType[*client.Error](err); !ok || said.Status != tt.code || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), good[60:]) {
					t.Errorf("%s: %s answers %v, want %d %s", tt.what, to, err, tt.code, tt.want)
				}
			}
		}
		if after := c.shape(); after != before {
			t.Errorf("joins that were refused made %s of %s", after, before)
		}

		// What the request for the certificate says of itself is not believed.
		b := c.certificate("b").Leaf
		lie := key.request(good, "liar")
		lie.CSR = key.csr(x509.CertificateRequest{
			Subject: b.Subject, URIs: b.URIs, DNSNames: []string{"b"},
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}, // an authority
		})
		leaf, err := key.ask("b", lie)
		c.must(err, "join")
		if leaf.Subject.CommonName != "liar" || len(leaf.URIs) != 1 || leaf.URIs[0].String() == b.URIs[0].String() || leaf.IsCA || slices.Contains(leaf.DNSNames, "b") || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
			t.Errorf("a joiner that lies was given a certificate of %v, %v, authority %t", leaf.Subject, leaf.URIs, leaf.IsCA)
		}

		// The same joiner may ask again and is given the same; nobody else may.
		once := c.shape()
		again, err := key.ask("a", lie)
		if err != nil || !again.Equal(leaf) {
			t.Errorf("the same joiner asks again: %v", err)
		}
		for what, r := range map[string]api.JoinRequest{
			"another key":                c.joiner(t).request(good, "liar"),
			"the same key, another name": key.request(good, "x"),
		} {
			if _, err := key.ask("a", r); err == nil || !strings.Contains(err.Error(), "was used for liar already") {
				t.Errorf("a token is used again with %s: %v", what, err)
			}
		}
		if after := c.shape(); after != once || once == before {
			t.Errorf("the cluster was %s, with the joiner %s, and is %s", before, once, after)
		}
		c.Change("remove the joiner", func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.Remove(ctx, "liar", "liar") })
		if _, err := key.ask("a", lie); err == nil || !strings.Contains(err.Error(), "was removed or replaced since") {
			t.Errorf("a removed joiner asks again: %v", err)
		}
		c.Send("c", 3)
		c.Check()
	})
}

// TestGossipOfOutsiders: packets and streams of those who have no key are
// ignored, whatever is in them; nobody is taken for dead because of them.
func TestGossipOfOutsiders(t *testing.T) {
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		before := c.shape()
		random := mathrand.New(mathrand.NewPCG(7, 7))
		var mu sync.Mutex
		noise := func(n int) []byte {
			mu.Lock()
			defer mu.Unlock()
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			return b
		}
		// What memberlist says in plain text: b is dead, whatever it says itself
		// since, and x is alive.
		deadNow := func(i int) []byte {
			text := []byte("\x05\x83\xabIncarnation\xce")
			text = binary.BigEndian.AppendUint32(text, uint32(1+i)<<16)
			return append(text, "\xa4Node\xa1b\xa4From\xa1c"...)
		}
		dead := deadNow(1)
		alive := []byte("\x04\x84\xabIncarnation\x01\xa4Node\xa1x\xa4Addr\xa4\x0a\x00\x00\x09\xa4Port\xcd\x1f\x9c")
		sealed := func(text []byte) []byte { // with a key that is not the cluster's
			block, err := aes.NewCipher(noise(32))
			c.must(err, "make a cipher")
			seal, err := cipher.NewGCM(block)
			c.must(err, "make a cipher")
			nonce := noise(12)
			return append([]byte{1}, seal.Seal(nonce, nonce, text, nil)...)
		}
		links := c.links()
		socket, err := c.Net.Host("stranger").ListenPacket("udp", ":0")
		c.must(err, "open a socket")
		defer socket.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 600 {
				for _, to := range []string{"a", "b", "c"} {
					address := &net.UDPAddr{IP: c.Net.Host(to).IP(), Port: 8092}
					for _, packet := range [][]byte{deadNow(i), alive, sealed(dead), sealed(alive), noise(1 + i*7%1400), append([]byte{byte(i)}, noise(40)...), {}, noise(60_000)[:min(60_000, 1+i*100)]} {
						_, _ = socket.WriteTo(packet, address)
					}
				}
				time.Sleep(50 * time.Millisecond)
			}
		}()
		stranger := visitor{t, c, "stranger", nil}
		for i := range 30 {
			for _, text := range [][]byte{dead, sealed(alive), append([]byte{10, 0xff, 0xff, 0xff, 0xff}, noise(1000)...), append([]byte{6}, noise(300)...), noise(20), nil} {
				conn := stranger.dial([]string{"a", "b", "c"}[i%3], gossipPort)
				_, _ = conn.Write(text)
				time.AfterFunc(answerTime, func() { conn.Close() }) // it holds them as long as it can
			}
			c.Send([]string{"a", "b", "c"}[i%3], 1)
			for _, seer := range []string{"a", "b", "c"} {
				v, err := c.View(seer)
				c.must(err, "look at the cluster")
				for _, m := range v.Members {
					if m.State != api.StateActive || m.Link != nil && m.Link.State != "connected" {
						t.Errorf("under the noise, %s sees %s %s: %s", seer, m.Name, m.State, m.Reason)
					}
				}
				if safe := c.safeToStop(seer, "b"); safe != nil { // it asks gossip who is alive
					t.Errorf("under the noise, %s says: %v", seer, safe)
				}
			}
			time.Sleep(time.Second)
		}
		<-done
		if now := c.links(); !maps.Equal(now, links) {
			t.Errorf("the links between the nodes were up since %v, and are since %v", links, now)
		}
		if after := c.shape(); after != before {
			t.Errorf("the cluster was %s and is %s", before, after)
		}
		time.Sleep(answerTime)
		c.Check()
	})
}

// links is since when each link has been in its state: one to a node that is
// thought dead is ended.
func (c *Cluster) links() map[string]time.Time {
	c.t.Helper()
	since := map[string]time.Time{}
	for _, from := range c.Running(node.RoleData) {
		v, err := c.View(from)
		c.must(err, "look at the cluster")
		for _, m := range v.Members {
			if m.Link != nil {
				since[from+" to "+m.Name+" "+m.Link.State] = m.Link.Since
			}
		}
	}
	return since
}

// TestMalformedPeer: a member whose program has gone mad is told what is wrong,
// nothing of it is archived, and the mail of others flows.
func TestMalformedPeer(t *testing.T) {
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		c.Send("a", 5)
		p := c.standIn(t, "b", "1 1")
		hello := func(change map[string]any) []byte {
			p.extra = change
			defer func() { p.extra = nil }()
			return p.hello()
		}
		held := func(s string) map[string]any {
			return map[string]any{"logs": []any{map[string]any{"store": "00000000000000aa", "origin": "c", "held": s}}}
		}
		greeted := func() *dialogue {
			d := p.peer("a")
			d.expect("250-", "EHLO b")
			return d
		}

		d := greeted()
		d.expect(`554 5.7.1 the certificate is that of b, the sender is c`, "MAIL FROM:<c@chain.invalid> BODY=BINARYMIME")
		d.expect("501 5.5.4 want MAIL FROM:<node@chain.invalid> BODY=BINARYMIME", "MAIL FROM:<b@example.org>")
		d.expect("503 5.5.1 MAIL first", "RCPT TO:<live@chain.invalid>")
		d.expect("250 ", "MAIL FROM:<b@chain.invalid> BODY=BINARYMIME")
		d.expect("503 5.5.1 say hello first", "RCPT TO:<live@chain.invalid>")
		d.expect("550 5.1.1 the recipients of the link are hello, live and bulk", "RCPT TO:<ann@example.org>")
		d.expect(`502 5.5.1 "DATA" is not a command of the link`, "DATA")
		d.expect(`502 5.5.1 "STARTTLS" is not a command of the link`, "STARTTLS")
		d.expect("250 ", "RSET")
		_, _ = d.Write([]byte("BDAT 19 LAST\r\nRCPT TO:<live@chai\r"))
		if said := d.reply(); said != "503 5.5.1 MAIL and RCPT first" {
			t.Errorf("a body without an envelope is answered %q", said)
		}
		d.expect("250 ", "NOOP")
		said := ""
		for range 20 {
			if said = d.say("XYZZY"); !strings.HasPrefix(said, "502 ") {
				break
			}
		}
		if !strings.HasSuffix(said, "421 4.7.0 too many errors") {
			said = d.reply()
		}
		if said != "421 4.7.0 too many errors" {
			t.Errorf("errors without end are answered %q", said)
		}
		d.ended()
		for _, line := range []string{"BDAT -1 LAST", "BDAT 99999999 LAST", "BDAT x", "BDAT 1 2 3"} {
			d := greeted()
			d.expect("501 5.5.4 ", "%s", line)
			d.ended()
		}
		long := greeted()
		long.expect("500 5.5.2 a command line may have 1000 bytes", "NOOP %s", strings.Repeat("x", 1100))
		long.ended()

		for _, tt := range []struct {
			what  string
			hello []byte
			want  string
		}{
			{"another cluster", hello(map[string]any{"cluster": "nonsense"}), "554 5.7.1 this node, a, is of cluster " + p.cluster + " and you are of cluster nonsense"},
			{"another node", hello(map[string]any{"node": "c"}), "554 5.7.1 the certificate is that of b, hello says c"},
			{"no JSON", []byte("hello"), "554 5.5.2 hello: "},
			{"JSON of another kind", []byte(`{"logs":"all"}`), "554 5.5.2 hello: "},
			{"no boot", hello(map[string]any{"boot": ""}), "554 5.5.2 hello: node, boot or generation is missing"},
			{"ranges that fall", hello(held("9-3")), "554 5.5.2 hello: "},
			{"a number beyond all", hello(held("18446744073709551615")), "554 5.5.2 hello: "},
			{"a wait in the past", hello(map[string]any{"wait_ms": -1}), "554 5.5.2 hello: wait_ms is -1"},
			{"too long", hello(map[string]any{"version": strings.Repeat("x", 9<<20)}), "554 5.5.2 hello: more than 8388608 bytes"},
		} {
			d := greeted()
			if said := d.deliver("hello", tt.hello); !strings.HasPrefix(said, tt.want) {
				t.Errorf("hello with %s is answered %.200q, want %q", tt.what, said, tt.want)
			}
			if said := d.say("NOOP"); said != "250 2.0.0 ok" {
				t.Errorf("after hello with %s: %q", tt.what, said)
			}
			d.Close()
		}

		at, text := record.Position{Store: 0xb0b, Seq: 1}, []byte("Subject: x\r\n\r\nx\r\n")
		good := func() *parcel { return newParcel().log(record.Log{Store: at.Store, Origin: "b"}) }
		receipt := receiptOf(at, 1, text)
		wrong := receiptOf(at, 1, []byte("Subject: y\r\n\r\ny\r\n"))
		nothing := receipt
		nothing.Position.Seq = 0
		whole := good().receipt(receipt, text).end()
		spoiled := slices.Clone(whole)
		spoiled[60] ^= 1
		for _, tt := range []struct {
			what      string
			container []byte
			want      string
		}{
			{"another magic", []byte("chainmail container 9\n"), "554 5.5.2 malformed container: it begins with"},
			{"no end", good().receipt(receipt, text).Bytes(), "554 5.5.2 malformed container: it ends too early"},
			{"half of a frame", whole[:len(whole)-50], "554 5.5.2 malformed container: it ends too early"},
			{"bytes behind the end", append(slices.Clone(whole), 'x'), "554 5.5.2 malformed container: bytes follow its end"},
			{"an oversized frame", good().frame('Z', make([]byte, 1<<20+1)).end(), "554 5.5.2 malformed container: a frame of kind 'Z' has 1048577 bytes"},
			{"a frame of 4 GiB", append(good().Bytes(), 'R', 0xff, 0xff, 0xff, 0xff), "554 5.5.2 malformed container: a frame of kind 'R' has 4294967295 bytes"},
			{"a chunk of nothing", newParcel().frame('C', storedChunk(text)).end(), "554 5.5.2 malformed container: a chunk without a receipt"},
			{"number 0", good().receipt(nothing, text).end(), "554 5.5.2 malformed container: receipt 0000000000000b0b:0: that is no sequence number"},
			{"a short receipt", good().frame('R', []byte("xxxx")).end(), "554 5.5.2 malformed container: a receipt of 4 bytes"},
			{"no receipt", good().frame('R', make([]byte, 90)).end(), "554 5.5.2 malformed container: "},
			{"no log", newParcel().frame('L', []byte("[]")).end(), "554 5.5.2 malformed container: log"},
			{"a log kept by nobody", newParcel().log(record.Log{Store: 1, Placements: []record.Placement{{From: 1}}}).end(), "554 5.5.2 malformed container: "},
			{"the body of another message", good().receipt(wrong, text).end(), "554 5.6.0 0000000000000b0b:1 "},
			{"a body that is too short", good().receipt(receipt, text[:5]).end(), "554 5.6.0 0000000000000b0b:1 "},
			{"a damaged chunk", good().frame('R', append(slices.Clone(receiptFrame(receipt)), 0)).end(), "554 "},
		} {
			d := greeted()
			if said := d.deliver("hello", p.hello()); !strings.HasPrefix(said, "250-{") {
				t.Fatalf("a good hello is answered %s", said)
			}
			for _, lane := range []string{"live", "bulk"} {
				if said := d.deliver(lane, tt.container); !strings.HasPrefix(said, tt.want) {
					t.Errorf("%s: %s is answered %.200q, want %q", lane, tt.what, said, tt.want)
				}
			}
			if said := d.deliver("live", spoiled); !strings.HasPrefix(said, "554 ") {
				t.Errorf("a container with a bit that tipped over is answered %q", said)
			}
			d.Close()
		}
		c.Send("a", 5)
		p.leave()
		c.Start("b")
		c.Eventually(time.Minute, "b has what its stand-in was given", func() error { return c.Held("a", "b", "c") })
		c.Check() // also that nothing of it was archived
	})
}

// receiptFrame is the payload of a receipt that has a body.
func receiptFrame(r record.Receipt) []byte {
	return newParcel().receipt(r, []byte("x")).Bytes()[len("chainmail container 1\n")+5:][:17+len(record.AppendReceipt(nil, &r))]
}

// TestTwoContents: a member that gives positions a second content finds them
// taken: what was there first stays, what came second is kept too, and people
// are told. It cannot take a number that only the node itself may give.
func TestTwoContents(t *testing.T) {
	Virtual(t, Options{Nodes: 3, Replicas: All}, func(t *testing.T, c *Cluster) {
		c.Send("c", 3)
		c.Send("a", 3)
		p := c.standIn(t, "b", "1 1")
		stores := map[string]record.StoreID{}
		for _, m := range c.ledger.acknowledged() {
			at, err := record.ParsePosition(m.position)
			c.must(err, "read a position")
			stores[m.node] = at.Store
		}
		d := p.peer("a")
		defer d.Close()
		d.expect("250-", "EHLO b")
		if said := d.deliver("hello", p.hello()); !strings.HasPrefix(said, "250-{") {
			t.Fatalf("a good hello is answered %s", said)
		}
		second := func(at record.Position, body record.BodyNo) *mail {
			m := c.ledger.next("b")
			text := m.text(1)
			container := newParcel().log(record.Log{Store: at.Store, Origin: "c"}).receipt(receiptOf(at, body, text), text).end()
			for range 2 { // again and again, it is kept once
				said := d.deliver("live", container)
				if want := at.Store.String() + " " + at.Seq.String(); !strings.HasSuffix(said, "|250 "+want) {
					t.Errorf("a second content of %v is answered %q", at, said)
				}
			}
			return m
		}
		ofC := second(record.Position{Store: stores["c"], Seq: 2}, 2)
		ofA := second(record.Position{Store: stores["a"], Seq: 1}, 77)

		ahead := record.Position{Store: stores["a"], Seq: 50}
		text := []byte("a number of your own\r\n")
		said := d.deliver("live", newParcel().log(record.Log{Store: ahead.Store, Origin: "a"}).receipt(receiptOf(ahead, 50, text), text).end())
		if !strings.HasPrefix(said, "451 4.3.0 receipt "+ahead.String()) {
			t.Errorf("a number that only a may give is answered %q", said)
		}

		// The next number of c's log, before c gives it.
		stolen := second(record.Position{Store: stores["c"], Seq: 4}, 90)
		c.Send("c", 1)
		acked := c.ledger.acknowledged()
		last := acked[len(acked)-1]
		if want := (record.Position{Store: stores["c"], Seq: 4}).String(); last.position != want {
			t.Fatalf("c gave %s, this test means %s", last.position, want)
		}

		c.Eventually(time.Minute, "people are told", func() error {
			v, err := c.View("a")
			if err == nil && (v.Verdict != api.Red || !slices.ContainsFunc(v.Reasons, func(r string) bool {
				return strings.HasPrefix(r, "a: positions with two contents: 3")
			})) {
				err = fmt.Errorf("it is %s: %q", v.Verdict, v.Reasons)
			}
			return err
		})
		if code, text := c.metrics("a"); code != http.StatusOK || !strings.Contains(text, "\nchainmail_quarantined 3\n") && !strings.Contains(text, "_quarantined 3\n") {
			t.Errorf("the metrics do not show 3 positions with two contents: %d", code)
		}
		for _, m := range append(acked, *ofA, *ofC, *stolen) {
			c.must(c.readBack("a", m), "read what a holds")
		}
		for _, name := range []string{"a", "c"} {
			held, err := c.inventory(name)
			c.must(err, "list what %s holds", name)
			for _, m := range acked {
				if m.position != last.position && held[m.position].hash != m.hash {
					t.Errorf("mail %d is not at %s on %s any more", m.n, m.position, name)
				}
			}
		}
		if held, err := c.inventory("c"); err != nil || held[last.position].hash != last.hash {
			t.Errorf("c lost what it acknowledged at %s: %v", last.position, err)
		}
	})
}

// metrics are those of a node.
func (c *Cluster) metrics(name string) (int, string) {
	c.t.Helper()
	h := http.Client{Transport: &http.Transport{DialContext: c.Net.Host(Clients).Dial}}
	defer h.CloseIdleConnections()
	answer, err := h.Get("http://" + name + ":" + httpPort + "/metrics")
	c.must(err, "read the metrics of %s", name)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	c.must(err, "read the metrics of %s", name)
	return answer.StatusCode, string(text)
}

// TestLiar: a member that says it holds what it does not can be counted on and
// fail, and makes people look for what never was. It cannot make the others
// hold less, stop, or refuse mail; and without it all is well again.
func TestLiar(t *testing.T) {
	Virtual(t, Options{Nodes: 3, Replicas: All, Copies: 2}, func(t *testing.T, c *Cluster) {
		c.Send("a", 3)
		c.Send("c", 3)
		p := c.standIn(t, "b", "1 1")
		v, err := c.View("a")
		c.must(err, "look at the cluster")
		lies := []any{map[string]any{"store": "00000000000000bb", "origin": "b", "held": "1-4611686018427387904"}}
		for _, m := range v.Members {
			for _, l := range selfLogs(m) {
				lies = append(lies, map[string]any{
					"store": l.Store, "origin": "b", "held": "1-5,4611686018427387904", "known": uint64(1 << 62),
					"placements": []any{map[string]any{"from": 1, "nodes": []string{"b"}}, map[string]any{"from": 2, "nodes": []string{"nobody"}}},
				})
			}
		}
		p.extra = map[string]any{"logs": lies}
		d := p.peer("a")
		defer d.Close()
		d.expect("250-", "EHLO b")
		if said := d.deliver("hello", p.hello()); !strings.HasPrefix(said, "250-{") {
			t.Fatalf("a liar's hello is answered %.200s", said)
		}
		c.Eventually(time.Minute, "it is believed", func() error {
			v, err := c.View("a")
			if err == nil && v.Verdict != api.Red {
				err = fmt.Errorf("it is %s: %q", v.Verdict, v.Reasons)
			}
			return err
		})
		begin := time.Now()
		c.Send("a", 10)
		c.Send("c", 10)
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("20 mails took %v", took)
		}
		c.Eventually(time.Minute, "the others hold all mail", func() error { return c.Held("a", "c") })
		_, err = c.Client("a").VerifyCluster(t.Context(), func(api.ClusterVerifyEvent) {}) // it ends
		t.Logf("verification with a liar: %v", err)
		c.Restart("c") // nor does it keep a node from starting
		c.Send("c", 5)
		p.leave()
		c.Change("remove the liar", func(ctx context.Context, a *client.Client) (api.Changed, error) { return a.Remove(ctx, "b", "b") })
		c.Check()
		// What a member ever said of a log's end, the others tell each other for
		// ever; only when all of them forget is it gone.
		c.Stop("a", "c")
		c.StartAll("a", "c")
		c.Eventually(2*time.Minute, "all is well", func() error {
			v, err := c.View("a")
			if err == nil && v.Verdict != api.Green {
				err = fmt.Errorf("it is %s: %q", v.Verdict, v.Reasons)
			}
			return err
		})
	})
}

func selfLogs(m api.Member) []api.LogHeld {
	if m.Self == nil {
		return nil
	}
	return m.Self.Logs
}
