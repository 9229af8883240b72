package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"chainmail/archive/record"
	"chainmail/node/api"
	"chainmail/node/client"
	"chainmail/node/httpd"
)

const someStore = record.StoreID(0x4f2a9c1be0d37786)

// fakeCluster says in its answers what it was asked for.
type fakeCluster struct {
	refusal error
	ca      []byte // PEM
	verify  func(report func(api.ClusterVerifyEvent)) error
}

func (f *fakeCluster) say(format string, args ...any) (api.Changed, error) {
	return api.Changed{Epoch: 8, Message: fmt.Sprintf(format, args...)}, f.refusal
}

func (f *fakeCluster) Cluster(context.Context) (api.Cluster, error) {
	return api.Cluster{Node: "a"}, f.refusal
}

func (f *fakeCluster) CA() []byte { return f.ca }

func (f *fakeCluster) Sync() api.Sync { return api.Sync{} }

func (f *fakeCluster) Self(context.Context) (api.SelfReport, error) {
	return api.SelfReport{Node: "a"}, f.refusal
}

func (f *fakeCluster) SafeToStop(_ context.Context, name string) (api.SafeToStop, error) {
	return api.SafeToStop{Name: name, Reasons: []string{"c is down"}}, f.refusal
}

func (f *fakeCluster) Verify(_ context.Context, report func(api.ClusterVerifyEvent)) error {
	return f.verify(report)
}

func (f *fakeCluster) SetPolicies(_ context.Context, c api.PolicyChange) (api.Changed, error) {
	return f.say("copies %d", *c.Copies)
}

func (f *fakeCluster) Drain(_ context.Context, name string) (api.Changed, error) {
	return f.say("drain %s", name)
}

func (f *fakeCluster) CancelDrain(_ context.Context, name string) (api.Changed, error) {
	return f.say("stay %s", name)
}

func (f *fakeCluster) Remove(_ context.Context, name, force string) (api.Changed, error) {
	return f.say("remove %s %s", name, force)
}

func (f *fakeCluster) Move(_ context.Context, name, after string) (api.Changed, error) {
	return f.say("move %s %s", name, after)
}

func (f *fakeCluster) Join(_ context.Context, r api.JoinRequest) (any, error) {
	return map[string]string{"for": r.Name}, f.refusal
}

func (f *fakeCluster) JoinToken(_ context.Context, valid time.Duration) (api.JoinToken, error) {
	return api.JoinToken{Token: valid.String()}, f.refusal
}

func (f *fakeCluster) RotateKeys(context.Context) (api.Changed, error) { return f.say("rotate") }

func (f *fakeCluster) Segment(_ context.Context, s record.StoreID, n uint64) (api.Segment, error) {
	return api.Segment{Segment: n, Digest: s.String()}, f.refusal
}

func (f *fakeCluster) Digests(_ context.Context, s record.StoreID, r record.Range) ([]api.ReceiptDigest, error) {
	return []api.ReceiptDigest{{Seq: uint64(r.First), Digest: s.String()}, {Seq: uint64(r.Last)}}, f.refusal
}

func (f *fakeCluster) Routes() []api.Route { return []api.Route{{Name: "pi/ler"}} }

func (f *fakeCluster) Parked(_ context.Context, route string) ([]api.Parked, error) {
	return []api.Parked{{Reply: route}}, f.refusal
}

func (f *fakeCluster) Retry(_ context.Context, _ string, positions []record.Position) (int, error) {
	return len(positions), f.refusal
}

func startCluster(t *testing.T) (*node, *fakeCluster, *tls.Config) {
	t.Helper()
	cert, roots := certificate(t)
	f := &fakeCluster{}
	n := start(t, func(o *httpd.Options) {
		o.Cluster, o.Digests, o.Routes = f, f, f
		o.ClusterTLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
		o.Peer = func(tls.ConnectionState) (string, error) { return "b", nil }
	})
	return n, f, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}
}

// certificate signs itself.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

// operations calls every method once and says what came back.
func operations(ctx context.Context, c *client.Client) map[string]func() (string, error) {
	changed := func(ch api.Changed, err error) (string, error) { return ch.Message, err }
	two := 2
	return map[string]func() (string, error){
		"a": func() (string, error) { s, err := c.Cluster(ctx); return s.Node, err },
		"b c is down": func() (string, error) {
			s, err := c.SafeToStop(ctx, "b")
			return s.Name + " " + strings.Join(s.Reasons, ","), err
		},
		"1m0s":       func() (string, error) { s, err := c.JoinToken(ctx, time.Minute); return s.Token, err },
		"copies 2":   func() (string, error) { return changed(c.SetPolicies(ctx, api.PolicyChange{Copies: &two})) },
		"drain b/x":  func() (string, error) { return changed(c.Drain(ctx, "b/x")) },
		"remove b ":  func() (string, error) { return changed(c.Remove(ctx, "b", "")) },
		"remove b b": func() (string, error) { return changed(c.Remove(ctx, "b", "b")) },
		"move b a":   func() (string, error) { return changed(c.Move(ctx, "b", "a")) },
		"rotate":     func() (string, error) { return changed(c.RotateKeys(ctx)) },
		"map[for:c]": func() (string, error) { return join(ctx, c) },
		"self a":     func() (string, error) { s, err := c.Self(ctx); return "self " + s.Node, err },
		"segment 3": func() (string, error) {
			s, err := c.Segment(ctx, someStore, 3)
			return fmt.Sprint("segment ", s.Segment), err
		},
		"[{1 " + someStore.String() + "} {9 }]": func() (string, error) {
			d, err := c.Digests(ctx, someStore, record.Range{First: 1, Last: 9})
			return fmt.Sprint(d), err
		},
		"parked pi/ler": func() (string, error) { p, err := c.Parked(ctx, "pi/ler"); return "parked " + first(p).Reply, err },
		"retried 1": func() (string, error) {
			n, err := c.Retry(ctx, "pi/ler", []string{someStore.String() + ":1"})
			return fmt.Sprint("retried ", n), err
		},
		"retried 0": func() (string, error) { n, err := c.Retry(ctx, "pi/ler", nil); return fmt.Sprint("retried ", n), err },
	}
}

func first[T any](s []T) (t T) {
	if len(s) > 0 {
		t = s[0]
	}
	return t
}

func join(ctx context.Context, c *client.Client) (string, error) {
	var out map[string]string
	err := c.Join(ctx, api.JoinRequest{Token: "t", Name: "c", CSR: []byte("x")}, &out)
	return fmt.Sprint(out), err
}

func TestCluster(t *testing.T) {
	n, f, _ := startCluster(t)
	for want, op := range operations(t.Context(), n.Client) {
		if got, err := op(); err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	routes, err := n.Routes(t.Context())
	if err != nil || len(routes) != 1 {
		t.Errorf("%v %v", routes, err)
	}
	f.refusal = &httpd.StatusError{Code: http.StatusConflict, Text: "b is alive", Hint: "stop it"}
	for want, op := range operations(t.Context(), n.Client) {
		_, err := op()
		if refused, ok := errors.AsType[*client.Error](err); !ok || refused.Status != http.StatusConflict || err.Error() != "b is alive: stop it" {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestVerifyCluster(t *testing.T) {
	n, f, _ := startCluster(t)
	f.verify = func(report func(api.ClusterVerifyEvent)) error {
		report(api.ClusterVerifyEvent{Checked: 3, Total: 3, Node: "b", Problem: "differs", At: []string{"x:1"}})
		return nil
	}
	var found []string
	last, err := n.VerifyCluster(t.Context(), func(ev api.ClusterVerifyEvent) { found = append(found, ev.At...) })
	if err != nil || !last.Done || last.Bad != 1 || len(found) != 1 {
		t.Errorf("%+v %v %v", last, err, found)
	}
	f.verify = func(report func(api.ClusterVerifyEvent)) error {
		report(api.ClusterVerifyEvent{Checked: 1, Total: 3})
		return errors.New("b is gone")
	}
	if _, err := n.VerifyCluster(t.Context(), func(api.ClusterVerifyEvent) {}); err == nil || err.Error() != "the comparison ended early, after 1 of 3 receipts: b is gone" {
		t.Error(err)
	}
}

func TestPeer(t *testing.T) {
	n, _, secure := startCluster(t)
	addr := strings.TrimPrefix(n.tcp, "http://")
	dialed := ""
	c := client.NewPeer(addr, secure, func(ctx context.Context, network, address string) (net.Conn, error) {
		dialed = network + " " + address
		return new(net.Dialer).DialContext(ctx, network, address)
	})
	defer c.Close()
	if s, err := c.Self(t.Context()); err != nil || s.Node != "a" || dialed != "tcp "+addr {
		t.Errorf("%+v %v, dialed %s", s, err, dialed)
	}
	if _, err := c.Drain(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "administrator") {
		t.Errorf("a peer may drain: %v", err)
	}

	joiner := client.NewPeer(addr, &tls.Config{RootCAs: secure.RootCAs}, nil)
	defer joiner.Close()
	if got, err := join(t.Context(), joiner); err != nil || got != "map[for:c]" {
		t.Errorf("%s %v", got, err)
	}
	if _, err := joiner.Self(t.Context()); err == nil {
		t.Error("without a certificate one may ask a node for its state")
	}
	_, others := certificate(t)
	stranger := client.NewPeer(addr, &tls.Config{RootCAs: others}, nil)
	if _, err := stranger.Self(t.Context()); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("another cluster: %v", err)
	}
	n.stop()
	if _, err := joiner.Cluster(t.Context()); !errors.Is(err, client.ErrNoNode) || !strings.Contains(err.Error(), addr) {
		t.Errorf("a stopped node: %v", err)
	}
}
