package membership_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chainmail/membership"
	"chainmail/node/api"
)

// opens reports whether a node takes a token.
func (n *testNode) opens(t api.Token) bool {
	_, err := n.m.CheckAPIToken(t.Secret)
	return err == nil
}

func (n *testNode) apiToken(name, scope string, expires time.Time) api.Token {
	n.c.t.Helper()
	t, err := n.m.AddAPIToken(n.c.t.Context(), name, scope, expires)
	if err != nil {
		n.c.t.Fatal(err)
	}
	return t
}

// TestAPITokens: made on any node, a token works on all of them, and revoked on
// any node it works on none.
func TestAPITokens(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		ctx := t.Context()
		made := nodes[1].apiToken("backup", api.ScopeRead, time.Time{})
		if made.Name != "backup" || made.Scope != api.ScopeRead || !made.ExpiresAt.IsZero() || time.Since(made.CreatedAt) > time.Minute {
			t.Errorf("%+v", made)
		}
		if !nodes[1].opens(made) {
			t.Error("who made it does not take it at once")
		}
		c.eventually(time.Second, "all take it", func() bool { return nodes[0].opens(made) && nodes[2].opens(made) })
		expires := time.Now().Add(5 * time.Minute)
		short := nodes[2].apiToken("balancer", api.ScopeCluster, expires)
		c.settled(3)
		for _, n := range nodes {
			found, err := n.m.CheckAPIToken(" " + short.Secret + "\n")
			if err != nil || found.ID != short.ID || found.Scope != api.ScopeCluster || found.Secret != "" {
				t.Errorf("%s: %+v, %v", n.name, found, err)
			}
			all := n.m.APITokens()
			if len(all) != 2 || all[0].ID != made.ID || all[1].Name != "balancer" || !all[1].ExpiresAt.Equal(expires) {
				t.Errorf("%s lists %+v", n.name, all)
			}
			if b, err := os.ReadFile(filepath.Join(n.dir, "view.json")); err != nil || strings.Contains(string(b), made.Secret[len(made.Secret)-32:]) {
				t.Errorf("%s keeps the secret (%v)", n.name, err)
			}
		}

		// Who joins later, and who comes back later, takes it from the start.
		d := c.node("d")
		d.join(nodes[0])
		if !d.opens(made) {
			t.Error("a node that has just joined does not take it")
		}
		c.settled(3)
		d.kill()
		d.start()
		if !d.opens(made) {
			t.Error("a node that has just started does not take it")
		}
		c.settled(3)

		time.Sleep(time.Until(expires))
		_, err := nodes[0].m.CheckAPIToken(short.Secret)
		refused(t, err, membership.ErrAPIToken, "the API token "+short.ID+" expired at ")
		if _, err := d.m.RevokeAPIToken(ctx, made.ID); err != nil {
			t.Fatal(err)
		}
		_, err = d.m.CheckAPIToken(made.Secret)
		refused(t, err, membership.ErrAPIToken, "the API token "+made.ID+" is not known: it was revoked, or d has not heard of it yet")
		c.eventually(time.Second, "nobody takes it", func() bool {
			for _, n := range c.others() {
				if n.opens(made) {
					return false
				}
			}
			return true
		})
		_, err = nodes[0].m.RevokeAPIToken(ctx, made.ID)
		refused(t, err, membership.ErrNoAPIToken, made.ID)
		refused(t, err, membership.ErrRefused, "chainmail token list")

		_, err = nodes[0].m.AddAPIToken(ctx, "x", "write", time.Time{})
		refused(t, err, membership.ErrRefused, `"write" is not a scope`)
		other := c.node("x")
		other.create()
		other.start()
		foreign := other.apiToken("x", api.ScopeRead, time.Time{})
		_, err = nodes[0].m.CheckAPIToken(foreign.Secret)
		refused(t, err, membership.ErrAPIToken, "belongs to another cluster than the node a")
		forged, _ := api.ParseSecret(api.APITokenPrefix, short.Secret)
		forged.Key[0]++
		for text, words := range map[string]string{
			"":                               "begins with 'chainmail-api-1.'",
			"cm_secret":                      "begins with 'chainmail-api-1.'",
			made.Secret + "A":                "begins with 'chainmail-api-1.'",
			nodes[0].token():                 "begins with 'chainmail-api-1.'",
			forged.Text(api.APITokenPrefix):  "is not known",
			made.Secret[:len(made.Secret)-2]: "or not the whole of it",
		} {
			_, err := nodes[0].m.CheckAPIToken(text)
			refused(t, err, membership.ErrAPIToken, words)
		}
	})
}

// TestAPITokensWithoutQuorum: tokens work without one, and cannot be changed.
func TestAPITokensWithoutQuorum(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		made := nodes[0].apiToken("backup", api.ScopeRead, time.Time{})
		c.settled(2)
		nodes[1].kill()
		c.eventually(time.Minute, "no quorum", func() bool { return !nodes[0].m.Quorum() })
		_, err := nodes[0].m.AddAPIToken(t.Context(), "x", api.ScopeRead, time.Time{})
		refused(t, err, membership.ErrNoQuorum, "missing: b")
		_, err = nodes[0].m.RevokeAPIToken(t.Context(), made.ID)
		refused(t, err, membership.ErrNoQuorum, "the token works until it is revoked: no leader")
		nodes[0].kill()
		nodes[0].start()
		if !nodes[0].opens(made) {
			t.Error("it needs a quorum")
		}
	})
}

// TestRevokedStaysRevoked: neither a restart without a quorum, which leaves a
// node with an old snapshot, nor a partition brings a revoked token back; and
// who slept through all of it is brought up by a snapshot.
func TestRevokedStaysRevoked(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		away := nodes[2]
		made := nodes[0].apiToken("backup", api.ScopeRead, time.Time{})
		c.settled(3)
		away.kill()
		kept := nodes[0].apiToken("kept", api.ScopeRead, time.Time{})
		for i := range 150 { // more than Raft keeps behind a snapshot
			extra := nodes[i%2].apiToken(fmt.Sprint(i), api.ScopeCluster, time.Time{})
			if _, err := nodes[(i+1)%2].m.RevokeAPIToken(t.Context(), extra.ID); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Minute) // snapshots are made
		if files, err := filepath.Glob(filepath.Join(nodes[0].dir, "raft", "snapshots", "*")); err != nil || len(files) < 2 {
			t.Errorf("no snapshot was made: %v, %v", files, err)
		}
		if _, err := nodes[1].m.RevokeAPIToken(t.Context(), made.ID); err != nil { // after the snapshot
			t.Fatal(err)
		}
		c.eventually(time.Second, "a has heard of it", func() bool { return !nodes[0].opens(made) })

		nodes[0].kill()
		nodes[1].kill()
		nodes[0].start() // alone: Raft has its snapshot, and cannot say what was committed after it
		for range 100 {
			if nodes[0].opens(made) {
				t.Fatal("a restart brought a revoked token back")
			}
			if !nodes[0].opens(kept) {
				t.Fatal("a restart lost a token")
			}
			time.Sleep(100 * time.Millisecond)
		}
		away.start()
		if !away.opens(made) {
			t.Error("this test shows nothing: c has not slept through anything")
		}
		nodes[1].start()
		c.settled(3)
		for _, n := range nodes {
			if n.opens(made) || !n.opens(kept) || len(n.m.APITokens()) != 1 {
				t.Errorf("%s takes the revoked one: %v, the other one: %v, of %d", n.name, n.opens(made), n.opens(kept), len(n.m.APITokens()))
			}
		}
	})
}

// TestRecoverKeepsAPITokens: those who read go on reading.
func TestRecoverKeepsAPITokens(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		made := nodes[0].apiToken("backup", api.ScopeRead, time.Time{})
		c.settled(2)
		nodes[0].kill()
		nodes[1].kill()
		if _, err := membership.Recover(nodes[1].dir); err != nil {
			t.Fatal(err)
		}
		nodes[1].start()
		c.settled(1)
		if !nodes[1].opens(made) {
			t.Error("it is gone")
		}
		if _, err := nodes[1].m.RevokeAPIToken(t.Context(), made.ID); err != nil || nodes[1].opens(made) {
			t.Errorf("it cannot be revoked: %v", err)
		}
	})
}

// TestPublicTLS: who has the CA, or its hash from a token, knows each member by
// the name that all of them have, before and after its certificate is replaced.
func TestPublicTLS(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		made := nodes[0].apiToken("balancer", api.ScopeCluster, time.Time{})
		secret, _ := api.ParseSecret(api.APITokenPrefix, made.Secret)
		block, rest := pem.Decode(nodes[1].m.CA())
		if block == nil || len(rest) > 0 || sha256.Sum256(block.Bytes) != secret.CA {
			t.Fatalf("the CA is not the token's: %s", nodes[1].m.CA())
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(nodes[1].m.CA())
		verify := func(n *testNode) {
			t.Helper()
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				balancer := &tls.Config{RootCAs: roots, ServerName: api.NodeName, MaxVersion: version, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					t.Error("a balancer is asked for a certificate")
					return &tls.Certificate{}, nil
				}}
				state, cErr, sErr := handshake(c, balancer, n.m.PublicTLS())
				if cErr != nil || sErr != nil {
					t.Errorf("%s: %v, %v", n.name, cErr, sErr)
				}
				if _, err := n.m.PeerOf(state); err == nil {
					t.Error("a balancer is taken for a member")
				}
			}
		}
		for _, n := range nodes {
			verify(n)
		}
		before := nodes[1].certificates()
		if _, err := nodes[0].m.RotateKeys(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.eventually(5*time.Minute, "new certificates", func() bool { return nodes[0].m.Rotating() == "" && nodes[1].certificates()[0] != before[0] })
		time.Sleep(time.Minute)
		for _, n := range nodes {
			verify(n)
		}
	})
}

// TestBalancersPolicy: what people write becomes what all nodes agree on.
func TestBalancersPolicy(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b")
		list := []string{"192.0.2.17/28", "192.0.2.10", "192.0.2.10"}
		if _, err := nodes[1].m.SetPolicies(t.Context(), api.PolicyChange{Balancers: &list}); err != nil {
			t.Fatal(err)
		}
		c.settled(2)
		if got, _ := json.Marshal(nodes[0].m.View().Policies.Balancers); string(got) != `["192.0.2.10","192.0.2.16/28"]` {
			t.Errorf("%s", got)
		}
		_, err := nodes[1].m.SetPolicies(t.Context(), api.PolicyChange{Balancers: &[]string{"lb"}})
		refused(t, err, membership.ErrRefused, `"lb" is no IP address`)
		if _, err := nodes[0].m.SetPolicies(t.Context(), api.PolicyChange{Balancers: &[]string{}}); err != nil {
			t.Fatal(err)
		}
		c.settled(2)
		if got := nodes[1].m.View().Policies.Balancers; len(got) != 0 {
			t.Errorf("%v", got)
		}
	})
}
