package membership_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"chainmail/membership"
	"chainmail/membership/ring"
	"chainmail/node/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is many nodes in one bubble.
type cluster struct {
	t     *testing.T
	net   *memNet
	dir   string
	log   *syncBuffer
	nodes map[string]*testNode
}

// testNode is one machine: it has an address and a disk, and runs or not.
type testNode struct {
	c    *cluster
	name string
	ip   string
	dir  string
	role ring.Role

	m      *membership.Membership // of the run that is under way, or was the last one
	stop   func()                 // nil: it does not run
	epochs []ring.Epoch           // seen in views
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, net: newMemNet(), dir: t.TempDir(), log: &syncBuffer{}, nodes: map[string]*testNode{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.log.String())
		}
	})
	return c
}

// node is a machine that is switched on and has an empty disk.
func (c *cluster) node(name string) *testNode {
	n := &testNode{c: c, name: name, ip: fmt.Sprintf("10.0.0.%d", len(c.nodes)+1), role: ring.Data}
	n.dir = filepath.Join(c.dir, name, "cluster")
	c.nodes[name] = n
	return n
}

func (n *testNode) addresses() ring.Addresses {
	a := ring.Addresses{SMTP: n.ip + ":25", Chain: n.ip + ":8091", Gossip: n.ip + ":7946", Raft: n.ip + ":7947", HTTP: n.ip + ":8080"}
	if n.role == ring.Witness {
		a.SMTP, a.Chain = "", ""
	}
	return a
}

func (n *testNode) create() {
	n.c.t.Helper()
	if err := membership.Create(n.dir, membership.CreateOptions{Name: n.name, Advertise: n.addresses(), Version: "1"}); err != nil {
		n.c.t.Fatal(err)
	}
}

func (n *testNode) options() membership.Options {
	return membership.Options{
		Dir: n.dir, Bind: membership.Bind{Gossip: n.ip + ":7946", Raft: n.ip + ":7947"}, Advertise: n.addresses(), Version: "1",
		Network: n.c.net.Host(n.ip), Logger: slog.New(slog.NewTextHandler(n.c.log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", n.name),
	}
}

// start runs the node from its disk.
func (n *testNode) start() {
	n.c.t.Helper()
	m, err := membership.Open(n.options())
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.run(m)
}

func (n *testNode) run(m *membership.Membership) {
	n.m = m
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			n.c.t.Error(err)
		}
	})
	wg.Go(func() { n.watch(ctx, m) })
	http := n.serve(m)
	n.stop = func() {
		http()
		cancel()
		wg.Wait()
		n.stop = nil
	}
}

// watch sees that epochs never go back.
func (n *testNode) watch(ctx context.Context, m *membership.Membership) {
	for ctx.Err() == nil {
		changed := m.Changed()
		e := m.View().Epoch
		if k := len(n.epochs); k > 0 && e < n.epochs[k-1] {
			n.c.t.Errorf("%s: epoch %d after %d", n.name, e, n.epochs[k-1])
		}
		n.epochs = append(n.epochs, e)
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// serve is the part of a node's HTTP server that joiners need.
func (n *testNode) serve(m *membership.Membership) (stop func()) {
	l, err := n.c.net.listen(n.ip, n.ip+":8080")
	if err != nil {
		n.c.t.Fatal(err)
	}
	config := m.ServerTLS()
	config.NextProtos = []string{"http/1.1"}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+membership.JoinPath, func(w http.ResponseWriter, r *http.Request) {
		var q api.JoinRequest
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		answer, err := m.Admit(r.Context(), q)
		switch {
		case errors.Is(err, membership.ErrRefused):
			w.WriteHeader(http.StatusConflict)
		case err != nil:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		if err != nil {
			answer, _ = json.Marshal(api.Error{Error: err.Error()})
		}
		_, _ = w.Write(answer)
	})
	s := &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.NewTextHandler(n.c.log, nil), slog.LevelError)}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(tls.NewListener(l, config)) })
	return func() {
		_ = s.Close()
		wg.Wait()
	}
}

// kill ends the node as kill -9 does: nobody hears a farewell.
func (n *testNode) kill() {
	n.c.net.Kill(n.ip)
	n.stop()
}

// stopAll ends the nodes, and the timers that memberlist leaves behind for a
// second or two.
func (c *cluster) stopAll() {
	defer time.Sleep(5 * time.Second)
	for _, n := range c.nodes {
		if n.stop != nil {
			n.stop()
		}
	}
}

func (n *testNode) token() string {
	n.c.t.Helper()
	t, err := n.m.NewJoinToken(n.c.t.Context(), 0)
	if err != nil {
		n.c.t.Fatal(err)
	}
	return t.Token
}

func (n *testNode) joinOptions(peer *testNode, token string) membership.JoinOptions {
	return membership.JoinOptions{
		Dir: n.dir, Name: n.name, Role: n.role, Peer: peer.ip + ":8080", Token: token, Advertise: n.addresses(), Version: "1",
		Dial: n.c.net.Host(n.ip).Dial,
	}
}

// join lets the node join by a running peer, and starts it.
func (n *testNode) join(peer *testNode) {
	n.c.t.Helper()
	if err := membership.Join(n.c.t.Context(), n.joinOptions(peer, peer.token())); err != nil {
		n.c.t.Fatal(err)
	}
	n.start()
}

// eventually waits, in virtual time, until all is as it should be.
func (c *cluster) eventually(within time.Duration, what string, f func() bool) time.Duration {
	c.t.Helper()
	start := time.Now()
	for time.Since(start) < within {
		if f() {
			return time.Since(start)
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.t.Errorf("not within %v: %s", within, what)
	for _, n := range c.nodes {
		if n.stop != nil {
			v := n.m.View()
			c.t.Logf("%s: epoch %d members %v leader %q voters %v problems %v", n.name, v.Epoch, v.Ring(), n.m.Leader(), n.m.Voters(), n.m.Problems())
		}
	}
	c.t.FailNow()
	return 0
}

// settled waits until the running nodes agree on the view and a leader, see one
// another, and this many vote.
func (c *cluster) settled(voters int) {
	c.t.Helper()
	c.eventually(2*time.Minute, fmt.Sprintf("all agree, %d vote", voters), func() bool {
		var epoch ring.Epoch
		for _, n := range c.nodes {
			if n.stop == nil {
				continue
			}
			v := n.m.View()
			if epoch == 0 {
				epoch = v.Epoch
			}
			if v.Epoch != epoch || n.m.Leader() == "" || len(n.m.Voters()) != voters {
				return false
			}
			for _, o := range c.nodes {
				if _, member := v.Member(o.name); member && n.m.Alive(o.name) != (o.stop != nil) {
					return false
				}
			}
		}
		return true
	})
}

// leader is the running node that leads.
func (c *cluster) leader() *testNode {
	c.t.Helper()
	var leader *testNode
	c.eventually(30*time.Second, "a leader", func() bool {
		for _, n := range c.nodes {
			if n.stop != nil && n.m.Leader() == n.name {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// others are the running nodes except these.
func (c *cluster) others(not ...*testNode) []*testNode {
	var all []*testNode
	for _, n := range c.nodes {
		if n.stop != nil && !slices.Contains(not, n) {
			all = append(all, n)
		}
	}
	slices.SortFunc(all, func(a, b *testNode) int { return strings.Compare(a.name, b.name) })
	return all
}

// grow makes a running cluster of these nodes; all the voters vote.
func (c *cluster) grow(names ...string) []*testNode {
	c.t.Helper()
	var nodes []*testNode
	for i, name := range names {
		n := c.node(name)
		nodes = append(nodes, n)
		if i == 0 {
			n.create()
			n.start()
		} else {
			n.join(nodes[0])
		}
	}
	c.settled([]int{0, 1, 2, 3, 3, 5, 5}[len(names)])
	return nodes
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var _ io.Writer = (*syncBuffer)(nil)
