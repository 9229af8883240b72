package httpd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"chainmail/archive/record"
	"chainmail/node/api"
	"chainmail/node/httpd"
)

// fakeCluster answers with what it has, notes what it was asked for, and fails
// on request.
type fakeCluster struct {
	mu    sync.Mutex
	asked []string
	err   error

	cluster api.Cluster
	sync    api.Sync
	verify  func(ctx context.Context, report func(api.ClusterVerifyEvent)) error
}

func (f *fakeCluster) note(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fakeCluster) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.asked = err, nil
}

// last is the last thing that was asked for.
func (f *fakeCluster) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.asked) == 0 {
		return ""
	}
	return f.asked[len(f.asked)-1]
}

func (f *fakeCluster) changed(format string, args ...any) (api.Changed, error) {
	return api.Changed{Epoch: 8, Message: "done"}, f.note(format, args...)
}

func (f *fakeCluster) Cluster(context.Context) (api.Cluster, error) {
	return f.cluster, f.note("cluster")
}

func (f *fakeCluster) CA() []byte { return []byte("-----BEGIN CERTIFICATE-----\n") }

func (f *fakeCluster) Sync() api.Sync {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sync
}

func (f *fakeCluster) Self(context.Context) (api.SelfReport, error) {
	return api.SelfReport{Node: "a", State: api.StateActive, Store: fakeStore.String(), Time: epoch}, f.note("self")
}

func (f *fakeCluster) SafeToStop(_ context.Context, name string) (api.SafeToStop, error) {
	return api.SafeToStop{Name: name, Safe: true}, f.note("safe to stop %s", name)
}

func (f *fakeCluster) Verify(ctx context.Context, report func(api.ClusterVerifyEvent)) error {
	return f.verify(ctx, report)
}

func (f *fakeCluster) SetPolicies(_ context.Context, c api.PolicyChange) (api.Changed, error) {
	return f.changed("policies copies %d", *c.Copies)
}

func (f *fakeCluster) Drain(_ context.Context, name string) (api.Changed, error) {
	return f.changed("drain %s", name)
}

func (f *fakeCluster) CancelDrain(_ context.Context, name string) (api.Changed, error) {
	return f.changed("stay %s", name)
}

func (f *fakeCluster) Remove(_ context.Context, name, force string) (api.Changed, error) {
	return f.changed("remove %s force %q", name, force)
}

func (f *fakeCluster) Move(_ context.Context, name, after string) (api.Changed, error) {
	return f.changed("move %s after %s", name, after)
}

func (f *fakeCluster) Join(_ context.Context, r api.JoinRequest) (any, error) {
	return map[string]string{"certificate": "…"}, f.note("join %s token %s csr %s", r.Name, r.Token, r.CSR)
}

func (f *fakeCluster) JoinToken(_ context.Context, valid time.Duration) (api.JoinToken, error) {
	return api.JoinToken{Token: "secret", ExpiresAt: epoch.Add(valid)}, f.note("token for %s", valid)
}

func (f *fakeCluster) RotateKeys(context.Context) (api.Changed, error) { return f.changed("rotate") }

func (f *fakeCluster) Segment(_ context.Context, s record.StoreID, n uint64) (api.Segment, error) {
	return api.Segment{Segment: n, Digest: "00ff", Receipts: 2, Bytes: 10, Held: "1-2"}, f.note("segment %s %d", s, n)
}

func (f *fakeCluster) Digests(_ context.Context, s record.StoreID, r record.Range) ([]api.ReceiptDigest, error) {
	return []api.ReceiptDigest{{Seq: uint64(r.First), Digest: "00ff"}}, f.note("digests %s %s", s, r)
}

func (f *fakeCluster) Routes() []api.Route {
	return []api.Route{{Name: "piler", Target: "piler.example:25", State: "retrying", Problem: "connection refused", Next: &epoch, Backlog: 3, Oldest: &epoch, Parked: 1}}
}

func (f *fakeCluster) Parked(_ context.Context, route string) ([]api.Parked, error) {
	return []api.Parked{{Position: fakeStore.String() + ":1", SHA256: sum("x"), Reply: "550 no", At: epoch, Attempts: 1}}, f.note("parked %s", route)
}

func (f *fakeCluster) Retry(_ context.Context, route string, positions []record.Position) (int, error) {
	return len(positions), f.note("retry %s %v", route, positions)
}

// authority is a cluster's CA.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cluster"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	a.key, a.cert = a.sign(template, nil)
	return a
}

func (a *authority) sign(template *x509.Certificate, parent *authority) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	issuer, signer := template, key
	if parent != nil {
		issuer, signer = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cert
}

// node makes the certificate of a node, which listens on loopback.
func (a *authority) node(name string) tls.Certificate {
	a.t.Helper()
	key, cert := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:  []string{name, api.NodeName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// client speaks to the port as nodes do; without a name it has no certificate.
func (a *authority) client(name string, protocols ...string) *http.Client {
	c := &tls.Config{RootCAs: a.pool(), NextProtos: protocols}
	if name != "" {
		c.Certificates = []tls.Certificate{a.node(name)}
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: c}}
}

// balancer speaks to the port as a balancer does that has the CA and asks for a
// name, and no client certificate.
func (a *authority) balancer(sni string) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		ServerName: sni, NextProtos: []string{"http/1.1"}, InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			a.t.Error("a balancer is asked for a certificate")
			return &tls.Certificate{}, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: a.pool(), DNSName: api.NodeName})
			return err
		},
	}}}
}

// startCluster starts a node that is a member of a cluster with members a and
// b.
func startCluster(t *testing.T, change func(*httpd.Options)) (*node, *fakeCluster, *authority) {
	t.Helper()
	f, ca := &fakeCluster{sync: api.Sync{InSync: true, Lacks: new(uint64)}, cluster: api.Cluster{Verdict: api.Green, Policies: api.Policies{Copies: 2, WhenShort: "accept", AckTimeout: 5}}}, newAuthority(t)
	n := start(t, func(o *httpd.Options) {
		o.ClusterTLS = &tls.Config{Certificates: []tls.Certificate{ca.node("a")}, ClientCAs: ca.pool(), ClientAuth: tls.VerifyClientCertIfGiven}
		o.PublicTLS = &tls.Config{Certificates: []tls.Certificate{ca.node("a")}}
		o.Peer = func(s tls.ConnectionState) (string, error) {
			name := s.PeerCertificates[0].Subject.CommonName
			if name != "a" && name != "b" {
				return "", errors.New(name + " was removed")
			}
			return name, nil
		}
		o.Cluster, o.Digests, o.Routes = f, f, f
		if change != nil {
			change(o)
		}
	})
	return n, f, ca
}

// as asks over TCP by the cluster's TLS.
func (n *node) as(c *http.Client, method, path, body string, headers ...string) reply {
	n.t.Helper()
	return n.ask(c, strings.Replace(n.tcp, "http:", "https:", 1), method, path, body, headers)
}
