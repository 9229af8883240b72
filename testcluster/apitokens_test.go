package testcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"chainmail/node/api"
	"chainmail/node/client"
)

// balancer is a host that has nothing of the cluster but a token.
func balancer(t *testing.T, c *Cluster, node, token string) *client.Client {
	t.Helper()
	r, err := client.NewRemoteOn(node+":"+httpPort, token, c.Net.Host("balancer").Dial)
	c.must(err, "make a client for %s", node)
	t.Cleanup(r.Close)
	return r
}

// answered wants a refusal with this status and these words.
func answered(t *testing.T, err error, status int, words string) {
	t.Helper()
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != status || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v\nwant status %d and %q", err, status, words)
	}
}

// TestAPITokensOfACluster: a token that one node made opens all of them, to
// whom it was given for, over TLS that needs nothing but the token; and revoked
// on another node it opens none, as soon as that one knows.
func TestAPITokensOfACluster(t *testing.T) {
	Virtual(t, Options{Nodes: 3}, func(t *testing.T, c *Cluster) {
		ctx := t.Context()
		made := func(node, scope string) api.Token {
			token, err := c.Client(node).MakeToken(ctx, api.TokenRequest{Name: "test", Scope: scope})
			c.must(err, "make a token on %s", node)
			return token
		}
		watch, read := made("a", api.ScopeCluster), made("b", "")
		time.Sleep(time.Second)
		for _, name := range []string{"a", "b", "c"} {
			r := balancer(t, c, name, watch.Secret)
			if seen, err := r.Cluster(ctx); err != nil || seen.Node != name || len(seen.Members) != 3 {
				t.Errorf("%s: %+v, %v", name, seen, err)
			}
			if ca, err := r.CA(ctx); err != nil || !strings.Contains(string(ca), "BEGIN CERTIFICATE") {
				t.Errorf("%s: %s, %v", name, ca, err)
			}
			_, err := r.Status(ctx)
			answered(t, err, http.StatusForbidden, "scope cluster")
			for _, err := range r.Messages(ctx, client.Query{}) {
				answered(t, err, http.StatusForbidden, "scope cluster")
			}
			if _, err := balancer(t, c, name, read.Secret).Status(ctx); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if tokens, err := c.Client(name).Tokens(ctx); err != nil || len(tokens) != 2 || tokens[1].Scope != api.ScopeRead {
				t.Errorf("%s lists %+v, %v", name, tokens, err)
			}
		}
		_, err := c.Client("b").RevokeToken(ctx, "none")
		answered(t, err, http.StatusNotFound, "chainmail token list")

		c.Kill("c") // it sleeps through what follows
		c.Await("a", "c", api.StateUnreachable)
		c.Eventually(time.Minute, "c is known to be away", func() error {
			extra := made("a", api.ScopeCluster)
			done, err := c.Client("b").RevokeToken(ctx, extra.ID)
			if err == nil && !strings.Contains(done.Message, "told when they are back: c") {
				err = fmt.Errorf("the answer names nobody: %s", done.Message)
			}
			return err
		})
		_, err = c.Client("b").RevokeToken(ctx, watch.ID)
		c.must(err, "revoke a token")
		for _, name := range []string{"a", "b"} {
			c.Eventually(time.Second, name+" refuses it", func() error {
				if _, err := balancer(t, c, name, watch.Secret).Cluster(ctx); err == nil {
					return errors.New("it is taken")
				}
				return nil
			})
			_, err := balancer(t, c, name, watch.Secret).Cluster(ctx)
			answered(t, err, http.StatusUnauthorized, "revoked")
		}
		c.Start("c")
		c.Eventually(time.Minute, "c refuses it", func() error {
			if _, err := balancer(t, c, "c", watch.Secret).Cluster(ctx); err == nil {
				return errors.New("it is taken")
			}
			return nil
		})

		// Without a quorum tokens work, and nothing is changed.
		c.Kill("a", "c")
		c.Eventually(time.Minute, "no quorum", func() error {
			if v, err := c.View("b"); err != nil || v.Quorum {
				return fmt.Errorf("quorum: %t, %w", v.Quorum, err)
			}
			return nil
		})
		if _, err := balancer(t, c, "b", read.Secret).Status(ctx); err != nil {
			t.Error(err)
		}
		_, err = c.Client("b").MakeToken(ctx, api.TokenRequest{Name: "late"})
		answered(t, err, http.StatusServiceUnavailable, "a majority of the voters")
		_, err = c.Client("b").RevokeToken(ctx, read.ID)
		answered(t, err, http.StatusServiceUnavailable, "the token works until it is revoked")
		c.Start("a", "c")
	})
}

// TestSyncz: a node that was away lacks what came meanwhile, says so, and says
// when it has it.
func TestSyncz(t *testing.T) {
	Virtual(t, Options{Nodes: 2}, func(t *testing.T, c *Cluster) {
		h := &http.Client{Timeout: answerTime, Transport: &http.Transport{DialContext: c.Net.Host("balancer").Dial}}
		t.Cleanup(h.CloseIdleConnections)
		syncz := func(name string) (code int, s api.Sync) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+name+":"+httpPort+"/syncz", nil)
			c.must(err, "make a request")
			resp, err := h.Do(r)
			if err != nil {
				return 0, s
			}
			defer resp.Body.Close()
			c.must(json.NewDecoder(resp.Body).Decode(&s), "read the answer")
			return resp.StatusCode, s
		}
		synced := func(name string) error {
			if code, s := syncz(name); code != http.StatusOK || !s.InSync || s.Lacks == nil || *s.Lacks != 0 {
				return fmt.Errorf("%s is answered %d %+v", name, code, s)
			}
			return nil
		}
		for _, name := range []string{"a", "b"} {
			c.Eventually(10*time.Second, name+" is in sync", func() error { return synced(name) })
		}
		backfill := int64(1 << 10) // a second: slowly, so that it can be seen
		c.Set(api.PolicyChange{BackfillRate: &backfill})
		c.Kill("b")
		c.Send("a", 200)
		c.Start("b")
		c.Eventually(10*time.Second, "b says what it lacks", func() error {
			code, s := syncz("b")
			if code != http.StatusServiceUnavailable || s.InSync || s.Lacks == nil || *s.Lacks < 50 || !strings.Contains(s.Reason, "it lacks") {
				return fmt.Errorf("it is answered %d %+v", code, s)
			}
			return nil
		})
		if err := synced("a"); err != nil {
			t.Error(err)
		}
		backfill = 0
		c.Set(api.PolicyChange{BackfillRate: &backfill})
		c.Eventually(time.Minute, "b is in sync", func() error { return synced("b") })
		c.Kill("a")
		c.Kill("b")
		c.Start("b")
		if code, s := syncz("b"); code != http.StatusServiceUnavailable || s.Lacks != nil || !strings.Contains(s.Reason, "not known") {
			t.Errorf("alone after a start b is answered %d %+v", code, s)
		}
		c.Start("a")
	})
}
