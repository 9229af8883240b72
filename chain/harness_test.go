package chain_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"chainmail/archive/record"
	"chainmail/chain"
	"chainmail/membership/ring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority signs the nodes' certificates. They are valid in 2000, when the
// clock of a bubble begins, and now.
var authority = sync.OnceValue(func() *tls.Certificate { return certificate("test authority", nil) })

var certificates sync.Map

func certificateOf(name string) *tls.Certificate {
	c, ok := certificates.Load(name)
	if !ok {
		c, _ = certificates.LoadOrStore(name, certificate(name, authority()))
	}
	return c.(*tls.Certificate)
}

func certificate(name string, by *tls.Certificate) *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	parent, signer := template, any(key)
	if by == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	} else {
		parent, signer = by.Leaf, by.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(authority().Leaf)
	return pool
}

const clusterID = "0123456789abcdef0123456789abcdef"

// cluster is several chains on one network, in virtual time.
type cluster struct {
	t   testing.TB
	net *network

	mu    sync.Mutex
	view  ring.View
	dead  map[string]bool // gossip's opinion
	nodes map[string]*node
}

type node struct {
	name    string
	c       *cluster
	archive *fakeArchive
	chain   *chain.Chain
	cancel  context.CancelFunc
	done    chan struct{}
	wrap    func(net.Conn) net.Conn // of connections after TLS
	serve   func(net.Conn)          // instead of the chain
	damaged func(record.Position)
}

// inCluster runs a test with the nodes given, all started, in a bubble.
func inCluster(t *testing.T, names string, policies ring.Policies, test func(t *testing.T, c *cluster)) {
	t.Helper()
	for _, name := range strings.Fields(names) {
		certificateOf(name) // outside of the bubble
	}
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, names, policies)
		for _, name := range strings.Fields(names) {
			c.start(name)
		}
		defer c.stopAll()
		test(t, c)
	})
}

// newCluster makes nodes that do not run yet.
func newCluster(t testing.TB, names string, policies ring.Policies) *cluster {
	c := &cluster{t: t, net: newNetwork(), nodes: map[string]*node{}, dead: map[string]bool{}}
	c.view = ring.View{Cluster: clusterID, Epoch: 1, Policies: policies}
	for i, name := range strings.Fields(names) {
		c.view.Members = append(c.view.Members, ring.Member{
			Name: name, ID: name + "-1", Role: ring.Data, State: ring.Active, Addresses: ring.Addresses{Chain: name},
		})
		c.nodes[name] = &node{name: name, c: c, archive: newFakeArchive(name, storeOf(i+1))}
	}
	return c
}

func (c *cluster) stopAll() {
	for _, n := range c.nodes {
		n.stop()
	}
}

func storeOf(i int) record.StoreID { return record.StoreID(0xa000000000000000 + uint64(i)) }

func policies(copies, replicas int) ring.Policies {
	return ring.Policies{Copies: copies, Replicas: replicas, AckTimeout: 5 * time.Second}
}

func (c *cluster) start(name string) *node {
	n := c.nodes[name]
	var err error
	n.chain, err = chain.New(chain.Options{
		Name: name, Version: "1.0", Cluster: clusterID, Archive: n.archive,
		View: func() ring.View {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.view
		},
		Alive: func(peer string) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return !c.dead[peer]
		},
		ClientTLS: func(peer string) *tls.Config {
			return &tls.Config{RootCAs: roots(), ServerName: peer, Certificates: []tls.Certificate{*certificateOf(name)}}
		},
		Dial: func(ctx context.Context, address string) (net.Conn, error) { return c.net.dial(ctx, name, address) },
		Damaged: func(p record.Position) {
			if n.damaged != nil {
				n.damaged(p)
			}
		},
		Logger: testLogger(c.t, name),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan struct{})
	c.net.mu.Lock()
	c.net.listeners[name] = func(conn net.Conn) { n.frontDoor(ctx, conn) }
	c.net.mu.Unlock()
	go func() {
		defer close(n.done)
		if err := n.chain.Run(ctx); err != nil {
			c.t.Errorf("%s: Run: %v", name, err)
		}
	}()
	return n
}

func testLogger(t testing.TB, name string) *slog.Logger {
	if os.Getenv("CHAIN_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(t.Output(), nil)).With("node", name)
}

// frontDoor does what node/smtpd does before it hands a peer over.
func (n *node) frontDoor(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(conn)
	fmt.Fprintf(conn, "220 %s ESMTP\r\n", n.name)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch {
		case strings.HasPrefix(line, "EHLO"):
			fmt.Fprintf(conn, "250-%s\r\n250 STARTTLS\r\n", n.name)
		case strings.HasPrefix(line, "STARTTLS"):
			fmt.Fprintf(conn, "220 go on\r\n")
			secure := tls.Server(conn, &tls.Config{
				Certificates: []tls.Certificate{*certificateOf(n.name)},
				ClientCAs:    roots(), ClientAuth: tls.RequireAndVerifyClientCert,
			})
			if secure.Handshake() != nil {
				return
			}
			_ = conn.SetDeadline(time.Time{})
			var served net.Conn = secure
			if n.serve != nil {
				n.serve(secure)
				return
			}
			if n.wrap != nil {
				served = n.wrap(served)
			}
			n.chain.Serve(ctx, served, secure.ConnectionState().PeerCertificates[0].Subject.CommonName)
			return
		default:
			return
		}
	}
}

// stop ends a node politely; kill as the end of its process does.
func (n *node) stop() {
	if n.cancel == nil {
		return
	}
	n.cancel()
	<-n.done
	n.cancel = nil
	n.c.net.kill(n.name)
}

func (n *node) kill() {
	n.c.net.kill(n.name)
	n.stop()
}

// accept takes a mail as a node does: durable here, then copies.
func (n *node) accept(body string) (p record.Position, copies int, short bool) {
	p = n.archive.add([]byte(body))
	copies, short = n.chain.Wait(context.Background(), p)
	return p, copies, short
}

// change commits a view.
func (c *cluster) change(f func(v *ring.View)) {
	c.mu.Lock()
	v := c.view
	v.Members = slices.Clone(v.Members)
	v.Epoch++
	f(&v)
	c.view = v
	c.mu.Unlock()
	c.wakeAll()
}

// gossip says whether a node is alive.
func (c *cluster) gossip(name string, alive bool) {
	c.mu.Lock()
	c.dead[name] = !alive
	c.mu.Unlock()
	c.wakeAll()
}

func (c *cluster) wakeAll() {
	for _, n := range c.nodes {
		if n.cancel != nil {
			n.chain.Wake()
		}
	}
}

// within waits until a condition holds, in virtual time, and says how long
// that took.
func (c *cluster) within(limit time.Duration, what string, holds func() bool) time.Duration {
	c.t.Helper()
	begin := time.Now()
	for {
		synctest.Wait()
		if holds() {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			c.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// linked waits until all running nodes have live links to each other.
func (c *cluster) linked() {
	c.t.Helper()
	c.within(10*time.Second, "links", func() bool {
		for _, n := range c.nodes {
			if n.cancel == nil {
				continue
			}
			for _, p := range n.chain.Status().Peers {
				if c.nodes[p.Name].cancel != nil && !p.Link.Live {
					return false
				}
			}
		}
		return true
	})
}

// linkedTo waits for one link.
func (c *cluster) linkedTo(from, to string) {
	c.t.Helper()
	c.within(10*time.Second, "link", func() bool { return c.nodes[from].peer(to).Link.Live })
}

// holds reports whether all the nodes named hold receipts first to last of a log.
func (c *cluster) holds(names string, s record.StoreID, first, last record.Seq) func() bool {
	return func() bool {
		for _, name := range strings.Fields(names) {
			if len(record.Of(first, last).Minus(c.nodes[name].archive.held(s))) > 0 {
				return false
			}
		}
		return true
	}
}

// peer is what a node says of another.
func (n *node) peer(name string) chain.PeerStatus {
	for _, p := range n.chain.Status().Peers {
		if p.Name == name {
			return p
		}
	}
	n.c.t.Fatalf("%s knows no %s", n.name, name)
	return chain.PeerStatus{}
}
