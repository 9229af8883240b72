package membership_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"chainmail/membership"
	"chainmail/membership/ring"
	"chainmail/node/api"
)

// TestRealNetwork: two nodes over TCP and UDP on loopback, with ports that the
// system chose.
func TestRealNetwork(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	addresses := func() ring.Addresses {
		return ring.Addresses{SMTP: free(), Chain: free(), Gossip: free(), Raft: free(), HTTP: free()}
	}
	start := func(dir string, a ring.Addresses) *membership.Membership {
		m, err := membership.Open(membership.Options{Dir: dir, Bind: membership.Bind{Gossip: a.Gossip, Raft: a.Raft}, Advertise: a, Version: "1"})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := m.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		return m
	}
	await := func(what string, f func() bool) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for !f() {
			if time.Now().After(deadline) {
				t.Fatalf("not in time: %s", what)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}

	dirA, dirB, addrA, addrB := filepath.Join(t.TempDir(), "cluster"), filepath.Join(t.TempDir(), "cluster"), addresses(), addresses()
	if err := membership.Create(dirA, membership.CreateOptions{Name: "a", Advertise: addrA, Version: "1"}); err != nil {
		t.Fatal(err)
	}
	a := start(dirA, addrA)
	await("a leads", a.Quorum)

	config := a.ServerTLS()
	config.NextProtos = []string{"http/1.1"}
	l, err := tls.Listen("tcp", addrA.HTTP, config)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q api.JoinRequest
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		answer, err := a.Admit(r.Context(), q)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(answer)
	})}
	wg.Go(func() { _ = server.Serve(l) })
	defer server.Close()

	token, err := a.NewJoinToken(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := membership.Join(ctx, membership.JoinOptions{Dir: dirB, Name: "b", Peer: addrA.HTTP, Token: token.Token, Advertise: addrB, Version: "1"}); err != nil {
		t.Fatal(err)
	}
	b := start(dirB, addrB)
	await("they see one another, and b votes", func() bool {
		return a.Alive("b") && b.Alive("a") && len(a.Voters()) == 2 && b.Leader() == "a"
	})
	if _, err := b.SetPolicies(ctx, copies(1)); err != nil || b.View().Policies.Copies != 1 {
		t.Error(err)
	}
}
