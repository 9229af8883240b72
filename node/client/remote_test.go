package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/node/httpd"
)

// fakeTokens knows one token at most: the last one made.
type fakeTokens struct {
	ca     [sha256.Size]byte
	secret string
	token  api.Token
}

func (f *fakeTokens) Check(secret string) (api.Token, error) {
	if secret != f.secret || f.secret == "" {
		return api.Token{}, errors.New("the API token is not known: it was revoked")
	}
	return f.token, nil
}

func (f *fakeTokens) List() []api.Token {
	if f.secret == "" {
		return nil
	}
	return []api.Token{f.token}
}

func (f *fakeTokens) Make(_ context.Context, r api.TokenRequest) (api.Token, error) {
	s := api.Secret{CA: f.ca, ID: [8]byte{1}}
	f.secret = s.Text(api.APITokenPrefix)
	f.token = api.Token{ID: s.Name(), Name: r.Name, Scope: r.Scope, CreatedAt: time.Now(), ExpiresAt: r.ExpiresAt}
	made := f.token
	made.Secret = f.secret
	return made, nil
}

func (f *fakeTokens) Revoke(_ context.Context, id string) (api.Changed, error) {
	if f.secret == "" || id != f.token.ID {
		return api.Changed{}, &httpd.StatusError{Code: http.StatusNotFound, Text: "no such token"}
	}
	f.secret = ""
	return api.Changed{Epoch: 8, Message: "revoked"}, nil
}

// ca is a cluster's authority.
type ca struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) ca {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	c := ca{t: t}
	c.cert, c.key = c.sign(template, nil)
	return c
}

func (c ca) sign(template *x509.Certificate, by *ca) (*x509.Certificate, *ecdsa.PrivateKey) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert, key
}

// node is the certificate of a member, with the CA's, as members send them.
func (c ca) node(names ...string) tls.Certificate {
	c.t.Helper()
	cert, key := c.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, &c)
	return tls.Certificate{Certificate: [][]byte{cert.Raw, c.cert.Raw}, PrivateKey: key}
}

func (c ca) hash() [sha256.Size]byte { return sha256.Sum256(c.cert.Raw) }

func (c ca) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

// startRemote starts a node whose cluster has this CA.
func startRemote(t *testing.T, c ca, cert tls.Certificate) (*node, *fakeCluster, string) {
	t.Helper()
	f := &fakeCluster{ca: c.pem()}
	n := start(t, func(o *httpd.Options) {
		o.Cluster, o.Tokens = f, &fakeTokens{ca: c.hash()}
		o.PublicTLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	})
	return n, f, strings.TrimPrefix(n.tcp, "http://")
}

// TestRemote: with nothing but a token a program reads the cluster, and knows
// with whom it speaks.
func TestRemote(t *testing.T) {
	own := newCA(t)
	n, f, addr := startRemote(t, own, own.node("a", api.NodeName))
	made, err := n.MakeToken(t.Context(), api.TokenRequest{Name: "balancer", Scope: api.ScopeCluster})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.NewRemote(addr, " "+made.Secret+"\n") // as files have it
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := c.Cluster(t.Context()); err != nil || got.Node != "a" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.CA(t.Context()); err != nil || string(got) != string(own.pem()) {
		t.Errorf("%s, %v", got, err)
	}
	refused := func(err error, status int, words string) {
		t.Helper()
		if refusal, ok := errors.AsType[*client.Error](err); !ok || refusal.Status != status || !strings.Contains(err.Error(), words) {
			t.Errorf("%v: want status %d and %q", err, status, words)
		}
	}
	_, err = c.Status(t.Context())
	refused(err, http.StatusForbidden, "--scope read")

	// A CA that is not the token's, by whatever way.
	f.ca = newCA(t).pem()
	plain, err := client.NewTCP(n.tcp, made.Secret)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	for _, c := range []*client.Client{c, plain} {
		if _, err := c.CA(t.Context()); !errors.Is(err, client.ErrOtherCluster) {
			t.Errorf("another CA: %v", err)
		}
	}
	if got, err := n.CA(t.Context()); err != nil || string(got) != string(f.ca) { // the socket has no token
		t.Errorf("%s, %v", got, err)
	}
	for _, nonsense := range []string{"", "hello", string(own.pem()) + string(own.pem())} {
		f.ca = []byte(nonsense)
		if _, err := n.CA(t.Context()); err == nil || !strings.Contains(err.Error(), "not one certificate") {
			t.Errorf("%q: %v", nonsense, err)
		}
	}

	if _, err := n.RevokeToken(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	_, err = c.Cluster(t.Context())
	refused(err, http.StatusUnauthorized, "revoked")
}

// TestRemoteTellsStrangersNothing: the token goes to no other cluster.
func TestRemoteTellsStrangersNothing(t *testing.T) {
	own, other := newCA(t), newCA(t)
	token := api.Secret{CA: own.hash()}.Text(api.APITokenPrefix)
	impostor := other.node("a", api.NodeName)
	impostor.Certificate[1] = own.cert.Raw // which is no secret
	for name, c := range map[string]struct {
		cert  tls.Certificate
		words []string
	}{
		"another cluster":  {other.node("a", api.NodeName), []string{"belongs to another cluster", "chainmail token api"}},
		"impostor":         {impostor, []string{"signed by unknown authority"}},
		"no member's name": {own.node("a"), []string{"keys rotate"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				t.Errorf("a stranger was asked for %s with %q", r.URL, r.Header.Get("Authorization"))
			}))
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.TLS = &tls.Config{Certificates: []tls.Certificate{c.cert}}
			s.StartTLS()
			defer s.Close()
			remote, err := client.NewRemote(s.Listener.Addr().String(), token)
			if err != nil {
				t.Fatal(err)
			}
			defer remote.Close()
			_, err = remote.Cluster(t.Context())
			for _, w := range append(c.words, s.Listener.Addr().String()) {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("%v: want %q in it", err, w)
				}
			}
			if errors.Is(err, client.ErrOtherCluster) != (name == "another cluster") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestRemoteWords(t *testing.T) {
	token := api.Secret{}.Text(api.APITokenPrefix)
	for _, addr := range []string{"", "node", "node:", ":8025", "http://node:8025", "node:8025/x", "node:0", "node:8025/x:1:2"} {
		if _, err := client.NewRemote(addr, token); err == nil || !strings.Contains(err.Error(), "HOST:PORT") {
			t.Errorf("%q: %v", addr, err)
		}
	}
	for _, bad := range []string{"", "cm_secret", api.APITokenPrefix, token[1:], token[:len(token)-1], api.Secret{}.Text(api.JoinTokenPrefix)} {
		if _, err := client.NewRemote("node:8025", bad); err == nil || !strings.Contains(err.Error(), "chainmail token api") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for addr, words := range map[string]string{
		strings.TrimPrefix(plain.URL, "http://"): "speaks no TLS",
		closedPort(t):                            "no node is running",
	} {
		c, err := client.NewRemote("https://"+addr+"/", token)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Cluster(t.Context()); err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%v: want %q in it", err, words)
		}
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestReady: that a node takes no mail is an answer, which needs no token.
func TestReady(t *testing.T) {
	own := newCA(t)
	status, body := http.StatusOK, `{"state":"active"}`
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || r.Header.Get("Authorization") != "" {
			t.Errorf("asked for %s with %q", r.URL, r.Header.Get("Authorization"))
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{own.node("a", api.NodeName)}}
	s.StartTLS()
	defer s.Close()
	addr := s.Listener.Addr().String()
	member, err := client.NewMember(addr, own.pem())
	if err != nil {
		t.Fatal(err)
	}
	remote, err := client.NewRemote(addr, api.Secret{CA: own.hash()}.Text(api.APITokenPrefix))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*client.Client{member, remote} {
		defer c.Close()
		status, body = http.StatusOK, `{"state":"active"}`
		if h, err := c.Ready(t.Context()); err != nil || h.State != api.StateActive {
			t.Errorf("%+v, %v", h, err)
		}
		status, body = http.StatusServiceUnavailable, `{"state":"full","reason":"disk"}`
		if h, err := c.Ready(t.Context()); err != nil || h != (api.Health{State: api.StateFull, Reason: "disk"}) {
			t.Errorf("%+v, %v", h, err)
		}
		for _, answer := range []string{"", "<html>", `{"state":"` + strings.Repeat("x", 1<<20) + `"}`} {
			body = answer
			if h, err := c.Ready(t.Context()); err == nil {
				t.Errorf("%.20q is taken for %.20q", answer, h)
			}
		}
		status = http.StatusNotFound
		if _, err := c.Ready(t.Context()); err == nil {
			t.Error("404 is an answer")
		}
	}
	stranger, err := client.NewMember(addr, newCA(t).pem())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	status, body = http.StatusOK, `{"state":"active"}`
	if _, err := stranger.Ready(t.Context()); !errors.Is(err, client.ErrOtherCluster) {
		t.Error(err)
	}
	if _, err := client.NewMember(addr, []byte("no PEM")); err == nil {
		t.Error("a CA that is none is taken")
	}
}
