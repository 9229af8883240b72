package httpd_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"chainmail/node/api"
	"chainmail/node/httpd"
)

func TestTokenLife(t *testing.T) {
	n := start(t, nil)
	expires := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	request, err := json.Marshal(api.TokenRequest{Name: " Sicherung ü ", ExpiresAt: expires})
	if err != nil {
		t.Fatal(err)
	}
	var made api.Token
	n.admin("POST", "/api/v1/tokens", string(request)).json(http.StatusCreated, &made)
	if made.Name != "Sicherung ü" || made.Scope != api.ScopeRead || !made.ExpiresAt.Equal(expires) || !strings.HasPrefix(made.Secret, api.APITokenPrefix) {
		t.Errorf("made %+v", made)
	}
	status := func(secret string) reply { return n.public("GET", "/api/v1/status", "", "Authorization", secret) }
	status("Bearer " + made.Secret).want(http.StatusOK)
	status("bearer   " + made.Secret).want(http.StatusOK)
	for _, wrong := range []string{"Bearer", "Bearer ", "Basic " + made.Secret, made.Secret, "Bearer " + made.Secret + "x", "Bearer " + made.ID} {
		status(wrong).refused(http.StatusUnauthorized, "chainmail token api")
	}
	var l api.TokenList
	r := n.admin("GET", "/api/v1/tokens", "")
	r.json(http.StatusOK, &l)
	if len(l.Tokens) != 3 || l.Tokens[2].ID != made.ID || strings.Contains(string(r.body), "secret") {
		t.Errorf("listed %s", r.body)
	}
	var done api.Changed
	n.admin("DELETE", "/api/v1/tokens/"+made.ID, "").json(http.StatusOK, &done)
	if done.Epoch != 9 || !strings.Contains(done.Message, "b is not reached") {
		t.Errorf("%+v", done)
	}
	status("Bearer "+made.Secret).refused(http.StatusUnauthorized, "revoked")
	n.admin("DELETE", "/api/v1/tokens/"+made.ID, "").refused(http.StatusNotFound, made.ID)
	status("Bearer " + n.token).want(http.StatusOK)
}

// TestNoTokens: none is an empty list.
func TestNoTokens(t *testing.T) {
	n := start(t, func(o *httpd.Options) { o.Address = "" })
	for _, tok := range n.tokens.List() {
		n.admin("DELETE", "/api/v1/tokens/"+tok.ID, "").want(http.StatusOK)
	}
	if got := n.admin("GET", "/api/v1/tokens", "").want(http.StatusOK); string(got.body) != "{\"tokens\":[]}\n" {
		t.Errorf("%s", got.body)
	}
}

func TestTokenRefusals(t *testing.T) {
	n := start(t, nil)
	for body, words := range map[string]string{
		``:                               "send JSON",
		`{"name":""}`:                    "printable",
		`{"name":"a\nb"}`:                "printable",
		`{"name":"x","expires":"never"}`: "expires",
		`{"name":"x","scope":"write"}`:   `"write": give read for`,
		`{"name":"x","expires_at":"2001-01-01T00:00:00Z"}`: "future",
		`{"name":"` + strings.Repeat("x", 101) + `"}`:      "100",
		`{"name":"` + strings.Repeat("x", 100_000) + `"}`:  "too large",
	} {
		n.admin("POST", "/api/v1/tokens", body).refused(http.StatusBadRequest, words)
	}
}

// TestTokensUnchanged: what the cluster does not commit has no effect, and the
// answer says why.
func TestTokensUnchanged(t *testing.T) {
	n := start(t, nil)
	for code, err := range map[int]error{
		http.StatusServiceUnavailable:  &httpd.StatusError{Code: http.StatusServiceUnavailable, Text: "no leader: start b"},
		http.StatusConflict:            &httpd.StatusError{Code: http.StatusConflict, Text: "there are too many: no leader"},
		http.StatusInternalServerError: errors.New("no leader"),
	} {
		n.tokens.err = err
		r := n.admin("POST", "/api/v1/tokens", `{"name":"x"}`)
		r.refused(code, "no leader")
		if strings.Contains(string(r.body), api.APITokenPrefix) {
			t.Error("a secret was shown")
		}
		if code != http.StatusConflict {
			n.admin("DELETE", "/api/v1/tokens/"+n.tokens.List()[0].ID, "").refused(code, "no leader")
		}
	}
	n.get("/api/v1/status").want(http.StatusOK)
}

// TestScopeCluster: a token that a balancer keeps opens the cluster, and no
// mail.
func TestScopeCluster(t *testing.T) {
	n, _, _ := startCluster(t, nil)
	opened := 0
	for _, rt := range n.server.RouteInfos() {
		method, path, _ := strings.Cut(rt.Pattern, " ")
		path = strings.NewReplacer("{id}", "abcd1234", "{name}", "b").Replace(path)
		got := n.public(method, path, "", "Authorization", "Bearer "+n.clusterToken)
		switch {
		case rt.Open:
			opened++
		case rt.Pattern == "GET /api/v1/cluster":
			got.want(http.StatusOK)
		case rt.Admin:
			got.refused(http.StatusForbidden, "administrator")
		case rt.Nodes:
			got.refused(http.StatusForbidden, "nodes of the cluster")
		default:
			got.refused(http.StatusForbidden, "scope cluster", "GET /api/v1/cluster and nothing else", "--scope read")
		}
	}
	if opened != 6 {
		t.Errorf("%d routes are open: is that meant? what they tell, they tell everybody", opened)
	}
}
